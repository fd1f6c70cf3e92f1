"""What every part of the bench uses: its error, its progress lines, host programs."""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable, Optional, Union

Say = Callable[[str], None]
"""Where a progress line goes."""

PROGRAMS = {
    "aclocal": "automake",
    "apt-get": "apt",
    "autoreconf": "autoconf",
    "bc": "bc",
    "bison": "bison",
    "busybox": "busybox-static",
    "cp": "coreutils",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "modprobe": "kmod",
    "pkg-config": "pkg-config",
    "dpkg-deb": "dpkg",
    "e2fsck": "e2fsprogs",
    "fallocate": "util-linux",
    "flex": "flex",
    "gcc": "gcc",
    "jq": "jq",
    "libtoolize": "libtool",
    "make": "make",
    "mkfs.ext4": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "strip": "binutils",
    "tar": "tar",
    "unshare": "util-linux",
    "xz": "xz-utils",
}
"""Host programs, and the Debian package of each."""

LIBRARIES = {
    "/usr/include/openssl/opensslv.h": "libssl-dev",
    "/usr/include/libelf.h": "libelf-dev",
    "/usr/include/lzo/lzo1x.h": "liblzo2-dev",
    "/usr/include/snappy-c.h": "libsnappy-dev",
    "/usr/include/stdlib.h": "libc6-dev",
    "/usr/include/zlib.h": "zlib1g-dev",
    "/usr/include/zstd.h": "libzstd-dev",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
"""Host files that are not programs, and the Debian package of each."""

HOST_PACKAGES = tuple(sorted({*PROGRAMS.values(), *LIBRARIES.values()}))
"""Everything the bench needs from the host, as Debian packages."""


class BenchError(Exception):
    """Something about the bench is not as it should be; the message says what.

    Its first line stands alone; what may follow (the end of a log) is for tests.
    """

    @property
    def line(self) -> str:
        """The message's first line, for those who show one line."""
        return str(self).partition("\n")[0]


def program(name: str) -> str:
    """Return a host program's path.

    :raises BenchError: it is not there; the message names its Debian package.
    """
    # Ordinary users often have no sbin in their PATH.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        package = PROGRAMS[name]
        raise BenchError(f"{name} is missing: install Debian package {package}")
    return path


def need_library(path: str) -> None:
    """Check that one of LIBRARIES is there.

    :raises BenchError: it is not there; the message names its Debian package.
    """
    if not Path(path).exists():
        raise BenchError(f"{path} is missing: install Debian package {LIBRARIES[path]}")


def run(
    argv: Sequence[Union[str, Path]],
    *,
    cwd: Optional[Path] = None,
    env: Optional[dict[str, str]] = None,
    what: str = "",
) -> str:
    """Run a host program and return its standard output.

    :raises BenchError: it failed; the message has the last thing it said.
    """
    args = [program(str(argv[0])), *map(str, argv[1:])]
    done = subprocess.run(
        args, cwd=cwd, env=env, capture_output=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise BenchError(
            failure(what or str(argv[0]), done.stderr or done.stdout, done.returncode)
        )
    return done.stdout.decode("utf-8", "replace")


def failure(what: str, output: Union[str, bytes], status: int) -> str:
    """One line about a program that failed, followed by the end of its output."""
    if isinstance(output, bytes):
        output = output.decode("utf-8", "replace")
    lines = [line for line in output.splitlines() if line.strip()][-20:]
    errors = [line for line in lines if "rror" in line or line.startswith("E:")]
    said = (errors or lines or ["it said nothing"])[-1].strip()
    return "\n".join([f"{what} failed with status {status}: {said}", *lines])


def say(line: str) -> None:
    """Show a progress line on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str, tell: Say = say) -> Iterator[Callable[[str], None]]:
    """Announce a long step; yields a function that shows how far it has got.

    A terminal sees one line that moves, a log one line when the step is done, and one
    before if that takes long.
    """
    live = tell is say and sys.stderr.isatty()
    start = time.monotonic()
    width = 0

    def show(detail: str) -> None:
        nonlocal width
        if live:
            text = f"{what}: {detail}" if detail else f"{what} ..."
            columns = shutil.get_terminal_size().columns - 1
            text = text[:columns]
            print(f"\r{text:<{width}}", end="", file=sys.stderr, flush=True)
            width = len(text)

    show("")
    patience = threading.Timer(15, tell, [f"{what} ..."])
    if not live:
        patience.start()
    try:
        yield show
    except BaseException:
        if live:
            print(file=sys.stderr)
        raise
    finally:
        patience.cancel()
    done = f"{what}: {time.monotonic() - start:.0f} s"
    if live:
        print(f"\r{done:<{width}}", file=sys.stderr, flush=True)
    else:
        tell(done)
