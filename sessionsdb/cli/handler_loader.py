"""Load the handler that a user names on the command line."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import typer

from sessionsdb import Handler, InvalidArgument
from sessionsdb.cli.console import output
from sessionsdb.worker.handler import checked_handler


def load_handler(name: str) -> Handler:
    """Return the handler that ``MODULE:HANDLER`` names.

    The module is looked up in the working folder first, then among the installed packages. A wrong
    name is a usage error. An error of the module itself is printed as Python would print it.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and _is_dotted_name(module_name) and _is_dotted_name(path)):
        raise typer.BadParameter(f"{name!r} is not of the form MODULE:HANDLER.")
    found = _import(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise typer.BadParameter(f"module {module_name!r} has no {path!r}.") from error
    if not callable(found):
        raise typer.BadParameter(
            f"{name} is of type {type(found).__name__}, not an async function."
        )
    try:
        return checked_handler(found)
    except InvalidArgument as error:
        raise typer.BadParameter(f"{error}.") from error


def load_chat(model: str, base_url: str | None, tools: str | None) -> Handler:
    """Return a handler that answers with a model. ``tools`` names a module of functions.

    A wrong name, and a function that can't be a tool, are usage errors.
    """
    try:
        from sessionsdb.agents import chat
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise typer.BadParameter(
            "--chat needs the extra chat: pip install 'sessionsdb[chat]'."
        ) from error
    if tools is not None and not _is_dotted_name(tools):
        raise typer.BadParameter(f"{tools!r} is no name of a module.")
    functions = [] if tools is None else _functions(_import(tools))
    try:
        return chat.agent(model=model, base_url=base_url, tools=functions)
    except InvalidArgument as error:
        raise typer.BadParameter(f"{error}.") from error


def _functions(module: Any) -> list[Callable[..., Any]]:
    """Return the public functions that a module defines, or those in its ``__all__``."""
    names = getattr(module, "__all__", None)
    found = (
        [getattr(module, name) for name in names]
        if names is not None
        else [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
    )
    if not found:
        raise typer.BadParameter(f"module {module.__name__!r} has no public function.")
    return found


def _import(module_name: str) -> Any:
    """Import a module of the working folder or of the installed packages."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise typer.BadParameter(
                f"no module {error.name!r} in this folder or among the installed packages."
            ) from error
        raise _print_traceback(error) from error
    except Exception as error:
        raise _print_traceback(error) from error


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
