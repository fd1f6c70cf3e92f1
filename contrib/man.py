# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The manual pages of drgn-tools and its commands, from what --help is made of.

    python -m contrib.man

writes them to docs/man. A command's docstring is its DESCRIPTION. What comes behind a
form feed is not in --help; there, a line of capitals begins a section, and indented
lines stay as they are. In the epilog, "Examples:" is the section of that name, and
other parts belong to the OPTIONS.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from drgn_tools.__main__ import GROUPS, commands

_FOLDER = Path(__file__).resolve().parent.parent / "docs/man"
_PROGRAM = "drgn-tools"
# Of the release.
_DATE = "November 21, 2026"
_EXIT_STATUS = (
    "0 if all went well, 1 if the command failed, 2 if it was used wrongly. "
    "A failure is one line on standard error."
)
_ORDER = ("COLUMNS", "KINDS", "KEYS", "EXIT STATUS", "EXAMPLES", "FILES", "SEE ALSO")


def pages() -> dict[str, str]:
    """Each page by its file name."""
    ctx = click.Context(commands, info_name=_PROGRAM, **commands.context_settings)
    made = {f"{_PROGRAM}.1": _page(commands, ctx)}
    for name in commands.list_commands(ctx):
        command = commands.get_command(ctx, name)
        assert command is not None
        sub = click.Context(command, parent=ctx, info_name=name)
        made[f"{_PROGRAM}-{name}.1"] = _page(command, sub)
    return made


def _page(command: click.Command, ctx: click.Context) -> str:
    name = ctx.command_path.replace(" ", "-")
    text = inspect.cleandoc(command.callback.__doc__ or "")
    head, _, rest = text.partition("\f")
    summary, *described = _blocks(head)
    sections: dict[str, list[str]] = {"EXIT STATUS": [_EXIT_STATUS]}
    if command is not commands:
        sections["SEE ALSO"] = ["drgn(1), drgn-tools(1)"]
    section = described
    for block in _blocks(rest):
        if re.fullmatch(r"[A-Z ]+", block):
            section = sections[block] = []
        else:
            section.append(block)
    after_options = []
    for block in _blocks((command.epilog or "").replace("\b\n", "")):
        title, _, lines = block.partition("\n")
        if title == "Examples:":
            sections["EXAMPLES"] = [textwrap.indent(textwrap.dedent(lines), "    ")]
        else:
            after_options.append(block)
    words = {
        word
        for param in command.params
        for word in re.findall(r"[A-Z]{2,}", _metavar(param))
    } | {"DUMP"}
    short = summary[:1].lower() + summary[1:].rstrip(".")
    out = [
        f'.\\" Made by contrib/man.py from {ctx.command_path} --help.',
        '.\\" SPDX-License-Identifier: LGPL-2.1-or-later',
        f'.TH {name.upper()} 1 "{_DATE}" "{_PROGRAM} '
        f'{importlib.metadata.version("drgn-tools")}"',
        ".SH NAME",
        f"{name} \\- {short}",
        ".SH SYNOPSIS",
        f"\\fB{_escaped(ctx.command_path)}\\fR",
        *_synopsis(command, ctx),
        ".SH DESCRIPTION",
        *_text([summary, *described], words),
    ]
    if command is commands:
        out += _commands(ctx)
    out.append(".SH OPTIONS")
    for param in command.get_params(ctx):
        if isinstance(param, click.Option):
            out += [".TP", _names(param), *_filled(_told(param), words)]
    for block in after_options:
        title, _, lines = block.partition("\n")
        out += [".PP", *_filled(title, words), ".PP"]
        out += _as_it_is(textwrap.dedent(lines).splitlines())
    for title in _ORDER:
        if title in sections:
            out += [f".SH {title}", *_text(sections[title], words)]
    return "\n".join(out) + "\n"


