# SPDX-License-Identifier: LGPL-2.1-or-later
"""ELF notes, as they lie in a PT_NOTE segment or in a kdump sub header."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_NHDR = struct.Struct("<III")
NT_PRSTATUS = 1
NT_TASKSTRUCT = 4
#: Of our own notes, named DRGN_TOOLS: the dump is of a running kernel; why it
#: matters, as text. A number of its own: crash goes by the type alone, and would
#: take 1 for registers.
NT_LIVE = 0x4556494C


class Note(NamedTuple):
    """One ELF note."""

    name: bytes
    type: int
    offset: int
    """Of the descriptor, from the start of the blob."""
    desc: bytes


def iter_notes(blob: bytes) -> Iterator[Note]:
    """
    Notes of a 64-bit little-endian dump, up to the first that does not fit.

    The kernel pads names and descriptors to 4 bytes (:linux:`fs/proc/vmcore.c`).
    """
    offset = 0
    while offset + _NHDR.size <= len(blob):
        namesz, descsz, kind = _NHDR.unpack_from(blob, offset)
        name_at = offset + _NHDR.size
        desc_at = name_at + (namesz + 3 & ~3)
        end = desc_at + descsz
        if end > len(blob) or (not namesz and not descsz):
            return
        name = blob[name_at : name_at + namesz].rstrip(b"\0")
        yield Note(name, kind, desc_at, blob[desc_at:end])
        offset = desc_at + (descsz + 3 & ~3)


def pack_note(name: bytes, kind: int, desc: bytes) -> bytes:
    """One note, as :func:`iter_notes` reads it."""
    name += b"\0"
    header = _NHDR.pack(len(name), len(desc), kind)
    return header + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


#: What crash knows a dump of a running kernel by: the task that wrote it, here none.
SNAP = pack_note(b"SNAP", NT_TASKSTRUCT, bytes(8))
