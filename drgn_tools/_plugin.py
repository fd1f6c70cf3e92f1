# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The plugin of drgn: puts the helpers where ``drgn -e``, interactive sessions and
drgn-crash find them, and adds the commands.

Every drgn of everybody who has this package installed may import this, so it is to be
cheap: nothing else of ours is imported before somebody uses a helper. Importing it
does nothing; drgn calls :func:`drgn_prog_set()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drgn import Program, ProgramFlags

if TYPE_CHECKING:
    from collections.abc import Callable

    from drgn.commands import CommandNamespace

# The functions that become names of drgn.helpers.linux, by module.
_HELPERS = {
    "ftrace": "for_each_ftrace_buffer for_each_ftrace_event ftrace_dump ftrace_export",
    "oprofile": "for_each_oprofile_sample get_oprofile_stats oprofile_callgraph "
    "oprofile_event_buffer oprofile_export oprofile_report oprofile_samples "
    "oprofile_stats",
    "page_helpers": "for_each_page_run pages_image pages_map pages_summary",
    "pstore": "for_each_pstore_ftrace for_each_pstore_record for_each_pstore_zone "
    "pstore_console pstore_dmesg pstore_export pstore_ftrace pstore_pmsg pstore_zones",
    "swap": "for_each_swap_task swap_map swap_pages swap_read swap_tasks swap_where",
    "zram": "find_zram for_each_zram for_each_zram_orphan for_each_zram_slot "
    "for_each_zram_stream zram_bd_stat zram_block_state zram_device zram_devices "
    "zram_export zram_io_stat zram_mm_stat zram_of_disk zram_pools zram_read "
    "zram_read_many zram_streams zram_table",
}

# Those that print, or write a file, which are commands as well.
_COMMANDS = (
    "ftrace_dump ftrace_export "
    "oprofile_callgraph oprofile_event_buffer oprofile_export oprofile_report "
    "oprofile_samples oprofile_stats "
    "pages_image pages_summary "
    "pstore_console pstore_dmesg pstore_export pstore_ftrace pstore_pmsg pstore_zones "
    "swap_tasks swap_where "
    "zram_bd_stat zram_block_state zram_devices zram_export zram_io_stat zram_mm_stat "
    "zram_pools zram_streams zram_table"
)

_MODULES = {
    name: module for module, names in _HELPERS.items() for name in names.split()
}


def _function(name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(f"drgn_tools.{_MODULES[name]}"), name)


class _Helper:
    # A function that is imported when it is first used: importing all of them takes
    # 10 ms, which everybody would pay who starts drgn.

    def __init__(self, name: str) -> None:
        self._name = name
        self.__module__ = f"drgn_tools.{_MODULES[name]}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self._name)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_function(self._name), name)

    # What help() and completion look at.

    def __get__(self, instance: object, owner: type | None = None) -> _Helper:
        # What has this is a routine to inspect, and so to help().
        return self

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return _function(self._name).__doc__

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(_function(self._name))

    def __repr__(self) -> str:
        return f"<helper {self._name}{self.__signature__}>"


class _Command:
    # One that is made when it is used: making the parsers of all takes 5 ms.

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def enabled(self, prog: Program) -> bool:
        return _is_linux_kernel(prog)

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)


def _is_linux_kernel(prog: Program) -> bool:
    return bool(prog.flags & ProgramFlags.IS_LINUX_KERNEL)


def drgn_prog_set(prog: Program) -> None:
    """
    Make the helpers' names and the commands available for a kernel.

    drgn calls this when a program has got its target. What drgn itself has under
    one of the names stays.
    """
    if not _is_linux_kernel(prog):
        return
    import drgn.helpers.linux as helpers

    for name in _MODULES:
        if not hasattr(helpers, name):
            setattr(helpers, name, _Helper(name))
            # The list from which drgn.cli makes a session's names.
            helpers.__all__.append(name)
    try:
        from drgn.commands import DEFAULT_COMMAND_NAMESPACE
    except ImportError:
        # Since drgn 0.0.33.
        return
    _register(prog, DEFAULT_COMMAND_NAMESPACE)
    _complete("drgn.internal.rlcompleter", "Completer", DEFAULT_COMMAND_NAMESPACE, "%")
    # drgn-crash has commands of its own. drgn promises nothing of how to add to them,
    # and importing them takes longer than all of this.
    namespace = _found("drgn.commands._crash.common", "CRASH_COMMAND_NAMESPACE")
    if namespace is not None:
        _register(prog, namespace)
        _complete("drgn.commands._crash", "_CrashCompleter", namespace, "")


def _found(module: str, name: str) -> Any:
    # What is there if its module has been imported.
    import sys

    return getattr(sys.modules.get(module), name, None)


def _register(prog: Program, namespace: CommandNamespace) -> None:
    taken = {name for name, _ in namespace.enabled(prog)}
    for name in (*_COMMANDS.split(), "help"):
        if name not in taken:
            namespace.register(name, _Command(_maker(name, namespace)))


def _maker(name: str, namespace: CommandNamespace) -> Callable[[], Any]:
    def make() -> Any:
        from drgn_tools import session

        if name == "help":
            return session.help_command(namespace)
        return session.helper_command(name, _function(name))

    return make


def _complete(module: str, name: str, namespace: CommandNamespace, sign: str) -> None:
    # drgn completes names of Python behind %, and nothing behind a command's name. Nor
    # is there a way to ask for more than to stand in front of its completer.
    completer = _found(module, name)
    theirs = getattr(completer, "complete", None)
    if theirs is None or theirs.__module__ == __name__:
        return

    def complete(self: Any, text: str, state: int) -> Any:
        from drgn_tools import session

        if state == 0:
            self._drgn_tools = session.completions(namespace, sign, text)
        if self._drgn_tools:
            return self._drgn_tools[state] if state < len(self._drgn_tools) else None
        return theirs(self, text, state)

    completer.complete = complete
