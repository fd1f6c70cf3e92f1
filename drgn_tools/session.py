# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Helpers as commands of a drgn session
-------------------------------------

What a command takes and says is what its helper takes and says: its parameters become
arguments, its docstring the help. ``--drgn`` prints code that does the same.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable

from drgn import Program, get_default_prog
from drgn.commands import (
    CommandNamespace,
    CommandNotFoundError,
    DrgnCodeBuilder,
    argument,
    command,
    drgn_argument,
)

from drgn_tools._plugin import _MODULES
from drgn_tools.printing import printing
from drgn_tools.text import parse_address, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drgn_tools.printing import File

# Parameters that a session has.
_OWN = ("prog", "file", "note")
# What a command is about, which is no option even where it may be left out.
_ABOUT = ("device",)


def _boot(text: str) -> str | int:
    try:
        return int(text)
    except ValueError:
        return text


def _read_by(parse: Callable[[str], int]) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


# How an argument is read, by the parameter's name or its annotation.
_TYPES: dict[str, Any] = {
    "address": _read_by(parse_address),
    "size": _read_by(parse_size),
    "int": int,
    "str": str,
    "Boot": _boot,
    "By": str,
}

# The records that a helper prints, as code: * stands for those of its arguments that
# the function has, too. Of what the last line calls, the fields are added.
_RECORDS = {
    "ftrace_dump": "for event in for_each_ftrace_event(*):",
    "ftrace_export": "for event in for_each_ftrace_event():",
    "oprofile_callgraph": "for sample in for_each_oprofile_sample(*):",
    "oprofile_event_buffer": "for sample in for_each_oprofile_sample("
    "source='event_buffer', *):",
    "oprofile_export": "for sample in for_each_oprofile_sample(*):",
    "oprofile_report": "for sample in for_each_oprofile_sample(*):",
    "oprofile_samples": "for sample in for_each_oprofile_sample(*):",
    "oprofile_stats": "stats = get_oprofile_stats()",
    "pages_image": "for run in for_each_page_run():",
    "pages_summary": "for run in for_each_page_run():",
    "pstore_console": "for record in for_each_pstore_record(kind='console'):",
    "pstore_dmesg": "for record in for_each_pstore_record(kind='dmesg'):",
    "pstore_export": "for record in for_each_pstore_ftrace(*):",
    "pstore_ftrace": "for record in for_each_pstore_ftrace(*):",
    "pstore_pmsg": "for record in for_each_pstore_record(kind='pmsg'):",
    "pstore_zones": "for zone in for_each_pstore_zone():",
    "swap_tasks": "for task in for_each_swap_task():",
    "swap_where": "task = find_task({pid})\nfor pages in swap_map(task, *):",
    "zram_bd_stat": "zram = find_zram({device})\nstats = zram.stats",
    "zram_block_state": "zram = find_zram({device})\n"
    "for slot in for_each_zram_slot(zram):",
    "zram_devices": "for zram in {devices}:\n    device = zram_device(zram)",
    "zram_io_stat": "zram = find_zram({device})\nstats = zram.stats",
    "zram_mm_stat": "zram = find_zram({device})\ndevice = zram_device(zram)",
    "zram_streams": "for zram in {devices}:\n"
    "    for stream in for_each_zram_stream(zram):",
    "zram_table": "for slot in for_each_zram_slot(zram):",
}


# --- what docstrings say


def _plain(text: str) -> str:
    # Without markup, and as one paragraph.
    text = re.sub(r":\w+:`~?(.*?)`|``(.*?)``", r"\1\2", text, flags=re.DOTALL)
    return " ".join(re.sub(r"(?<!\w)\*(\w+)\*", r"\1", text).split())


def _paragraphs(function: Callable[..., Any]) -> Iterator[str]:
    text = re.split(r"^:", inspect.getdoc(function) or "", flags=re.MULTILINE)[0]
    for paragraph in text.strip().split("\n\n"):
        # Others' parameters are told with the arguments.
        if not re.match("(Parameters|The other parameters) ", paragraph):
            yield paragraph


def summary(function: Callable[..., Any]) -> str:
    """How a docstring begins, to stand in a list."""
    text = re.sub(r" \(.*?\)", "", _plain(next(_paragraphs(function))))
    sentence = re.split(r"[.:](?:\s|$)", text)[0].rstrip(",")
    return sentence[:1].lower() + sentence[1:]


