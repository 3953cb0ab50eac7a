"""A chat on a terminal: the answers to keys, events and Ctrl-C."""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from sessionsdb import Event, Handler, SessionEnded, SessionsDBError
from sessionsdb.cli.chat.backstage import Backstage, Failed, Item, Logged, LogReporter, Opened, Sent
from sessionsdb.cli.chat.conversation import NO_WORKER, SECONDS_TO_A_WORKER
from sessionsdb.cli.chat.keyboard import Keyboard
from sessionsdb.cli.chat.message_lines import MessageLines
from sessionsdb.cli.chat.screen import PROMPT, Screen
from sessionsdb.cli.console import output
from sessionsdb.cli.console.error_words import in_options
from sessionsdb.cli.target import Target
from sessionsdb.events import TurnEvent

CONTINUATION = ". "
TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM."""
MAX_POSITIONS = 100
"""So many own messages are remembered, of which events may still come."""
PATIENCE_SECONDS = 1.0
"""When a turn has not stopped after so long, another Ctrl-C leaves the chat."""


def run(target: Target, id: str | None, agent: Handler | None, *, history: int) -> None:
    """Talk until the user leaves. Raises the error that ended the conversation."""
    backstage = Backstage(target, id, agent, history)
    screen = Screen(output.console())
    # The keyboard is given back first: Ctrl-C ends a wait for the thread.
    with backstage, _logs_reported(backstage), Keyboard() as keyboard:
        backstage.start(keyboard.wake)
        TerminalChat(
            keyboard, backstage, screen, is_new=id is None, has_worker=agent is not None
        ).run()
        if keyboard.is_terminated:
            raise typer.Exit(TERMINATED)


@contextmanager
def _logs_reported(backstage: Backstage) -> Iterator[None]:
    root = logging.getLogger()
    handler = LogReporter(backstage)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class TerminalChat:
    """The main loop, and its view of the session's turns."""

    def __init__(
        self,
        keyboard: Keyboard,
        backstage: Backstage,
        screen: Screen,
        *,
        is_new: bool,
        has_worker: bool,
    ) -> None:
        self._keyboard = keyboard
        self._backstage = backstage
        self._screen = screen
        self._is_new = is_new
        self._tells_hint = not has_worker
        """Whether to say that no worker takes a message. It is said once."""
        self._id: str | None = None
        self._is_over = False
        self._is_sending = False
        self._awaited: int | None = None
        """The position of the user's message that is not finished."""
        self._is_queued = False
        """Whether an event has shown the awaited message."""
        self._run: int | None = None
        """The run of the turn that runs."""
        self._is_retrying = False
        """Whether a failed turn waits for its next attempt."""
        self._own: list[int] = []
        self._hint_at: float | None = None
        self._stopping_since: float | None = None
        self._leaves_at_interrupt = False

    def run(self) -> None:
        while not self._is_over:
            takes_keys = self._id is not None and not self._is_sending and self._awaited is None
            if takes_keys and not self._is_running:
                self._screen.show_prompt()
            has_key = self._keyboard.wait(self._seconds_to_hint(), keys=takes_keys)
            if self._keyboard.is_terminated:
                break
            if self._keyboard.take_interrupt():
                self._on_interrupt()
            for item in self._backstage.items():
                self._on_item(item)
            if self._hint_at is not None and time.monotonic() >= self._hint_at:
                self._hint_at, self._tells_hint = None, False
                self._screen.note(NO_WORKER)
            if has_key and not self._is_over:
                self._read_message()
        self._screen.take_prompt_away()
        if self._id is not None and not self._is_new:
            self._screen.note(f"go on with: sessionsdb chat {shlex.quote(self._id)}")

    # ---- the user ----------------------------------------------------------------------------

    def _read_message(self) -> None:
        lines = MessageLines()
        self._screen.take_prompt_away()
        try:
            text = None
            while text is None:
                line = self._keyboard.read_line(CONTINUATION if lines.is_open else PROMPT)
                text = lines.add(line)
                if not lines.is_open:
                    break
        except EOFError:
            self._screen.line_was_left()
            self._is_over = True
            return
        except KeyboardInterrupt:
            self._screen.line_was_left()
            self._on_interrupt()
            return
        except UnicodeDecodeError:
            self._screen.note("the text is not UTF-8; type it again", "red")
            return
        self._leaves_at_interrupt = False
        if text is not None:
            self._is_sending = True
            self._screen.sent(text)
            self._backstage.send(text)

    def _on_interrupt(self) -> None:
        now = time.monotonic()
        if self._is_busy:
            if self._stopping_since is None:
                self._stopping_since = now
                self._backstage.stop(self._awaited, is_running=self._is_running)
            elif now - self._stopping_since > PATIENCE_SECONDS:
                self._is_over = True
        elif self._id is None or self._leaves_at_interrupt:
            self._is_over = True
        else:
            self._screen.note("Ctrl-C again or Ctrl-D leaves the chat")
            self._leaves_at_interrupt = True

    # ---- the session -------------------------------------------------------------------------

    def _on_item(self, item: Item) -> None:
        match item:
            case Opened():
                self._on_opened(item)
            case Sent():
                self._on_sent(item.receipt.position)
            case Failed():
                if item.is_fatal:
                    raise item.error
                self._is_sending, self._stopping_since = False, None
                assert isinstance(item.error, SessionsDBError)
                self._screen.note(in_options(item.error), "red")
            case Logged():
                self._screen.note(item.text, "red")
            case _:
                self._on_event(item)

    def _on_sent(self, position: int) -> None:
        self._is_sending, self._is_new = False, False
        self._awaited, self._is_queued = position, False
        self._own = [*self._own[-MAX_POSITIONS:], position]
        if self._stopping_since is not None:  # Ctrl-C was pressed before the position was known
            self._backstage.stop(position, is_running=False)
        elif self._tells_hint and not (self._is_running or self._is_retrying):
            self._hint_at = time.monotonic() + SECONDS_TO_A_WORKER

    def _on_opened(self, opened: Opened) -> None:
        self._id = opened.id
        for message in opened.history:
            self._screen.show_message(message)
        kind = "new session" if self._is_new else "session"
        self._screen.note(f"{kind} {opened.id}")
        self._screen.note(
            "Ctrl-C stops a reply, Ctrl-D leaves, a \\ at the end of a line continues it"
        )

    def _on_event(self, event: Event) -> None:
        self._screen.show(event, own=self._own)
        if event.type == "ended":
            raise SessionEnded(event.session_id)
        if event.type == "queued":
            self._is_queued = self._is_queued or event.receipt.position == self._awaited
        elif event.type == "idle":
            self._run, self._is_retrying = None, False
            if self._is_queued:
                self._awaited = None
        elif event.type == "turn":
            self._on_turn(event)
        if not self._is_busy:
            self._stopping_since = None

    def _on_turn(self, event: TurnEvent) -> None:
        positions = [receipt.position for receipt in event.receipts]
        is_own = self._awaited in positions
        self._is_retrying = event.status == "failed"
        if event.status == "started":
            self._run, self._stopping_since = event.run, None
        elif event.run == self._run:
            self._run = None
        if event.status == "started" or is_own:
            self._hint_at = None
        if event.status == "held":  # the user is to answer, also with messages behind the question
            self._awaited = None
        if is_own:
            self._is_queued = True
            if event.status not in ("started", "failed"):
                self._awaited = None

    @property
    def _is_busy(self) -> bool:
        return self._is_sending or self._is_running or self._awaited is not None

    @property
    def _is_running(self) -> bool:
        return self._run is not None

    def _seconds_to_hint(self) -> float | None:
        return None if self._hint_at is None else max(0.0, self._hint_at - time.monotonic())
