# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files for other tools, of records that no kernel would make."""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from google.protobuf.internal import encoder
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

from drgn_tools import oprofile_text, output, zram, zram_csv
from drgn_tools.errors import DumpError
from drgn_tools.export import function_trace, protobuf, stacks
from drgn_tools.export.endings import ENDINGS, format_of
from drgn_tools.export.function_trace import Boot
from drgn_tools.oprofile import OprofilePlace, OprofileSample
from drgn_tools.pstore_records import FTRACE, LP64, FtraceArray
from tests import speedscope, trace_processor
from tests.test_zram import filled
from tests.zram_kernel import ERAS, PAGE, ZramKernel

TEXT = 0xFFFFFFFF81000000
HOSTILE = (
    "plain",
    "\x1b[31m\x07",
    "</script>",
    'quote" and \\ and ,',
    "surrogate \udc80 \ud800",
    "new\nline",
    "\N{HEBREW LETTER ALEF}",
    "x" * 5000,
)


# --- names


@pytest.mark.parametrize("family", ENDINGS)
def test_a_file_is_what_its_name_says(family: str) -> None:
    for ending, kind in ENDINGS[family].items():
        assert format_of(family, f"/tmp/a{ending}") == kind
    for name in ("trace", "a.json", "a.pftrace.gz", ".", ""):
        with pytest.raises(ValueError, match="ends in none of"):
            format_of(family, name)


@pytest.mark.parametrize("family", ENDINGS)
def test_the_wrong_name_is_wrong_usage(family: str, tmp_path: Path) -> None:
    """Before anything is read."""
    argv = [sys.executable, "-m", "drgn_tools", family, "no-such-dump", "-o"]
    done = subprocess.run([*argv, str(tmp_path / "a.xls")], capture_output=True)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    for ending in ENDINGS[family]:
        assert ending in line
    assert not list(tmp_path.iterdir())


# --- protocol buffers


def test_numbers_are_as_protobuf_has_them() -> None:
    chance = random.Random(1)
    numbers = [0, 1, 127, 128, (1 << 64) - 1, *(1 << i for i in range(64))]
    numbers += [chance.getrandbits(chance.randrange(1, 65)) for _ in range(500)]
    for value in numbers:
        made: list[bytes] = []
        encoder._EncodeVarint(made.append, value)
        assert protobuf.varint(value) == b"".join(made)
    for value in (-1, -(1 << 31), -(1 << 63)):
        made = []
        encoder._EncodeSignedVarint(made.append, value)
        assert protobuf.varint(value) == b"".join(made)


# --- function traces


def records(count: int, cpus: Sequence[int], functions: int, boot: int) -> FtraceArray:
    chance = np.random.default_rng(count)
    made = np.zeros(count, FTRACE)
    made["counter"] = np.sort(chance.choice(4 * count, count, replace=False)) + 7
    numbers = chance.integers(0, functions, count, np.uint64)
    made["ip"] = np.uint64(TEXT) + np.uint64(16) * numbers
    numbers = chance.integers(0, functions, count, np.uint64)
    made["parent_ip"] = np.uint64(TEXT + 8) + np.uint64(16) * numbers
    made["cpu"] = chance.choice(cpus, count)
    made["boot"] = boot
    made["torn"] = chance.random(count) < 0.05
    return made


def name(address: int) -> str:
    return f"{HOSTILE[address // 8 % len(HOSTILE)]}{address:x}"


def boot_of(made: FtraceArray) -> Boot:
    ip, parent = made["ip"], made["parent_ip"]
    return Boot(int(made["boot"][0]), made, ip, parent, name, name)


@pytest.fixture(scope="module")
def boots() -> list[Boot]:
    newest = records(5000, [0, 1, 255, 300], 500, 0)
    return [boot_of(newest), boot_of(records(300, [0, 2], 40, -1))]


def test_packets_are_perfettos(boots: list[Boot]) -> None:
    """By Perfetto's messages: names are what was said, times do not fall."""
    content = b"".join(function_trace.perfetto_trace(boots))
    trace = perfetto_trace_pb2.Trace.FromString(content)
    # There is nothing that the messages do not know.
    trace.DiscardUnknownFields()
    assert trace.ByteSize() == len(content)
    names: dict[tuple[int, str], dict[int, str]] = collections.defaultdict(dict)
    tracks: dict[int, str] = {}
    parents: dict[int, int] = {}
    last: dict[int, int] = collections.defaultdict(int)
    seen = collections.defaultdict(list)
    for packet in trace.packet:
        sequence = packet.trusted_packet_sequence_id
        assert sequence
        for kind in ("event_names", "debug_annotation_names"):
            for entry in getattr(packet.interned_data, kind):
                assert entry.iid not in names[sequence, kind]
                names[sequence, kind][entry.iid] = entry.name
        for entry in packet.interned_data.debug_annotation_string_values:
            assert entry.iid not in names[sequence, "values"]
            names[sequence, "values"][entry.iid] = entry.str.decode()
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            assert track.uuid not in tracks
            assert not track.parent_uuid or track.parent_uuid in tracks
            tracks[track.uuid] = track.name
            parents[track.uuid] = track.parent_uuid
        if packet.HasField("track_event"):
            assert packet.timestamp >= last[sequence]
            last[sequence] = packet.timestamp
            event = packet.track_event
            assert event.type == event.TYPE_INSTANT
            said = {
                names[sequence, "debug_annotation_names"][note.name_iid]: names[
                    sequence, "values"
                ][note.string_value_iid]
                for note in event.debug_annotations
            }
            seen[tracks[parents[event.track_uuid]]].append(
                (
                    packet.timestamp,
                    tracks[event.track_uuid],
                    names[sequence, "event_names"][event.name_iid],
                    said["caller"],
                    "note" in said,
                )
            )
    assert len(seen) == 2
    for found, boot in zip(seen.values(), boots):
        assert found == [
            (
                counter * 1000,
                f"CPU {cpu}",
                shown(name(ip)),
                shown(name(parent)),
                torn,
            )
            for counter, ip, parent, cpu, _, _, torn in boot.records.tolist()
        ]


def shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def test_perfetto_reads_it(boots: list[Boot], tmp_path: Path) -> None:
    path = tmp_path / "a.pftrace"
    assert function_trace.write(str(path), "perfetto", boots, LP64) == []
    found = trace_processor.marks(path)
    expected = []
    for boot in boots:
        for counter, ip, parent, cpu, *_ in boot.records.tolist():
            expected.append(
                (counter * 1000, shown(name(ip)), f"CPU {cpu}", shown(name(parent)))
            )
    assert sorted((mark[:3] + mark[4:5]) for mark in found) == sorted(expected)
    above = collections.Counter(mark[3] for mark in found)
    assert sorted(above.items()) == [
        ("pstore, boot -1 (1 us = 1 record)", len(boots[1].records)),
        ("pstore, boot 0 (1 us = 1 record)", len(boots[0].records)),
    ]


def test_counters_that_are_no_axis() -> None:
    """Without counters, or with impossible ones, it is the place that counts."""
    for counters in ([0, 0, 0], [5, 4, 9], [1, 2, 1 << 63], [7]):
        made = np.zeros(len(counters), FTRACE)
        made["counter"] = counters
        expected = counters if counters == [7] else [0, 1, 2]
        assert function_trace.times(made).tolist() == expected
    assert function_trace.times(np.zeros(0, FTRACE)).tolist() == []


@pytest.mark.parametrize("kind", ["perfetto", "trace.dat"])
def test_impossible_cpus(kind: str, tmp_path: Path) -> None:
    """One is not given four billion tables."""
    path = tmp_path / "a"
    made = records(100, [1, 0xFFFFFFFF], 10, 0)
    count = int((made["cpu"] != 1).sum())
    assert function_trace.write(str(path), kind, [boot_of(made)], LP64) == [
        f"{count} records of CPUs that there cannot be"
    ]
    assert path.stat().st_size < 1 << 18
    with pytest.raises(DumpError, match="there are no records for it"):
        function_trace.write(str(path), kind, [], LP64)


# --- profiles


def profile() -> list[OprofileSample]:
    chance = random.Random(3)
    places = [
        OprofilePlace(
            chance.getrandbits(64),
            image,
            offset,
            symbol if chance.random() < 0.7 else "",
            0,
        )
        for image in ("vmlinux", "[anon]", "/bin/\udcff\n;b")
        for offset in (None, 0x40)
        for symbol in HOSTILE
    ]
    made = []
    for _ in range(2000):
        trace = tuple(chance.choices(places, k=chance.randrange(5)))
        pid = chance.choice([-1, 0, 42])
        names = (pid, pid, chance.choice(HOSTILE), "/bin/program")
        kind = chance.choice(["sample", "sample", "ibs_op"])
        event, place = chance.randrange(2), chance.choice(places)
        where = (0, None, "unread", "kernel")
        made.append(OprofileSample(*where, *names, event, place, trace, kind, (), ""))
    return made


def test_speedscope() -> None:
    samples = profile()
    content = stacks.speedscope(stacks.count_stacks(samples), HOSTILE[4])
    found = speedscope.stacks(json.loads(content))
    assert sorted(found) == ["event0", "event1", "ibs_op"]
    assert sum(sum(counts.values()) for counts in found.values()) == len(samples)
    # The same chains as in the text for flame graphs.
    for event, counts in found.items():
        these = [
            sample
            for sample in samples
            if (sample.kind if sample.kind != "sample" else f"event{sample.event}")
            == event
        ]
        expected = dict(
            line.rsplit(" ", 1) for line in oprofile_text.folded_lines(these)
        )
        folded = {
            ";".join(frame.replace(";", ":") for frame in stack): str(count)
            for stack, count in counts.items()
        }
        assert folded == expected


def test_profiles_of_nothing() -> None:
    content = json.loads(stacks.speedscope(stacks.count_stacks([]), "nothing"))
    assert speedscope.stacks(content) == {"event0": {}}
    assert gzip.decompress(b"".join(stacks.pprof(stacks.count_stacks([]))))


