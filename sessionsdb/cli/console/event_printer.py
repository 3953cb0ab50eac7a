"""Print the events of a session as a conversation that grows."""

from __future__ import annotations

from collections import deque

import typer

from sessionsdb import Event, SessionMessage, TurnEvent
from sessionsdb.cli.console import output


class EventPrinter:
    """Prints events. A reply is printed as it is streamed, and its message only continues it.

    With ``tree`` each line begins with the id of its session, and a piece is a line of its own:
    the pieces of several sessions come mixed.
    """

    def __init__(self, *, tree: bool) -> None:
        self._tree = tree
        self._streamed = ""
        """The part of a reply that stands in the open line."""
        self._queued: deque[str] = deque(maxlen=100)
        """The newest messages that were printed as queued."""

    def print(self, event: Event) -> None:
        match event.type:
            case "message":
                self._print_message(event.session_id, event.message)
            case "queued":
                self._queued.append(event.message.content)
                self._line(event.session_id, f"* queued: {output.one_line(event.message.content)}")
            case "turn":
                self._line(event.session_id, f"* {_turn(event)}")
            case "delta":
                self._print_piece(event.session_id, event.text)
            case "data":
                data = output.as_json(event.data)
                self._line(event.session_id, f"* {event.kind}: {output.one_line(data)}")
            case "reset":
                self._line(event.session_id, "* the streamed reply is void")
            case "rewritten":
                self._line(event.session_id, "* the transcript was rewritten")
            case _:
                self._line(event.session_id, f"* {event.type}")

    def close(self) -> None:
        """End a line that is open."""
        if self._streamed:
            self._streamed = ""
            typer.echo()

    def _print_piece(self, session_id: str, text: str) -> None:
        if self._tree:
            self._line(session_id, f"… {text}")
            return
        if not self._streamed:
            typer.echo("assistant: ", nl=False)
        self._streamed += text
        typer.echo(output.visible(text), nl=False)

    def _print_message(self, session_id: str, message: SessionMessage) -> None:
        streamed = self._streamed
        if streamed and message.role == "assistant" and message.content.startswith(streamed):
            typer.echo(output.visible(message.content[len(streamed) :]))
            self._streamed = ""
        elif streamed and message.role == "user" and message.content in self._queued:
            # The streamed reply answers it. To print it again would break the open line.
            self._queued.remove(message.content)
        else:
            self._line(session_id, f"{message.role}: {message.content}")

    def _line(self, session_id: str, text: str) -> None:
        self.close()
        prefix = f"[{output.one_line(session_id)}] " if self._tree else ""
        output.say(prefix + text)


def _turn(event: TurnEvent) -> str:
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    error = f": {output.one_line(event.error)}" if event.error is not None else ""
    again = f", again at {output.format_time(event.retry_at)}" if event.retry_at else ""
    return f"turn {event.status}{attempt}{again}{error}"
