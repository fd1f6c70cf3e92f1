"""The bench itself: what other tests rely on, on the everyday kernel."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import apt, bench, build, cache, kernels, qemu
from tests.vm.apt import Source

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian/ bookworm main contrib
deb-src http://mirror.example/debian bookworm main
deb http://other.example/linux stable main   # not Debian
"""

DEB822 = """\
# A comment.
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
# Enabled: no

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: sid
Components: main
"""


def test_one_line_sources() -> None:
    assert list(apt.parse_list(ONE_LINE)) == [
        Source("http://mirror.example/debian/", "bookworm", ("main", "contrib")),
        Source("http://other.example/linux", "stable", ("main",)),
    ]


def test_deb822_sources() -> None:
    main = ("main",)
    assert list(apt.parse_deb822(DEB822)) == [
        Source("http://mirror.example/debian", "bookworm", main),
        Source("http://mirror.example/debian", "bookworm-updates", main),
        Source("http://security.example/debian-security", "bookworm-security", main),
    ]


def test_mirrors_of_other_suites() -> None:
    sources = [*apt.parse_deb822(DEB822), *apt.parse_list(ONE_LINE)]
    assert apt.mirrors("sid", sources) == ["http://mirror.example/debian"]
    assert apt.mirrors("bullseye-security", sources) == [
        "http://security.example/debian-security",
        "http://mirror.example/debian-security",
        "http://mirror.example/debian",
    ]


def test_security_beside_the_only_mirror() -> None:
    sources = list(apt.parse_list(ONE_LINE))
    assert apt.mirrors("bookworm-security", sources) == [
        "http://mirror.example/debian-security",
        "http://mirror.example/debian",
    ]


def test_no_debian_among_the_sources() -> None:
    sources = [Source("http://other.example/linux", "stable", ("main",))]
    with pytest.raises(bench.BenchError, match="no Debian archive"):
        apt.mirrors("bookworm", sources)


def test_options_that_did_not_survive() -> None:
    fragment = ["# why", "CONFIG_A=y", "CONFIG_B=m", "# CONFIG_C is not set"]
    assert build.missing(fragment, "CONFIG_A=y\nCONFIG_B=m\n") == []
    assert build.missing(fragment, "CONFIG_A=y\nCONFIG_C=y\n") == [
        "CONFIG_B=m",
        "# CONFIG_C is not set",
    ]


def test_cache_makes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make(work: Path) -> dict[str, int]:
        made.append(work)
        (work / "file").write_text("x")
        return {"made": len(made)}

    def fail(work: Path) -> dict[str, int]:
        (work / "file").write_text("half")
        raise bench.BenchError("interrupted")

    with pytest.raises(bench.BenchError, match="interrupted"):
        cache.make("a/b", fail)
    assert cache.find("a/b") is None
    first = cache.make("a/b", make)
    assert cache.make("a/b", make) == first == cache.find("a/b")
    assert cache.manifest(first) == {"made": 1}
    assert [path.name for path in first.parent.iterdir()] == ["b"]
    with pytest.raises(bench.BenchError, match=r"no room for c: needs .* GB in"):
        cache.make("c", make, room=1 << 60)


RESERVED = 0x8000000
"""Memory of the guest that its kernel does not touch."""


@pytest.fixture(scope="module")
def kernel() -> kernels.Kernel:
    return kernels.get("6.1")


@pytest.fixture(scope="module")
def vm(
    kernel: kernels.Kernel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[qemu.VM]:
    ram = tmp_path_factory.mktemp("vm") / "ram"
    append = f"memmap=1M${RESERVED}"
    with qemu.booted(kernel, memory_mib=256, ram=ram, append=append) as vm:
        yield vm


def test_command_in_the_guest(vm: qemu.VM) -> None:
    assert vm.run("uname -r").text == f"{vm.kernel.release}\n"
    done = vm.run("echo out; echo err >&2; exit 3", check=False)
    assert done == (3, b"out\n", b"err\n")
    with pytest.raises(qemu.VMError, match="status 1"):
        vm.run("false")


def test_bytes_into_the_guest_and_back(vm: qemu.VM) -> None:
    content = bytes(range(256)) * 20
    vm.write("/tmp/x", content)
    assert vm.read("/tmp/x") == content


def test_a_command_may_leave_something_behind(vm: qemu.VM) -> None:
    assert vm.run("sleep 1000 & echo $!", seconds=10).text.strip().isdigit()


def test_monitor(vm: qemu.VM) -> None:
    assert vm.qmp("query-status")["running"]
    with pytest.raises(qemu.VMError, match="nonsense"):
        vm.qmp("nonsense")


def test_dump_has_the_guest_in_it(vm: qemu.VM, tmp_path: Path) -> None:
    vm.dump(tmp_path / "dump")
    with (tmp_path / "dump").open("rb") as file:
        head = file.read(1 << 16)
    assert head[:4] == b"\x7fELF"
    assert b"OSRELEASE=" + vm.kernel.release.encode() in head
    assert vm.qmp("query-status")["running"]


def test_memory_outlives_a_reset(vm: qemu.VM) -> None:
    marker = struct.pack("<Q", 0x6D61726B65722121)
    assert vm.ram
    with vm.ram.open("r+b") as file:
        file.seek(RESERVED)
        file.write(marker)
        vm.reset()
        vm.ready()
        file.seek(RESERVED)
        assert file.read(8) == marker
    assert float(vm.read("/proc/uptime").split()[0]) < 60


def test_failure_shows_the_end_of_the_serial_log(kernel: kernels.Kernel) -> None:
    with qemu.booted(kernel, memory_mib=256) as vm:
        with pytest.raises(qemu.VMError) as late:
            vm.wait_for("what never comes", 0.5)
        assert "no 'what never comes'" in late.value.line
        vm.run("echo where it stopped > /dev/kmsg")
        with pytest.raises(qemu.VMError) as died:
            vm.run("echo c > /proc/sysrq-trigger")
        assert "sysrq triggered crash" in died.value.line
        assert "while waiting for the command" in died.value.line
        assert "where it stopped" in str(died.value)
