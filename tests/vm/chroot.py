# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian system in a folder: packages unpacked, not set up, and commands run in it.

What makes initramfs images (dracut, initramfs-tools) and what runs in them comes from
there, so that nothing of the machine's own is used or changed.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import apt, bench, cache
from .bench import BenchError, Say

SUITE = "bookworm"
PACKAGES = (
    *("bash", "bsdutils", "coreutils", "dash", "debianutils", "findutils", "gawk"),
    *("grep", "gzip", "hostname", "kmod", "libc-bin", "lsb-base", "mount", "procps"),
    *("sed", "sysvinit-core", "sysvinit-utils", "udev", "util-linux", "zstd"),
    *("dracut-core", "e2fsprogs", "initramfs-tools", "kdump-tools", "kexec-tools"),
    *("linux-base", "makedumpfile"),
)
"""What a small system has that makes and runs kdump images, but for what they need."""

_MERGED = ("bin", "sbin", "lib", "lib64")
_NEEDLESS = ("doc", "info", "locale", "man")
# What packages' own scripts would have made.
_MADE = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/fstab": "",
}
_ENTER = """\
for name in dev proc sys; do busybox mount --rbind /$name "$1/$name" || exit; done
if [ -n "$2" ]; then busybox mount --bind "$2" "$1/usr/lib/modules" || exit; fi
root=$1
shift 2
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C "$@"
"""


def get(say: Say = bench.say) -> Path:
    """Return the folder, in the cache: not to be written to."""
    parts = repr((SUITE, PACKAGES, _MADE)).encode()
    name = f"roots/{SUITE}-{hashlib.sha256(parts).hexdigest()[:12]}"
    return cache.find(name) or _make(name, say)


def _make(name: str, say: Say) -> Path:
    suites = apt.updated([SUITE], say)
    packages = []
    for package in PACKAGES:
        found = apt.versions(suites, package)
        if not found:
            raise BenchError(f"the mirror has no {package} in {SUITE}")
        packages.append(found[0])

    def build(work: Path) -> dict[str, Any]:
        debs = apt.download(suites, packages, work / "debs", say, closure=True)
        root = work / "root"
        for merged in _MERGED:
            (root / "usr" / merged).mkdir(parents=True)
            (root / merged).symlink_to(f"usr/{merged}")
        with bench.step(f"unpack {len(debs)} packages of {SUITE}", say):
            for deb in debs:
                apt.unpack(deb, root)
        for needless in _NEEDLESS:
            shutil.rmtree(root / "usr/share" / needless, ignore_errors=True)
        for path, text in _MADE.items():
            (root / path).write_text(text)
        (root / "usr/bin/awk").symlink_to("gawk")
        (root / "usr/lib/modules").mkdir()
        shutil.rmtree(work / "debs")
        return {"packages": {package.name: package.version for package in packages}}

    return cache.make(name, build, room=1 << 30)


def copy(target: Path, say: Say = bench.say) -> Path:
    """Return a copy of the folder to do with as one likes."""
    bench.run(["cp", "-a", "--reflink=auto", get(say) / "root", target])
    return target


def run(
    root: Path, argv: Sequence[str], modules: str = "", env: Mapping[str, str] = {}
) -> str:
    """Run a command in such a folder and return all that it says.

    :param modules: the folder to have as /lib/modules.
    :raises BenchError: it fails.
    """
    bench.program("busybox")
    unshare = [bench.program("unshare"), "--mount", "--propagation", "private"]
    if os.geteuid():
        unshare.append("--map-root-user")
    settings = [f"{name}={value}" for name, value in env.items()]
    done = subprocess.run(
        [*unshare, "sh", "-c", _ENTER, "sh", str(root), modules, *settings, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    if done.returncode:
        raise BenchError(bench.failure(argv[0], done.stdout, done.returncode))
    return done.stdout.decode("utf-8", "replace")
