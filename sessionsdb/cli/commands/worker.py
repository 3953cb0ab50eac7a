"""The command that runs a worker."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, cast

import typer

from sessionsdb import Handler, SessionsDB, Worker
from sessionsdb.cli.console import logs, output
from sessionsdb.cli.console.database_commands import with_database
from sessionsdb.cli.console.prometheus import serve_metrics


def _load_handler(name: str) -> Handler:
    """The handler that ``MODULE:HANDLER`` names, from the working folder or what is installed."""
    module_name, colon, path = name.partition(":")
    if not (colon and _is_dotted(module_name) and _is_dotted(path)):
        raise typer.BadParameter(f"{name!r} is not of the form MODULE:HANDLER.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise typer.BadParameter(
                f"there is no module {error.name!r} in this folder or among what is installed."
            ) from error
        raise _is_users_own(error) from error
    except Exception as error:
        raise _is_users_own(error) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise typer.BadParameter(f"module {module_name!r} has no {path!r}.") from error
    if not callable(found):
        raise typer.BadParameter(f"{name} is a {type(found).__name__}, not an async function.")
    return cast(Handler, found)


def _is_dotted(name: str) -> bool:
    """Whether it can be the name of a module, or of something in one."""
    return all(part.isidentifier() for part in name.split("."))


def _is_users_own(error: Exception) -> typer.Exit:
    """Show what a user's module raised as Python would: it is their code that has to be mended."""
    frame = error.__traceback__
    while frame is not None and _is_machinery(frame):
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, frame)
    typer.echo(output.visible("".join(lines)).rstrip(), err=True)
    return typer.Exit(1)


def _is_machinery(frame: TracebackType) -> bool:
    file = frame.tb_frame.f_code.co_filename
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


@with_database
async def worker(
    db: SessionsDB,
    handler: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:HANDLER",
            help="The async function that runs a turn, as mypackage.agent:handle.",
        ),
    ],
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, metavar="N", help="Sessions run at once.")
    ] = 8,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, metavar="N", help="Messages of one session a turn is given at most."
        ),
    ] = 1,
    max_attempts: Annotated[
        int,
        typer.Option(
            "--max-attempts",
            min=1,
            metavar="N",
            help="Turns begun over a message until it is dead.",
        ),
    ] = 5,
    lease: Annotated[
        float,
        typer.Option(
            "--lease",
            min=0.1,
            metavar="SECONDS",
            help="How long a session is held without a heartbeat: "
            "how long a worker that died delays it.",
        ),
    ] = 30.0,
    poll: Annotated[
        float,
        typer.Option(
            "--poll", min=0.01, metavar="SECONDS", help="Between polls when no hint comes."
        ),
    ] = 1.0,
    turn_timeout: Annotated[
        float | None,
        typer.Option(
            "--turn-timeout", min=0.001, metavar="SECONDS", help="A turn that takes longer fails."
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0, metavar="SECONDS", help="What turns get to finish after a signal."
        ),
    ] = 30.0,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="How the worker's id begins."),
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Serve every namespace of the database.")
    ] = False,
    prometheus_port: Annotated[
        int | None,
        typer.Option(
            "--prometheus-port",
            min=0,
            max=65_535,
            metavar="PORT",
            help="Serve metrics for Prometheus at this port, 0 for any that is free. "
            "Needs the extra sessionsdb[metrics].",
        ),
    ] = None,
    prometheus_host: Annotated[
        str,
        typer.Option(
            "--prometheus-host",
            metavar="ADDRESS",
            help="With --prometheus-port: the address to listen at; "
            "the metrics are open to whoever reaches it.",
        ),
    ] = "127.0.0.1",
    until_idle: Annotated[
        bool,
        typer.Option("--until-idle", help="Stop when no message is unfinished anywhere."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log a line a turn on standard error.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log JSON, an object a line, for log collectors.")
    ] = False,
) -> None:
    """Run a worker: drain the inboxes and run the agent.

    Any number of workers on any number of hosts share the work; a session is
    run by one of them at a time. SIGTERM and Ctrl-C stop it gracefully: it
    takes nothing new, lets its turns finish for --grace seconds and gives the
    rest back. A second signal gives back at once.

    Examples:

        sessionsdb worker sessionsdb.handlers:echo --until-idle -v
        sessionsdb worker mypackage.agent:handle --concurrency 32 --prometheus-port 9464
        sessionsdb --url postgresql://me@db.example/agents worker agent:handle --log-json
    """
    agent = _load_handler(handler)
    logs.configure(verbose=verbose, as_json=log_json)
    made = db.worker(
        agent,
        concurrency=concurrency,
        batch=batch,
        max_attempts=max_attempts,
        lease_seconds=lease,
        poll_interval=poll,
        turn_timeout=turn_timeout,
        name=name,
        namespaces="*" if all_namespaces else None,
    )
    with (
        serve_metrics(prometheus_port, prometheus_host),
        _stopped_by_signals(made, grace) as stopped,
    ):
        if stopped.is_set():
            return
        if until_idle:
            turns = await made.run_until_idle()
            output.say(output.counted(turns, "turn"))
        else:
            await made.run()


@contextmanager
def _stopped_by_signals(worker: Worker, grace: float) -> Iterator[asyncio.Event]:
    """SIGTERM and SIGINT stop the worker, gracefully the first time and at once the second."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    stopping: set[asyncio.Task[None]] = set()

    def stop(name: str) -> None:
        patience = 0.0 if stopped.is_set() else grace
        output.note(
            f"{name}: gives back what still runs"
            if stopped.is_set()
            else f"{name}: takes nothing new, waits up to {grace:g} s for turns; again: at once"
        )
        stopped.set()
        stopping.add(loop.create_task(worker.stop(patience)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(stop, number.name))
    try:
        yield stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
