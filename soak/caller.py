"""One caller of the package's verbs, who writes down every question and every answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from sessionsdb import SessionsDBError
from soak.journal import Journal


class Answer(NamedTuple):
    """What a call came to: fields that say its result, or the name of an error."""

    fields: dict[str, Any]
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


GIVEN_UP = "GivenUp"
"""In place of an error's name: the caller stopped waiting for the answer."""

FAILED = frozenset(("StorageError", "ConnectionLost", GIVEN_UP))
"""After these nobody knows whether it was done."""


class Caller:
    """Asks one thing at a time. Whoever dies in between leaves a question without an answer: it
    may have been done."""

    def __init__(self, name: str, journal: Journal) -> None:
        self.name = name
        self._journal = journal
        self._tokens = itertools.count(1)
        self._questions = itertools.count(1)

    def token(self) -> str:
        """A text that nobody else ever writes."""
        return f"{self.name}#{next(self._tokens)}"

    async def ask(
        self,
        op: str,
        call: Callable[[], Awaitable[dict[str, Any]]],
        *,
        within: float | None = None,
        **asked: Any,
    ) -> Answer:
        question = f"{self.name}?{next(self._questions)}"
        # An error that is not one of the package's own is a violation, whatever the fault.
        self._journal.write(ask=question, op=op, **asked)
        try:
            async with asyncio.timeout(within):
                fields = await call()
        except SessionsDBError as error:
            self._journal.write(told=question, error=type(error).__name__, why=str(error)[:300])
            return Answer({}, type(error).__name__)
        except TimeoutError:
            self._journal.write(told=question, error=GIVEN_UP)
            return Answer({}, GIVEN_UP)
        except Exception as error:
            name = type(error).__name__
            self._journal.write(told=question, error=name, why=repr(error)[:300], foreign=True)
            return Answer({}, name)
        self._journal.write(told=question, **fields)
        return Answer(fields)
