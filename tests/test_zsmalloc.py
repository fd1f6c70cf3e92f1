# SPDX-License-Identifier: LGPL-2.1-or-later
"""zsmalloc in every layout that it had, on memory that is made here."""

from __future__ import annotations

import random

import numpy as np
import pytest
from drgn import FaultError, Platform

from drgn_tools import zsmalloc
from drgn_tools.zsmalloc import ZsError, for_each_zs_object, zs_classes, zs_read
from tests.zram_kernel import BIG, ERAS, ILP32, LP64, PAGE, ZramKernel

INDIRECT = [era for era, what in ERAS.items() if what.indirect]
WALKED = [era for era, what in ERAS.items() if what.zspage]


def filled(kernel: ZramKernel, count: int = 300) -> dict[int, bytes]:
    """Objects of all sizes, many of which span two pages; by handle."""
    objects = {}
    for number in range(count):
        size = PAGE if not number % 10 else kernel.chance.randrange(20, 3200)
        data = kernel.chance.randbytes(size)
        objects[kernel.zs_malloc(data)] = data
    return objects


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    "platform, pfn_bits",
    [(LP64, 40), (LP64, 34), (LP64, 36), (LP64, 44), (BIG, 52), (ILP32, 20)],
    ids=["52", "46", "48", "56", "big-endian", "32-bit"],
)
def test_every_object_of_every_layout(
    era: str, platform: Platform, pfn_bits: int
) -> None:
    if not ERAS[era].indirect and platform is LP64:
        # Nothing verifies these: it was 46 bits of address, and no other.
        pfn_bits = 34
    kernel = ZramKernel(era, platform=platform, pfn_bits=pfn_bits)
    if not ERAS[era].indirect and platform is BIG:
        kernel = ZramKernel(era, platform=LP64, pfn_bits=34)
    objects = filled(kernel)
    handles = np.array(list(objects), np.uint64)
    sizes = np.array([len(data) for data in objects.values()], np.int64)
    contents, why = zsmalloc.zs_read_many(kernel.zs_pool, handles, sizes)
    assert contents == list(objects.values())
    assert not why.any()
    for handle, data in list(objects.items())[:20]:
        assert zs_read(kernel.zs_pool, handle, len(data)) == data
        whole = zs_read(kernel.zs_pool, handle)
        assert whole.startswith(data) and len(whole) - len(data) <= 3000


@pytest.mark.parametrize("era", INDIRECT)
def test_one_by_one_in_any_order(era: str) -> None:
    """With no other object to find the encoding with."""
    kernel = ZramKernel(era)
    objects = list(filled(kernel, 60).items())
    for start in range(0, len(objects), 6):
        kernel.prog.cache.clear()
        for handle, data in objects[start : start + 6]:
            assert zs_read(kernel.zs_pool, handle, len(data)) == data


@pytest.mark.parametrize("era", WALKED)
def test_a_pool_is_walked(era: str) -> None:
    kernel = ZramKernel(era)
    objects = filled(kernel)
    found = {one.handle: one for one in for_each_zs_object(kernel.zs_pool)}
    assert set(found) == set(objects)
    for handle, data in objects.items():
        one = found[handle]
        assert one.size >= len(data)
        part = data[: PAGE - one.offset]
        at = kernel.frame(one.pfn) + one.offset
        assert kernel.peek(at, len(part)) == part
    sizes = [class_.size for class_ in zs_classes(kernel.zs_pool)]
    assert sizes == sorted({size for size, _, _ in kernel.classes})


def test_pools_before_zspages_cannot_be_walked() -> None:
    with pytest.raises(ZsError, match="cannot be walked"):
        list(for_each_zs_object(ZramKernel("4.7").zs_pool))


