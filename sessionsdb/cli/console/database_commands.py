"""From a function to a command: its options, its database, its errors.

A command is an asynchronous function whose first parameter is the open database (or the target,
not yet opened) and whose others are its arguments and options. ``--url`` and ``--namespace`` are
added to every command that heeds them, so they may stand before or after its name.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import typer

from sessionsdb import SessionsDB
from sessionsdb.cli.console.errors import report_errors
from sessionsdb.cli.console.options import Namespace, Url


@dataclass(frozen=True)
class Target:
    """The database that the commands of one call work on."""

    url: str
    namespace: str
    transaction_pooler: bool = False

    def open(self, *, migrate: bool | None = None) -> SessionsDB:
        return SessionsDB(
            self.url,
            namespace=self.namespace,
            migrate=migrate,
            transaction_pooler=self.transaction_pooler,
        )


Command = Callable[..., None]
Body = Callable[..., Awaitable[None]]


def with_database(body: Body) -> Command:
    """Make a command of ``async def body(db, …)``."""

    async def run(target: Target, **given: Any) -> None:
        async with target.open() as db:
            await body(db, **given)

    return _command(body, run, {"url": Url, "namespace": Namespace})


def with_namespace(body: Body) -> Command:
    """Make a command of ``async def body(target, …)``, which opens the database itself, if it
    needs it at all, and works on the target's namespace."""
    return _command(body, body, {"url": Url, "namespace": Namespace})


def with_target(body: Body) -> Command:
    """Make a command of ``async def body(target, …)``, which opens the database itself, and
    works on all of it rather than on a namespace."""
    return _command(body, body, {"url": Url})


def without_database(body: Body) -> Command:
    """Make a command of ``async def body(target, …)`` that takes nothing from the target."""
    return _command(body, body, {})


def _command(body: Body, run: Body, common: dict[str, Any]) -> Command:
    @wraps(body)
    def command(context: typer.Context, **given: Any) -> None:
        changes = {name: given.pop(name) for name in common}
        target: Target = replace(
            context.obj, **{name: value for name, value in changes.items() if value is not None}
        )
        # What is loaded by now is there until the end. Without it the garbage collector is done
        # sooner: an import takes 0.66 s for 0.77, turns that read 50 messages 318 µs for 344.
        gc.freeze()
        with report_errors(target.url):
            asyncio.run(_awaited(run(target, **given)))

    # Typer reads the parameters from here: the body's own, and those that many commands have.
    own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, option in common.items()
        ),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


async def _awaited(work: Awaitable[None]) -> None:
    await work
