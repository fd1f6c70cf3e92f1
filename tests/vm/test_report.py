# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports on dumps of real kernels, in Chromium, against what the guests had said."""

from __future__ import annotations

import functools
import json
import mmap
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from drgn import Object
from drgn.helpers.linux.mm import follow_phys
from drgn.helpers.linux.pid import for_each_task
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from drgn_tools.program import open_dump
from drgn_tools.zram import for_each_zram
from tests import chromium
from tests.command import assert_done, drgn_tools

from . import (
    dumps,
    ftrace_guests,
    oprofile_guests,
    pstore_guests,
    zram_guests,
)

# What a page shows: its elements, and of each section the status and text, that of what
# is folded included; the texts of tables, row by row.
_SEEN = """(() => {
    const texts = (within, selector) =>
        [...within.querySelectorAll(selector)].map(e => e.textContent);
    const sections = {};
    for (const section of document.querySelectorAll("section")) {
        const head = section.querySelector("h2");
        sections[head.id] = {
            status: head.querySelector(".status").textContent,
            text: section.textContent,
            captions: texts(section, "figcaption, summary"),
            lines: texts(section, "pre > span"),
            tables: [...section.querySelectorAll("tbody")].map(body =>
                [...body.rows].map(row => texts(row, "td"))),
            commands: texts(section, "p.hint code"),
            frames: [...section.querySelectorAll(".frame")].map(e => [
                e.querySelector("text").textContent,
                parseFloat(e.getAttribute("width")),
                parseInt(e.getAttribute("y"))]),
            pictures: [...section.querySelectorAll("img")].map(e => e.naturalWidth),
        };
    }
    const elements = [...document.querySelectorAll("*")];
    return {
        shape: elements.map(e => e.tagName).join(" "),
        // The contents show where one is, sooner or later.
        attributes: [...document.querySelectorAll("main *")]
            .map(e => e.getAttributeNames()).flat().join(" "),
        head: document.querySelector("header").innerText,
        headline: document.querySelector("h1").textContent,
        verdicts: texts(document, ".verdicts li"),
        contents: [...document.querySelectorAll("nav a")].map(e => e.hash.slice(1)),
        sections,
    };
})()"""


class Seen(NamedTuple):
    """What Chromium has of a report."""

    shape: str
    """The names of all elements."""
    attributes: str
    """The names of the attributes of all but the contents."""
    head: str
    headline: str
    verdicts: list[str]
    contents: list[str]
    sections: dict[str, dict[str, Any]]

    def text(self, key: str) -> str:
        """All text of a section."""
        text: str = self.sections[key]["text"]
        return text

    def statuses(self) -> dict[str, str]:
        """The status of each section."""
        return {key: section["status"] for key, section in self.sections.items()}


