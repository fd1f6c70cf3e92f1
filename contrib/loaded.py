# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the capture half loads, told by a process that has loaded all of it.

bundle.py runs this file as a program: loaded.py CORE TARGET, where CORE is a dump that
`extract -d 1` takes and TARGET what to write. It prints a line for each Python module
that has a file: its name, "package" or "module", and the file; then a line for each
file that code is mapped from.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import PathFinder

# Python's own; not every distribution has them.
_SHA2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
_HASHES = ("_md5", "_sha1", "_sha3", "_blake2", *_SHA2)


def _load() -> None:
    """Import what is needed, and also what is needed only now and then."""
    # The decode half is not for a capture kernel.
    sys.modules["drgn"] = None  # type: ignore[assignment]
    if all(map(importlib.util.find_spec, _HASHES)):
        # hashlib then does without OpenSSL, which has 5 MB.
        sys.modules["_hashlib"] = None  # type: ignore[assignment]
    import drgn_tools

    for found in pkgutil.walk_packages(drgn_tools.__path__, "drgn_tools."):
        try:
            module = importlib.import_module(found.name)
            for name in _imports(str(module.__file__)):
                importlib.import_module(name)
        except ImportError as error:
            if error.name != "drgn":
                raise


def _imports(path: str) -> Iterator[str]:
    """Modules that a file imports anywhere, in functions too."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _use(core: str, target: str) -> None:
    """Make others import what they do when they are used, or complain."""
    import click

    from drgn_tools.__main__ import commands
    from drgn_tools.codecs import CODECS
    from drgn_tools.errors import DumpError

    # One job: what a worker imports would stay in the worker.
    extract = ["extract", "-d", "1", "--jobs", "1", core, target]
    good = (
        [*extract, "--sha256", "--verify"],
        ["extract", "--help"],
        ["info", target],
        ["verify", target],
    )
    # The target is there by then.
    bad = (extract, [*extract, "--no-such-option"], [*extract, "-d", "32"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        for arguments in good:
            commands(arguments, standalone_mode=False)
        for arguments in bad:
            with contextlib.suppress(click.ClickException, DumpError):
                commands(arguments, standalone_mode=False)
        try:
            raise ValueError
        except ValueError:
            traceback.print_exc()
    for codec in CODECS.values():
        for level in (codec.default_level, codec.kernel_level):
            packed = bytes(codec.compressor(level)(bytes(4096)))
            codec.decompressor()(packed, 4096)


def _tell() -> None:
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name != name:
            # It has put another module into its place, and is itself needed for that.
            parent = sys.modules.get(name.rpartition(".")[0])
            spec = PathFinder.find_spec(name, getattr(parent, "__path__", []))
        if spec is not None and spec.has_location:
            package = spec.submodule_search_locations is not None
            print(name, "package" if package else "module", spec.origin, sep="\t")
    with open("/proc/self/maps") as maps:
        mappings = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    # Other files are data.
    code = {rest[0] for _, mode, _, _, _, *rest in mappings if "x" in mode and rest}
    for path in sorted(code):
        if path.startswith("/"):
            print(path)


# The folder of this file: its modules have common names.
del sys.path[0]
_load()
_use(*sys.argv[1:])
_tell()
