# SPDX-License-Identifier: LGPL-2.1-or-later
"""A memory map's picture, read as a person does: by its scale and its legend."""

from __future__ import annotations

import base64
import io
import math
import re
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

_UNITS = {"KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
_SVG = "{http://www.w3.org/2000/svg}"
# Pixels.
_WIDTH, _ROW = 1024, 16


def size(text: str) -> int:
    """Bytes that a label speaks of."""
    number, _, unit = text.partition(" ")
    return int(float(number) * (1 << _UNITS[unit])) if unit else int(number)


class _Band(NamedTuple):
    x: int
    y: int
    height: int
    address: int


class Picture:
    """
    What a picture shows.

    :param svg: the picture as an SVG file.
    :param png: and as a PNG file.
    """

    def __init__(self, svg: str, png: bytes) -> None:
        root = ElementTree.fromstring(svg)
        self.png = _pixels(png)
        self.texts = [text.text or "" for text in root.iter(f"{_SVG}text")]
        about = re.fullmatch(
            r"A square is (?:a page|\d+ pages, (.*)); a row is (.*)\.", self.texts[1]
        )
        assert about, self.texts[1]
        self.square = size(about[1]) if about[1] else 4096
        self.row = size(about[2])
        #: Pixels of a square.
        self.side = math.isqrt(_WIDTH * _ROW * self.square // self.row)
        #: Names of colours.
        self.legend = {}
        boxes = {
            (float(rect.get("y", "0")) - 0.5, float(rect.get("x", "0")) - 0.5): rect
            for rect in root.iter(f"{_SVG}rect")
        }
        #: What the scale says, by how far below the upper edge.
        self.scale = {}
        for text in root.iter(f"{_SVG}text"):
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            box = boxes.get((y - 12, x - 22))
            if box is not None:
                self.legend[box.get("fill", "")] = text.text or ""
            elif text.get("text-anchor") == "end" and x < 112:
                self.scale[y - 5] = size(text.text or "")
        self.bands = []
        for image in root.iter(f"{_SVG}image"):
            kind, _, data = image.get("href", "").partition(",")
            assert kind == "data:image/png;base64"
            y = int(image.get("y", ""))
            x, height = int(image.get("x", "")), int(image.get("height", ""))
            self.bands.append(_Band(x, y, height, self.scale[y]))
            inner = _pixels(base64.b64decode(data))
            inner = inner.repeat(self.side, axis=0).repeat(self.side, axis=1)
            drawn = self.png[y : y + height, x : x + _WIDTH]
            assert (drawn == inner).all(), "PNG and SVG show the same"

    def kinds(self, paddrs: npt.NDArray[np.int64]) -> list[str]:
        """What the legend says of the places of addresses; empty where no row is."""
        colours = np.full((len(paddrs), 3), 255, np.uint8)
        for band in self.bands:
            rows, within = np.divmod(paddrs - band.address, self.row)
            columns, lines = np.divmod(within // self.square, _ROW // self.side)
            here = (rows >= 0) & (rows < band.height // _ROW)
            x = band.x + columns[here] * self.side
            y = band.y + rows[here] * _ROW + lines[here] * self.side
            colours[here] = self.png[y, x]
        return [self.legend.get(f"#{c.tobytes().hex()}", "") for c in colours]

    def colour(self, paddr: int) -> str:
        """The colour of one place; empty where no row is."""
        for band in self.bands:
            row, within = divmod(paddr - band.address, self.row)
            if 0 <= row < band.height // _ROW:
                column, line = divmod(within // self.square, _ROW // self.side)
                y = band.y + row * _ROW + line * self.side
                pixel: bytes = self.png[y, band.x + column * self.side].tobytes()
                return f"#{pixel.hex()}"
        return ""


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGB"))
