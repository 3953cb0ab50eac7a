"""The command that shows the workers, inboxes and rates, live."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sessionsdb import SessionsDB, StorageError
from sessionsdb.admin.status import RunningTurn, StatusReport, read_status
from sessionsdb.cli.console import output
from sessionsdb.cli.console.signals import on_stop_signal
from sessionsdb.cli.decorators import with_database

MAX_TURNS = 50
"""Running turns that are printed where no screen sets a limit."""

HEADER_LINES = 9
"""Lines on the screen above and below the table of turns."""


@with_database
async def top(
    db: SessionsDB,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, metavar="SECONDS", help="Time between two refreshes."),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and stop.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a refresh, one a line, in ASCII.")
    ] = False,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Show every namespace of the database.")
    ] = False,
) -> None:
    """Show workers, running turns, inboxes and rates.

    On a terminal the screen refreshes until q, Ctrl-C or SIGTERM. An idle
    worker holds no lease, so it is not shown. Rates are counts of the last
    minute. Times are from the database's clock.

    Examples:

        sessionsdb top
        sessionsdb top --once
        sessionsdb top --json --interval 10 --all-namespaces
    """
    if once or not (json_ or sys.stdout.isatty()):
        status = await read_status(db, all_namespaces=all_namespaces, limit=MAX_TURNS)
        if json_:
            output.print_json(status)
        else:
            output.console().print(_screen(status, MAX_TURNS))
        return
    stop = asyncio.Event()
    with on_stop_signal(lambda _: stop.set()):  # the way to end this command, not an error
        if json_:
            while not stop.is_set():
                output.print_json(
                    await read_status(db, all_namespaces=all_namespaces, limit=MAX_TURNS)
                )
                sys.stdout.flush()
                await _pause(stop, interval)
            return
        await _refresh_screen(db, stop, interval, all_namespaces)


async def _refresh_screen(
    db: SessionsDB, stop: asyncio.Event, interval: float, all_namespaces: bool
) -> None:
    console = output.console()
    with Live(console=console, screen=True, auto_refresh=False) as live, _stop_on_q(stop) as key:
        while not stop.is_set():
            rows = max(1, console.height - HEADER_LINES)
            try:
                status = await read_status(db, all_namespaces=all_namespaces, limit=rows)
                live.update(_screen(status, rows, hint=f"every {interval:g} s, {key} quits"))
            except StorageError as error:  # keep running until the database works again
                live.update(output.cell(f"the database fails, trying again: {error}", "red"))
            live.refresh()
            await _pause(stop, interval)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


@contextmanager
def _stop_on_q(stop: asyncio.Event) -> Iterator[str]:
    """Set ``stop`` when q is pressed, if keys can be read. Restore the terminal afterwards.

    Yields the key that quits.
    """
    if not (sys.stdin and sys.stdin.isatty() and find_spec("termios")):  # Windows has no termios
        yield "Ctrl-C"
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    settings = termios.tcgetattr(keyboard)
    loop = asyncio.get_running_loop()

    def read_key() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            stop.set()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, read_key)
    try:
        yield "q"
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)


# ---- the screen ---------------------------------------------------------------------------------


def _screen(status: StatusReport, rows: int, *, hint: str = "") -> RenderableType:
    where = "all namespaces" if status.namespace is None else f"namespace {status.namespace}"
    title = output.cell(f"{where}, {output.format_time(status.at)} UTC  ", "bold")
    title.append(hint, style="dim")
    parts: list[RenderableType] = [title, Text(), *_figures(status), Text()]
    if status.turns:
        parts.append(_turns(status.turns[:rows], with_namespace=status.namespace is None))
    else:
        parts.append(Text("no turn is running", style="dim"))
    if (hidden := status.leased - len(status.turns[:rows])) > 0:
        parts.append(Text(f"and {hidden} more", style="dim"))
    return Group(*parts)


def _figures(status: StatusReport) -> list[Text]:
    oldest = "" if status.oldest_seconds is None else f", oldest {_duration(status.oldest_seconds)}"
    inbox = Text(f"inbox    {status.pending} waiting{oldest}, {status.running} running")
    sessions = Text(
        f"sessions {status.ready} ready, {status.retrying} to be retried, {status.leased} leased"
    )
    if status.overdue:
        sessions.append(f", {status.overdue} overdue", style="bold red")
    if status.held:
        sessions.append(f", {status.held} held by questions", style="yellow")
    if status.due:
        inbox.append(f", {status.due} scheduled and due", style="yellow")
    dead = Text(f"dead     {status.dead}", style="red" if status.dead else "")
    minute = Text(
        f"minute   {status.sends_per_minute} sends, {status.turns_per_minute} turns, "
        f"{status.dead_per_minute} dead"
    )
    busy = ", ".join(f"{load.worker} ({load.turns})" for load in status.workers)
    workers = output.cell(f"workers  {len(status.workers)} busy{': ' if busy else ''}{busy}")
    workers.no_wrap, workers.overflow = True, "ellipsis"
    return [inbox, sessions, dead, minute, workers]


def _turns(turns: list[RunningTurn], *, with_namespace: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("running", justify="right", no_wrap=True)
    table.add_column("lease", justify="right", no_wrap=True)
    table.add_column("attempt", justify="right", no_wrap=True)
    if with_namespace:
        table.add_column("namespace", no_wrap=True)
    table.add_column("session", no_wrap=True, overflow="ellipsis")
    table.add_column("worker", no_wrap=True, overflow="ellipsis")
    for turn in turns:
        overdue = turn.lease_seconds < 0
        table.add_row(
            _duration(turn.seconds),
            Text("overdue", style="bold red") if overdue else _duration(turn.lease_seconds),
            str(turn.attempt),
            *([output.cell(turn.namespace)] if with_namespace else []),
            output.cell(turn.session_id),
            output.cell(turn.worker),
        )
    return table


def _duration(seconds: float) -> str:
    """Return ``2.5s``, ``3m12s``, ``5h03m`` or ``4d07h``."""
    whole = int(seconds)
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if seconds < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
