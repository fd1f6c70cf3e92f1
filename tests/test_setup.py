"""contrib/setup.sh installs what the bench says that it needs."""

from pathlib import Path

from tests.vm import bench

SETUP = Path(__file__).parents[1] / "contrib" / "setup.sh"

# On every Debian, however small.
ALWAYS = {"apt", "coreutils", "dpkg", "tar", "util-linux"}


def test_packages() -> None:
    installed = set()
    for line in SETUP.read_text().splitlines():
        if line.startswith("packages_"):
            installed.update(line.partition('"')[2].rstrip('"').split())
    assert set(bench.HOST_PACKAGES) <= installed | ALWAYS