def seen(dump: Path, symbols: Sequence[Path] = ()) -> Seen:
    """Make a report and open it; nothing may be wrong with the page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        options = [word for path in symbols for word in ("--symbols", path)]
        assert_done(drgn_tools("report", dump, "-o", path, *options))
        assert path.stat().st_size < 5_000_000
        assert path.stat().st_mode & 0o777 == 0o600
        with chromium.opened(path) as page:
            found = Seen(**page.evaluate(_SEEN))
            assert page.said == [] and page.dialogs == [] and page.requests == []
    assert found.contents == ["summary", *found.sections]
    return found


def squeezed(text: str) -> str:
    """A text without most of its white space: tabs are shown as spaces."""
    return " ".join(text.split())


# --- what a panic leaves


@functools.lru_cache
def panicked(symbols: bool) -> tuple[dumps.Dump, Seen]:
    dump = dumps.get("6.12", levels=5, kaslr=True, kind="vmcore")
    return dump, seen(dump.path, [dump.kernel.vmlinux] if symbols else [])


@pytest.mark.parametrize("symbols", [True, False])
def test_first_screen_says_what_died(symbols: bool) -> None:
    dump, page = panicked(symbols)
    serial = (dump.folder / "serial.log").read_text(errors="replace")
    panic = re.search(r"Kernel panic - .*", serial)
    assert panic is not None and page.headline == panic[0].strip()
    assert dump.kernel.release in page.head
    assert "The dump is whole" in page.verdicts[0]
    # The kernel's own call trace has the same functions.
    for function in ("sysrq_handle_crash", "write_sysrq_trigger", "vfs_write"):
        assert function in page.head
        assert re.search(rf"\b{function}\+0x", serial)
    assert re.search(r"\btask\s+sh\[\d+\] on CPU [01]\b", page.head)


@pytest.mark.verified("report: the log", by="dmesg in the same guest", on="6.12")
def test_log_is_what_the_guest_had_said() -> None:
    dump, page = panicked(False)
    shown = {message(line) for line in page.sections["log"]["lines"]}
    wanted = {message(line) for line in dump.fact("dmesg").decode().splitlines()}
    assert len(wanted) > 100 and wanted <= shown


def message(line: str) -> str:
    """A line of a log without its time and who said it."""
    return squeezed(re.sub(r"^\[ *[\d.]+\] (\[ *[TC]\d+\] )?", "", line))


KERNELS = ("5.10", "6.1", "6.12", "7.2")


@functools.lru_cache
def alive(kernel: str = "6.12") -> tuple[dumps.Dump, Seen]:
    dump = dumps.get(kernel, kind="qemu")
    return dump, seen(dump.path, [dump.kernel.vmlinux])


@pytest.mark.verified("report: tasks", by="ps in the same guest")
@pytest.mark.parametrize("kernel", KERNELS)
def test_tasks_are_those_that_ps_saw(kernel: str) -> None:
    dump, page = alive(kernel)
    _, *rows = dump.fact("ps").decode().splitlines()
    ps = {(row.split()[0], row.split(None, 2)[2]) for row in rows}
    shown = {(row[0], row[1]) for row in page.sections["tasks"]["tables"][0]}
    # ps itself was gone, and these threads come and go.
    passing = ("ps", "kworker/", "ext4lazyinit")
    lost = {row for row in ps - shown if not row[1].startswith(passing)}
    assert lost == set() and len(ps & shown) > 40
    for key in ("log", "tasks", "memory"):
        assert page.statuses()[key] == "ok"
    assert page.headline == "No panic in the kernel log"


def test_each_task_has_its_stack() -> None:
    _, page = alive()
    tasks = page.sections["tasks"]
    captions = " ".join(tasks["captions"])
    for row in tasks["tables"][0]:
        # More than 40 with one stack are not named.
        assert f"{row[1]}[{row[0]}]" in captions


@pytest.mark.parametrize("kernel", KERNELS)
def test_sleeping_tasks_are_in_what_they_wait_in(kernel: str) -> None:
    """None of the functions that the kernel's linker put with the scheduler's."""
    dump, page = alive(kernel)
    with dump.kernel.vmlinux.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = [(s["st_value"], s.name) for s in table.iter_symbols()]
    edges = {name: at for at, name in symbols if name.startswith("__sched_text_")}
    scheduler = range(edges["__sched_text_start"], edges["__sched_text_end"])
    names = {name for at, name in symbols if at in scheduler}
    assert "schedule_timeout" in names
    rows = page.sections["tasks"]["tables"][0]
    places = {row[5] for row in rows if row[2][0] in "SDI" and "CPU" not in row[2]}
    assert not places & names
    assert places >= {"kthreadd", "rescuer_thread", "worker_thread"}


def test_memory_is_drawn() -> None:
    for _, page in (alive(), panicked(False)):
        memory = page.sections["memory"]
        assert memory["status"] == "ok"
        assert memory["pictures"] and all(width > 500 for width in memory["pictures"])
        pages = sum(int(row[1]) for row in memory["tables"][0])
        assert re.search(rf"\b{pages} pages", memory["text"])


def test_without_symbols_it_says_what_is_missing() -> None:
    _, page = panicked(False)
    statuses = page.statuses()
    assert statuses["tasks"] == "missing"
    assert statuses["log"] == statuses["memory"] == "ok"
    rows = page.sections["missing"]["tables"][0]
    assert any("Tasks" in section and "symbols" in why for section, why in rows)
    # And what to do about it.
    assert any("No debugging symbols" in verdict for verdict in page.verdicts)
    assert "linux-image-" in page.head


def test_that_symbols_are_missing_is_said(tmp_path: Path) -> None:
    dump, _ = panicked(False)
    said = assert_done(drgn_tools("report", "-q", dump.path, "-o", tmp_path / "r.html"))
    (line,) = said.splitlines()
    assert line.startswith("warning: no debugging symbols of kernel ")
    assert "--symbols; not whole without: Tasks" in line


def test_info_says_who_died_and_when() -> None:
    """As the kernel said on its console."""
    dump, page = panicked(True)
    serial = (dump.folder / "serial.log").read_text(errors="replace")
    died = re.findall(r"CPU: (\d+) .*PID: (\d+) Comm: (\S+) .*?tainted", serial, re.I)
    told = drgn_tools("info", "--json", dump.path)
    assert_done(told)
    info = json.loads(told.stdout)
    who = (str(info["task_cpu"]), str(info["task_pid"]), info["task"])
    assert who in died
    assert info["taint"] in serial
    stamps = [int(seconds) for seconds in re.findall(r"\[ *(\d+)\.\d{6}\]", serial)]
    assert info["uptime"] in stamps and info["uptime"] > 0
    text = drgn_tools("info", dump.path).stdout
    assert f"{who[2]}[{who[1]}] on CPU {who[0]}" in text
    for label in ("uptime", "task", "taint"):
        assert re.search(rf"^{label}: ", text, re.M) and label in page.head


# --- dumps that are not whole


def test_dump_for_which_there_was_no_room(tmp_path: Path) -> None:
    whole = dumps.get("6.12", kind="vmcore")
    path = tmp_path / "limited"
    done = drgn_tools("extract", whole.path, path, "-d", "31", "-L", str(12 << 20))
    assert done.status == 1 and "is incomplete" in done.stderr
    page = seen(path, [whole.kernel.vmlinux])
    assert "marked incomplete" in page.verdicts[0]
    assert page.verdicts[0].startswith("missing")


@pytest.mark.parametrize("kdump", [False, True])
def test_dump_that_is_cut_short(kdump: bool, tmp_path: Path) -> None:
    whole = dumps.get("6.12", kind="vmcore")
    path = tmp_path / "cut"
    if kdump:
        assert_done(drgn_tools("extract", whole.path, path))
    else:
        copied(whole.path, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    page = seen(path, [whole.kernel.vmlinux])
    assert "cut short" in page.verdicts[0]
    # Whatever that costs is named.
    for section in page.sections.values():
        assert section["status"] in ("ok", "none") or section["text"]
    assert page.statuses()["missing"] == "partly"


# --- what helpers find


def _pstore(label: str) -> pstore_guests.Guest:
    (spec,) = (
        spec
        for spec in pstore_guests.MATRIX
        if spec.kernel == "6.12-bench" and spec.label == label
    )
    return pstore_guests.get(spec)


@pytest.mark.verified(
    "report: pstore", by="/sys/fs/pstore of the same guest", on="6.12-bench"
)
@pytest.mark.parametrize("symbols", [True, False])
def test_pstore_has_what_the_kernel_found_at_boot(symbols: bool) -> None:
    guest = _pstore("wrapped")
    page = seen(guest.dump, [guest.kernel.vmlinux] if symbols else [])
    shown = {squeezed(line) for line in page.sections["pstore"]["lines"]}
    # Of the boot before.
    files = guest.files(1)
    texts = [name for name in files if name.startswith(("console", "dmesg", "pmsg"))]
    assert len(texts) >= 3
    for name in texts:
        # The first line may be what is left of one.
        wanted = files[name].decode(errors="backslashreplace").splitlines()[1:]
        assert wanted and {squeezed(line) for line in wanted} <= shown
    counted = re.search(r"(\d+) function calls", page.text("pstore"))
    assert counted is not None and int(counted[1]) > 1000


@pytest.mark.verified("report: zram", by="mm_stat of the same guest", on="6.12")
def test_zram_has_the_kernels_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = next(spec for spec in zram_guests.MATRIX if spec.name == "6.12-zram")
    guest = zram_guests.get(spec)
    modules = map(guest.kernel.module_debug, ("zram", "zsmalloc"))
    page = seen(guest.dump("vmcore"), [guest.kernel.vmlinux, *modules])
    rows = {row[0]: row for row in page.sections["zram"]["tables"][0]}
    facts = guest.facts()
    for number in range(len(spec.devices)):
        stat = facts[f"zram{number}/mm_stat"].decode().split()
        row = rows[f"zram{number}"]
        # Pages that are one word, and that did not compress.
        assert row[7:9] == [stat[5], stat[7]]
        assert spec.devices[number].algorithm in row[2]
    assert page.statuses()["zram"] == "ok"
    # Whoever enters the commands that it names gets what they promise.
    monkeypatch.chdir(tmp_path)
    first, *_, last = page.sections["zram"]["commands"]
    for words in map(shlex.split, (first, last)):
        assert words[0] == "drgn-tools" and words.count("--symbols") == 3
        assert_done(drgn_tools(*words[1:]))
    size = int(facts["zram0/disksize"])
    assert (tmp_path / "zram0.img").stat().st_size == size


def test_zram_without_the_modules_symbols_is_missing() -> None:
    spec = next(spec for spec in zram_guests.MATRIX if spec.name == "6.12-zram")
    guest = zram_guests.get(spec)
    page = seen(guest.dump("vmcore"), [guest.kernel.vmlinux])
    assert page.statuses()["zram"] == "missing"
    assert "name zram.ko and zsmalloc.ko" in page.text("missing")


@pytest.mark.verified(
    "report: flame graph", by="programs that are busy where is known", on="5.10"
)
def test_flame_graph_has_the_tasks_that_were_busy() -> None:
    (spec,) = (spec for spec in oprofile_guests.MATRIX if spec.name == "callgraph")
    guest = oprofile_guests.get(spec)
    symbols = [guest.kernel.vmlinux, guest.kernel.module_debug("oprofile")]
    profile = seen(guest.dump, symbols).sections["oprofile"]
    assert profile["status"] == "ok"
    by_depth: dict[int, list[tuple[str, float]]] = {}
    for name, width, y in profile["frames"]:
        by_depth.setdefault(-y, []).append((name, width))
    (everything,) = by_depth[min(by_depth)]
    assert everything == ("all", 100)
    tasks = by_depth[sorted(by_depth)[1]]
    assert sum(width for _, width in tasks) == pytest.approx(100, abs=0.1)
    named = " ".join(name for name, _ in tasks)
    for _, pid, _ in guest.tasks:
        assert f"[{pid}]" in named
    # Each that the kernel counted, but for those that its readers had taken.
    counted = sum(
        number
        for name, number in guest.stats("qemu").items()
        if name.endswith("sample_received")
    )
    samples = re.search(r"(\d+) samples that nobody", profile["text"])
    assert samples is not None and 500 < int(samples[1]) <= counted
    assert sum(int(row[0]) for row in profile["tables"][0]) == int(samples[1])


@pytest.mark.verified(
    "report: trace buffers", by="the `trace` files of the same guest", on="6.12"
)
def test_trace_ends_as_the_kernels_own_file() -> None:
    guest = ftrace_guests.get("6.12")
    page = seen(guest.dump("vmcore"), [guest.kernel.vmlinux])
    text = page.text("trace")
    for instance in ("", "wrapped", "read"):
        ours = guest.trace(instance).splitlines()[-20:]
        for line in ours:
            event = re.search(r"\d+\.\d+: (\S.*)", line)
            if event is not None:
                assert event[1].strip() in text
        name = instance or "(the kernel's own)"
        rows = [row for row in page.sections["trace"]["tables"][0] if row[0] == name]
        assert rows
        count = r"entries-in-buffer/entries-written: (\d+)/"
        entries = re.search(count, guest.trace(instance))
        assert entries is not None
        assert sum(int(row[2]) for row in rows) == int(entries[1])


def copied(source: Path, target: Path) -> Path:
    """A copy that takes as little room as the dump."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
    target.chmod(0o600)
    return target


