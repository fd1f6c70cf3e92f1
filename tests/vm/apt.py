"""Debian packages of any suite, without touching the machine's own apt.

A private configuration (own sources, lists, cache and an empty dpkg status) is laid
over the machine's, so proxies and the like are inherited. Mirror addresses come from
the machine's own sources: whatever it can reach, the bench can reach.
"""

import functools
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from . import bench, cache
from .bench import BenchError, Say

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_CODENAME = r"(?:buster|bullseye|bookworm|trixie|forky|duke|sid)"
_CLASS = r"(?:oldoldstable|oldstable|stable|testing|unstable)"
_SUITE = re.compile(
    rf"({_CODENAME}|{_CLASS})((?:-(?:updates|backports|proposed-updates))?)$"
)
_SECURITY = re.compile(rf"({_CODENAME}|{_CLASS})(?:-security|/updates)$")

_NO_NETWORK = "no network"
_OFFLINE = re.compile(r"Could not (resolve|connect)|Temporary failure|unreachable")

_SOURCE = "-source"
"""What the name of a suite ends with where its source packages are meant."""

_FRESH = 12 * 3600
"""Seconds for which package lists are good enough."""


class Source(NamedTuple):
    """One archive and suite that the machine's apt uses."""

    uri: str
    suite: str
    components: tuple[str, ...]


def parse_list(text: str) -> Iterator[Source]:
    """Parse a one-line-style sources file."""
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        match = re.match(r"deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s*(.*)", line)
        if match:
            uri, suite, components = match.groups()
            yield Source(uri, suite, tuple(components.split()))


def parse_deb822(text: str) -> Iterator[Source]:
    """Parse a deb822-style sources file."""
    text = re.sub(r"(?m)^#.*\n?", "", text)
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components)


def machine_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Return what the machine's own apt uses, in its order."""
    files = [etc / "sources.list"]
    parts = etc / "sources.list.d"
    if parts.is_dir():
        files += sorted(parts.iterdir())
    sources: list[Source] = []
    for path in files:
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".sources":
            sources += parse_deb822(text)
        elif path.suffix == ".list":
            sources += parse_list(text)
    return sources


def mirrors(suite: str, sources: Iterable[Source]) -> list[str]:
    """Return the addresses that may have a suite, the likeliest first.

    :raises BenchError: no Debian archive is among the sources.
    """
    debian = [
        source
        for source in sources
        if "main" in source.components
        and not source.uri.startswith("cdrom:")
        and (_SUITE.match(source.suite) or _SECURITY.match(source.suite))
    ]
    # Other archives, too, call their suites "stable": with them, only an address
    # that says debian counts.
    debian = [
        source
        for source in debian
        if re.match(_CODENAME, source.suite) or "debian" in source.uri
    ]
    main = [s.uri for s in debian if _SUITE.match(s.suite)]
    security = [s.uri for s in debian if _SECURITY.match(s.suite)]
    if not main:
        raise BenchError("no Debian archive among this machine's apt sources")
    exact = [s.uri for s in debian if s.suite == suite]
    if not _SECURITY.match(suite):
        found = exact + main
    else:
        # A mirror of the one archive often has the other as its neighbour.
        beside = [re.sub(r"debian/?$", "debian-security", uri) for uri in main]
        found = exact + security + beside + main
    return list(dict.fromkeys(uri.rstrip("/") for uri in found))


def _room() -> Path:
    path = cache.root() / "apt"
    for name in ("sources", "lists/partial", "archives/partial", "etc", "log"):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "status").touch()
    # Later files win: this one is read after the machine's own (apt-get -c).
    (path / "apt.conf").write_text(
        "#clear APT::Update::Pre-Invoke;\n"
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        "#clear DPkg::Pre-Install-Pkgs;\n"
        "#clear DPkg::Post-Invoke;\n"
        "#clear APT::NeverAutoRemove;\n"
        'APT::Architecture "amd64";\n'
        "#clear APT::Architectures;\n"
        'APT::Architectures { "amd64"; };\n'
        'APT::Sandbox::User "root";\n'
        'APT::Get::List-Cleanup "false";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Retries "3";\n'
        'Debug::NoLocking "true";\n'
        f'Dir::State "{path}";\n'
        f'Dir::State::lists "{path}/lists";\n'
        f'Dir::State::status "{path}/status";\n'
        f'Dir::Cache "{path}";\n'
        f'Dir::Cache::archives "{path}/archives";\n'
        'Dir::Cache::pkgcache "";\n'
        'Dir::Cache::srcpkgcache "";\n'
        'Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferences "/dev/null";\n'
        'Dir::Etc::preferencesparts "/dev/null";\n'
    )
    return path


