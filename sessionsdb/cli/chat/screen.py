"""A conversation on a terminal: from events to lines.

Only one thread writes to the terminal. All text of sessions is escaped character by character, so
it does not matter where a piece of a reply ends.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from sessionsdb import Event, OpenQuestion, SessionMessage
from sessionsdb.cli.commands.transcripts import NO_TEXT, ROLE_STYLES, heading
from sessionsdb.cli.console import output
from sessionsdb.cli.console.shown_reply import ShownReply
from sessionsdb.events import DataEvent, TurnEvent

PROMPT = "> "
MAX_WAITING = 100
"""Messages of others that are kept until their turn begins. Older ones are shown at its end."""


class Screen:
    """The lines of a chat, and the prompt below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._has_prompt = False
        self._is_line_open = False
        self._reply = ShownReply()
        self._waiting: dict[int, SessionMessage] = {}
        self._shown_questions: list[str] = []

    # ---- lines -------------------------------------------------------------------------------

    def show_prompt(self) -> None:
        if self._has_prompt:
            return
        self._end_line()
        self._console.file.write(f"\n{PROMPT}")
        self._console.file.flush()
        self._has_prompt = True

    def take_prompt_away(self) -> None:
        if self._has_prompt:
            blank = " " * len(PROMPT)
            self._console.file.write(f"\r{blank}\r")
            self._console.file.flush()
            self._has_prompt = False

    def line_was_left(self) -> None:
        """Go to the next line: the user has left the line with the prompt without Enter."""
        self._console.file.write("\n")
        self._console.file.flush()

    def note(self, text: str, style: str = "dim") -> None:
        """Show a line of ours."""
        self._line(Text(output.one_line(text), style=style))

    def show_message(self, message: SessionMessage) -> None:
        """Show a message of the transcript as ``history`` does."""
        self._line(heading(message, self._console.width))
        if message.content:
            self._line(Text(output.visible(message.content)))
        else:
            self._line(Text(NO_TEXT, style="dim"))
        if message.interrupted:
            self.note(output.STOPPED)

    def sent(self, text: str) -> None:
        """Keep in mind that a message which is not in the transcript stands on the screen."""
        self._shown_questions = [*self._shown_questions[-MAX_WAITING:], text]

    def _line(self, text: Text) -> None:
        self.take_prompt_away()
        self._end_line()
        self._console.print(text, soft_wrap=True)

    def _write(self, text: str) -> None:
        """Write a part of a line."""
        if text:
            self.take_prompt_away()
            self._console.file.write(output.visible(text))
            self._console.file.flush()
            self._is_line_open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._is_line_open:
            self._console.file.write("\n")
            self._is_line_open = False

    def _short(self, text: str) -> str:
        """Return ``text`` on one line that fits the terminal."""
        return output.cut(text, self._console.width)

    # ---- events ------------------------------------------------------------------------------

    def show(self, event: Event, *, own: Sequence[int] = ()) -> None:
        """Show an event. The messages at the positions ``own`` stand on the screen already."""
        match event.type:
            case "queued":
                if event.receipt.position not in own and len(self._waiting) < MAX_WAITING:
                    self._waiting[event.receipt.position] = event.message
            case "turn":
                self._show_turn(event)
            case "delta":
                self._begin_reply()
                self._write(self._reply.add_piece(event.text))
            case "data":
                self._show_data(event)
            case "reset":
                if self._reply.is_begun:
                    self.note("(this part of the reply is void)")
                self._reply = ShownReply()
            case "message":
                self._show_new_message(event.message)
            case "rewritten":
                self.note("the transcript was changed; see it with: sessionsdb history")

    def _begin_reply(self) -> None:
        if not self._reply.is_begun:
            self._reply.is_begun = True
            self._line(Text("assistant", style=ROLE_STYLES["assistant"]))

    def _show_data(self, event: DataEvent) -> None:
        self._begin_reply()
        data = "" if event.data is None else f" {output.as_json(event.data)}"
        self._line(Text(self._short(f"[{event.kind}{data}]"), style="dim"))

    def _show_new_message(self, message: SessionMessage) -> None:
        if message.role == "user" and message.content in self._shown_questions:
            self._shown_questions.remove(message.content)
        elif message.role == "assistant":
            self._show_reply(message)
        elif self._reply.is_begun:  # the result of a tool, which has the role user in some forms
            self._line(Text(self._short(f"[{message.role}] {message.content}"), style="dim"))
        else:
            self.show_message(message)

    def _show_reply(self, message: SessionMessage) -> None:
        """Show the rest of a reply that is in the transcript now, behind its shown pieces."""
        rest = self._reply.rest_of(message.content)
        if rest is None:
            self._end_line()
            self._reply = ShownReply()
            self._reply.is_answered = True
            rest = message.content
        if rest:
            self._begin_reply()
            self._write(rest)
        if not self._reply.has_unread:
            self._end_line()

    def _show_turn(self, event: TurnEvent) -> None:
        positions = [receipt.position for receipt in event.receipts]
        if event.status == "started":
            self._reply = ShownReply()
            self._show_questions(positions)
            if event.attempt == 1:  # a later one may fail at once, and leave a heading without text
                self._begin_reply()
            return
        for position in positions:
            if event.status != "failed":
                self._waiting.pop(position, None)
        self._end_line()
        error = (event.error or "").partition("\n")[0]
        if event.status == "failed":
            self.note(f"attempt {event.attempt} failed: {error}", "red")
            if event.retry_at is not None:
                seconds = max(0, round((event.retry_at - datetime.now(UTC)).total_seconds()))
                self.note(f"the next attempt is in {seconds} s")
        elif event.status == "dead":
            attempts = output.quantity(event.attempt, "attempt")
            self.note(f"dead after {attempts}: {error}", "red")
            for position in positions:
                id = shlex.quote(event.session_id)
                self.note(f"try again with: sessionsdb requeue {id} {position}")
        elif event.status == "cancelled":
            self.note("(stopped)")
        elif event.status == "held":
            self._show_question(event.question)
        elif not self._reply.is_answered:
            self.note("(no reply)")
        self._reply = ShownReply()

    def _show_question(self, question: OpenQuestion | None) -> None:
        for line in ("" if question is None else question.prompt).splitlines():
            self._line(Text(f"? {output.one_line(line)}", style="bold yellow"))
        if question is not None and question.data is not None:
            self._line(Text(self._short(f"  {output.as_json(question.data)}"), style="dim"))
        self.note("the next message answers the question")

    def _show_questions(self, positions: Sequence[int]) -> None:
        """Show the messages of others that a turn begins with."""
        for position in positions:
            message = self._waiting.pop(position, None)
            if message is not None:
                self.show_message(message)
                self.sent(message.content)