def _blocks(text: str) -> list[str]:
    # A part that is indented may have empty lines in front and behind.
    return [block.strip("\n") for block in re.split(r"\n\s*\n", text) if block.strip()]


# As click has them in --help, but for what depends on its release.
def _metavar(param: click.Parameter) -> str:
    if isinstance(param, click.Option) and param.is_flag:
        return ""
    return param.metavar or (param.name or "").upper()


def _names(option: click.Option) -> str:
    names = sorted(option.opts, key=len)
    value = _metavar(option)
    return ", ".join(f"\\fB{_escaped(name)}\\fR" for name in names) + (
        f" \\fI{_escaped(value)}\\fR" if value else ""
    )


def _told(option: click.Option) -> str:
    told = option.help or ""
    return f"{told} The default is {option.default}." if option.show_default else told


def _synopsis(command: click.Command, ctx: click.Context) -> Iterator[str]:
    flags = ""
    longer, arguments = [], []
    for param in command.get_params(ctx):
        value = f" \\fI{_escaped(_metavar(param))}\\fR"
        if isinstance(param, click.Argument):
            bare = value.strip()
            name = re.sub(r"[\[\]]", "", bare)
            arguments.append(name if param.required else f"[{name}]")
            continue
        option = max(param.opts, key=len)
        if isinstance(param, click.Option) and param.is_flag:
            if len(option) == 2:
                flags += option[1]
                continue
            value = ""
        shown = f"\\fB{_escaped(option)}\\fR{value}"
        shown = shown if param.required else f"[{shown}]"
        longer.append(f"{shown}..." if param.multiple else shown)
    if flags:
        yield f"[\\fB\\-{flags}\\fR]"
    yield from longer
    yield from arguments
    if command is commands:
        yield "\\fICOMMAND\\fR [\\fIARGS\\fR]..."


def _commands(ctx: click.Context) -> Iterator[str]:
    yield ".SH COMMANDS"
    for title, names in GROUPS.items():
        yield f".SS {title}"
        for name in names:
            command = commands.get_command(ctx, name)
            if command is not None:
                yield from (".TP", f"\\fB{name}\\fR")
                yield from _filled(command.get_short_help_str(200), {"DUMP"})
                yield f"See \\fB{_escaped(f'{_PROGRAM}-{name}')}\\fR(1)."


def _text(blocks: Sequence[str], words: set[str]) -> Iterator[str]:
    for number, block in enumerate(blocks):
        if number:
            yield ".PP"
        if block.startswith("    "):
            yield from _as_it_is(textwrap.dedent(block).splitlines())
            continue
        yield from _filled(" ".join(block.split()), words)


def _filled(text: str, words: set[str]) -> Iterator[str]:
    # A sentence a line, so that what is between two is the reader's to choose.
    for sentence in re.split(r"(?<=[.:;]) +(?=[A-Z])", text):
        for line in textwrap.wrap(
            sentence, 60, break_on_hyphens=False, break_long_words=False
        ):
            yield _inline(line, words)


def _as_it_is(lines: Sequence[str]) -> list[str]:
    return [".RS 4", ".nf", *map(_escaped, lines), ".fi", ".RE"]


def _inline(text: str, words: set[str]) -> str:
    text = _escaped(text)
    # Options; other pages; what is replaced.
    text = re.sub(r"(?<![\w\\-])(\\-(?:\\-)?[A-Za-z](?:\w|\\-)*)", r"\\fB\1\\fR", text)
    text = re.sub(r"\b([a-z][\w]*(?:\\-\w+)*)\((\d)\)", r"\\fB\1\\fR(\2)", text)
    either = "|".join(sorted(words, key=len, reverse=True))
    return re.sub(rf"(?<![\w\\-])({either})s?\b", r"\\fI\g<0>\\fR", text)


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return re.sub(r"^([.'])", r"\\&\1", text)


def main() -> int:
    """Write them."""
    made = pages()
    for path in _FOLDER.glob(f"{_PROGRAM}*.1"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (_FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
