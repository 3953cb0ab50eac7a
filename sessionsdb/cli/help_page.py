"""The help of the program and of a command, as plain text.

Typer's own help is drawn by rich, whose modules take 0.2 s to import. It also names a type for
flags, which take no value.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import typer

MAX_WIDTH = 100
MAX_NAME_WIDTH = 26
"""A longer name stands on a line of its own."""
INDENT = 2

Row = tuple[str, str]


def help_page(command: Any, context: Any) -> str:
    """Return the usage, the text and the sections of a command, at most as wide as the terminal."""
    width = max(40, min(shutil.get_terminal_size().columns, MAX_WIDTH))
    lines = [f"Usage: {context.command_path} {usage(command)}", ""]
    for line in inspect.cleandoc(command.help or "").splitlines():
        lines += [line] if len(line) <= width or line.startswith(" ") else _wrap(line, width)
    sections = list(_sections(command, context))
    longest = max((len(name) for _, rows in sections for name, _ in rows), default=0)
    for title, rows in sections:
        lines += ["", typer.style(f"{title}:", bold=True)]
        for name, text in rows:
            lines += _row(name, text, min(longest, MAX_NAME_WIDTH), width)
    return "\n".join(lines)


def usage(command: Any) -> str:
    """Return the words after the name of a command: its options and its arguments."""
    arguments = [p.metavar or p.name for p in command.params if p.param_type_name == "argument"]
    arguments += getattr(command, "subcommand_words", ())
    return " ".join(["[OPTIONS]", *arguments])


def value_name(parameter: Any) -> str:
    """Return the name of an option's value: its metavar, or its choices."""
    # The choices of the type: of click, and of typer from version 0.26 on.
    kind = getattr(parameter, "type_descriptor", None) or parameter.type
    return str(parameter.metavar or "|".join(getattr(kind, "choices", None) or ("VALUE",)))


def notes(parameter: Any) -> list[tuple[str, str]]:
    """Return the environment variable of a parameter and its default, each with its name."""
    found = []
    if parameter.envvar:
        found.append(("environment", str(parameter.envvar)))
    if not is_flag(parameter) and parameter.default not in (None, ""):
        found.append(("default", str(parameter.default)))
    return found


def is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def _sections(command: Any, context: Any) -> Iterator[tuple[str, list[Row]]]:
    sections: dict[str, list[Row]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        is_argument = parameter.param_type_name == "argument"
        panel = parameter.rich_help_panel or ("Arguments" if is_argument else "Options")
        name = parameter.metavar if is_argument else _option_name(parameter)
        sections.setdefault(panel, []).append((name, _meaning(parameter)))
    yield from ((title, rows) for title, rows in sections.items() if rows)
    yield from _command_sections(getattr(command, "listed", {}))


def _option_name(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=len) + parameter.secondary_opts)
    return names if is_flag(parameter) else f"{names} {value_name(parameter)}"


def _meaning(parameter: Any) -> str:
    added = [f"{what}: {value}" for what, value in notes(parameter)]
    return f"{parameter.help} [{'; '.join(added)}]" if added else str(parameter.help)


def _command_sections(commands: Any) -> Iterable[tuple[str, list[Row]]]:
    panels: dict[str, list[Row]] = {}
    for name, listed in commands.items():
        panels.setdefault(listed.panel, []).append((name, listed.summary))
    return panels.items()


def _row(name: str, text: str, name_width: int, width: int) -> list[str]:
    begin = " " * (INDENT + name_width + 2)
    wrapped = _wrap(text, width - len(begin)) or [""]
    first = " " * INDENT + name
    if len(name) > name_width:
        return [first, *(begin + line for line in wrapped)]
    return [first.ljust(len(begin)) + wrapped[0], *(begin + line for line in wrapped[1:])]


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
