"""A caller of the package, which records every call and every answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from sessionsdb import SessionsDBError
from soak.journal import Journal


class Answer(NamedTuple):
    """The result of a call: its fields, or the name of an error."""

    fields: dict[str, Any]
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


GIVEN_UP = "GivenUp"
"""Stands for the name of an error when the caller stopped waiting for the answer."""

FAILED = frozenset(("StorageError", "ConnectionLost", "OutOfReach", GIVEN_UP))
"""After these errors it is unknown whether the call was done."""


class Caller:
    """Makes one call at a time. A caller that dies in between leaves a call without an answer,
    which may have been done."""

    def __init__(self, name: str, journal: Journal) -> None:
        self.name = name
        self._journal = journal
        self._tokens = itertools.count(1)
        self._questions = itertools.count(1)

    def token(self) -> str:
        """A text that occurs nowhere else."""
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