def _source_file(room: Path, suites: Sequence[str]) -> Path:
    """Write the sources file of some suites that have been looked up before."""
    path = room / "sources" / ("+".join(suites).replace("/", "_") + ".list")
    lines = "".join(
        (room / "sources" / f"{suite}.line").read_text() for suite in suites
    )
    temp = path.with_suffix(f".{os.getpid()}")
    temp.write_text(lines)
    temp.rename(path)
    return path


def _apt(program: str, room: Path, suites: Sequence[str], *args: str) -> list[str]:
    sources = _source_file(room, suites)
    config = f"{room}/apt.conf"
    return [
        bench.program(program),
        *("-c", config),
        *("-o", f"Dir::Etc::sourcelist={sources}"),
        *args,
    ]


def _query(suites: Sequence[str], *args: str) -> str:
    argv = _apt("apt-cache", _room(), suites, *args)
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode and "No packages found" not in done.stderr:
        raise BenchError(bench.failure("apt-cache", done.stderr, done.returncode))
    return done.stdout


def update(suite: str, say: Say = bench.say) -> None:
    """Get the package lists of a suite, unless there are fresh ones.

    :param suite: SUITE-source for its source packages.
    :raises BenchError: no mirror has it, or none can be reached.
    """
    bench.need_library(KEYRING)
    archive = suite.removesuffix(_SOURCE)
    kind, target = "deb", "Packages"
    if archive != suite:
        kind, target = "deb-src", "Sources"
    with cache.lock("apt"):
        room = _room()
        stamp = room / "sources" / f"{suite}.stamp"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _FRESH:
            return
        error = ""
        tried = mirrors(archive, machine_sources())
        for uri in tried:
            line = room / "sources" / f"{suite}.line"
            line.write_text(
                f"{kind} [target={target} signed-by={KEYRING}] {uri} {archive} main\n"
            )
            argv = _apt("apt-get", room, [suite], "-qq", "update", "--error-on=any")
            with bench.step(f"package lists of {suite}", say):
                done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode == 0:
                stamp.touch()
                return
            # The first address is the likeliest; the others are guesses.
            error = error or done.stderr
            if _OFFLINE.search(error):
                break
        raise BenchError(_why_not(suite, error))


def _why_not(suite: str, error: str) -> str:
    """Say in a line why the lists of a suite could not be had."""
    lines = [line for line in error.splitlines() if line[:2] in ("E:", "W:", "Er")]
    text = " ".join(lines)
    if _OFFLINE.search(text):
        return f"{_NO_NETWORK}: the mirror of {suite} cannot be reached\n{error}"
    if re.search(r"does not have a Release file|404", text):
        return f"the mirror has no suite {suite} any more\n{error}"
    return bench.failure(f"apt-get update for {suite}", error, 100)


def updated(suites: Iterable[str], say: Say = bench.say) -> list[str]:
    """Return those of some suites that can be used, their lists being there.

    :raises BenchError: none can; the message is about the first.
    """
    usable: list[str] = []
    errors: list[BenchError] = []
    for suite in suites:
        try:
            update(suite, say)
            usable.append(suite)
        except BenchError as e:
            errors.append(e)
            if e.line.startswith(_NO_NETWORK):
                break
    if not usable:
        raise errors[0]
    return usable


def names(suites: Sequence[str], pattern: str) -> dict[str, re.Match[str]]:
    """Return the packages whose whole name matches a pattern."""
    regex = re.compile(pattern)
    prefix = re.match(r"[a-z-]*", pattern)
    assert prefix
    found = {}
    for name in _query(suites, "pkgnames", prefix.group()).split():
        match = regex.fullmatch(name)
        if match:
            found[name] = match
    return found


