# SPDX-License-Identifier: LGPL-2.1-or-later
"""
zsmalloc's layouts
------------------

Where zsmalloc has what, in every version since Linux 3.4: probed from types, never from
versions. From :linux:`mm/zsmalloc.c`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import Architecture, FaultError, Object, PlatformFlags, Program, Type

from drgn_tools import variables
from drgn_tools.gather import Flags, Words, is_little, words_of
from drgn_tools.older_drgn import unaliased

# Pages that a zspage may have at most.
MAX_CHAIN = 64
# Size classes: 255 with pages of 4 KiB.
_MAX_CLASSES = 1 << 12

#: Sizes, offsets and numbers.
Ints = npt.NDArray[np.int64]


class ZsError(LookupError):
    """The handle leads to no object; the message says where it ends."""


class Field(NamedTuple):
    """A bit-field in a 32-bit word."""

    offset: int
    """Of the word, in bytes."""
    shift: int
    mask: int

    def of(self, words: Words) -> Words:
        """Its values in words that have it."""
        return (words >> np.uint64(self.shift)) & np.uint64(self.mask)


class Layout(NamedTuple):
    """Where things are; sizes and offsets in bytes."""

    word: int
    page_size: int
    page_shift: int
    memmap: int
    """Address of page frame 0's ``struct page``."""
    page: int
    """Size of ``struct page``."""
    flags: int
    """Of ``struct page`` or ``struct zpdesc``, as all that follow."""
    zspage: int
    """What leads to the zspage."""
    next: int
    """The next page of the zspage."""
    handle: int
    """A huge object's handle."""
    has_zspage: bool
    """Since 4.8; before, pages say it all themselves."""
    indirect: bool
    """Since 4.1: handles are addresses of object words, and objects begin with their
    handles."""
    class_: Field | None
    """Of ``struct zspage``, like the next two."""
    magic: Field | None
    huge: Field | None
    """Whether it is of a huge object; else the next one says it, else the class."""
    huge_flag: int | None
    """A bit of the page's flags."""
    first_page: int
    """Before 4.8: of ``struct page``, and bits of its flags."""
    mapping: int
    first_object: int
    lru: int
    private_flag: int
    last_flag: int
    first: int
    """Since 4.8: of ``struct zspage``."""
    list: int


class Classes(NamedTuple):
    """The size classes of a pool, by index; sizes are 0 where there is none."""

    size: Ints
    pages: Ints
    """Of a zspage."""
    huge: Flags


class Encoding(NamedTuple):
    """How an object word is made up."""

    shift: int
    """Above it is the page frame number."""
    tag: int
    """Between it and the shift is the object's number."""


class State:
    """What is known of a program's zsmalloc."""

    def __init__(self, prog: Program) -> None:
        self.layout = _read_layout(prog)
        self.encodings = _encodings(prog, self.layout)
        """Those that may be, the likely ones first."""
        self.encoding: Encoding | None = None
        """The one that is right, as soon as objects have shown it."""
        self.classes: dict[int, Classes] = {}
        """By address of the pool."""


def state_of(prog: Program) -> State:
    """
    What is known of a program's zsmalloc.

    :raises ZsError: if it is not understood.
    """
    state = prog.cache.get("drgn_tools_zsmalloc")
    if not isinstance(state, State):
        state = prog.cache["drgn_tools_zsmalloc"] = State(prog)
    return state


# --- layouts


def _field(prog: Program, type_: Type, name: str) -> Field:
    member = type_.member(name)
    size = member.bit_field_size or 0
    offset, shift = divmod(member.bit_offset, 32)
    if not is_little(prog):
        shift = 32 - shift - size
    if not 0 < size <= 32 or not 0 <= shift <= 32 - size:
        raise ZsError(f"struct zspage has an unknown layout: {name}")
    return Field(offset * 4, shift, (1 << size) - 1)


def _offset(type_: Type, *names: str) -> int:
    # Of the first of these that there is.
    for name in names:
        if type_.has_member(name):
            offset: int = type_.member(name).offset
            return offset
    raise ZsError(f"{type_.type_name()} has an unknown layout: no {names[0]}")


def _page_flag(prog: Program, name: str) -> int:
    for enumerator in prog.type("enum pageflags").enumerators or ():
        if enumerator.name == name:
            return 1 << int(enumerator.value)
    raise ZsError(f"enum pageflags has no {name}")


def _find_type(prog: Program, name: str) -> Type | None:
    try:
        return prog.type(name)
    except LookupError:
        return None


