# SPDX-License-Identifier: LGPL-2.1-or-later
"""The growth benchmark: its huge dump is what it says, and its command runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import Cost, Dump, Sample
from benchmarks.vast import RARE, Vast
from drgn_tools.pages import PageClass, excluded_classes
from drgn_tools.plan import make_plan
from drgn_tools.vmcore import open_vmcore
from tests.synthetic import GIB, MIB, PAGE, Machine, write_elf


@pytest.fixture(scope="module")
def vast() -> Vast:
    return Vast(9)


@pytest.mark.parametrize("jobs", [1, 2])
def test_vast_classes(vast: Vast, tmp_path: Path, jobs: int) -> None:
    vast.save(tmp_path / "vmcore")
    status = (tmp_path / "vmcore").stat()
    assert status.st_size > 9 * GIB
    assert status.st_blocks * 512 < 64 * MIB
    with open_vmcore(str(tmp_path / "vmcore")) as vmcore:
        assert not vmcore.lost_bytes
        plan = make_plan(vmcore, excluded_classes(31) - {RARE}, jobs)
    assert plan.warnings == ()
    assert plan.found.tolist() == vast.counts.tolist()
    assert plan.found.sum() == 9 * GIB // PAGE
    # All but the section of the kernel and those of a huge page of 1 GiB.
    assert plan.kept[RARE] == 9 * 8 - 1 - 8
    found = {page_class.label for page_class in PageClass if plan.found[page_class]}
    assert found == {
        *("kernel", "slab", "cache", "cache-private", "anon", "hugetlb", "free")
    }


def test_growth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dumps = [str(tmp_path / "small"), str(tmp_path / "large")]
    for path, size in zip(dumps, (8 * MIB, 16 * MIB)):
        machine = Machine(ram=[(0, size)])
        write_elf(path, machine.loads(), machine.notes())
    (tmp_path / "output").mkdir()
    growth.main(
        [*dumps, "--runs", "1", "--synthetic", "8", "--output", f"{tmp_path}/output"]
    )
    said = capsys.readouterr().out
    assert said.startswith("Machine: ")
    lines = [line for line in said.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    # Page frames, pages kept, and pages that are not zero.
    counts = {(row[0], row[1]): row[2:5] for row in cells if len(row) > 5}
    for path, frames in zip(dumps, ("2,048", "4,096")):
        assert counts["planning", path] == [frames, "", ""]
        assert counts["-d 31", path][0] == counts["-d 1", path][0] == frames
    synthetic = "8 GiB, synthetic"
    assert counts["planning", synthetic] == ["2,097,152", "", ""]
    assert counts["nothing kept", synthetic] == ["2,097,152", "0", "0"]
    assert counts["a page per section kept", synthetic] == ["2,097,152", "55", "0"]
    same = "the same pages again, -d 1"
    kept = [counts[same, f"{dumps[0]}, {n} times"][1:] for n in growth.TIMES]
    once = [int(count.replace(",", "")) for count in kept[0]]
    assert [[f"{n * count:,}" for count in once] for n in growth.TIMES] == kept
    assert f"\n{same}, ns per page written: mean " in said
    assert "\nplanning, ns per frame: mean " in said
    assert "\n-d 1, ns per page written: mean " in said
    memory = [row[0] for row in cells if len(row) == 5]
    assert memory[2:] == ["nothing kept", "a page per section kept"]
    assert list((tmp_path / "output").iterdir()) == []


def test_sample(tmp_path: Path) -> None:
    machine = Machine()
    write_elf(tmp_path / "vmcore", machine.loads(), machine.notes())
    dump = growth.describe("one", str(tmp_path / "vmcore"))
    zero = sum(not any(machine.page(pfn)) for pfn in machine.pfns())
    (tmp_path / "output").mkdir()
    found = growth.sample(growth.TASKS[2], dump, str(tmp_path / "output"))
    # It has no page that is left out at -d 1 but zero ones.
    assert (found.kept, found.written) == (2048, 2048 - zero)
    assert found.seconds > 0


def test_deviations() -> None:
    costs = [
        Cost(growth.TASKS[1], Dump(title, "", frames), seconds, 0.0, [sample])
        for title, frames, seconds, sample in (
            ("a", 1000, 1e-5, Sample(0.0, 0, 0, 0, 5, 5)),
            ("b", 2000, 4e-5, Sample(0.0, 0, 0, 0, 5, 0)),
            ("c", 1000, 3e-5, Sample(0.0, 0, 0, 0, 5, 5)),
        )
    ]
    # What has no pages is not in the second line; a synthetic one is in none.
    synthetic = costs[0]._replace(dump=Dump("d", "", 1, sparse=True))
    assert growth.deviations([*costs, synthetic]) == [
        "-d 31, ns per frame: mean 20.0, largest deviation -50.0% (a).",
        "-d 31, ns per page written: mean 4000.0, largest deviation -50.0% (a).",
    ]
