"""A chat without a terminal: messages from standard input, replies or events to standard output."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress

import typer

from sessionsdb import (
    Handler,
    InvalidMessage,
    Limits,
    OpenQuestion,
    Receipt,
    SessionsDB,
    UnknownSession,
)
from sessionsdb.cli.chat.conversation import (
    NO_WORKER,
    SECONDS_TO_A_WORKER,
    Conversation,
    own_worker,
    running_beside,
)
from sessionsdb.cli.chat.message_lines import MessageLines
from sessionsdb.cli.console import output
from sessionsdb.cli.console.errors import FAILED
from sessionsdb.cli.console.input_lines import open_lines
from sessionsdb.cli.console.signals import on_signals
from sessionsdb.cli.target import Target

MAX_LINE_BYTES = 6 * Limits().message_bytes
"""A line of JSON may need six characters for one byte of a message."""

WAIT_SECONDS = 3600.0


async def converse(target: Target, id: str | None, agent: Handler | None, *, json_: bool) -> None:
    """Send each message when the one before is answered. End at the end of standard input.

    The exit code is 1 if a message died.
    """
    async with target.open() as db:
        with _cancelled_by_sigterm():
            conversation = await Conversation.open(db, id)
            async with own_worker(db, agent):
                hint = NO_WORKER if agent is None else None
                if json_:
                    died = await _print_events(conversation, hint)
                else:
                    died = await _print_replies(db, conversation, hint)
    if died:
        output.note(f"{output.quantity(died, 'message')} died; see: sessionsdb dead-letters")
        raise typer.Exit(FAILED)


@contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Leave the block at SIGTERM with its exit code. A worker of the chat gives its turns back."""
    block = asyncio.current_task()
    assert block is not None
    is_terminated = False

    def terminate(_signal: str) -> None:
        nonlocal is_terminated
        is_terminated = True
        block.cancel()

    try:
        with on_signals([signal.SIGTERM], terminate):
            yield
    except asyncio.CancelledError:
        if not is_terminated:
            raise
        block.uncancel()
        raise typer.Exit(128 + signal.SIGTERM) from None


# ---- standard input ------------------------------------------------------------------------------


async def _texts(*, json_: bool) -> AsyncGenerator[str, None]:
    """Yield the messages: one a line, or as the rules of ``MessageLines`` put them together.

    With ``json_`` a line that is a JSON string stands for its text.
    """
    messages = MessageLines()
    with open_lines("-") as source:
        async for line in source.lines_of_text(MAX_LINE_BYTES):
            if line.text is None:
                raise InvalidMessage(
                    f"line {line.number} is longer than the limit of {MAX_LINE_BYTES} bytes"
                )
            try:
                text = line.text.decode().removesuffix("\r")
            except UnicodeDecodeError as error:
                raise InvalidMessage(f"line {line.number} is not UTF-8: {error}") from error
            message = _text_of_json(text) if json_ else messages.add(text)
            if message is not None:
                yield message
    if (rest := messages.end()) is not None:
        yield rest


def _text_of_json(line: str) -> str | None:
    text = line
    if line.startswith('"') and line.rstrip().endswith('"'):
        with suppress(ValueError):
            text = json.loads(line)
    return text if text.strip() else None


# ---- replies -------------------------------------------------------------------------------------


async def _print_replies(db: SessionsDB, conversation: Conversation, hint: str | None) -> int:
    """Print the reply to each message, and return how many messages died.

    ``hint`` is printed once, if no worker takes a message.
    """
    died = 0
    _print_question(await conversation.question())
    async with aclosing(_texts(json_=False)) as texts:
        async for text in texts:
            is_new = not conversation.exists
            receipt = await conversation.send(text)
            if is_new:
                output.note(f"session {conversation.id}")
            outcome = await db.broker.wait(receipt, SECONDS_TO_A_WORKER)
            if hint and outcome.status == "pending" and outcome.attempts == 0:
                output.note(hint)
                hint = None
            while not outcome.final:
                outcome = await db.broker.wait(receipt, WAIT_SECONDS)
            if outcome.reply is not None:
                async with aclosing(conversation.replies(text, outcome.reply)) as replies:
                    async for reply in replies:
                        output.say(reply.content)
                sys.stdout.flush()
            if outcome.status == "dead":
                died += 1
                error = (outcome.error or "").partition("\n")[0]
                attempts = output.quantity(outcome.attempts, "attempt")
                output.note(f"message {receipt.position} is dead after {attempts}: {error}")
            elif outcome.status == "cancelled":
                output.note(f"message {receipt.position} was cancelled")
            elif outcome.reply is None and outcome.question is None:
                output.note(f"no reply to message {receipt.position}")
            _print_question(outcome.question)
    return died


def _print_question(question: OpenQuestion | None) -> None:
    if question is None:
        return
    for line in question.prompt.splitlines():
        output.say(f"? {output.one_line(line)}")
    if question.data is not None:
        output.say(f"  {output.as_json(question.data)}")
    sys.stdout.flush()
    output.note(f"the next message answers question {output.one_line(question.id)}")


# ---- events --------------------------------------------------------------------------------------


async def _print_events(conversation: Conversation, hint: str | None) -> int:
    """Print the events, and return how many messages died.

    ``hint`` is printed once, if no worker takes a message.
    """
    printer = _EventPrinter(conversation, hint)
    async with running_beside(printer.run()), aclosing(_texts(json_=True)) as texts:
        async for text in texts:
            await printer.finish(await conversation.send(text))
    return printer.died


class _EventPrinter:
    """Prints events as JSON lines, and knows which messages are finished."""

    def __init__(self, conversation: Conversation, hint: str | None) -> None:
        self._conversation = conversation
        self._hint = hint
        self._changed = asyncio.Event()
        self._finished: set[int] = set()
        self._has_turn = False
        self.died = 0

    async def run(self) -> None:
        async for event in self._conversation.events():
            output.print_json(event)
            sys.stdout.flush()
            if event.type != "turn":
                continue
            self._has_turn = True
            if event.status not in ("started", "failed"):
                self._finished |= {receipt.position for receipt in event.receipts}
                self.died += len(event.receipts) if event.status == "dead" else 0
            self._changed.set()
        raise UnknownSession(self._conversation.id)

    async def finish(self, receipt: Receipt) -> None:
        """Wait until the end of a message's turn is printed."""
        loop = asyncio.get_running_loop()
        hint = loop.call_later(SECONDS_TO_A_WORKER, self._print_hint)
        self._has_turn = False
        try:
            while receipt.position not in self._finished:
                self._changed.clear()
                await self._changed.wait()
        finally:
            hint.cancel()
        self._finished.clear()

    def _print_hint(self) -> None:
        if self._hint and not self._has_turn:
            output.note(self._hint)
            self._hint = None
