"""The command that talks to a session."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from sessionsdb.cli.chat import pipe
from sessionsdb.cli.console import logs
from sessionsdb.cli.decorators import with_main_thread
from sessionsdb.cli.handler_loader import load_handler
from sessionsdb.cli.target import Target


@with_main_thread
def chat(
    target: Target,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The session's id. Default: a new session.")
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="MODULE:HANDLER",
            help="Run a worker with this handler during the chat. It answers all sessions of the "
            "namespace. Default: a worker that runs elsewhere answers.",
        ),
    ] = None,
    history: Annotated[
        int,
        typer.Option(
            "--history",
            min=0,
            metavar="N",
            help="Show the last N messages at the start, on a terminal.",
        ),
    ] = 6,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object an event, one a line, in ASCII."),
    ] = False,
) -> None:
    """Talk to a session: send messages and see the replies.

    A reply is shown piece by piece, if the agent streams it. Ctrl-C stops a
    reply, and the session lives on. Ctrl-C twice at the prompt or Ctrl-D
    leaves the chat. A message that was sent stays in the inbox.

    If the agent asks a question to a person, the next message answers it.

    A line that ends with a backslash goes on in the next line. Three double
    quotes begin and end a message of several lines.

    Without a terminal each line of standard input is a message, and the
    replies are printed. With --json the events of the session are printed,
    and a line that is a JSON string stands for its text. The exit code is 1
    if a message died.

    Examples:

        sessionsdb chat --agent sessionsdb.handlers:echo
        sessionsdb chat chat-1 --history 20
        echo 'What is the weather?' | sessionsdb chat chat-1
        cat questions.txt | sessionsdb chat chat-1 --json
    """
    handler = None if agent is None else load_handler(agent)
    if json_ or not _has_line_editor():
        logs.configure(verbose=False, as_json=False)
        asyncio.run(pipe.converse(target, id, handler, json_=json_))
        return
    from sessionsdb.cli.chat import terminal  # imports termios

    terminal.run(target, id, handler, history=history)


def _has_line_editor() -> bool:
    """Return whether there is a terminal that can edit lines. Windows has no ``termios``."""
    streams = (sys.stdin, sys.stdout)
    is_terminal = all(stream is not None and stream.isatty() for stream in streams)
    return is_terminal and find_spec("termios") is not None
