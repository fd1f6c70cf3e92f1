# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A page map as a picture
-----------------------

Physical memory in rows, as text is: from left to right, and then the next row; one
colour per class of pages, addresses at the side and a legend below. A row is several
squares high, and addresses go down each of its columns first, so that what lies
together makes a patch and not a thread. Rows in which there is no memory are left out.
As PNG; or as SVG, where the map is such a picture and the text is text.
"""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.export import font
from drgn_tools.output import files
from drgn_tools.page_map import (
    FOREIGN,
    HOLE,
    LEFT_OUT,
    RESERVED,
    PageMap,
    Total,
)
from drgn_tools.pages import PageClass
from drgn_tools.text import binary_size, percent, printable

#: Colours by kind of page: what the kernel uses for itself is blue, page cache green,
#: user memory orange, so that a mistaken shade is no mistaken use. With any usual kind
#: of colour blindness, they differ in hue or lightness.
COLOURS = {
    PageClass.KERNEL: 0x0072B2,
    PageClass.SLAB: 0x56B4E9,
    PageClass.PAGE_TABLE: 0x332288,
    PageClass.ZSMALLOC: 0xCC79A7,
    PageClass.LARGE_KMALLOC: 0x7A86E0,
    PageClass.CACHE: 0x24B184,
    PageClass.CACHE_PRIVATE: 0x00664B,
    PageClass.ANON: 0xF0A828,
    PageClass.HUGETLB: 0xD55E00,
    PageClass.FREE: 0xDADADA,
    PageClass.UNACCEPTED: 0xF0E442,
    PageClass.OFFLINE: 0x808080,
    PageClass.HWPOISON: 0x000000,
    PageClass.UNKNOWN: 0xC51B7D,
    RESERVED: 0xC9B79C,
    FOREIGN: 0x8C6D46,
    HOLE: 0xFFFFFF,
}
_INK, _FAINT, _PAPER = 0x222222, 0x777777, 0xFFFFFF
# How much white is in the colour of what is not in the dump.
_PALE = 0.65
# Kinds that stand for all that are pale: they share a sample.
_SAMPLES = (PageClass.KERNEL, PageClass.CACHE, PageClass.ANON)

# Pixels. The map is as wide whatever there is to show, and about as high.
_WIDTH = 1024
_MAX_HEIGHT = 720
_ROW = 16
_SIDES = (8, 4, 2, 1)
_MARGIN = 16
_SCALE = 96
_BAND_GAP = 20
_TICK_DISTANCE = 32
_TICK = 6
_LINE = 20
_SWATCH = 14
# The legend: how many columns, and where in one of them numbers end.
_COLUMNS = 3
_SIZE_END = 246
_SHARE_END = 310


class _Band(NamedTuple):
    # Rows of the map that follow each other.
    y: int
    first: int
    """Number of its first row; row 0 begins at address 0."""
    rows: int
    squares: npt.NDArray[np.uint8]
    """As they are drawn."""


class _Layout(NamedTuple):
    # Where everything is, in pixels from the left and upper corner of the map.
    side: int
    """Of a square."""
    square_bytes: int
    row_bytes: int
    bands: list[_Band]
    height: int
    ticks: list[tuple[int, str]]
    gaps: list[tuple[int, str]]


def page_png(page_map: PageMap) -> bytes:
    """The picture, as a PNG file."""
    layout = _layout(page_map)
    title, about = _title(page_map, layout)
    legend = _legend(page_map)
    map_x, map_y = _MARGIN + _SCALE, _MARGIN + 2 * _LINE + _MARGIN
    legend_y = map_y + layout.height + _MARGIN
    size = (
        legend_y + -(-len(legend) // _COLUMNS) * _LINE + _MARGIN,
        map_x + _WIDTH + _MARGIN,
    )
    colours = _Colours()
    canvas = np.full(size, colours.index(_PAPER), np.uint8)

    def write(x: int, y: int, text: str, colour: int = _INK) -> None:
        ink = font.draw(text)
        place = canvas[y : y + ink.shape[0], x : x + ink.shape[1]]
        place[ink[: place.shape[0], : place.shape[1]]] = colours.index(colour)

    def box(x: int, y: int, width: int, height: int, colour: int) -> None:
        canvas[y : y + height, x : x + width] = colours.index(colour)

    write(map_x, _MARGIN, title)
    write(map_x, _MARGIN + _LINE, about, _FAINT)
    for y, _, _, squares in layout.bands:
        pixels = colours.of_squares(squares)
        pixels = pixels.repeat(layout.side, axis=0).repeat(layout.side, axis=1)
        top = map_y + y
        canvas[top : top + len(pixels), map_x : map_x + _WIDTH] = pixels
    for y, label in layout.ticks:
        box(map_x - _TICK - 2, map_y + y, _TICK, 1, _FAINT)
        x = map_x - _TICK - 6 - font.WIDTH * len(label)
        write(x, map_y + y - font.HEIGHT // 2, label)
    for y, label in layout.gaps:
        x = map_x + (_WIDTH - font.WIDTH * len(label)) // 2
        write(x, map_y + y + (_BAND_GAP - font.HEIGHT) // 2, label, _FAINT)
    for number, entry in enumerate(legend):
        row, column = divmod(number, _COLUMNS)
        x, y = map_x + column * (_WIDTH // _COLUMNS), legend_y + row * _LINE
        box(x, y, _SWATCH, _SWATCH, _FAINT)
        for place, width, colour in _stripes(entry.colours):
            box(x + 1 + place, y + 1, width, _SWATCH - 2, colour)
        write(x + _SWATCH + 8, y, entry.label)
        write(x + _SIZE_END - font.WIDTH * len(entry.size), y, entry.size)
        write(x + _SHARE_END - font.WIDTH * len(entry.share), y, entry.share)
    return _png(canvas, colours.table)


def page_svg(page_map: PageMap, width: int | None = None) -> str:
    """
    The picture, as an SVG file or as part of an HTML page.

    :param width: in CSS pixels; without, as wide as it is drawn.
    """
    layout = _layout(page_map)
    title, about = _title(page_map, layout)
    legend = _legend(page_map)
    map_x, map_y = _MARGIN + _SCALE, _MARGIN + 2 * _LINE + _MARGIN
    legend_y = map_y + layout.height + _MARGIN
    right = map_x + _WIDTH + _MARGIN
    bottom = legend_y + -(-len(legend) // _COLUMNS) * _LINE + _MARGIN
    width = width or right
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" '
        f'width="{width}" height="{round(bottom * width / right)}" role="img" '
        f'font-family="sans-serif" font-size="14" fill="{_css(_INK)}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{right}" height="{bottom}" fill="{_css(_PAPER)}"/>',
        f'<text x="{map_x}" y="{_MARGIN + 14}" font-size="16" font-weight="bold">'
        f"{escape(title)}</text>",
        f'<text x="{map_x}" y="{_MARGIN + _LINE + 14}" fill="{_css(_FAINT)}">'
        f"{escape(about)}</text>",
    ]
    for y, _, _, squares in layout.bands:
        colours = _Colours()
        picture = base64.b64encode(_png(colours.of_squares(squares), colours.table))
        out.append(
            f'<image x="{map_x}" y="{map_y + y}" width="{_WIDTH}" '
            f'height="{len(squares) * layout.side}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{picture.decode()}"/>'
        )
    for y, label in layout.ticks:
        out.append(
            f'<path d="M{map_x - 2} {map_y + y + 0.5}h-{_TICK}" '
            f'stroke="{_css(_FAINT)}"/>'
            f'<text x="{map_x - _TICK - 6}" y="{map_y + y + 5}" text-anchor="end">'
            f"{label}</text>"
        )
    for y, label in layout.gaps:
        out.append(
            f'<text x="{map_x + _WIDTH // 2}" y="{map_y + y + 15}" '
            f'text-anchor="middle" fill="{_css(_FAINT)}">{label}</text>'
        )
    for number, entry in enumerate(legend):
        row, column = divmod(number, _COLUMNS)
        x, y = map_x + column * (_WIDTH // _COLUMNS), legend_y + row * _LINE
        # The frame last: the text follows it.
        first, *more = entry.colours
        out += [
            f'<path d="M{x + 1 + place} {y + 1}h{width}v{_SWATCH - 2}h-{width}z" '
            f'fill="{_css(colour)}"/>'
            for place, width, colour in _stripes(entry.colours)
            if more
        ]
        out.append(
            f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{_SWATCH - 1}" '
            f'height="{_SWATCH - 1}" fill="{"none" if more else _css(first)}" '
            f'stroke="{_css(_FAINT)}"/>'
            f'<text x="{x + _SWATCH + 8}" y="{y + 12}">{escape(entry.label)}</text>'
            f'<text x="{x + _SIZE_END}" y="{y + 12}" text-anchor="end">'
            f"{entry.size}</text>"
            f'<text x="{x + _SHARE_END}" y="{y + 12}" text-anchor="end">'
            f"{escape(entry.share)}</text>"
        )
    out.append("</svg>\n")
    return "\n".join(out)


def save(page_map: PageMap, path: str, force: bool) -> int:
    """
    Write the picture to a file that has its name once it is whole.

    :param path: ends with ``.svg``, or the picture is a PNG.
    :param force: it may replace a file.
    :return: how many bytes it has.
    :raises DumpError: if it cannot be written.
    """
    svg = path.endswith(".svg")
    data = page_svg(page_map).encode() if svg else page_png(page_map)
    with files(path, force=force) as (file,):
        file.write(data, 0)
        file.finish(len(data))
    return len(data)


def colour_of(square: int) -> int:
    """The colour of a square of a :class:`~drgn_tools.page_map.Grid`, as 0xRRGGBB."""
    colour = COLOURS.get(square & ~LEFT_OUT, COLOURS[PageClass.UNKNOWN])
    if not square & LEFT_OUT:
        return colour
    channels = (colour >> shift & 255 for shift in (16, 8, 0))
    red, green, blue = (round(c + (255 - c) * _PALE) for c in channels)
    return red << 16 | green << 8 | blue


class _Colours:
    # The colours of a picture, numbered as they come.
    def __init__(self) -> None:
        self.table: list[int] = []

    def index(self, colour: int) -> int:
        if colour not in self.table:
            self.table.append(colour)
        return self.table.index(colour)

    def of_squares(self, squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        numbers = np.zeros(256, np.uint8)
        for square in np.flatnonzero(np.bincount(squares.ravel())).tolist():
            numbers[square] = self.index(colour_of(square))
        return numbers[squares]


def _css(colour: int) -> str:
    return f"#{colour:06x}"


def _png(pixels: npt.NDArray[np.uint8], colours: list[int]) -> bytes:
    # Numbers of colours, four or eight bits each.
    height, width = pixels.shape
    bits = 8
    if len(colours) <= 16:
        bits = 4
        if width % 2:
            pixels = np.pad(pixels, ((0, 0), (0, 1)))
        pixels = pixels[:, ::2] << np.uint8(4) | pixels[:, 1::2]
    # Each row begins with its filter: none.
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0)),
            chunk(b"PLTE", b"".join(colour.to_bytes(3, "big") for colour in colours)),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        )
    )


def _title(page_map: PageMap, layout: _Layout) -> tuple[str, str]:
    memory = binary_size(page_map.pages * page_map.page_size)
    pages = layout.square_bytes // page_map.page_size
    square = "a page" if pages == 1 else f"{pages} pages, {_size(layout.square_bytes)}"
    return (
        f"Linux {printable(page_map.release)[:64] or 'unknown'}: {memory} of memory",
        f"A square is {square}; a row is {_size(layout.row_bytes)}.",
    )


class _Entry(NamedTuple):
    # A line of the legend.
    colours: tuple[int, ...]
    label: str
    size: str = ""
    share: str = ""


def _legend(page_map: PageMap) -> list[_Entry]:
    every = page_map.pages

    def entry(total: Total, share: str = "") -> _Entry:
        size = binary_size(total.pages * page_map.page_size)
        return _Entry((colour_of(total.kind),), total.label, size, share)

    legend = [entry(total, percent(total.pages, every)) for total in page_map.classes]
    legend += [entry(total) for total in page_map.beside]
    if page_map.filtered:
        # Several: one alone might be taken for a class of its own.
        pale = tuple(colour_of(kind | LEFT_OUT) for kind in _SAMPLES)
        legend.append(_Entry(pale, "pale: not in the dump"))
    return legend


def _stripes(colours: tuple[int, ...]) -> list[tuple[int, int, int]]:
    # Places, widths and colours within a sample.
    width = (_SWATCH - 2) // len(colours)
    return [(width * number, width, colour) for number, colour in enumerate(colours)]


def _layout(page_map: PageMap) -> _Layout:
    grid = page_map.grid
    per_tile = grid.tiles.shape[1]
    squares = grid.tiles.reshape(-1)
    numbers = (grid.numbers[:, None] * per_tile + np.arange(per_tile)).reshape(-1)
    known = squares & ~np.uint8(LEFT_OUT) != HOLE
    squares, numbers = squares[known], numbers[known]
    pfns = grid.square_pfns
    for side in _SIDES:
        bands = _bands(squares, numbers, side)
        if _height(bands) <= _MAX_HEIGHT:
            break
    while _height(bands) > _MAX_HEIGHT:
        squares, numbers = _halved(squares, numbers)
        pfns *= 2
        bands = _bands(squares, numbers, side)
    row_bytes = _squares_per_row(side) * pfns * page_map.page_size
    step = _TICK_DISTANCE // _ROW * row_bytes
    ticks = []
    gaps = []
    for index, (y, first, rows, _) in enumerate(bands):
        for row in range(first, first + rows):
            if row == first or (row * row_bytes % step == 0 and row > first + 1):
                ticks.append((y + (row - first) * _ROW, _size(row * row_bytes)))
        if index + 1 < len(bands):
            gap = (bands[index + 1].first - first - rows) * row_bytes
            gaps.append((y + rows * _ROW, f"{_size(gap)} without memory"))
    return _Layout(
        side,
        pfns * page_map.page_size,
        row_bytes,
        bands,
        _height(bands),
        ticks,
        gaps,
    )


def _squares_per_row(side: int) -> int:
    return _WIDTH // side * (_ROW // side)


def _bands(
    squares: npt.NDArray[np.uint8], numbers: npt.NDArray[np.int64], side: int
) -> list[_Band]:
    per_row = _squares_per_row(side)
    rows = numbers // per_row
    used = rows[np.diff(rows, prepend=-1) > 0]
    # A gap is to be worth the line that says so.
    breaks = np.flatnonzero(np.diff(used) > 2) + 1
    bands: list[_Band] = []
    y = 0
    for part in np.split(used, breaks) if len(used) else []:
        first, count = int(part[0]), int(part[-1] - part[0]) + 1
        start, stop = np.searchsorted(rows, [first, first + count])
        flat = np.full(count * per_row, HOLE, np.uint8)
        flat[numbers[start:stop] - first * per_row] = squares[start:stop]
        # Rows of columns, as rows of lines.
        drawn = flat.reshape(count, _WIDTH // side, _ROW // side).swapaxes(1, 2)
        bands.append(_Band(y, first, count, drawn.reshape(-1, _WIDTH // side)))
        y += count * _ROW + _BAND_GAP
        if y > 2 * _MAX_HEIGHT:
            break  # Whatever follows: it is too high.
    return bands


def _height(bands: list[_Band]) -> int:
    return bands[-1].y + bands[-1].rows * _ROW if bands else 0


def _halved(
    squares: npt.NDArray[np.uint8], numbers: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    # Each two squares as one: the first of them, or what is poisoned.
    halves = numbers // 2
    first = np.flatnonzero(np.diff(halves, prepend=-1) > 0)
    chosen = squares[first].copy()
    last = np.append(first[1:], len(halves)) - 1
    poisoned = squares[last] & ~np.uint8(LEFT_OUT) == PageClass.HWPOISON
    chosen[poisoned] = squares[last][poisoned]
    return chosen, halves[first]


def _size(size: int) -> str:
    # An exact size or address, in a unit that needs few digits.
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift - 2) == 0:
            return f"{size / (1 << shift):g} {unit}"
    return str(size)
