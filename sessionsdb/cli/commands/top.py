"""The command that shows what goes on, live."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sessionsdb import SessionsDB, StorageError
from sessionsdb.admin.status import RunningTurn, Status, read_status
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import with_database

ROWS_ONCE = 50
"""Running turns that are shown where no screen sets a limit."""

HEADER_LINES = 9
"""What stands on the screen beside the table of turns."""


@with_database
async def top(
    db: SessionsDB,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, metavar="SECONDS", help="Between two looks."),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a look, a line each, in ASCII.")
    ] = False,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Show every namespace of the database.")
    ] = False,
) -> None:
    """Show what goes on: workers, running turns, inboxes, rates.

    On a terminal the screen refreshes until q, Ctrl-C or SIGTERM. A worker
    that is idle holds no lease, and is not seen. Rates are those of the last
    minute; times are by the database's clock.

    Examples:

        sessionsdb top
        sessionsdb top --once
        sessionsdb top --json --interval 10 --all-namespaces
    """
    if once or not (json_ or sys.stdout.isatty()):
        shown = await read_status(db, everywhere=all_namespaces, turns=ROWS_ONCE)
        if json_:
            output.print_json(shown)
        else:
            output.console().print(_screen(shown, ROWS_ONCE))
        return
    with _stopped() as stop:
        if json_:
            while not stop.is_set():
                output.print_json(await read_status(db, everywhere=all_namespaces, turns=ROWS_ONCE))
                sys.stdout.flush()
                await _pause(stop, interval)
            return
        await _live(db, stop, interval, all_namespaces)


async def _live(db: SessionsDB, stop: asyncio.Event, interval: float, everywhere: bool) -> None:
    console = output.console()
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys(stop):
        while not stop.is_set():
            rows = max(1, console.height - HEADER_LINES)
            try:
                shown = await read_status(db, everywhere=everywhere, turns=rows)
                live.update(_screen(shown, rows, hint=f"every {interval:g} s, q quits"))
            except StorageError as error:  # it comes back, and so does the picture
                live.update(output.cell(f"the database fails, trying again: {error}", "red"))
            live.refresh()
            await _pause(stop, interval)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


@contextmanager
def _stopped() -> Iterator[asyncio.Event]:
    """Set by Ctrl-C and SIGTERM: the ways to end this, not errors."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _keys(stop: asyncio.Event) -> Iterator[None]:
    """q stops, where a keyboard is; the terminal gets its settings back."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    settings = termios.tcgetattr(keyboard)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            stop.set()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)


# ---- the picture --------------------------------------------------------------------------------


def _screen(shown: Status, rows: int, *, hint: str = "") -> RenderableType:
    where = "all namespaces" if shown.namespace is None else f"namespace {shown.namespace}"
    title = output.cell(f"{where}, {output.moment(shown.at)} UTC  ", "bold")
    title.append(hint, style="dim")
    parts: list[RenderableType] = [title, Text(), *_figures(shown), Text()]
    if shown.turns:
        parts.append(_turns(shown.turns[:rows], of_all=shown.namespace is None))
    else:
        parts.append(Text("no turn is running", style="dim"))
    if (hidden := shown.leased - len(shown.turns[:rows])) > 0:
        parts.append(Text(f"and {hidden} more", style="dim"))
    return Group(*parts)


def _figures(shown: Status) -> list[Text]:
    oldest = "" if shown.oldest_seconds is None else f", oldest {_span(shown.oldest_seconds)}"
    inbox = Text(f"inbox    {shown.pending} waiting{oldest}, {shown.running} running")
    sessions = Text(
        f"sessions {shown.ready} ready, {shown.retrying} to be retried, {shown.leased} leased"
    )
    if shown.overdue:
        sessions.append(f", {shown.overdue} overdue", style="bold red")
    dead = Text(f"dead     {shown.dead}", style="red" if shown.dead else "")
    minute = Text(
        f"minute   {shown.sends_per_minute} sends, {shown.turns_per_minute} turns, "
        f"{shown.dead_per_minute} dead"
    )
    busy = ", ".join(f"{one.worker} ({one.turns})" for one in shown.workers)
    workers = output.cell(f"workers  {len(shown.workers)} busy{': ' if busy else ''}{busy}")
    workers.no_wrap, workers.overflow = True, "ellipsis"
    return [inbox, sessions, dead, minute, workers]


def _turns(turns: list[RunningTurn], *, of_all: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("running", justify="right", no_wrap=True)
    table.add_column("lease", justify="right", no_wrap=True)
    table.add_column("attempt", justify="right", no_wrap=True)
    if of_all:
        table.add_column("namespace", no_wrap=True)
    table.add_column("session", no_wrap=True, overflow="ellipsis")
    table.add_column("worker", no_wrap=True, overflow="ellipsis")
    for turn in turns:
        overdue = turn.lease_seconds < 0
        table.add_row(
            _span(turn.seconds),
            Text("overdue", style="bold red") if overdue else _span(turn.lease_seconds),
            str(turn.attempt),
            *([output.cell(turn.namespace)] if of_all else []),
            output.cell(turn.session_id),
            output.cell(turn.worker),
        )
    return table


def _span(seconds: float) -> str:
    """For people: ``2.5s``, ``3m12s``, ``5h03m``, ``4d07h``."""
    whole = int(seconds)
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if seconds < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
