"""The cache: finished folders, made once, shared by processes that run at once.

An item is a folder that appears in one go: it is made under another name, its
manifest is written last, and then it is renamed. Whoever finds the folder with its
manifest may use it; everything else is left over from an interrupted run and is
made again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from .bench import BenchError

MANIFEST = "manifest.json"


def root() -> Path:
    """The cache's folder, made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "drgn-tools"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BenchError(f"cannot make {path}: {e.strerror}") from e
    return path


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock of an item, waiting for another process that has it."""
    path = root() / "locks" / (name.replace("/", "_") + ".lock")
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find(name: str) -> Optional[Path]:
    """Return the finished folder of an item, or None."""
    path = root() / name
    return path if (path / MANIFEST).is_file() else None


def manifest(path: Path) -> dict[str, Any]:
    """Return what is recorded about a finished item."""
    content = json.loads((path / MANIFEST).read_text())
    assert isinstance(content, dict)
    return content


def make(
    name: str,
    build: Callable[[Path], dict[str, Any]],
    *,
    room: int = 0,
    again: bool = False,
) -> Path:
    """Return the folder of an item, building it if it is not there.

    :param build: fills an empty folder and returns what the manifest shall say.
    :param room: free bytes that building takes.
    :param again: build it even if it is there, and then replace it.
    :raises BenchError: no room.
    """
    with lock(name):
        found = find(name)
        if found and not again:
            return found
        path = root() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # We hold the lock, so whatever has such a name is from a dead process.
        for left in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        need_room(path.parent, room, name)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            work.chmod(0o755)
            said = build(work)
            (work / MANIFEST).write_text(json.dumps(said, indent=1) + "\n")
            if path.exists():
                shutil.rmtree(path)
            work.rename(path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return path


def need_room(folder: Path, room: int, what: str) -> None:
    """Check the free space where a folder is.

    :raises BenchError: not enough.
    """
    free = shutil.disk_usage(folder).free
    if free < room:
        raise BenchError(
            f"no room for {what}: needs {room / 1e9:.1f} GB in {folder},"
            f" has {free / 1e9:.1f} GB"
        )


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def size(path: Path) -> int:
    """Bytes that a folder really takes on the disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
