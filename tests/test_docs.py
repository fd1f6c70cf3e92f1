# SPDX-License-Identifier: LGPL-2.1-or-later
"""README.md, docs and the manual pages: what can be said of them without a dump.

tests/vm/test_docs.py runs their examples.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import benchmarks.__main__
from drgn_tools import __main__, _plugin
from tests import command, documents
from tests.documents import PAGES, ROOT, Block
from tests.vm import compatibility
from tests.vm.test_kdump_flows import KDUMP_TOOLS_LINE

MANUAL = sorted((ROOT / "docs" / "man").glob("*.1"))


# --- what the tests of examples go by


def test_blocks_are_known_and_most_are_run() -> None:
    found = [block for page in PAGES for block in documents.blocks(page)]
    examples = [block for block in found if block.kind in documents.RUN]
    assert sum(not block.not_run for block in examples) > len(examples) // 2
    for block in examples:
        if block.kind in ("console", "pycon"):
            assert not block.not_run, f"{block}: nobody sees whether it is true"
            # Otherwise it is no example of what is printed.
            assert any(example.output for example in documents.examples(block)), block


@pytest.mark.parametrize(
    "text",
    [
        "Text:\n\n    $ drgn-tools\n",
        "~~~\n$ drgn-tools\n~~~\n",
        "```\n$ drgn-tools\n```\n",
        "```bash\n$ drgn-tools\n```\n",
        "- An item:\n  ```sh\n  drgn-tools\n  ```\n",
        "```sh\ndrgn-tools\n",
        "<!-- skip: this -->\n",
    ],
)
def test_no_block_escapes(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        documents.blocks(page)


SHOWN = """\
NAME    DISKSIZE  ALGORITHM  DATA       STREAMS  BACKING
zram0   1.0 MiB   lz4        728.0 KiB        2  -
…
zram16  24.0 MiB  lzo-rle    2.1 MiB          2  /dev/vdb
CPU:0 ts:206 ffffffff812586b4  ffffffff81259157  vfs_read <- ksys_read+0x97/0xd0
read … of it, at 2026-11-21 14:12:49 UTC
""".splitlines()

PRINTED = """\
NAME     DISKSIZE   ALGORITHM  DATA     STREAMS  BACKING
zram0    512.0 KiB  lz4        9 bytes        1  -
zram1    1.0 MiB    lz4hc      9.5 MiB        1  -
zram16   2.0 GiB    lzo-rle    9.5 MiB       12  /dev/vdb
CPU:11 ts:7 ffffffffa12586b4  ffffffffa1259157  vfs_read <- ksys_read+0x5f/0xd0
read 17 pages of it, at 2027-01-02 04:12:49 UTC
""".splitlines()


def test_other_numbers_are_no_difference() -> None:
    assert documents.difference(SHOWN, SHOWN) is None
    assert documents.difference(SHOWN, PRINTED) is None
    assert documents.difference([], []) is None


@pytest.mark.parametrize("line", range(len(PRINTED)))
@pytest.mark.parametrize("change", ["gone", "twice", "word"])
def test_differences_are_found(line: int, change: str) -> None:
    changed = list(PRINTED)
    if change == "gone":
        del changed[line]
    elif change == "twice":
        changed.insert(line, changed[line])
    else:
        changed[line] = changed[line].replace(" ", " more ", 1)
    # Which lines `…` stands for is not said.
    same = line == 2 or (change == "twice" and line in (1, 3))
    same |= change == "word" and line == 5
    assert (documents.difference(SHOWN, changed) is None) == same


# --- commands and options


@functools.cache
def described(program: tuple[str, ...]) -> set[str]:
    """Return the options that a program's help names.

    :param program: its name, or "-m" and a module's, and perhaps a command of its.
    """
    ours = {"drgn-tools": "drgn_tools", "drgn-makedumpfile": "drgn_tools.makedumpfile"}
    first, *rest = program
    start = ["-m", ours.get(first, first)] if first != "-m" else [first]
    done = subprocess.run(
        [sys.executable, *start, *rest, "--help"],
        capture_output=True,
        text=True,
        env=command.environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, f"{program}: {done.stderr}"
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", done.stdout))


def commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a shell's line, each as words."""
    words: list[str] = []
    for word in shlex.shlex(line, posix=True, punctuation_chars="|&;<>"):
        if set(word) <= set("|&;"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def split(words: list[str]) -> tuple[tuple[str, ...], list[str]] | None:
    """Return which program of ours words call, and the rest of them."""
    for at, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name == "drgn-tools":
            # Options before a command are of all of them.
            count = 2 if words[at + 1 :] and words[at + 1] in __main__._COMMANDS else 1
            return ("drgn-tools", *words[at + 1 : at + count]), words[at + count :]
        if name in ("drgn-makedumpfile", "drgn"):
            return (name,), words[at + 1 :]
        if name in ("python", "python3") and words[at + 1 : at + 2] == ["-m"]:
            module = words[at + 2]
            if module == "tests.vm":
                return ("-m", *words[at + 2 : at + 4]), words[at + 4 :]
            return (("-m", module), words[at + 3 :])
    return None


# Have no --help, or are not ours.
_OTHERS = ("contrib.", "tests.chromium", "venv", "pip")


def wrong_options(words: list[str]) -> set[str]:
    """Return the options that a program of ours is said to have, and has not."""
    found = split(words)
    if found is None or found[0][-1].startswith(_OTHERS):
        return set()
    program, rest = found
    if "--" in rest:
        rest = rest[: rest.index("--")]
    named = {
        option
        for word in rest
        for option in re.findall(r"^--?[A-Za-z][\w-]*", word.partition("=")[0])
    }
    return named - described(program)


def shell_lines(block: Block) -> list[str]:
    """Return the command lines of a block, whatever its kind."""
    if block.kind in ("console", "sh"):
        return [example.command for example in documents.examples(block)]
    if block.kind == "conf":
        return [line for line in block.lines if line]
    if block.kind != "synopsis":
        return []
    lines: list[str] = []
    for line in block.lines:
        if line.startswith(" "):
            lines[-1] += line
        else:
            lines.append(line)
    # Which words may be left out, or are one of several, does not matter.
    return [re.sub(r"[][|…]|\.\.\.", " ", line) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    for block in documents.blocks(page):
        for line in shell_lines(block):
            for words in commands(line):
                assert not wrong_options(words), f"{block}: {line}"
                if words and words[0].startswith("./"):
                    assert os.access(ROOT / words[0], os.X_OK), f"{block}: {line}"
                for word in words:
                    if word.startswith("contrib/"):
                        assert (ROOT / word).exists(), f"{block}: {word}"
    for line in re.findall(r"`((?:drgn-tools|drgn-makedumpfile) [^`]*)`", prose(page)):
        for words in commands(line):
            assert not wrong_options(words), f"{page.name}: {line}"


def test_options_that_do_not_exist_are_found() -> None:
    assert wrong_options(["drgn-tools", "extract", "--frobnicate"]) == {"--frobnicate"}
    assert wrong_options(["drgn-makedumpfile", "--frob=1", "-d", "31"]) == {"--frob"}
    assert not wrong_options(["drgn-tools", "extract", "-d", "31", "--jobs", "1"])
    (first, second) = commands("cat x | drgn-tools extract --nothing y > z")
    assert not wrong_options(first)
    assert wrong_options(second) == {"--nothing"}


@pytest.mark.parametrize("name", __main__._COMMANDS)
def test_options_of_examples_in_help_exist(name: str) -> None:
    said = command.drgn_tools(name, "--help").stdout
    _, _, examples = said.partition("Examples:\n")
    assert f"drgn-tools {name}" in examples
    for line in examples.splitlines():
        # Behind the command is what it does.
        for words in commands(re.split("  +", line.strip())[0]):
            assert not wrong_options(words), line


def test_lines_for_kdump_are_those_that_are_tried() -> None:
    found = documents.blocks(ROOT / "docs" / "kdump.md")
    lines = [line for block in found if block.kind == "conf" for line in block.lines]
    assert KDUMP_TOOLS_LINE in lines
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "core_collector":
            program, *options = value.split()
            last = [] if program == "drgn-tools" else ["--check-params"]
            check = {
                "drgn-tools": command.drgn_tools_forked,
                "drgn-makedumpfile": command.makedumpfile_forked,
            }[program]
            done = check(*options, *last, "/not-there/vmcore", "/not-there/dump")
            # The one knows no way to ask for nothing else, and finds no dump.
            assert done.status == (0 if last else 1), done
        else:
            assert line == KDUMP_TOOLS_LINE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_exist(page: Path) -> None:
    """In what is not run, too."""
    for block in documents.blocks(page):
        if block.kind != "python":
            continue
        tree = ast.parse("\n".join(block.lines))
        modules = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module
                for alias in node.names:
                    try:
                        found = importlib.import_module(f"{node.module}.{alias.name}")
                    except ModuleNotFoundError:
                        found = getattr(
                            importlib.import_module(node.module), alias.name
                        )
                    modules[alias.name] = found
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = modules.get(node.value.id)
                assert owner is None or hasattr(owner, node.attr), (
                    f"{block}: {node.value.id}.{node.attr}"
                )


# --- what there must be


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", page.read_text())


def test_every_helper_and_command_is_described() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for names in _plugin._HELPERS.values():
        for name in names.split():
            assert re.search(rf"\b{name}\b", text), name
    for name in __main__._COMMANDS:
        assert f"drgn-tools {name}" in text, name


@pytest.mark.parametrize("name", __main__._COMMANDS)
def test_every_option_is_described(name: str) -> None:
    context = click.Context(__main__.commands)
    found = __main__.commands.get_command(context, name)
    assert found
    page = ROOT / "docs" / compatibility.PAGES[name].partition("#")[0]
    text = page.read_text() + (ROOT / "docs" / "commands.md").read_text()
    for option in found.params:
        if isinstance(option, click.Option):
            assert any(
                re.search(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", text)
                for spelling in option.opts
            ), option.opts


def test_every_module_has_its_place() -> None:
    rows = re.findall(
        "(?m)^\\| (.*?) \\|", (ROOT / "docs" / "architecture.md").read_text()
    )
    named = {name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)}
    package = ROOT / "drgn_tools"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    there = {path for path in there if not path.endswith("__init__.py")}
    assert named & {path for path in named if path in there} == there
    assert all((package / path).exists() or (ROOT / path).exists() for path in named)


def test_every_page_is_reached_from_the_readme() -> None:
    todo, seen = [PAGES[0]], set()
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        todo += [target for target, _ in links(page) if target.suffix == ".md"]
    assert set(PAGES) <= seen


def test_every_table_of_the_benchmarks_names_its_command() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    named = set()
    for section in re.split("(?m)^## ", text)[1:]:
        if re.search("(?m)^\\|", section):
            command = re.search(r"(?m)^python -m benchmarks\.(\w+)", section)
            assert command, section.splitlines()[0]
            named.add(command[1])
    assert named == set(benchmarks.__main__.NAMES)


# --- links


def links(page: Path) -> list[tuple[Path, str]]:
    """Return where a page's relative links lead: files and anchors."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#+ (.*)$", prose(page)):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (made := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(made)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {target.name}#{anchor}"


@pytest.mark.parametrize("page", MANUAL, ids=lambda page: page.name)
def test_manual_pages_name_manual_pages(page: Path) -> None:
    # In either of the languages of manual pages.
    text = page.read_text().replace("\\-", "-")
    names = re.findall(r"(?m)^\.Xr (drgn-\S+) 1|\\fB(drgn-[\w-]+)\\fR\(1\)", text)
    assert names
    there = {other.name for other in MANUAL}
    assert {f"{name or other}.1" for name, other in names} <= there


# --- the table


def test_compatibility_is_what_the_tests_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.compatibility", "--print"],
        capture_output=True,
        text=True,
        env=command.environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    # If not: python -m tests.vm.compatibility
    assert done.stdout == compatibility.PAGE.read_text()
