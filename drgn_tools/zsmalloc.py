# SPDX-License-Identifier: LGPL-2.1-or-later
"""
zsmalloc
--------

From a handle to the bytes of its object, in every layout that zsmalloc had since
Linux 3.4, and all objects of a pool. From :linux:`mm/zsmalloc.c`.

Objects are read many at a time, each page of memory once. What is read is checked
against the object's own back-reference, the word at its head, so that a freed, moved
or damaged object is an error and not somebody else's data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program

from drgn_tools.gather import Flags, Pages, Words, gather, read_pages, words_of
from drgn_tools.zs_layout import (
    MAX_CHAIN,
    Classes,
    Encoding,
    Ints,
    Layout,
    ZsError,
    class_pointers,
    classes_of,
    state_of,
)

__all__ = (
    "ZsClass",
    "ZsError",
    "ZsObject",
    "for_each_zs_object",
    "zs_classes",
    "zs_is_missing",
    "zs_read",
    "zs_read_many",
    "zs_why",
)

_MAGIC = 0x58
# Zspages of a class that are walked.
_MAX_ZSPAGES = 1 << 24
# Objects that show how words are encoded.
_TRIED = 64


# How far an object was found. Those of _LACKS are holes in the dump.
_FOUND, _HANDLE, _UNMAPPED, _NO_PAGE, _NO_ZSPAGE, _NO_CLASS = range(6)
_NUMBER, _EXCLUDED, _HEAD, _SIZE, _CHAIN = range(6, 11)
_WHY = {
    _HANDLE: "is no address of an object word",
    _UNMAPPED: "cannot be read",
    _NO_PAGE: "leads to a page that has no struct page here",
    _NO_ZSPAGE: "leads to a page that is of no zspage: it is freed or being moved",
    _NO_CLASS: "leads to a zspage of no known size class",
    _NUMBER: "leads beyond its zspage",
    _EXCLUDED: "leads to a page that is not in the dump",
    _HEAD: "is not what its object says: it is freed or being moved",
    _SIZE: "leads to an object that is too small",
    _CHAIN: "leads to an object whose second page is lost",
}
_LACKS = (_UNMAPPED, _NO_PAGE, _EXCLUDED)


# --- from handles to places


class _Located(NamedTuple):
    # Objects, where they are; of those that are found.
    why: npt.NDArray[np.uint8]
    pfn: Words
    page: Words
    # Address of its struct page.
    start: Ints
    # In the page, with the head.
    head: Ints
    # Bytes of it; 0 for a huge object.
    room: Ints
    # Bytes of the rest.
    owner: Words
    # The zspage, or the first page.
    next: Words
    # struct page of the next one.
    back: Words
    # The head's word of a huge object.


def _fail(why: npt.NDArray[np.uint8], bad: Flags, reason: int) -> None:
    why[bad & (why == _FOUND)] = reason


def _locate(
    pool: Object, handles: Words, encoding: Encoding, *, direct: bool = False
) -> _Located:
    prog = pool.prog_
    layout = state_of(prog).layout
    why = np.zeros(len(handles), np.uint8)
    _fail(why, handles == 0, _HANDLE)
    words = handles
    if layout.indirect and not direct:
        _fail(why, handles % np.uint64(layout.word) != 0, _HANDLE)
        words, found = gather(prog, handles, layout.word, layout.page_size)
        _fail(why, ~found, _UNMAPPED)
    pfn = words >> np.uint64(encoding.shift)
    low = words & np.uint64((1 << encoding.shift) - 1)
    number = (low >> np.uint64(encoding.tag)).astype(np.int64)
    if not layout.indirect:
        # So that no handle is 0.
        number -= 1
        _fail(why, number < 0, _HANDLE)
    page = np.uint64(layout.memmap) + pfn * np.uint64(layout.page)
    _fail(why, page < np.uint64(layout.memmap), _NO_PAGE)
    locate = _by_zspage if layout.has_zspage else _by_first_page
    return locate(pool, why, pfn, page, number)


def _page_words(
    prog: Program, layout: Layout, pages: Words, offsets: Sequence[int]
) -> tuple[list[Words], Flags]:
    # Words of struct pages, read together.
    addresses = np.concatenate([pages + np.uint64(offset) for offset in offsets])
    values, found = gather(prog, addresses, layout.word, layout.page_size)
    count = len(pages)
    parts = [values[n * count : (n + 1) * count] for n in range(len(offsets))]
    return parts, np.asarray(found.reshape(len(offsets), count).all(axis=0), np.bool_)


def _placed(
    layout: Layout,
    classes: Classes,
    why: npt.NDArray[np.uint8],
    class_: Words,
    number: Ints,
) -> tuple[Ints, Ints]:
    # Size and number of pages of each object's class; numbers in bounds.
    _fail(why, class_ >= np.uint64(len(classes.size)), _NO_CLASS)
    index = np.where(why == _FOUND, class_, 0).astype(np.int64)
    size = classes.size[index]
    _fail(why, size == 0, _NO_CLASS)
    pages = classes.pages[index]
    fit = pages * layout.page_size // np.maximum(size, 1)
    _fail(why, (number < 0) | (number >= fit), _NUMBER)
    return size, pages


def _by_zspage(
    pool: Object, why: npt.NDArray[np.uint8], pfn: Words, page: Words, number: Ints
) -> _Located:
    prog = pool.prog_
    layout = state_of(prog).layout
    assert layout.class_ is not None and layout.magic is not None
    (flags, zspage, follows, back), found = _page_words(
        prog,
        layout,
        np.where(why == _FOUND, page, 0).astype(np.uint64),
        (layout.flags, layout.zspage, layout.next, layout.handle),
    )
    _fail(why, ~found, _NO_PAGE)
    word, found = gather(
        prog,
        np.where(why == _FOUND, zspage + np.uint64(layout.magic.offset), 0).astype(
            np.uint64
        ),
        4,
        layout.page_size,
    )
    _fail(why, ~found | (layout.magic.of(word) != _MAGIC), _NO_ZSPAGE)
    size, _ = _placed(layout, classes_of(pool), why, layout.class_.of(word), number)
    if layout.huge is not None:
        huge = layout.huge.of(word) != 0
    else:
        huge = (flags & np.uint64(layout.huge_flag or 0)) != 0
    # Only the last class is, of which an object is a page.
    _fail(why, huge & ((size != layout.page_size) | (number != 0)), _NO_CLASS)
    start = np.where(why == _FOUND, size * number % layout.page_size, 0)
    head = np.where(huge, 0, layout.word)
    return _Located(
        why,
        pfn,
        page,
        start,
        head,
        size - head,
        zspage,
        np.where(huge, 0, follows).astype(np.uint64),
        np.where(huge, back, 0).astype(np.uint64),
    )


def _by_first_page(
    pool: Object, why: npt.NDArray[np.uint8], pfn: Words, page: Words, number: Ints
) -> _Located:
    prog = pool.prog_
    layout = state_of(prog).layout
    wanted = np.where(why == _FOUND, page, 0).astype(np.uint64)
    (flags, first, index, private, lru), found = _page_words(
        prog,
        layout,
        wanted,
        (
            layout.flags,
            layout.first_page,
            layout.first_object,
            layout.handle,
            layout.lru,
        ),
    )
    _fail(why, ~found, _NO_PAGE)
    is_first = (flags & np.uint64(layout.private_flag)) != 0
    is_last = (flags & np.uint64(layout.last_flag)) != 0
    owner = np.where(is_first, page, first).astype(np.uint64)
    (mapping,), found = _page_words(
        prog,
        layout,
        np.where(why == _FOUND, owner, 0).astype(np.uint64),
        (layout.mapping,),
    )
    _fail(why, ~found, _NO_ZSPAGE)
    # Fullness is in the low 4 bits.
    class_ = (mapping >> np.uint64(4)) & np.uint64((1 << 28) - 1)
    classes = classes_of(pool)
    size, _ = _placed(layout, classes, why, class_, number)
    huge = classes.huge[np.where(why == _FOUND, class_, 0).astype(np.int64)]
    _fail(why, huge & (~is_first | (number != 0)), _NO_CLASS)
    # Objects are counted from the first that starts in the page.
    start = np.where(is_first, 0, index.astype(np.int64)) + number * size
    _fail(why, (start < 0) | (start > layout.page_size - layout.word), _NUMBER)
    head = np.where(huge | (not layout.indirect), 0, layout.word)
    follows = np.where(is_first, private, lru - np.uint64(layout.lru))
    return _Located(
        why,
        pfn,
        page,
        np.where(why == _FOUND, start, 0),
        head,
        size - head,
        owner,
        np.where(is_last | huge, 0, follows).astype(np.uint64),
        np.where(huge, private, 0).astype(np.uint64),
    )


def _owner_of(prog: Program, layout: Layout, pages: Words) -> tuple[Words, Flags]:
    # What a zspage's later pages have as their owner.
    offset = layout.zspage if layout.has_zspage else layout.first_page
    (owner,), found = _page_words(prog, layout, pages, (offset,))
    return owner, found


# --- from places to bytes


class _Found(NamedTuple):
    # Objects, and the pages that they are in.
    why: npt.NDArray[np.uint8]
    pages: Pages
    at: Ints
    # In pages.data, of the content; and of its second part.
    then: Ints
    cut: Ints
    # How many bytes are in the first part; both are whole if that is all.
    size: Ints


def _find(
    pool: Object, handles: Words, sizes: Ints | None, encoding: Encoding
) -> _Found:
    prog = pool.prog_
    layout = state_of(prog).layout
    located = _locate(pool, handles, encoding)
    why = located.why
    size = located.room if sizes is None else np.where(sizes < 0, located.room, sizes)
    _fail(why, size > located.room, _SIZE)
    size = np.where(why == _FOUND, size, 0)
    offset = located.start + located.head
    spans = (why == _FOUND) & (offset + size > layout.page_size)
    second, lost = _second_pages(prog, layout, located, spans)
    _fail(why, lost, _CHAIN)
    good = why == _FOUND
    spans &= good
    pages = read_pages(
        prog,
        np.concatenate([located.pfn[good], second[spans]]),
        layout.page_size,
        physical=True,
    )
    places = np.zeros(len(handles), np.int64)
    places[good] = pages.places(located.pfn[good])
    then = np.zeros(len(handles), np.int64)
    then[spans] = pages.places(second[spans])
    if len(pages.present):
        _fail(why, good & ~pages.present[places], _EXCLUDED)
        _fail(why, spans & ~pages.present[then], _EXCLUDED)
    if layout.indirect:
        _check_heads(prog, layout, located, handles, pages, places)
    first = np.clip(layout.page_size - offset, 0, size)
    cut = np.where(spans, first, size)
    return _Found(
        why,
        pages,
        places * layout.page_size + offset,
        then * layout.page_size,
        cut,
        size,
    )


def _second_pages(
    prog: Program, layout: Layout, located: _Located, spans: Flags
) -> tuple[Words, Flags]:
    # Page frames where objects that span pages go on; and which of them are lost.
    page = np.where(spans, located.next, 0).astype(np.uint64)
    distance = page - np.uint64(layout.memmap)
    regular = (page >= np.uint64(layout.memmap)) & (
        distance % np.uint64(layout.page) == 0
    )
    owner, found = _owner_of(
        prog, layout, np.where(spans & regular, page, 0).astype(np.uint64)
    )
    good = regular & found & (owner == located.owner)
    return distance // np.uint64(layout.page), spans & ~good


def _check_heads(
    prog: Program,
    layout: Layout,
    located: _Located,
    handles: Words,
    pages: Pages,
    places: Ints,
) -> None:
    words = words_of(prog, pages.data, layout.word)
    good = located.why == _FOUND
    inside = good & (located.head != 0)
    heads = located.back.copy()
    at = (places * layout.page_size + located.start) // layout.word
    heads[inside] = words[at[inside]]
    # Bit 0 says that it is allocated. A huge object's lacks it before 4.8.
    wrong = heads != (handles | np.uint64(1))
    if not layout.has_zspage:
        wrong &= (located.head != 0) | (heads != handles)
    _fail(located.why, wrong, _HEAD)


def _choose(pool: Object, handles: Words) -> Encoding:
    # What most of these objects agree to.
    state = state_of(pool.prog_)
    if state.encoding is not None:
        return state.encoding
    if not state.layout.indirect or not len(handles):
        return state.encodings[0]
    # Not every n-th: what is written is often as regular.
    chance = np.random.default_rng(len(handles))
    tried = handles
    if len(handles) > _TRIED:
        tried = chance.choice(handles, _TRIED, replace=False)
    found = [_find(pool, tried, None, encoding) for encoding in state.encodings]
    counts = [int((one.why == _FOUND).sum()) for one in found]
    best = counts.index(max(counts))
    # Object 0 of a zspage is the same with every tag, so it proves nothing: in a
    # running kernel it may come and go between two tries. Others begin behind its head.
    page = state.layout.page_size
    proofs = [int(((one.why == _FOUND) & (one.at % page > 8)).sum()) for one in found]
    if proofs.count(max(proofs)) == 1:
        best = proofs.index(max(proofs))
        state.encoding = state.encodings[best]
    return state.encodings[best]


def zs_read_many(
    pool: Object, handles: Words, sizes: Ints | None = None
) -> tuple[list[bytes | None], npt.NDArray[np.uint8]]:
    """
    Read objects of a pool.

    :param pool: ``struct zs_pool *``
    :param handles: of each object.
    :param sizes: how much of each in bytes; -1 for as much as there may be, and so is
        none at all.
    :return: what is in them, None for what cannot be read; and for each, a number
        that :func:`zs_why` puts into words, 0 for those that are read.
    :raises ZsError: if the kernel's zsmalloc is not understood at all.
    """
    handles = np.asarray(handles, np.uint64)
    found = _find(pool, handles, sizes, _choose(pool, handles))
    if state_of(pool.prog_).encoding is None and found.why.any():
        # All that was tried may have been the first of their zspages.
        better = _choose(pool, handles[found.why != _FOUND])
        again = _find(pool, handles, sizes, better)
        if again.why.astype(bool).sum() < found.why.astype(bool).sum():
            found = again
    data = found.pages.data
    contents: list[bytes | None] = []
    for why, at, then, cut, size in zip(
        found.why.tolist(),
        found.at.tolist(),
        found.then.tolist(),
        found.cut.tolist(),
        found.size.tolist(),
    ):
        if why:
            contents.append(None)
        elif cut == size:
            contents.append(data[at : at + size])
        else:
            contents.append(data[at : at + cut] + data[then : then + size - cut])
    return contents, found.why


def zs_why(handle: int, why: int) -> str:
    """Why an object could not be read, in words."""
    return f"zsmalloc handle {handle:#x} {_WHY[why]}"


def zs_is_missing(why: int) -> bool:
    """Whether it could not be read because the dump lacks memory."""
    return why in _LACKS


def zs_read(pool: Object, handle: int, size: int | None = None) -> bytes:
    """
    Read an object, without the word at its head.

    :param pool: ``struct zs_pool *``
    :param handle: ``unsigned long``
    :param size: of the object in bytes; None for as much as its class has room for.
    :raises ZsError: if the handle leads to no such object.
    :raises drgn.FaultError: if the dump lacks memory that is needed.
    """
    if not 0 <= handle < 1 << 64:
        raise ZsError(f"zsmalloc handle {handle:#x} {_WHY[_HANDLE]}")
    sizes = None if size is None else np.array([size], np.int64)
    (data,), (why,) = zs_read_many(pool, np.array([handle], np.uint64), sizes)
    if data is None:
        message = zs_why(handle, int(why))
        if zs_is_missing(int(why)):
            raise FaultError(message, handle)
        raise ZsError(message)
    return data


# --- pools


class ZsClass(NamedTuple):
    """A size class of a pool."""

    index: int  # type: ignore[assignment]
    """The largest of those that were merged into it."""
    size: int
    """Of an object with its head, in bytes."""
    objects: int
    """In a zspage."""
    pages: int
    """Of a zspage."""
    allocated: int
    """Objects that there is room for."""
    used: int
    """Objects that there are."""


class ZsObject(NamedTuple):
    """An object of a pool."""

    handle: int
    size: int
    """Of its class, without the head, in bytes."""
    pfn: int
    offset: int
    """In that page, of the content."""


def zs_classes(pool: Object) -> list[ZsClass]:
    """
    The size classes of a pool, with how full they are.

    :param pool: ``struct zs_pool *``
    :raises ZsError: if the kernel's zsmalloc is not understood.
    """
    prog = pool.prog_
    classes = classes_of(pool)
    found: dict[int, ZsClass] = {}
    for index, pointer in enumerate(class_pointers(pool)):
        size, pages = int(classes.size[index]), int(classes.pages[index])
        if not size:
            continue
        allocated = used = 0
        with contextlib.suppress(LookupError, FaultError):
            objs = Object(prog, "struct size_class", address=pointer).stats.objs
            # OBJ_ALLOCATED until v6.3; the counters are the last two.
            last = objs.type_.length or 0
            allocated, used = objs[last - 2].value_(), objs[last - 1].value_()
        fit = pages * state_of(prog).layout.page_size // size
        found[pointer] = ZsClass(index, size, fit, pages, allocated, used)
    return sorted(found.values())


def _zspages(pool: Object, pointer: int) -> Iterator[int]:
    # Of a class, from all its lists; damaged ones end.
    prog = pool.prog_
    layout = state_of(prog).layout
    lists = Object(prog, "struct size_class", address=pointer).fullness_list
    seen: set[int] = set()
    for number in range(min(lists.type_.length or 0, MAX_CHAIN)):
        head = lists[number].address_of_().value_()
        at = head
        while len(seen) < _MAX_ZSPAGES:
            try:
                at = prog.read_word(at)
            except FaultError:
                break
            if at == head or at in seen:
                break
            seen.add(at)
            # A damaged one may be anywhere.
            yield (at - layout.list) % (1 << 64)


def for_each_zs_object(pool: Object) -> Iterator[ZsObject]:
    """
    Iterate over all objects that a pool says are allocated, by walking its zspages.

    :param pool: ``struct zs_pool *``
    :raises ZsError: if the kernel's zsmalloc is not understood; pools before v4.8
        cannot be walked.
    """
    layout = state_of(pool.prog_).layout
    if not layout.has_zspage:
        raise ZsError("pools of zsmalloc cannot be walked before Linux 4.8")
    pointers = class_pointers(pool)
    for class_ in zs_classes(pool):
        zspages = _zspages(pool, pointers[class_.index])
        while batch := list(islice(zspages, max(1, 1024 // class_.pages))):
            yield from _objects_of(pool, class_, np.array(batch, np.uint64))


def _objects_of(pool: Object, class_: ZsClass, zspages: Words) -> Iterator[ZsObject]:
    prog = pool.prog_
    layout = state_of(prog).layout
    assert layout.magic is not None
    word, found = gather(
        prog, zspages + np.uint64(layout.magic.offset), 4, layout.page_size
    )
    zspages = zspages[found & (layout.magic.of(word) == _MAGIC)]
    page, found = gather(
        prog, zspages + np.uint64(layout.first), layout.word, layout.page_size
    )
    chain = []
    for _ in range(class_.pages):
        (follows, back), there = _page_words(
            prog,
            layout,
            np.where(found, page, 0).astype(np.uint64),
            (layout.next, layout.handle),
        )
        found &= there & (page >= np.uint64(layout.memmap))
        chain.append((page - np.uint64(layout.memmap)) // np.uint64(layout.page))
        page = follows
    pfns = np.array(chain)[:, found]
    backs = back[found]
    if not pfns.size:
        return
    starts = np.arange(class_.objects) * class_.size
    pages, offsets = np.divmod(starts, layout.page_size)
    if class_.size == layout.page_size:
        # Huge, and alone in its zspage.
        heads = backs[np.newaxis, :]
        head_size = 0
    else:
        read = read_pages(prog, pfns.ravel(), layout.page_size, physical=True)
        places = read.places(pfns.ravel()).reshape(pfns.shape)
        words = words_of(prog, read.data, layout.word)
        at = places[pages] * layout.page_size + offsets[:, np.newaxis]
        heads = words[at // layout.word]
        head_size = layout.word
    # Of a free object it is the number of the next one, with bit 0 clear.
    for number, place in np.argwhere(heads & np.uint64(1)).tolist():
        yield ZsObject(
            int(heads[number, place]) & ~1,
            class_.size - head_size,
            int(pfns[pages[number], place]),
            int(offsets[number]) + head_size,
        )
