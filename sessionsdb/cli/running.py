"""From a function to a command: its options, its database, its errors.

A command is an asynchronous function whose first parameter is the open database (or the target,
not yet opened) and whose others are its arguments and options. ``--url`` and ``--namespace`` are
added to every command, so they may stand before or after its name.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import typer

from sessionsdb import SessionsDB
from sessionsdb.cli.failures import reported
from sessionsdb.cli.options import Namespace, Url


@dataclass(frozen=True)
class Target:
    """The database that the commands of one call work on."""

    url: str
    namespace: str

    def open(self, *, migrate: bool | None = None) -> SessionsDB:
        return SessionsDB(self.url, namespace=self.namespace, migrate=migrate)


Command = Callable[..., None]


def with_database(body: Callable[..., Awaitable[None]]) -> Command:
    """Make a command of ``async def body(db, …)``."""

    async def run(target: Target, **given: Any) -> None:
        async with target.open() as db:
            await body(db, **given)

    return _command(body, run)


def with_target(body: Callable[..., Awaitable[None]]) -> Command:
    """Make a command of ``async def body(target, …)``, which opens the database itself."""
    return _command(body, body)


def _command(body: Callable[..., Awaitable[None]], run: Callable[..., Awaitable[None]]) -> Command:
    @wraps(body)
    def command(
        context: typer.Context, url: str | None, namespace: str | None, **given: Any
    ) -> None:
        target: Target = context.obj
        if url is not None:
            target = replace(target, url=url)
        if namespace is not None:
            target = replace(target, namespace=namespace)
        with reported(target.url):
            asyncio.run(_awaited(run(target, **given)))

    # Typer reads the parameters from here: the body's own, and those that every command has.
    own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
    common = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        inspect.Parameter("url", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Url),
        inspect.Parameter(
            "namespace", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Namespace
        ),
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


async def _awaited(work: Awaitable[None]) -> None:
    await work
