# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of each case of libkdumpfile's test suite; docs/conformance.md says it.

python -m tests.vm.conformance prints the tables of that page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

READ = """
    addrxlat-invalid-x86_64 addrxlat-x86_64-4l addrxlat-x86_64-5l addrxlat-x86_64-sme
    diskdump-basic-lzo diskdump-basic-raw diskdump-basic-snappy diskdump-basic-zlib
    diskdump-basic-zstd diskdump-excluded diskdump-flat-raw diskdump-multiread
    diskdump-split diskdump-split-flat
    elf-basic elf-eraseinfo elf-fractional elf-le elf-multiread elf-nonexistent
    elf-overlap elf-partial elf-prstatus-x86_64 elf-virt-phys-clash elf-vmcoreinfo
    multixlat-elf multixlat-same zero-size
"""
"""Its script, with our reader in its programs (stand_ins.py), says that all is well."""

TRANSLATED = """
    xlat-linux-x86_64-2.6.11-nover xlat-linux-x86_64-2.6.27-nover
    xlat-linux-x86_64-2.6.31-cr3 xlat-linux-x86_64-2.6.31-nover
    xlat-linux-x86_64-2.6.31-nover-reloc xlat-linux-x86_64-2.6.31-reloc
    xlat-linux-x86_64-4.12-sme xlat-linux-x86_64-4.13-kaslr
    xlat-linux-x86_64-4.13-nover xlat-linux-x86_64-5l
    xlat-linux-x86_64-ktext-128M xlat-linux-x86_64-ktext-130M
    xlat-linux-x86_64-ktext-130M-nonlinear xlat-linux-x86_64-ktext-1G
    xlat-linux-x86_64-ktext-40M xlat-linux-x86_64-ktext-512M
    xlat-linux-x86_64-ktext-520M xlat-linux-x86_64-ktext-crosspage
    xlat-linux-x86_64-old-nover
"""
"""Page tables of real kernels: we translate each address as it does."""


class Other(NamedTuple):
    """Cases that we do not pass, and why."""

    why: str
    cases: str
    said: str = ""
    """What our reader says of the dump, if there is one."""


FAILED = (
    Other(
        "The dump has no memory at all. It opens as a directory of attributes there;"
        " here it is refused: of a core without memory, or a kdump-compressed file"
        " without a sub header, nothing can be had",
        "elf-empty-x86_64",
        "an ELF core without memory segments",
    ),
    Other(
        "The same, kdump-compressed",
        "diskdump-empty-x86_64",
        "the kdump header is damaged or the file is cut short",
    ),
    Other(
        "Two of its addresses are physical, to be made virtual, which nothing here"
        " does; two are of a part of the kernel's image that its page tables do not"
        " map, which it translates by the image's offset: in a dump tables are whole,"
        " and what they do not map is not mapped. Its page tables are those of"
        " `xlat-linux-x86_64-2.6.31-nover-reloc`",
        "sys-xlat-x86_64-linux",
    ),
)

_ONLY = "only x86-64 dumps are known"
_NEITHER = "not a dump: neither an ELF core nor kdump-compressed"

