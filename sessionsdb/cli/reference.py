"""Write ``docs/cli.md`` from the help of the commands.

``python -m sessionsdb.cli.reference`` prints the page and ``make docs`` writes the file. A test
fails when the file is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer

from sessionsdb.cli.app import app
from sessionsdb.cli.help_page import is_flag, notes, usage, value_name

INTRODUCTION = """\
# The command line

<!-- Written by `make docs` from the commands' own help. Change it there. -->

{text}

`--url` and `--namespace` may stand before or after the command.
"""


def reference() -> str:
    """Return the whole page as Markdown."""
    # Any, because typer keeps its command classes in a private module.
    program: Any = typer.main.get_command(app)
    parts = [INTRODUCTION.format(text=_text(program.help)), _parameters(program.params)]
    panel = None
    for name, command in program.commands.items():
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            parts.append(f"## {panel}\n")
        parts.append(f"### sessionsdb {name}\n")
        parts.append(f"```\nsessionsdb {name} {usage(command)}\n```\n")
        parts.append(_text(command.help) + "\n")
        parts.append(_parameters([p for p in command.params if p.name not in _COMMON]))
    return "\n".join(part for part in parts if part)


_COMMON = ("url", "namespace")


def _text(help: str) -> str:
    """Return the help of a command, with its examples as a block of shell."""
    prose, _, examples = inspect.cleandoc(help).partition("\nExamples:\n")
    if not examples:
        return prose.strip()
    return f"{prose.strip()}\n\n```sh\n{inspect.cleandoc(examples)}\n```"


def _parameters(parameters: list[Any]) -> str:
    rows = list(_rows(parameters))
    if not rows:
        return ""
    return "\n".join(["| Argument or option | Meaning |", "|---|---|", *rows, ""])


def _rows(parameters: list[Any]) -> Iterator[str]:
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            name = f"`{parameter.metavar}`"
        else:
            name = ", ".join(
                f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts)
            )
            if not is_flag(parameter):
                name += f" `{value_name(parameter)}`".replace("|", "\\|")
        yield f"| {name} | {_meaning(parameter)} |"


def _meaning(parameter: Any) -> str:
    added = [f"{what}: `{value}`" for what, value in notes(parameter)]
    return f"{parameter.help} ({'; '.join(added)})" if added else str(parameter.help)


if __name__ == "__main__":
    sys.stdout.buffer.write(reference().encode())
