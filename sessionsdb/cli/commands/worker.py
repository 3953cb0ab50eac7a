"""The command that runs a worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from sessionsdb import Handler, SessionsDB, Worker
from sessionsdb.cli.console import logs, output
from sessionsdb.cli.console.signals import on_stop_signal
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.handler_loader import load_chat, load_handler
from sessionsdb.cli.metrics_server import serve_metrics


@with_database
async def worker(
    db: SessionsDB,
    handler: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:HANDLER]",
            help="The async function that runs a turn, such as mypackage.agent:handle.",
        ),
    ] = None,
    chat: Annotated[
        str | None,
        typer.Option(
            "--chat",
            metavar="MODEL",
            help="Instead of a handler: answer with this model. Needs the extra sessionsdb[chat].",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="With --chat: an endpoint of the chat completions API. Default: OpenAI's, with "
            "the key in OPENAI_API_KEY.",
        ),
    ] = None,
    tools: Annotated[
        str | None,
        typer.Option(
            "--tools",
            metavar="MODULE",
            help="With --chat: the public functions of this module are tools of the model.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, metavar="N", help="Turns that run at once.")
    ] = 8,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, metavar="N", help="Messages of one session in a turn, at most."
        ),
    ] = 1,
    max_attempts: Annotated[
        int,
        typer.Option(
            "--max-attempts",
            min=1,
            metavar="N",
            help="Attempts at a message until it is dead.",
        ),
    ] = 5,
    lease: Annotated[
        float,
        typer.Option(
            "--lease",
            min=0.1,
            metavar="SECONDS",
            help="Length of a lease without a heartbeat. A session of a worker that died waits "
            "this long.",
        ),
    ] = 30.0,
    poll: Annotated[
        float,
        typer.Option(
            "--poll",
            min=0.01,
            metavar="SECONDS",
            help="Time between two polls, if no notification comes.",
        ),
    ] = 1.0,
    turn_timeout: Annotated[
        float | None,
        typer.Option(
            "--turn-timeout",
            min=0.001,
            metavar="SECONDS",
            help="A turn that takes longer fails. Default: no limit.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0, metavar="SECONDS", help="Time for turns to finish after a signal."
        ),
    ] = 30.0,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The first part of the worker's id. Default: worker."
        ),
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Serve every namespace of the database.")
    ] = False,
    index_search: Annotated[
        bool,
        typer.Option(
            "--index-search",
            help="Keep the index of 'sessionsdb search' up to date. One worker with it is enough.",
        ),
    ] = False,
    prometheus_port: Annotated[
        int | None,
        typer.Option(
            "--prometheus-port",
            min=0,
            max=65_535,
            metavar="PORT",
            help="Serve metrics for Prometheus on this port. 0 takes a free port. Needs the "
            "extra sessionsdb[metrics].",
        ),
    ] = None,
    prometheus_host: Annotated[
        str,
        typer.Option(
            "--prometheus-host",
            metavar="ADDRESS",
            help="With --prometheus-port: the address to listen on. Everyone with access to the "
            "address can read the metrics.",
        ),
    ] = "127.0.0.1",
    until_idle: Annotated[
        bool,
        typer.Option(
            "--until-idle",
            help="Stop when every message is finished. Exit code 1 if one of them died.",
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log one line for each turn on standard error.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log one JSON object a line, for log collectors.")
    ] = False,
) -> None:
    """Run a worker: take messages from the inboxes and run the agent.

    Any number of workers on any number of hosts share the work. One session
    is run by one worker at a time. SIGTERM and Ctrl-C stop a worker
    gracefully: it takes no new messages, waits --grace seconds for its turns
    and gives the others back. A second signal gives them back at once.

    Examples:

        sessionsdb worker sessionsdb.handlers:echo --until-idle -v
        sessionsdb worker mypackage.agent:handle --concurrency 32 --log-json
        sessionsdb worker --chat MODEL --base-url http://localhost:11434/v1
        sessionsdb worker mypackage.agent:handle --prometheus-port 9464
        sessionsdb --url postgresql://me@db.example/agents worker agent:handle
    """
    agent = _handler(handler, chat, base_url, tools)
    logs.configure(verbose=verbose, as_json=log_json)
    # A log collector parses each line of standard error.
    tell = logging.getLogger("sessionsdb").info if log_json else output.note
    running = db.worker(
        agent,
        concurrency=concurrency,
        batch=batch,
        max_attempts=max_attempts,
        lease_seconds=lease,
        poll_interval=poll,
        turn_timeout=turn_timeout,
        name=name,
        namespaces="*" if all_namespaces else None,
        index_search=index_search,
    )
    with (
        serve_metrics(prometheus_port, prometheus_host),
        _stop_on_signals(running, grace, tell) as stopped,
    ):
        if stopped.is_set():
            return
        if until_idle:
            turns = await running.run_until_idle()
            output.say(_summary(turns, running))
            if running.died:
                output.note(
                    f"{output.quantity(running.died, 'message')} died; see: sessionsdb dead-letters"
                )
                raise typer.Exit(1)
        else:
            await running.run()


def _handler(
    handler: str | None, chat: str | None, base_url: str | None, tools: str | None
) -> Handler:
    if (handler is None) == (chat is None):
        raise typer.BadParameter("give either MODULE:HANDLER or --chat MODEL.")
    if handler is not None:
        if base_url is not None or tools is not None:
            raise typer.BadParameter("--base-url and --tools need --chat.")
        return load_handler(handler)
    return load_chat(str(chat), base_url, tools)


def _summary(turns: int, worker: Worker) -> str:
    parts = [f"committed {output.quantity(turns, 'turn')}"]
    if worker.failed:
        parts.append(f"{output.quantity(worker.failed, 'attempt')} failed")
    if worker.died:
        parts.append(f"{output.quantity(worker.died, 'message')} died")
    return ", ".join(parts)


@contextmanager
def _stop_on_signals(
    worker: Worker, grace: float, tell: Callable[[str], object]
) -> Iterator[asyncio.Event]:
    """Stop the worker on SIGTERM and SIGINT: gracefully at the first, at once at the second.

    Yields an event that is set when the first signal has come.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    stopping: set[asyncio.Task[None]] = set()

    def stop(name: str) -> None:
        is_second = stopped.is_set()
        stopping.add(loop.create_task(worker.stop(0.0 if is_second else grace)))
        stopped.set()
        tell(
            f"{name}: gives back what still runs"
            if is_second
            else f"{name}: takes nothing new, waits up to {grace:g} s for turns; again: at once"
        )

    with on_stop_signal(stop):
        yield stopped
