"""Load the handler that a user names on the command line."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import typer

from sessionsdb import Handler
from sessionsdb.cli.console import output


def load_handler(name: str) -> Handler:
    """Return the handler that ``MODULE:HANDLER`` names.

    The module is looked up in the working folder first, then among the installed packages. A wrong
    name is a usage error. An error of the module itself is printed as Python would print it.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and _is_dotted_name(module_name) and _is_dotted_name(path)):
        raise typer.BadParameter(f"{name!r} is not of the form MODULE:HANDLER.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise typer.BadParameter(
                f"no module {error.name!r} in this folder or among the installed packages."
            ) from error
        raise _print_traceback(error) from error
    except Exception as error:
        raise _print_traceback(error) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise typer.BadParameter(f"module {module_name!r} has no {path!r}.") from error
    if not callable(found):
        raise typer.BadParameter(
            f"{name} is of type {type(found).__name__}, not an async function."
        )
    return cast(Handler, found)


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _print_traceback(error: Exception) -> typer.Exit:
    """Print the error with its traceback, from the user's module on: the user has to fix it."""
    frame = error.__traceback__
    while frame is not None and _is_import_machinery(frame):
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, frame)
    typer.echo(output.visible("".join(lines)).rstrip(), err=True)
    return typer.Exit(1)


def _is_import_machinery(frame: TracebackType) -> bool:
    file = frame.tb_frame.f_code.co_filename
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")
