"""The bench by hand: python -m tests.vm."""

import argparse
import errno
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from . import (
    bench,
    cache,
    dumps,
    ftrace_guests,
    guest,
    kernels,
    libkdumpfile,
    live_drgn,
    oprofile_guests,
    peers,
    pstore_guests,
    pstore_views,
    qemu,
    zram_guests,
)
from .bench import BenchError


def _list(args: argparse.Namespace) -> int:
    def line(kind: str, name: str, have: Optional[Path], said: str) -> None:
        size = f"{cache.size(have) / 1e6:6.0f} MB" if have else "        -"
        print(f"{kind:7} {name:34} {size}  {said}")

    for name in kernels.NAMES:
        have = cache.find(f"kernels/{name}")
        said = cache.manifest(have) if have else {}
        about = f"{said['release']} ({said['version']})" if have else ""
        line("kernel", name, have, about)
    for name in peers.PEERS:
        have = cache.find(f"peers/{name}")
        line("peer", name, have, cache.manifest(have)["version"] if have else "")
    have = cache.find(libkdumpfile.NAME)
    version = str(cache.manifest(have)["version"]) if have else ""
    line("peer", libkdumpfile.PACKAGE, have, version)
    for spec in (*dumps.MATRIX, dumps.LARGE):
        have = dumps.cached(spec)
        line("dump", spec.name, have, str(have or ""))
    for name in ftrace_guests.KERNELS:
        have = ftrace_guests.cached(name)
        line("ftrace", name, have, str(have or ""))
    for region in pstore_guests.MATRIX:
        have = pstore_guests.cached(region)
        line("pstore", region.name, have, str(have or ""))
    for view in pstore_views.SPECS:
        have = pstore_views.cached(view)
        line("views", view.name, have, str(have or ""))
    for kind in ("live", "roots"):
        for have in sorted(
            path.parent for path in (cache.root() / kind).glob(f"*/{cache.MANIFEST}")
        ):
            line(kind, have.name.rpartition("-")[0], have, str(have))
    for devices in zram_guests.MATRIX:
        have = zram_guests.cached(devices)
        line("zram", devices.name, have, str(have or ""))
    for profiled in oprofile_guests.MATRIX:
        have = oprofile_guests.cached(profiled)
        line("oprof", profiled.name, have, str(have or ""))
    root = cache.root()
    print(f"in all  {root!s:34} {cache.size(root) / 1e6:6.0f} MB")
    return 0


def _packages(args: argparse.Namespace) -> int:
    print(*bench.HOST_PACKAGES, sep="\n")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    for name in args.kernel or kernels.DEBIAN:
        kernel = kernels.get(name, again=args.again)
        print(f"{name}: {kernel.release} in {kernel.vmlinuz.parent}")
    return 0


def _build(args: argparse.Namespace) -> int:
    args.kernel = args.kernel or list(kernels.BUILT)
    return _fetch(args)


def _peers(args: argparse.Namespace) -> int:
    for name in peers.PEERS:
        print(f"{name}: {' '.join(peers.argv(name))}")
    print(f"{libkdumpfile.PACKAGE}: {libkdumpfile.get().programs}")
    return 0


def _boot(args: argparse.Namespace) -> int:
    kernel = kernels.get(args.kernel)
    options = {
        "memory_mib": args.memory,
        "levels": args.levels,
        "kaslr": args.kaslr,
        "smp": args.smp,
    }
    programs = ("fill", "kexec", "copy")
    if args.command:
        with qemu.booted(
            kernel, programs=programs, append=args.append, **options
        ) as vm:
            done = vm.run(" ".join(args.command), check=False, seconds=3600)
        sys.stdout.buffer.write(done.stdout)
        sys.stderr.buffer.write(done.stderr)
        return done.status
    with tempfile.TemporaryDirectory() as folder:
        initrd = guest.initramfs(
            Path(folder) / "initrd", kernel, programs=("agent", *programs)
        )
        append = f"bench.shell {args.append}"
        argv = qemu.command(kernel, initrd, append=append, **options)
        print("A shell in the guest; C-a x ends QEMU.", file=sys.stderr)
        return subprocess.run([*argv, "-serial", "mon:stdio"]).returncode


def _dump(args: argparse.Namespace) -> int:
    spec = dumps.Spec(args.kernel, args.levels, args.kaslr, args.memory, args.filled)
    dump = next(d for d in dumps.both(spec) if d.kind == args.kind)
    if args.output:
        bench.run(["cp", "--sparse=always", dump.path, args.output])
    print(args.output or dump.path)
    return 0


