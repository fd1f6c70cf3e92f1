# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The plugin of drgn: puts the helpers where ``drgn -e``, interactive sessions and
drgn-crash find them, and adds the commands.

Every drgn of everybody who has this package installed imports this, so it is to be
cheap: nothing else of ours is imported before somebody uses a helper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drgn import Program, ProgramFlags

if TYPE_CHECKING:
    import argparse

# The functions that become names of drgn.helpers.linux, by module.
_HELPERS = {
    "ftrace": "for_each_ftrace_buffer for_each_ftrace_event ftrace_dump ftrace_export",
    "oprofile": "for_each_oprofile_sample get_oprofile_stats oprofile_callgraph "
    "oprofile_event_buffer oprofile_export oprofile_report oprofile_samples "
    "oprofile_stats",
    "pstore": "for_each_pstore_ftrace for_each_pstore_record for_each_pstore_zone "
    "pstore_console pstore_dmesg pstore_export pstore_ftrace pstore_pmsg pstore_zones",
    "swap": "swap_map swap_pages swap_read swap_where",
    "zram": "find_zram for_each_zram for_each_zram_orphan for_each_zram_slot "
    "for_each_zram_stream zram_bd_stat zram_block_state zram_device zram_devices "
    "zram_export zram_io_stat zram_mm_stat zram_of_disk zram_pools zram_read "
    "zram_read_many zram_streams zram_table",
}


def _function(module: str, name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(f"drgn_tools.{module}"), name)


class _Helper:
    # A function that is imported when it is first used: importing all of them takes
    # 10 ms, which everybody would pay who starts drgn.

    def __init__(self, module: str, name: str) -> None:
        self._place = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(*self._place)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_function(*self._place), name)

    # What help() and completion look at.

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return _function(*self._place).__doc__

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(_function(*self._place))

    def __repr__(self) -> str:
        return f"<helper {self._place[1]}{self.__signature__}>"


def _is_linux_kernel(prog: Program) -> bool:
    return bool(prog.flags & ProgramFlags.IS_LINUX_KERNEL)


def drgn_prog_set(prog: Program) -> None:
    """
    Make the helpers' names available for a kernel.

    drgn calls this when a program has got its target. What drgn itself has under
    one of the names stays.
    """
    if not _is_linux_kernel(prog):
        return
    import sys

    import drgn.helpers.linux as helpers

    for module, names in _HELPERS.items():
        for name in names.split():
            if not hasattr(helpers, name):
                setattr(helpers, name, _Helper(module, name))
                # The list from which drgn.cli makes a session's names.
                helpers.__all__.append(name)
    # drgn-crash has commands of its own. drgn promises nothing of how to add to them,
    # and importing them takes longer than all of this.
    crash = sys.modules.get("drgn.commands._crash.common")
    namespace = getattr(crash, "CRASH_COMMAND_NAMESPACE", None)
    if namespace is not None:
        _register_commands(namespace)


def _boot(text: str) -> str | int:
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> int:
    return int(text, 0)


def _register_commands(namespace: Any = None) -> None:
    try:
        from drgn.commands import (
            DEFAULT_COMMAND_NAMESPACE,
            CommandNamespace,
            argument,
            command,
        )
    except ImportError:
        # Since drgn 0.0.33.
        return
    if namespace is None:
        namespace = DEFAULT_COMMAND_NAMESPACE

    boot = argument(
        "--boot",
        type=_boot,
        default="newest",
        help="newest (the default), previous, all, or 0 for that of this kernel, "
        "-1 for the one before and so on",
    )
    device = argument(
        "device", nargs="?", help="its name; without, the only one that is set up"
    )
    devices = argument("device", nargs="?", help="its name; without, all of them")
    cpu = argument("--cpu", type=int, help="of this CPU only")
    profile = (
        cpu,
        argument(
            "--source",
            choices=("all", "cpu", "event_buffer"),
            default="all",
            help="samples of the CPUs' buffers, or of the event buffer, or all",
        ),
        argument(
            "--sysroot", help="folder with the target's programs, for their symbols"
        ),
    )
    # Helper, what it does, its arguments. The module is named as its helpers begin.
    table: tuple[tuple[str, str, tuple[argument, ...]], ...] = (
        (
            "ftrace_dump",
            "print the trace buffers",
            (
                argument(
                    "--instance",
                    help="of this instance only; '' for the kernel's own buffer",
                ),
                cpu,
            ),
        ),
        ("oprofile_stats", "print oprofile's counters", ()),
        (
            "oprofile_report",
            "print how many samples oprofile has of what",
            (
                argument(
                    "--by",
                    default="image,symbol",
                    help="cpu, task, program, mode, event, image, symbol, offset",
                ),
                *profile,
            ),
        ),
        (
            "oprofile_samples",
            "print oprofile's samples",
            (
                *profile,
                argument(
                    "--read", action="store_true", help="those that were read, too"
                ),
                argument(
                    "--uncommitted",
                    action="store_true",
                    help="those that were being written, too",
                ),
            ),
        ),
        (
            "oprofile_callgraph",
            "print who called the functions that oprofile has samples of",
            (
                argument("--folded", action="store_true", help="as whole call chains"),
                *profile,
            ),
        ),
        (
            "oprofile_event_buffer",
            "print what oprofile's daemon would have read next",
            (argument("--read", action="store_true", help="what it has read, too"),),
        ),
        ("pstore_zones", "print the zones of persistent memory", ()),
        (
            "pstore_ftrace",
            "print the function trace in persistent memory",
            (
                boot,
                cpu,
                argument("--last", type=int, help="only so many records"),
            ),
        ),
        ("pstore_dmesg", "print the kernel logs in persistent memory", ()),
        ("pstore_console", "print the console output in persistent memory", (boot,)),
        ("pstore_pmsg", "print the user space log in persistent memory", (boot,)),
        (
            "swap_where",
            "print where a task's pages are",
            (
                argument("pid", type=int, help="the task"),
                argument("--address", type=_number, default=0, help="from there on"),
                argument("--size", type=_number, help="of what is looked at, in bytes"),
            ),
        ),
        ("zram_devices", "print the zram devices", ()),
        ("zram_mm_stat", "print a zram device's mm_stat", (device,)),
        ("zram_io_stat", "print a zram device's io_stat", (device,)),
        ("zram_bd_stat", "print a zram device's bd_stat", (device,)),
        ("zram_block_state", "print a zram device's block_state", (device,)),
        ("zram_streams", "print what each CPU compressed last", (devices,)),
        ("zram_pools", "print the zsmalloc pools of zram devices", (devices,)),
    )

    class Command:
        # One that makes its parser when it is used: making all of them takes 5 ms.

        def __init__(
            self, helper: str, description: str, arguments: tuple[argument, ...]
        ) -> None:
            self._about = helper, description, arguments

        def description(self) -> str:
            return self._about[1]

        def enabled(self, prog: Program) -> bool:
            return _is_linux_kernel(prog)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._made(), name)

        def _made(self) -> Any:
            helper, description, arguments = self._about

            def run(
                prog: Program, name: str, args: argparse.Namespace, **kwargs: Any
            ) -> None:
                import sys

                # With a file given, errors and closed pipes are for the caller.
                function = _function(helper.partition("_")[0], helper)
                function(prog, **vars(args), file=sys.stdout)

            alone = CommandNamespace()
            command(
                name=helper,
                description=description,
                arguments=arguments,
                namespace=alone,
            )(run)
            return alone.lookup(Program(), helper)

    for row in table:
        namespace.register(row[0], Command(*row))


_register_commands()