def _description(function: Callable[..., Any]) -> str:
    paragraphs = []
    for text in _paragraphs(function):
        if text.startswith(">>>") or re.search(r"\S {2,}\S", text):
            # drgn's mark for lines that stay as they are.
            paragraphs.append("\n".join(f"|{line}" for line in text.splitlines()))
        else:
            paragraphs.append(_plain(text))
    return "\n\n".join(paragraphs)


def _told(function: Callable[..., Any], parameter: str) -> str:
    # What a parameter is, as the function says, or another helper that has it.
    module = sys.modules[function.__module__]
    for other in (function, *(getattr(module, name) for name in module.__all__)):
        pattern = rf"^:param {parameter}: (.*(?:\n +.*)*)"
        found = re.search(pattern, inspect.getdoc(other) or "", flags=re.MULTILINE)
        text = _plain(found[1]) if found else ""
        # Rather than where it is told, what is told there.
        if text and not re.match("(As of|See) ", text):
            return text
    return ""


# --- commands


def _parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "zram":
            # Instead of an object, its name, as other helpers have it.
            annotation = "str | None"
            yield inspect.Parameter(
                "device", parameter.kind, default=None, annotation=annotation
            )
        elif parameter.name not in _OWN:
            yield parameter


def _is_option(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty and parameter.name not in _ABOUT


def _argument(function: Callable[..., Any], parameter: inspect.Parameter) -> argument:
    name, annotation = parameter.name, str(parameter.annotation)
    settings: dict[str, Any] = {"help": _told(function, name)}
    if parameter.default is not parameter.empty:
        # Only what is given is passed on.
        settings["default"] = argparse.SUPPRESS
    if annotation == "bool":
        settings["action"] = "store_true"
    elif annotation == "bool | None":
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = _TYPES.get(name) or _TYPES[annotation.replace(" | None", "")]
    if _is_option(parameter):
        name = "--" + name.replace("_", "-")
    elif "default" in settings:
        settings["nargs"] = "?"
    made: argument = argument(name, **settings)
    return made


class _Helped(Exception):
    pass


class _Help(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        sys.stdout.write(parser.format_help())
        raise _Helped


_help_argument = argument(
    "--help", "-h", action=_Help, nargs=0, help="print this help", dest="help"
)


class _Documented:
    # A command of drgn's that has --help.

    def __init__(self, made: Any) -> None:
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._made.run(*args, **kwargs)
        except _Helped:
            return None


def _command(name: str, run: Callable[..., None], **settings: Any) -> _Documented:
    alone = CommandNamespace()
    command(name=name, namespace=alone, **settings)(run)
    return _Documented(alone.lookup(Program(), name))


def helper_command(name: str, function: Callable[..., Any]) -> Any:
    """
    Make a helper a command.

    :param name: of both.
    :return: ``drgn.commands.Command``
    """

    def run(prog: Program, _: str, args: argparse.Namespace, **kwargs: Any) -> None:
        given = dict(vars(args))
        given.pop("help", None)
        if given.pop("drgn"):
            print_code(prog, name, function, given)
        else:
            family = name.partition("_")[0]
            printing(family, prog, None, lambda out: _call(prog, function, given, out))

    return _command(
        name,
        run,
        description=summary(function),
        long_description=_description(function),
        arguments=(
            *(_argument(function, parameter) for parameter in _parameters(function)),
            _help_argument,
            drgn_argument,
        ),
    )


def _call(
    prog: Program, function: Callable[..., Any], given: dict[str, Any], out: File
) -> None:
    names = inspect.signature(function).parameters
    if "file" in names:
        function(prog, **given, file=out)
        return
    first: Any = prog
    if "zram" in names:
        from drgn_tools.zram import find_zram

        first = find_zram(prog, given.pop("device", None))
    result = function(first, **given)
    if result is not None:
        counts = (
            f"{name} {len(value) if isinstance(value, (list, tuple)) else value}"
            for name, value in result._asdict().items()
        )
        out.write(", ".join(counts) + "\n")


def help_command(namespace: CommandNamespace) -> Any:
    """
    Make a command that tells about commands, for a namespace that has none.

    :return: ``drgn.commands.Command``
    """

    def run(prog: Program, _: str, args: argparse.Namespace, **kwargs: Any) -> None:
        for name in args.command:
            one = namespace.lookup(prog, name)
            print(f"usage: {one.format_usage()}\n\n{one.format_help()}\n")
        if not args.command:
            for name, one in sorted(namespace.enabled(prog)):
                print(f"{name:<22} {one.description()}")

    return _command(
        "help",
        run,
        description="tell about commands",
        long_description="List the commands, or tell what some of them take.",
        arguments=(
            argument("command", nargs="*", help="without, all are listed"),
            _help_argument,
        ),
    )


# --- code for --drgn


def print_code(
    prog: Program, name: str, function: Callable[..., Any], given: dict[str, Any]
) -> None:
    """Print code that does what a command does, and that has the same as records."""
    code = ""
    arguments = dict(given)
    firsts = []
    if "zram" in inspect.signature(function).parameters:
        device = arguments.pop("device", None)
        code = f"zram = find_zram({'' if device is None else repr(device)})\n"
        firsts.append("zram")
    for parameter in _parameters(function):
        if parameter.name in arguments and not _is_option(parameter):
            firsts.append(repr(arguments.pop(parameter.name)))
    code += f"{name}({_joined(firsts, arguments)})\n"
    if name in _RECORDS:
        code += "\n# As records:\n" + _records(name, function, given)
    try:
        builder = DrgnCodeBuilder(prog)
    except TypeError:
        # In drgn 0.0.33.
        builder = DrgnCodeBuilder()  # type: ignore[call-arg]
    for used in dict.fromkeys(re.findall(r"\b(\w+)\(", code)):
        if used in _MODULES:
            builder.add_from_import(f"drgn_tools.{_MODULES[used]}", used)
        elif used == "find_task":
            builder.add_from_import("drgn.helpers.linux.pid", used)
    builder.append(code)
    builder.print()


def _joined(firsts: list[str], arguments: dict[str, Any]) -> str:
    given = [f"{name}={value!r}" for name, value in arguments.items()]
    return ", ".join([*firsts, *given])


def _records(name: str, function: Callable[..., Any], given: dict[str, Any]) -> str:
    from drgn_tools._plugin import _function

    device = given.get("device")
    found = "" if device is None else repr(device)
    code = _RECORDS[name].format(
        pid=given.get("pid"),
        device=found,
        devices=f"[find_zram({found})]" if found else "for_each_zram()",
    )
    *before, last = code.split("\n")
    pattern = r"( *)(?:for )?(\w+) (?:in|=) (\w+)\("
    shape = re.match(pattern, last)
    if not shape:
        return code + "\n"
    indent, variable, called = shape.groups()
    source = _function(called)
    shared = {}
    mine = inspect.signature(function).parameters
    for parameter in inspect.signature(source).parameters.values():
        if parameter.name in given:
            shared[parameter.name] = given[parameter.name]
        elif parameter.name in mine and parameter.name != "prog":
            default = mine[parameter.name].default
            if default != parameter.default:
                shared[parameter.name] = default
    passed = _joined([], shared)
    last = last.replace("*", passed) if passed else re.sub(r"(, )?\*", "", last)
    if last.endswith(":"):
        indent += "    "
    fields = [f"{indent}{field} = {variable}.{field}" for field in _fields(source)]
    return "\n".join([*before, last, *fields]) + "\n"


def _fields(source: Callable[..., Any]) -> tuple[str, ...]:
    # Of the records that a function returns or iterates over.
    import importlib

    annotation = str(inspect.signature(source).return_annotation)
    *module, record = re.sub(r"Iterator\[(.*)\]", r"\1", annotation).split(".")
    where = f"drgn_tools.{module[0]}" if module else source.__module__
    found: tuple[str, ...] = getattr(importlib.import_module(where), record)._fields
    return found


# --- completion


def completions(namespace: CommandNamespace, sign: str, text: str) -> list[str]:
    """
    What a line with a command may go on with: the command's name and its options.

    :param sign: that such lines begin with.
    :param text: what readline would replace: the end of the last word.
    """
    from drgn.internal.repl import readline

    line = readline.get_line_buffer()[: readline.get_endidx()]
    if not line.startswith(sign):
        return []
    prog = get_default_prog()
    words = line[len(sign) :].lstrip().split(" ")
    if len(words) == 1:
        known = [name for name, _ in namespace.enabled(prog)]
    else:
        try:
            usage = namespace.lookup(prog, words[0]).format_usage()
        except CommandNotFoundError:
            return []
        known = re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", usage)
    word = words[-1]
    start = len(word) - len(text)
    return sorted({one[start:] for one in known if one.startswith(word)})