def _dumps(args: argparse.Namespace) -> int:
    for dump in dumps.matrix(jobs=args.jobs):
        print(dump.path)
    return 0


def _pstore(args: argparse.Namespace) -> int:
    for left in pstore_guests.matrix(jobs=args.jobs):
        print(left.folder)
    for views in pstore_views.matrix(jobs=args.jobs):
        print(views.folder)
    return 0


def _zram(args: argparse.Namespace) -> int:
    for left in zram_guests.matrix(jobs=args.jobs):
        print(left.folder)
    return 0


def _oprofile(args: argparse.Namespace) -> int:
    for left in oprofile_guests.matrix():
        print(left.folder)
    print(live_drgn.image(kernels.get(oprofile_guests.KERNEL)))
    return 0


def _ftrace(args: argparse.Namespace) -> int:
    for name in ftrace_guests.KERNELS:
        print(ftrace_guests.get(name).folder)
    return 0


def _readers(args: argparse.Namespace) -> int:
    # numpy and the command under test are not needed for anything else here.
    from . import readers

    for line in readers.compare_all(args.kind or [readers.SOURCE, *readers.OUTPUTS]):
        print(line, flush=True)
    return 0


def _demo(args: argparse.Namespace) -> int:
    # Its drgn is not needed for anything else here.
    from . import demo

    demo.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm", description="Real kernels and real dumps of them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def machine(command: argparse.ArgumentParser, kaslr: bool, memory: int) -> None:
        command.add_argument("kernel", choices=kernels.NAMES, metavar="KERNEL")
        command.add_argument("--levels", type=int, choices=(4, 5), default=4)
        command.add_argument("--kaslr", action="store_true", default=kaslr)
        command.add_argument("--nokaslr", action="store_false", dest="kaslr")
        command.add_argument(
            "--memory", type=int, default=memory, metavar="MIB", help="%(default)s"
        )

    add("list", _list, "what there is, and what of it is in the cache")
    add("packages", _packages, "the Debian packages that the bench needs")
    fetch = add("fetch", _fetch, "get kernels from Debian, all of them by default")
    fetch.add_argument("kernel", nargs="*", metavar="KERNEL")
    fetch.add_argument("--again", action="store_true", help="the newest, once more")
    build = add("build", _build, "build kernels, all that are built by default")
    build.add_argument("kernel", nargs="*", metavar="KERNEL")
    build.add_argument("--again", action="store_true", help="the newest, once more")
    add(
        "peers",
        _peers,
        "get makedumpfile, crash, trace-cmd and libkdumpfile, and say how to run them",
    )
    boot = add("boot", _boot, "a shell in a guest, or one command (after --)")
    machine(boot, True, 512)
    boot.add_argument("--smp", type=int, default=1, metavar="CPUS")
    boot.add_argument("--append", default="", help="more of the kernel's command line")
    boot.epilog = "After -- comes a command to run in the guest instead of a shell."
    dump = add("dump", _dump, "a dump of a kernel")
    machine(dump, False, 512)
    dump.add_argument("--kind", choices=tuple(dumps.KINDS), default="qemu")
    dump.add_argument(
        "--filled", type=int, default=50, metavar="PERCENT", help="of memory in use"
    )
    dump.add_argument("-o", "--output", type=Path, metavar="FILE", help="a copy")
    every = add("dumps", _dumps, "every dump that tests use")
    every.add_argument("--jobs", type=int, default=2, help="boots at once")
    regions = add("pstore", _pstore, "ramoops regions, and what kernels made of them")
    regions.add_argument("--jobs", type=int, default=2, help="boots at once")
    devices = add("zram", _zram, "zram devices and swapped-out memory that are known")
    devices.add_argument("--jobs", type=int, default=2, help="boots at once")
    add("oprofile", _oprofile, "guests that oprofile takes samples of")
    add("ftrace", _ftrace, "guests that traced, and their own trace files")
    compare = add("readers", _readers, "every page of every dump through four readers")
    compare.add_argument(
        "kind", nargs="*", help="source, or a kind of file that is made of it"
    )
    add("demo", _demo, "crash a kernel, extract its dump, and open it with drgn")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in argv:
        at = argv.index("--")
        argv, command = argv[:at], argv[at + 1 :]
    args = _parser().parse_args(argv)
    args.command = command
    try:
        status = args.run(args)
    except BenchError as e:
        print(f"error: {e.line}", file=sys.stderr)
        return 1
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        print(f"error: no room on the disk: {e.filename}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    assert isinstance(status, int)
    return status


if __name__ == "__main__":
    sys.exit(main())
