# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of a real kernel's functions from its kallsyms and from its vmlinux."""

from __future__ import annotations

import drgn
import pytest

from drgn_tools.kernel_symbols import KernelSymbols

from . import dumps


@pytest.mark.verified(
    "pstore: names of addresses without debugging symbols",
    by="drgn, from vmlinux, every function",
)
@pytest.mark.parametrize("kernel", ["6.1", "7.2-bench"])
def test_both_say_the_same(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (dump,) = (d for d in dumps.both(dumps.Spec(kernel)) if d.kind == "vmcore")
    prog = drgn.Program()
    prog.set_core_dump(dump.path)
    prog.load_debug_info([dump.kernel.vmlinux])
    kallsyms = KernelSymbols(prog)
    assert kallsyms.kallsyms
    monkeypatch.setattr(
        "drgn.helpers.linux.kallsyms.load_vmlinux_kallsyms", lambda prog: prog[""]
    )
    elf = KernelSymbols(prog)
    assert not elf.kallsyms
    begin, end = (prog.symbol(name).address for name in ("_stext", "_etext"))
    text = [address for address in kallsyms.functions if begin <= address < end]
    assert len(text) > 20000
    for address in text:
        assert elf.find(address) == kallsyms.find(address)
