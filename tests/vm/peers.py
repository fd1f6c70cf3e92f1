"""Other tools to compare with: makedumpfile, crash, trace-cmd, pprof and others.

Each is unpacked into the cache with the libraries it needs and runs through its own
dynamic loader, so that a tool of Debian's newest suite runs on any host.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple, Optional

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from . import apt, bench, cache
from .bench import BenchError, Say


class Peer(NamedTuple):
    """Where a tool comes from."""

    package: str
    suite: str
    called: str = ""
    """The program, if it is not called as its package is."""

    @property
    def program(self) -> str:
        """What to run."""
        return self.called or self.package


PEERS = {
    # Knows kernels up to 6.2.
    "makedumpfile-1.7.2": Peer("makedumpfile", "bookworm"),
    "makedumpfile-sid": Peer("makedumpfile", "sid"),
    "crash-8.0.2": Peer("crash", "bookworm"),
    "crash-sid": Peer("crash", "sid"),
    "trace-cmd": Peer("trace-cmd", "bookworm"),
    # What "go tool pprof" runs.
    "pprof": Peer("golang-1.19-go", "bookworm", "pprof"),
}


def argv(name: str, say: Say = bench.say) -> list[str]:
    """Return the start of a command line that runs a tool, fetching it if need be."""
    folder = _get(name, say)
    loader = folder / cache.manifest(folder)["loader"]
    program = folder / "bin" / PEERS[name].program
    return [str(loader), "--library-path", str(folder / "lib"), str(program)]


def version(name: str, say: Say = bench.say) -> str:
    """Return the Debian version of a tool, fetching it if need be."""
    said = cache.manifest(_get(name, say))["version"]
    assert isinstance(said, str)
    return said


def cached(name: str) -> bool:
    """Whether argv() would take no time."""
    return cache.find(f"peers/{name}") is not None


def _get(name: str, say: Say) -> Path:
    if name not in PEERS:
        raise BenchError(f"there is no peer {name}; there are {', '.join(PEERS)}")
    return cache.find(f"peers/{name}") or _fetch(name, say)


def _fetch(name: str, say: Say) -> Path:
    peer = PEERS[name]
    suites = apt.updated([peer.suite], say)
    found = apt.versions(suites, peer.package)
    if not found:
        raise BenchError(f"the mirror has no {peer.package} in {peer.suite}")

    def build(work: Path) -> dict[str, Any]:
        debs = apt.download(suites, found[:1], work / "debs", say, closure=True)
        sums = {deb.name: cache.sha256(deb) for deb in debs}
        with bench.step(f"unpack {name}", say):
            for deb in debs:
                apt.unpack(deb, work / "raw", ["bin", "lib", "lib64"])
            loader = _collect(work / "raw", work, peer.program)
        shutil.rmtree(work / "raw")
        shutil.rmtree(work / "debs")
        command = [str(work / loader), "--library-path", str(work / "lib")]
        program = str(work / "bin" / peer.program)
        tried = subprocess.run([*command, program, "--version"], capture_output=True)
        # trace-cmd and pprof know no --version, say how they are used and exit with 255
        # and 2.
        if tried.returncode not in (0, 1, 2, 255):
            raise BenchError(bench.failure(name, tried.stderr, tried.returncode))
        return {"version": found[0].version, "loader": loader, "sha256": sums}

    return cache.make(f"peers/{name}", build, room=1 << 30)


def _collect(raw: Path, work: Path, program: str) -> str:
    """Keep a program and the libraries it needs; return its loader's place."""
    files = {}
    for path in sorted(raw.rglob("*")):
        # Under the name by which it is asked for, a link to the file or its own.
        if ".so" in path.name or path.name == program:
            real = _real(path, raw)
            if real:
                files[path.name] = real
    (work / "bin").mkdir()
    (work / "lib").mkdir()
    shutil.copy(files[program], work / "bin" / program)
    todo = [files[program]]
    loader = ""
    seen = set()
    while todo:
        needed, interpreter = _needs(todo.pop())
        loader = loader or interpreter
        for name in [*needed, *([loader] if loader else [])]:
            if name in seen:
                continue
            seen.add(name)
            if name not in files:
                raise BenchError(f"no package of {program}'s has {name}")
            shutil.copy(files[name], work / "lib" / name)
            todo.append(files[name])
    return f"lib/{loader}"


def _real(path: Path, raw: Path) -> Optional[Path]:
    """Follow links as if *raw* were the root."""
    for _ in range(8):
        if not path.is_symlink():
            return path if path.is_file() else None
        target = path.readlink()
        if target.is_absolute():
            path = raw / str(target).lstrip("/")
        else:
            path = path.parent / target
    return None


def _needs(path: Path) -> tuple[list[str], str]:
    """Return the libraries an ELF file needs, and the name of its loader."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        needed: list[str] = []
        interpreter = ""
        for section in elf.iter_sections():
            if isinstance(section, DynamicSection):
                needed += [
                    str(getattr(tag, "needed"))  # noqa: B009
                    for tag in section.iter_tags()
                    if tag.entry.d_tag == "DT_NEEDED"
                ]
        for segment in elf.iter_segments():
            if isinstance(segment, InterpSegment):
                interpreter = Path(segment.get_interp_name()).name
    return needed, interpreter