@pytest.mark.parametrize("era", INDIRECT)
def test_what_is_wrong_is_said(era: str) -> None:
    kernel = ZramKernel(era)
    objects = list(filled(kernel).items())
    pool = kernel.zs_pool
    zsmalloc.zs_read_many(pool, np.array([h for h, _ in objects], np.uint64))
    handle, data = next((h, d) for h, d in objects if len(d) < PAGE)
    for wrong in (0, handle + 1, -1, 1 << 64):
        with pytest.raises(ZsError, match="no address"):
            zs_read(pool, wrong)
    with pytest.raises(FaultError, match="cannot be read"):
        zs_read(pool, 0x1000 * kernel.word)
    with pytest.raises(ZsError, match="too small"):
        zs_read(pool, handle, PAGE + 1)
    # Freed: the word is a link of the free list, or that of the object is.
    word = kernel.peek(handle, kernel.word)
    kernel.poke(handle, kernel.chance.randbytes(kernel.word))
    with pytest.raises((ZsError, FaultError)):
        zs_read(pool, handle, len(data))
    kernel.poke(handle, word)
    value = int.from_bytes(word, kernel.order)
    pfn = value >> kernel.index_bits
    kernel.missing.add(pfn)
    with pytest.raises(FaultError, match="not in the dump"):
        zs_read(pool, handle, len(data))
    kernel.missing.clear()
    assert zs_read(pool, handle, len(data)) == data
    page = kernel.peek(kernel.frame(pfn), PAGE)
    kernel.poke(kernel.frame(pfn), bytes(PAGE))
    with pytest.raises(ZsError, match="freed or being moved"):
        zs_read(pool, handle, len(data))
    kernel.poke(kernel.frame(pfn), page)


@pytest.mark.parametrize("era", INDIRECT)
def test_a_lost_second_page_is_an_error(era: str) -> None:
    kernel = ZramKernel(era)
    objects = filled(kernel)
    handles = np.array(list(objects), np.uint64)
    sizes = np.array([len(data) for data in objects.values()], np.int64)
    state = zsmalloc._find(
        kernel.zs_pool, handles, sizes, zsmalloc._choose(kernel.zs_pool, handles)
    )
    spanning = [h for h, cut, size in zip(objects, state.cut, state.size) if cut < size]
    assert len(spanning) > 50
    # Their chains lead to a page of nobody's.
    other = kernel.page(kernel.pages[0])
    for zspages in kernel.zspages.values():
        for zspage in zspages:
            for pfn in zspage.pfns[: -1 if len(zspage.pfns) > 1 else 0]:
                kernel.set_next(pfn, other, first=pfn == zspage.pfns[0])
    for handle in spanning:
        with pytest.raises((ZsError, FaultError)):
            zs_read(kernel.zs_pool, handle, len(objects[handle]))


@pytest.mark.parametrize("era", INDIRECT)
def test_ruins(era: str) -> None:
    """What is read is what was written, or an error that has a line."""
    chance = random.Random(era)
    kernel = ZramKernel(era, frames=1024)
    objects = filled(kernel, 120)
    handles = list(objects)
    pool = kernel.zs_pool
    every = np.array(handles, np.uint64)
    sizes = np.array([len(data) for data in objects.values()], np.int64)
    wrong = 0
    # 20,000 objects in all.
    for turn in range(24):
        memory, memmap = bytes(kernel.memory[: kernel.used]), bytes(kernel.memmap)
        # Of the kernel's own memory, not of what is in the objects.
        for _ in range(chance.randrange(1, 40)):
            if chance.random() < 0.5:
                at = chance.randrange(len(kernel.memmap))
                kernel.memmap[at] = chance.randrange(256)
            else:
                at = chance.randrange(kernel.used)
                kernel.memory[at] = chance.randrange(256)
        kernel.prog.cache.clear()
        try:
            contents, why = zsmalloc.zs_read_many(pool, every, sizes)
        except (ZsError, FaultError):
            wrong += 1
        else:
            for content, reason, data in zip(contents, why, objects.values()):
                assert content == data if not reason else content is None
            wrong += int(why.astype(bool).sum())
        if era in WALKED and not turn % 8:
            list(for_each_zs_object(pool))
        kernel.memory[: len(memory)] = memory
        kernel.memmap[:] = memmap
    assert wrong
