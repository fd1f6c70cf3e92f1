# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Reed-Solomon codes of persistent memory
---------------------------------------

Decoding as :linux:`lib/reed_solomon` does it for :linux:`fs/pstore/ram_core.c`:
bytes over GF(256), first root 1, parity behind the data. All blocks of a zone at
once: the library that is there for this in Python (reedsolo) takes 5 ms for each
block that cannot be corrected, which is 40 s for a megabyte of damage.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError

Bytes = npt.NDArray[np.uint8]

# Blocks at a time: what is worked with is a hundred times as large.
_AT_ONCE = 2048


class Ecc(NamedTuple):
    """``struct persistent_ram_ecc_info``; as defaults, those of the kernel."""

    size: int = 16
    """Bytes of parity for each block (``ecc_size``); half as many are corrected."""
    block_size: int = 128
    poly: int = 0x11D
    symbol_bits: int = 8


class _Field(NamedTuple):
    product: Bytes
    """Of any two bytes."""
    inverse: Bytes
    """1 / byte; of 0, 0."""
    power: Bytes
    """Of 2, 255 of them."""


@functools.lru_cache(maxsize=4)
def _field(poly: int) -> _Field:
    power = np.zeros(255, np.uint8)
    log = np.full(256, -1)
    value = 1
    for exponent in range(255):
        power[exponent] = value
        log[value] = exponent
        value <<= 1
        if value & 0x100:
            value ^= poly
    if (log[1:] < 0).any():
        raise DumpError(f"{poly:#x} makes no Reed-Solomon code")
    product = power[(log[:, None] + log[None, :]) % 255]
    product[0, :] = product[:, 0] = 0
    inverse = power[-log % 255]
    inverse[0] = 0
    return _Field(product, inverse, power)


def check(ecc: Ecc) -> None:
    """
    Whether these are parameters of a code that the kernel could use.

    :raises DumpError: if not.
    """
    if (
        ecc.symbol_bits != 8
        or not 1 <= ecc.size <= 128
        or not 1 <= ecc.block_size <= 255 - ecc.size
        or not 0x100 < ecc.poly < 0x200
    ):
        raise DumpError(f"these ECC parameters cannot be: {tuple(ecc)}")
    _field(ecc.poly)


@functools.lru_cache(maxsize=64)
def _places(length: int, ecc: Ecc) -> npt.NDArray[np.uint16]:
    """What each symbol of a block is multiplied with for each syndrome."""
    powers = np.arange(ecc.size) * np.arange(length - 1, -1, -1)[:, None]
    places: npt.NDArray[np.uint16] = _field(ecc.poly).power[powers % 255].astype("u2")
    return places


def _syndromes(blocks: Bytes, ecc: Ecc) -> Bytes:
    """Each block as a polynomial, at powers of 2."""
    products = _field(ecc.poly).product.ravel()
    places = _places(blocks.shape[1], ecc)
    result = np.zeros((len(blocks), ecc.size), np.uint8)
    for start in range(0, len(blocks), 128):
        symbols = blocks[start : start + 128].astype(np.uint16) << 8
        terms = products.take(symbols[:, :, None] | places)
        np.bitwise_xor.reduce(terms, axis=1, out=result[start : start + 128])
    return result


def sound(blocks: Bytes, ecc: Ecc) -> npt.NDArray[np.bool_]:
    """Which blocks have no errors: data in each row, and parity behind it."""
    return np.logical_not(_syndromes(blocks, ecc).any(axis=1))


def correct(blocks: Bytes, ecc: Ecc) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """
    Correct blocks, one in each row: data, and parity behind it.

    :return: the blocks, those that cannot be corrected as they were; and how many
        bytes of each were wrong, -1 if too many.
    """
    errors = np.zeros(len(blocks), np.int64)
    wrong = []
    for start in range(0, len(blocks), _AT_ONCE):
        syndromes = _syndromes(blocks[start : start + _AT_ONCE], ecc)
        wrong.append(np.flatnonzero(syndromes.any(axis=1)) + start)
    numbers = np.concatenate(wrong) if wrong else np.zeros(0, np.int64)
    if not len(numbers):
        return blocks, errors
    result = blocks.copy()
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        result[part], errors[part] = _solve(blocks[part], ecc)
    return result, errors


def _solve(blocks: Bytes, ecc: Ecc) -> tuple[Bytes, npt.NDArray[np.int64]]:
    field = _field(ecc.poly)
    product = field.product
    syndromes = _syndromes(blocks, ecc)
    locator, count = _berlekamp_massey(syndromes, field)
    most = ecc.size // 2
    locator = locator[:, : most + 1]
    # Where the locator is zero at a symbol's place, that symbol is wrong.
    powers = _inverse_powers(blocks.shape[1], ecc)
    terms = product[locator[:, :, None], powers]
    wrong = np.bitwise_xor.reduce(terms, axis=1) == 0
    good = (count <= most) & (wrong.sum(axis=1) == count)
    # By Forney: how wrong. The slope is the locator's derivative times 1/X.
    slope = np.bitwise_xor.reduce(terms[:, 1::2], axis=1)
    omega = np.zeros((len(blocks), most), np.uint8)
    for degree in range(most):
        rest = syndromes[:, : most - degree]
        omega[:, degree:] ^= product[locator[:, degree, None], rest]
    terms = product[omega[:, :, None], powers[:most]]
    value = np.bitwise_xor.reduce(terms, axis=1)
    change = np.where(wrong, product[value, field.inverse[slope]], 0)
    fixed = blocks ^ change.astype(np.uint8)
    good &= ~_syndromes(fixed, ecc).any(axis=1)
    errors = np.where(good, count, -1)
    return np.where(good[:, None], fixed, blocks), errors


@functools.lru_cache(maxsize=64)
def _inverse_powers(length: int, ecc: Ecc) -> Bytes:
    """For each degree, what it has at each symbol's place."""
    places = np.arange(length - 1, -1, -1)
    degrees = np.arange(ecc.size // 2 + 1)[:, None]
    powers: Bytes = _field(ecc.poly).power[-places * degrees % 255]
    return powers


def _berlekamp_massey(
    syndromes: Bytes, field: _Field
) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Each block's error locator and its length."""
    rows, size = syndromes.shape
    product = field.product
    locator = np.zeros((rows, size + 1), np.uint8)
    locator[:, 0] = 1
    last = locator.copy()
    length = np.zeros(rows, np.int64)
    discrepancy = np.ones(rows, np.uint8)
    for step in range(size):
        last[:, 1:] = last[:, :-1]
        last[:, 0] = 0
        terms = product[locator[:, : step + 1], syndromes[:, step::-1]]
        now = np.bitwise_xor.reduce(terms, axis=1)
        if not now.any():
            continue
        factor = product[now, field.inverse[discrepancy]]
        after = locator ^ product[factor[:, None], last]
        grows = (now != 0) & (2 * length <= step)
        last = np.where(grows[:, None], locator, last)
        discrepancy = np.where(grows, now, discrepancy)
        length = np.where(grows, step + 1 - length, length)
        locator = after
    return locator, length