DO_NOT_APPLY = (
    Other(
        "A dump of another architecture",
        """
        diskdump-empty-i386 diskdump-empty-ppc64 diskdump-empty-s390x diskdump-v6-arm
        diskdump-v6-ia32 elf-be elf-empty-aarch64 elf-empty-i386 elf-empty-i386-elf64
        elf-empty-ppc64 elf-empty-ppc64le elf-empty-s390 elf-empty-s390x
        elf-prstatus-aarch64 elf-prstatus-arm elf-prstatus-i386 elf-prstatus-ppc64
        elf-prstatus-riscv64 elf-prstatus-s390x elf-task_struct
        """,
        _ONLY,
    ),
    Other(
        "Another format (LKCD)",
        """
        lkcd-basic-gzip lkcd-basic-raw lkcd-basic-rle lkcd-duplicate
        lkcd-duplicate-middle lkcd-empty-i386 lkcd-empty-ppc64 lkcd-empty-x86_64
        lkcd-gap lkcd-long-page-gzip lkcd-long-page-raw lkcd-long-page-rle
        lkcd-multiread lkcd-short-page-gzip lkcd-short-page-raw lkcd-short-page-rle
        lkcd-unordered lkcd-unordered-faroff
        """,
        _NEITHER,
    ),
    Other(
        "Another format (SADUMP)",
        """
        sadump-basic-diskset sadump-basic-media sadump-basic-single
        sadump-basic-single-ia32
        """,
        _NEITHER,
    ),
    Other(
        "A dump of Xen's, of a kernel as Dom0",
        "elf-dom0-no-phys_base",
        "VMCOREINFO lacks NUMBER(phys_base)",
    ),
    Other(
        "A dump of Xen's, of a guest",
        "elf-xen_prstatus",
        "an ELF core without memory segments",
    ),
    Other(
        "Page tables of another architecture",
        """
        addrxlat-aarch64-16k addrxlat-aarch64-4k addrxlat-aarch64-64k
        addrxlat-aarch64-lpa-64k addrxlat-aarch64-lpa2-16k addrxlat-aarch64-lpa2-4k
        addrxlat-arm-short addrxlat-ia32 addrxlat-ia32-pae
        addrxlat-invalid-aarch64-16k addrxlat-invalid-aarch64-4k
        addrxlat-invalid-aarch64-64k addrxlat-invalid-aarch64-lpa-64k
        addrxlat-invalid-aarch64-lpa2-16k addrxlat-invalid-aarch64-lpa2-4k
        addrxlat-invalid-ia32 addrxlat-invalid-ia32-pae addrxlat-invalid-s390x-2l
        addrxlat-invalid-s390x-5l addrxlat-ppc64-64k addrxlat-riscv-sv39
        addrxlat-riscv-sv48 addrxlat-riscv-sv57 addrxlat-s390x-2l addrxlat-s390x-3l
        addrxlat-s390x-4l addrxlat-s390x-5l xlat-linux-aarch64-5.16-64k
        xlat-linux-aarch64-5.2-va39 xlat-linux-aarch64-5.8-va39
        xlat-linux-aarch64-5.8-va48 xlat-linux-aarch64-5.8-va48-nover
        xlat-linux-arm-2.6.24 xlat-linux-arm-2.6.24-kvaddr xlat-linux-ia32
        xlat-linux-ia32-pae xlat-linux-ppc64-64k xlat-linux-riscv-6.5-sv39
        xlat-linux-riscv-6.5-sv48 xlat-linux-riscv-6.5-sv57 xlat-linux-s390x-2l
        xlat-linux-s390x-3l xlat-linux-s390x-4l xlat-os-aarch64-none xlat-os-ia32-none
        xlat-os-ia32-pae-none xlat-os-s390x-2l xlat-os-s390x-3l xlat-os-s390x-4l
        xlat-os-s390x-5l
        """,
    ),
    Other(
        "Page tables under Xen, or Xen's own",
        """
        sys-xlat-x86_64-linux-xen xlat-linux-x86_64-2.6.27-cr3-xen
        xlat-linux-x86_64-2.6.31-nover-xen xlat-xen-ia32 xlat-xen-ia32-pae
        xlat-xen-x86_64-3.2 xlat-xen-x86_64-3.2-nover xlat-xen-x86_64-4.0
        xlat-xen-x86_64-4.0-nover xlat-xen-x86_64-4.0dev-nover xlat-xen-x86_64-4.3
        xlat-xen-x86_64-4.3-nover xlat-xen-x86_64-4.4 xlat-xen-x86_64-4.4-nover
        xlat-xen-x86_64-4.6-bigmem xlat-xen-x86_64-old xlat-xen-x86_64-old-nover
        """,
    ),
    Other(
        "What is known of a kernel by its version alone, without page tables: we ask"
        " for no kernel's version",
        """
        early-version-code xlat-linux-x86_64-2.6.11 xlat-linux-x86_64-2.6.27
        xlat-linux-x86_64-2.6.31 xlat-linux-x86_64-ktext-pgt xlat-linux-x86_64-old
        xlat-os-x86_64-none
        """,
    ),
    Other(
        "Page tables of which only kernel virtual addresses are known: in a dump they"
        " have physical ones",
        "xlat-linux-x86_64-2.6.31-kvaddr",
    ),
    Other(
        "Its library's own: ways to translate that no x86-64 kernel has",
        """
        addrxlat-identity addrxlat-invalid-pfn32 addrxlat-invalid-pfn64
        addrxlat-linear addrxlat-memarr addrxlat-null addrxlat-pfn32 addrxlat-pfn64
        addrxlat-table
        """,
    ),
    Other(
        "Its library's own: data structures and the C interface",
        """
        addrmap-overlap-begin addrmap-overlap-end addrmap-reduce addrmap-replace
        addrmap-single-begin addrmap-single-end addrmap-single-middle attriter
        clearattr custom-meth err-addrxlat fdset nometh subattr thread-errstr
        typed-attr vmci-cleanup vmci-lines-post vmci-post xlatmap-check xlatop
        """,
    ),
)

SHARED = """
    addrmap-common addrxlat-common addrxlat-invalid diskdump-basic diskdump-empty
    elf-empty lkcd-basic lkcd-empty lkcd-wrong-page-size sadump-basic sys-xlat-common
    xlat-os-common
"""
"""Scripts that are no cases: what several have in common."""


def cases(scripts: Path) -> set[str]:
    """All cases of a test suite, as its makefile has them."""
    text = (scripts / "Makefile.am").read_text().replace("\\\n", " ")
    lists = re.findall(r"^(?:test_scripts|TESTS) *=(.*)$", text, re.M)
    return {name for names in lists for name in names.split() if name[0] != "$"}


def by_us() -> list[str]:
    """All cases that the lists here are about."""
    lists = [READ, TRANSLATED, *(other.cases for other in (*FAILED, *DO_NOT_APPLY))]
    return [name for names in lists for name in names.split()]


def markdown() -> str:
    """The tables."""
    passed = [
        ("Its script, run with our reader", READ),
        ("Addresses of its page tables, translated as it does", TRANSLATED),
    ]
    failed = [(_why(other), other.cases) for other in FAILED]
    rest = [(_why(other), other.cases) for other in DO_NOT_APPLY]
    return (
        f"### Passed: {_count(passed)}\n\n{_table('How', passed)}\n"
        f"### Failed: {_count(failed)}\n\n{_table('Why', failed)}\n"
        f"### Do not apply: {_count(rest)}\n\n{_table('Why', rest)}"
    )


def _why(other: Other) -> str:
    return f"{other.why}. Refused: “{other.said}”" if other.said else other.why


def _count(rows: list[tuple[str, str]]) -> int:
    return sum(len(names.split()) for _, names in rows)


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {title} | Cases |", "|---|---|"]
    for how, names in rows:
        cases = ", ".join(f"`{name}`" for name in sorted(names.split()))
        lines.append(f"| {how} | {cases} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