def _offset(path: Path, address: Object) -> int:
    """Where in an ELF dump a kernel's object is."""
    paddr = int(follow_phys(address.prog_["init_mm"].address_of_(), address))
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            at = paddr - int(segment["p_paddr"])
            if 0 <= at < int(segment["p_filesz"]):
                return at + int(segment["p_offset"])
    raise AssertionError(f"{paddr:#x} is not in {path}")


def test_trace_of_a_dump_with_damaged_kallsyms(tmp_path: Path) -> None:
    """Names are those of the debugging symbols then."""
    guest = ftrace_guests.get("6.12")
    path = copied(guest.dump("vmcore"), tmp_path / "damaged")
    prog = open_dump(str(path), [str(guest.kernel.vmlinux)])
    names = Object(prog, "void *", prog.symbol("kallsyms_names").address)
    at = _offset(path, names)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 4096)
    page = seen(path, [guest.kernel.vmlinux])
    assert page.statuses()["trace"] == "ok"
    assert re.search(r"\bvfs_\w+", page.text("trace"))


# --- hostile dumps


COMMS = (
    b"<script>a(1)//",
    b'"><img src=x o',
    b"</pre></table>",
    b"\x1b[2J\x07\xe2\x80\xae\xff\xfe",
)
DEVICE = b"<img src=x onerror=alert(2)>"
# As long as what they take the place of: in the log, and in what pstore has of the
# console.
PANIC = b"<img src=x onerror=a>"
INIT = b"<script>alert(3)</script>"
LINE = b"</pre><svg/ x='"
TEXTS = {
    b"sysrq triggered crash": PANIC,
    b"Run /init as init process": INIT,
    b" to the console": LINE,
}


