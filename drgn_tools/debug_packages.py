# SPDX-License-Identifier: LGPL-2.1-or-later
"""What distributions call the package with a kernel's debugging symbols."""

from __future__ import annotations

import re
from typing import NamedTuple


class _Named(NamedTuple):
    """How the kernels of a distribution are told, and their packages named."""

    release: str
    """Matches all of ``uname -r``; groups are for *package*."""
    version: str
    """Is found in ``uname -v``."""
    package: str


_ANY = r""
# Of a field of struct new_utsname, without the zero at its end.
_LONGEST = 64
# The first that fits. rpm leaves flavours other than the usual out of the version,
# and puts them into the name; Red Hat's are behind a +, SUSE's behind the last -.
_PACKAGES = (
    _Named(r"(.+)", r"\bDebian \d", r"linux-image-\1-dbg"),
    # From ddebs.ubuntu.com.
    _Named(r"(.+)", r"-Ubuntu\b", r"linux-image-\1-dbgsym"),
    # Oracle's own kernel; beside it, Oracle Linux has Red Hat's.
    _Named(r"(.+\.el\d+uek\..+)", _ANY, r"kernel-uek-debuginfo-\1"),
    # Before Red Hat's 9, the realtime kernel said so in the middle.
    _Named(r"(.+\.rt\d+\..*\.el\d.*)", _ANY, r"kernel-rt-debuginfo-\1"),
    # Fedora, Red Hat and who follows it; Amazon; openEuler; Microsoft.
    _Named(
        r"(.+\.(?:fc|el|amzn|oe|azl|cm)\d[^+]*)\+(.+)", _ANY, r"kernel-\2-debuginfo-\1"
    ),
    _Named(r"(.+\.(?:fc|el|amzn|oe|azl|cm)\d.*)", _ANY, r"kernel-debuginfo-\1"),
    _Named(
        r"(\d[\d.]*-\d[\d.]*(?:\.g[0-9a-f]+)?)"
        r"-(default|azure|rt|preempt|kvmsmall|longterm|debug|vanilla)",
        _ANY,
        r"kernel-\2-debuginfo-\1",
    ),
)


def debug_package(release: str, version: str) -> str | None:
    """
    The package with the debugging symbols of a kernel and its modules.

    :param release: as ``uname -r`` prints it.
    :param version: as ``uname -v`` does.
    :return: None of a kernel of unknown origin.
    """
    if len(release) > _LONGEST:
        return None
    for named in _PACKAGES:
        match = re.fullmatch(named.release, release)
        if match and re.search(named.version, version):
            return match.expand(named.package)
    return None