def _read_layout(prog: Program) -> Layout:
    from drgn.helpers.linux.mm import pfn_to_page

    platform = prog.platform
    wide = platform is None or bool(platform.flags & PlatformFlags.IS_64_BIT)
    page_size = variables.page_size(prog)
    page = prog.type("struct page")
    pool = _find_type(prog, "struct zs_pool")
    if pool is None:
        raise ZsError(
            "struct zs_pool is unknown: the debugging symbols of zsmalloc are missing"
        )
    layout = Layout(
        word=8 if wide else 4,
        page_size=page_size,
        page_shift=page_size.bit_length() - 1,
        memmap=pfn_to_page(prog, 0).value_(),
        page=prog.type("struct page").size or 0,
        flags=page.member("flags").offset,
        zspage=page.member("private").offset if page.has_member("private") else 0,
        next=0,
        handle=0,
        has_zspage=True,
        indirect=True,
        class_=None,
        magic=None,
        huge=None,
        huge_flag=None,
        first_page=0,
        mapping=0,
        first_object=0,
        lru=0,
        private_flag=0,
        last_flag=0,
        first=0,
        list=0,
    )
    zspage = _find_type(prog, "struct zspage")
    if zspage is None:
        # Before Linux kernel commit 3783689a1aa8 ("zsmalloc: introduce zspage
        # structure") (in v4.8).
        return layout._replace(
            has_zspage=False,
            # Linux kernel commit 2e40e163a25a ("zsmalloc: decouple handle and
            # object") (in v4.1).
            indirect=pool.has_member("handle_cachep"),
            first_page=_offset(page, "first_page", "private"),
            mapping=_offset(page, "mapping"),
            first_object=_offset(page, "index"),
            lru=_offset(page, "lru"),
            handle=_offset(page, "private"),
            private_flag=_page_flag(prog, "PG_private"),
            last_flag=_page_flag(prog, "PG_private_2"),
        )
    layout = layout._replace(
        class_=_field(prog, zspage, "class"),
        magic=_field(prog, zspage, "magic"),
        first=_offset(zspage, "first_zpdesc", "first_page"),
        list=_offset(zspage, "list"),
    )
    zpdesc = _find_type(prog, "struct zpdesc")
    if zpdesc is not None:
        # In v6.14.
        return layout._replace(
            zspage=_offset(zpdesc, "zspage"),
            next=_offset(zpdesc, "next"),
            handle=_offset(zpdesc, "handle"),
            huge=_field(prog, zspage, "huge"),
        )
    if zspage.has_member("huge"):
        # Linux kernel commit a41ec880aa7b ("zsmalloc: move huge compressed obj from
        # page to zspage") (in v5.17).
        index = _offset(page, "index", "__folio_index")
        return layout._replace(
            next=index, handle=index, huge=_field(prog, zspage, "huge")
        )
    return layout._replace(
        next=_offset(page, "freelist"),
        handle=_offset(page, "index"),
        huge_flag=_page_flag(prog, "PG_owner_priv_1"),
    )


def _encodings(prog: Program, layout: Layout) -> list[Encoding]:
    # The likely ones first; which it is shows where objects have their handles.
    bits = layout.word * 8
    if layout.word == 4:
        physical = [32, 36, 40]
    else:
        physical = [52, 46, 48, 56, 50, 44, 64]
        platform = prog.platform
        if platform is not None and platform.arch == Architecture.X86_64:
            # MAX_POSSIBLE_PHYSMEM_BITS is 52 where 5-level page tables are
            # configured, with how many levels it ever runs.
            physical.remove(46)
            physical.insert(0 if not _may_have_5_levels(prog) else 1, 46)
    # OBJ_TAG_BITS: 1 since v4.1, 0 since v6.9; 2 in v6.2 to v6.5 with zpool.
    tags = (1, 0, 2) if layout.indirect else (0,)
    return [
        Encoding(bits - (size - layout.page_shift), tag)
        for size in physical
        for tag in tags
    ]


def _may_have_5_levels(prog: Program) -> bool:
    for name in ("__pgtable_l5_enabled", "pgdir_shift", "ptrs_per_p4d"):
        try:
            prog.symbol(name)
            return True
        except LookupError:
            pass
        try:
            prog[name]
            return True
        except KeyError:
            pass
    return False


def class_pointers(pool: Object) -> list[int]:
    """
    Addresses of a pool's size classes, by index.

    :raises ZsError: if they are where nobody knows.
    """
    prog = pool.prog_
    array = pool.size_class
    length = array.type_.length or 0
    if not 0 < length <= _MAX_CLASSES:
        raise ZsError("struct zs_pool has an unknown layout: size_class")
    # Pointers since v3.18.
    element = array.type_.type
    if unaliased(element).kind.name != "POINTER":
        start = array.address_of_().value_()
        return [start + index * (element.size or 0) for index in range(length)]
    raw = prog.read(array.address_of_().value_(), length * prog.type("void *").size)
    return [int(word) for word in words_of(prog, raw, len(raw) // length)]


def classes_of(pool: Object) -> Classes:
    """
    The size classes of a pool.

    :raises ZsError: if they are where nobody knows.
    """
    prog = pool.prog_
    state = state_of(prog)
    known = state.classes.get(pool.value_())
    if known is not None:
        return known
    pointers = class_pointers(pool)
    size = np.zeros(len(pointers), np.int64)
    pages = np.zeros(len(pointers), np.int64)
    huge = np.zeros(len(pointers), np.bool_)
    read: dict[int, tuple[int, int, bool]] = {}
    for index, pointer in enumerate(pointers):
        if pointer and pointer not in read:
            try:
                class_ = Object(prog, "struct size_class", address=pointer).read_()
            except FaultError:
                read[pointer] = 0, 0, False
                continue
            most = state.layout.page_size
            good = (
                0 < class_.size.value_() <= most
                and class_.size.value_() % state.layout.word == 0
                and 0 < class_.pages_per_zspage.value_() <= MAX_CHAIN
            )
            read[pointer] = (
                class_.size.value_() if good else 0,
                class_.pages_per_zspage.value_() if good else 0,
                # v4.1 to v4.7.
                bool(class_.huge) if class_.type_.has_member("huge") else False,
            )
        size[index], pages[index], huge[index] = read.get(pointer, (0, 0, False))
    classes = state.classes[pool.value_()] = Classes(size, pages, huge)
    return classes
