"""The form of a check: a rule of a protocol, and a coroutine that breaks if the rule is broken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sessionsdb.database import SessionsDB
from sessionsdb.protocols import SessionBroker, SessionStore
from sessionsdb.testing.draining import drain
from sessionsdb.types import Question
from sessionsdb.worker.reply import Reply
from sessionsdb.worker.turn import Turn

E = TypeVar("E", bound=Exception)

SHOWN = 300
"""The most characters of a value in an error. An implementation may return anything."""

Answers = Callable[[str, str], str | Question | None]
"""An agent of the checks: it gets the id of a session and the text of a message, and returns the
text of its reply, a question to a person, or ``None`` for no reply. An exception fails the attempt.
"""


@dataclass(frozen=True)
class Subject:
    """The implementation that is checked. Each check needs a new one without any sessions."""

    store: SessionStore
    broker: SessionBroker
    run_turns: Callable[[Answers], Awaitable[object]]
    """Runs turns with an agent until no message waits, except behind an open question. A message
    whose attempts all fail dies. Schedules that are due are sent first."""


class RuleBroken(AssertionError):
    """An implementation does not hold a rule of its protocol."""

    def __init__(self, check: Check, seen: str) -> None:
        super().__init__(f"{check.part}.{check.name}: {check.rule} Seen: {seen}")
        self.check = check
        self.seen = seen


@dataclass(frozen=True)
class Check:
    """One rule of a protocol. Await a call with a ``Subject`` to check an implementation.

    The call raises ``RuleBroken``. An error that the rule does not name is its ``__cause__``.
    """

    part: str
    """The part of the protocol, for implementations that have only some of it."""
    name: str
    rule: str
    """The rule in words."""
    run: Callable[[Subject], Awaitable[None]]

    async def __call__(self, subject: Subject) -> None:
        try:
            await self.run(subject)
        except RuleBroken:
            raise
        except AssertionError as broken:
            raise RuleBroken(self, str(broken)) from None
        except Exception as error:
            raise RuleBroken(self, f"{type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return f"{self.part}.{self.name}"


class Part:
    """The checks of one part of a protocol."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checks: list[Check] = []

    def rule(
        self, rule: str
    ) -> Callable[[Callable[[Subject], Awaitable[None]]], Callable[[Subject], Awaitable[None]]]:
        """Make a check of the function below, under its name."""

        def add(run: Callable[[Subject], Awaitable[None]]) -> Callable[[Subject], Awaitable[None]]:
            self.checks.append(Check(self.name, run.__name__, rule, run))
            return run

        return add


def equal(seen: object, expected: object, subject: str) -> None:
    """Raise ``AssertionError`` if two values differ."""
    if seen != expected:
        raise AssertionError(f"{subject}: {shown(seen)}, not {shown(expected)}")


def true(condition: object, fault: str) -> None:
    """Raise ``AssertionError`` if a condition does not hold."""
    if not condition:
        raise AssertionError(fault)


async def refused(error: type[E], call: Awaitable[object], subject: str) -> E:
    """Return the error of a call. Raises ``AssertionError`` if the call returns."""
    try:
        answer = await call
    except error as raised:
        return raised
    raise AssertionError(f"{subject} does not raise {error.__name__}, and returns {shown(answer)}")


def shown(value: object) -> str:
    """Return a value as Python writes it, and at most ``SHOWN`` characters of it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def subject_of(db: SessionsDB) -> Subject:
    """Return a handle as the subject of checks. Its namespace has to be empty."""

    async def run_turns(answers: Answers) -> None:
        async def handler(turn: Turn) -> Reply:
            answer = answers(turn.session.id, turn.text)
            return Reply(ask=answer) if isinstance(answer, Question) else Reply(answer)

        await drain(db, handler, allow_dead=True, max_attempts=2, timeout=60.0)

    return Subject(db.store, db.broker, run_turns)


def echo(_id: str, text: str) -> str:
    """Answer with the text."""
    return f"echo: {text}"


def user(text: str) -> dict[str, str]:
    """Return the message of a user."""
    return {"role": "user", "content": text}
