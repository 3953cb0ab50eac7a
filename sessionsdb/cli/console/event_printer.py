"""Print the events of a session as a conversation that grows."""

from __future__ import annotations

import shlex
from collections import deque

import typer

from sessionsdb import Event, SessionMessage, TurnEvent
from sessionsdb.cli.console import output
from sessionsdb.cli.console.shown_reply import ShownReply
from sessionsdb.cli.console.speaker import speaker


class EventPrinter:
    """Prints events. A reply is printed as it is streamed, and its message only continues it.

    With ``tree`` each line begins with the id of its session. A piece is a line of its own then,
    because the pieces of several sessions come mixed.
    """

    def __init__(self, *, tree: bool) -> None:
        self._tree = tree
        self._reply = ShownReply()
        self._is_line_open = False
        self._queued: deque[str] = deque(maxlen=100)
        """The newest messages that were printed as queued."""

    def print(self, event: Event) -> None:
        match event.type:
            case "message":
                self._print_message(event.session_id, event.message)
            case "queued":
                self._queued.append(event.message.content)
                text = output.one_line(event.message.content)
                self._line(event.session_id, f"{_spoken('* queued', event.message)}: {text}")
            case "turn":
                self._reply = ShownReply()
                self._line(event.session_id, f"* {_turn(event)}")
            case "delta":
                self._print_piece(event.session_id, event.text)
            case "data":
                data = "" if event.data is None else f": {output.as_json(event.data)}"
                self._line(event.session_id, f"* {event.kind}{data}", is_cut=True)
            case "reset":
                self._reply = ShownReply()
                self._line(event.session_id, "* the streamed reply is void")
            case "rewritten":
                self._line(event.session_id, "* the transcript was rewritten")
            case _:
                self._line(event.session_id, f"* {event.type}")

    def close(self) -> None:
        """End a line that is open."""
        if self._is_line_open:
            self._is_line_open = False
            typer.echo()

    def _print_piece(self, session_id: str, text: str) -> None:
        if self._tree:
            self._line(session_id, f"… {text}")
        else:
            self._go_on(self._reply.add_piece(text))

    def _go_on(self, text: str) -> None:
        """Print a part of the reply."""
        if text and not self._is_line_open:
            typer.echo("assistant: ", nl=False)
        if text:
            typer.echo(output.visible(text), nl=False)
            self._is_line_open = True

    def _print_message(self, session_id: str, message: SessionMessage) -> None:
        if self._reply.has_unread and message.role == "assistant":
            self._print_reply(session_id, message.content)
        elif self._reply.has_unread and message.role == "user" and message.content in self._queued:
            # The streamed reply answers it. To print it again would break the open line.
            self._queued.remove(message.content)
        else:
            self._line(session_id, f"{_spoken(message.role, message)}: {message.content}")
        if message.interrupted:
            self._line(session_id, output.STOPPED)

    def _print_reply(self, session_id: str, content: str) -> None:
        rest = self._reply.rest_of(content)
        if rest is None:
            self._line(session_id, f"assistant: {content}")
            return
        self._go_on(rest)
        if not self._reply.has_unread:
            self.close()

    def _line(self, session_id: str, text: str, *, is_cut: bool = False) -> None:
        self.close()
        prefix = f"[{output.one_line(session_id)}] " if self._tree else ""
        line = prefix + text
        output.say(output.cut(line, output.console().width) if is_cut else line)


def _spoken(what: str, message: SessionMessage) -> str:
    return " ".join([what, *speaker(message)])


def _turn(event: TurnEvent) -> str:
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    first_line = (event.error or "").partition("\n")[0]
    error = f": {output.one_line(first_line)}" if first_line else ""
    again = f", again at {output.format_time(event.retry_at)}" if event.retry_at else ""
    if event.question is not None:
        prompt = output.one_line(event.question.prompt)
        id = shlex.quote(output.one_line(event.question.id))
        return f"asks a person: {prompt} (sessionsdb answer {id} TEXT)"
    return f"turn {event.status}{attempt}{again}{error}"