class Package(NamedTuple):
    """A version of a package that can be downloaded."""

    name: str
    version: str
    size: int


def versions(suites: Sequence[str], package: str) -> list[Package]:
    """Return the versions of a package, newest first."""
    found = []
    for stanza in _query(suites, "show", package).split("\n\n"):
        fields = dict(re.findall(r"(?m)^([A-Za-z0-9-]+): (.*)$", stanza))
        if fields.get("Package") == package:
            found.append(Package(package, fields["Version"], int(fields["Size"])))
    return newest_first(found)


def newest_first(packages: Iterable[Package]) -> list[Package]:
    """Sort by version, as dpkg compares them."""

    def newer(a: Package, b: Package) -> int:
        if a.version == b.version:
            return 0
        argv = ["dpkg", "--compare-versions", a.version, "gt", b.version]
        return -1 if subprocess.run(argv).returncode == 0 else 1

    return sorted(set(packages), key=functools.cmp_to_key(newer))


def download(
    suites: Sequence[str],
    packages: Sequence[Package],
    folder: Path,
    say: Say = bench.say,
    closure: bool = False,
) -> list[Path]:
    """Download packages, as apt verifies them, into a folder.

    :param closure: also everything they depend on.
    """
    wanted = [f"{p.name}={p.version}" for p in packages]
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    args = ["-qq", "-y", "-o", f"Dir::Cache::archives={folder}"]
    if closure:
        args += ["install", "--download-only", "--no-install-recommends", *wanted]
    else:
        args += ["download", *wanted]
    what = ", ".join(p.name for p in packages)
    total = sum(p.size for p in packages)
    argv = _apt("apt-get", _room(), suites, *args)
    with bench.step(f"download {what} ({total / 1e6:.0f} MB)", say) as show:
        process = subprocess.Popen(
            argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    files = [*folder.glob("*.deb"), *folder.glob("partial/*")]
                    have = sum(_size(f) for f in files)
                    show(f"{have / 1e6:.0f} MB")
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise BenchError(_download_error(what, output, process.returncode))
    return sorted(folder.glob("*.deb"))


def download_tar(suite: str, package: str, folder: Path, say: Say = bench.say) -> Path:
    """Download what the authors of a source package released, as apt verifies it.

    :param suite: one that is up to date, SUITE-source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    args = ["-qq", "source", "--tar-only", "--download-only", package]
    argv = _apt("apt-get", _room(), [suite], *args)
    with bench.step(f"download the source of {package}", say):
        done = subprocess.run(argv, cwd=folder, capture_output=True)
    if done.returncode:
        output = done.stdout + done.stderr
        raise BenchError(_download_error(package, output, done.returncode))
    (path,) = folder.glob(f"{package}_*.orig.tar.*")
    return path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _download_error(what: str, output: bytes, status: int) -> str:
    text = output.decode("utf-8", "replace")
    if _OFFLINE.search(text):
        return f"{_NO_NETWORK}: cannot download {what}\n{text}"
    return bench.failure(f"download of {what}", text, status)


def unpack(deb: Path, folder: Path, members: Optional[Sequence[str]] = None) -> None:
    """Unpack a package, or only its members that match shell patterns.

    A pattern that matches nothing is no error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dpkg = [bench.program("dpkg-deb"), "--fsys-tarfile", str(deb)]
    tar = [bench.program("tar"), "-x", "-C", str(folder), "--no-same-owner"]
    # /bin and the like may be links to folders below /usr.
    tar.append("--keep-directory-symlink")
    if members is not None:
        tar += ["--wildcards", "--no-anchored", "--", *members]
    with subprocess.Popen(dpkg, stdout=subprocess.PIPE) as source:
        done = subprocess.run(tar, stdin=source.stdout, capture_output=True, text=True)
        assert source.stdout
        source.stdout.close()
    errors = [
        line
        for line in done.stderr.splitlines()
        if "Not found in archive" not in line and "previous errors" not in line
    ]
    if errors or source.returncode:
        said = errors[0] if errors else f"dpkg-deb status {source.returncode}"
        raise BenchError(f"cannot unpack {deb.name}: {said}")