def spoiled(source: Path, path: Path, vmlinux: Path, *, hostile: bool) -> Path:
    """A copy of a dump with such strings in it, or with as many letters."""

    def text(data: bytes) -> bytes:
        return data if hostile else b"x" * len(data)

    copied(source, path)
    prog = open_dump(str(path), [str(vmlinux)])
    patches = []
    for number, task in enumerate(for_each_task(prog)):
        comm = text(COMMS[number % len(COMMS)]).ljust(16, b"\0")
        patches.append((_offset(path, task.comm.address_of_()), comm))
    (zram,) = for_each_zram(prog)
    name = _offset(path, zram.disk.disk_name.address_of_())
    patches.append((name, text(DEVICE) + b"\0"))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for offset, data in patches:
            memory[offset : offset + len(data)] = data
        for old, new in TEXTS.items():
            assert len(old) == len(new)
            at, count = memory.find(old), 0
            while at >= 0:
                memory[at : at + len(old)] = text(new)
                at, count = memory.find(old, at), count + 1
            assert count
    return path


def test_nothing_of_a_hostile_dump_becomes_markup(tmp_path: Path) -> None:
    guest = _pstore("wrapped")
    plain, hostile = (
        seen(
            spoiled(
                guest.vmcore, tmp_path / str(bad), guest.kernel.vmlinux, hostile=bad
            ),
            [guest.kernel.vmlinux],
        )
        for bad in (False, True)
    )
    assert hostile.shape == plain.shape
    assert hostile.attributes == plain.attributes
    assert hostile.statuses() == plain.statuses()
    # All are there to be read, where they belong.
    assert hostile.headline == f"Kernel panic - not syncing: {PANIC.decode()}"
    for comm in COMMS[:3]:
        assert comm.decode() in hostile.text("tasks")
    assert r"\x1b[2J\x07\u202e\xff\xfe" in hostile.text("tasks")
    assert DEVICE.decode() in hostile.text("zram")
    assert INIT.decode() in hostile.text("log")
    for key in ("log", "pstore"):
        assert LINE.decode() in hostile.text(key)