# --- tables


@pytest.mark.parametrize("era", ERAS)
def test_slots_as_a_table(era: str, tmp_path: Path) -> None:
    algorithm = "lz4" if ERAS[era].algorithms else "lzo"
    kernel = ZramKernel(era, algorithms=[algorithm], slots=120)
    pages = filled(kernel, algorithm)
    path = tmp_path / "zram0.csv"
    zram.zram_table(kernel.device, str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    table = typed(path)
    assert table.column_names == list(zram_csv.SLOTS)
    slots = list(zram.for_each_zram_slot(kernel.device))
    for row, slot in zip(table.to_pylist(), slots):
        assert (row["index"], row["kind"]) == (slot.index, slot.kind)
        assert (row["size"], row["algorithm"] or "") == (slot.size, slot.algorithm)
        letters = "".join(
            letter if row[name] else "."
            for letter, name in zip(
                "swhirn"[: len(slot.flags)],
                (
                    *("same", "written_back", "huge", "idle"),
                    *("recompressed", "incompressible"),
                ),
            )
        )
        assert letters == slot.flags
        if slot.kind in ("zero", "same"):
            word = int(row["fill"], 16).to_bytes(kernel.word, kernel.order)
            assert word * (PAGE // kernel.word) == pages[slot.index]
        else:
            assert row["fill"] is None
        assert (row["handle"] is not None) == (slot.kind in ("huge", "compressed"))
        assert row["locked"] is False
    assert table.num_rows == len(slots) == 120


@pytest.mark.parametrize("era", ["4.14", "6.12", "7.2"])
def test_pages_as_a_table(era: str, tmp_path: Path) -> None:
    kernel = ZramKernel(era, algorithms=["lz4"], slots=120)
    pages = filled(kernel, "lz4")
    kernel.slot(5, handle=77, flags=kernel.flag("WB")) if era != "4.14" else None
    path = tmp_path / "zram0.pages.csv"
    zram.zram_table(kernel.device, str(path))
    table = typed(path)
    assert table.column_names == list(zram_csv.PAGES)
    for row, data in zip(table.to_pylist(), pages):
        if row["kind"] == "written back":
            assert (row["sha256"], row["zero_bytes"]) == (None, None)
            assert row["note"].startswith("written back to ")
            continue
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["zero_bytes"] == data.count(0)
        assert row["note"] is None
    assert table.num_rows == 120


def test_slots_that_are_not_there(tmp_path: Path) -> None:
    """No value is made up, and names from the dump are no lines of their own."""
    kernel = ZramKernel("6.12", algorithms=['a",\n=b'], slots=2000)
    for index in range(2000):
        kernel.put(index, b"nothing of that")
    kernel.missing.add((kernel.table - kernel.direct) // PAGE + 0x2000 + 3)
    path = tmp_path / "zram0.csv"
    zram.zram_table(kernel.device, str(path))
    found = typed(path)
    assert found.num_rows == 2000
    assert set(found["algorithm"].to_pylist()) == {'a",\\n=b', None}
    gone = [row for row in found.to_pylist() if row["kind"] == "unreadable"]
    assert gone
    for row in gone:
        assert {name for name in row if row[name] is not None} == {"index", "kind"}


def typed(path: Path) -> Any:
    """A table as a reader has it that finds types by itself; and as Parquet."""
    options = pyarrow.csv.ConvertOptions(
        # A column of hexadecimal numbers may be one of words as well.
        column_types=dict.fromkeys(("handle", "fill", "sha256"), "string"),
        strings_can_be_null=True,
    )
    table = pyarrow.csv.read_csv(path, convert_options=options)
    other = path.with_suffix(".parquet")
    pyarrow.parquet.write_table(table, other)
    assert pyarrow.parquet.read_table(other).equals(table)
    return table


def test_files_are_not_replaced(tmp_path: Path) -> None:
    kernel = ZramKernel("6.12", slots=120)
    path = tmp_path / "zram0.csv"
    path.write_text("mine")
    with pytest.raises(DumpError, match="exists"):
        zram.zram_table(kernel.device, str(path))
    assert path.read_text() == "mine"
    zram.zram_table(kernel.device, str(path), force=True)
    assert path.read_text().startswith("index,")
    with pytest.raises(ValueError, match=r"only if it ends in \.csv"):
        zram.zram_table(kernel.device, str(tmp_path / "zram0.img"))


def test_pieces_of_any_size(tmp_path: Path) -> None:
    chance = random.Random(5)
    pieces = [chance.randbytes(chance.choice([0, 1, 100, 1 << 20])) for _ in range(40)]
    output.write_file(str(tmp_path / "a"), iter(pieces))
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)

    def broken() -> Iterator[bytes]:
        yield bytes(1 << 21)
        raise DumpError("the source is gone")

    with pytest.raises(DumpError, match="gone"):
        output.write_file(str(tmp_path / "b"), broken())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
