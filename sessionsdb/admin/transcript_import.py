"""Saving transcripts that come as JSON lines: many at once, each session's in order."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json
from sqlalchemy.exc import DataError, IntegrityError

from sessionsdb import SessionsDB, SessionsDBError, StorageError, VersionConflict
from sessionsdb.cli.console.input_lines import Line

SAVES_AT_ONCE = 64
BYTES_AT_ONCE = 32 * 1024 * 1024
"""Lines whose saves are under way; one that is larger by itself goes alone."""


class RefusedLine(Exception):
    """A line that can't be imported, and why."""


Verdict = Literal["saved", "unchanged"] | RefusedLine


class ImportResult(NamedTuple):
    """What became of one line."""

    line: Line
    verdict: Verdict


@dataclass
class ImportSummary:
    """What became of all lines."""

    saved: int = 0
    unchanged: int = 0
    refused: int = 0

    def count(self, verdict: Verdict) -> None:
        if isinstance(verdict, RefusedLine):
            self.refused += 1
        elif verdict == "saved":
            self.saved += 1
        else:
            self.unchanged += 1


async def save_all(
    db: SessionsDB, lines: AsyncIterator[Line], *, max_line: int
) -> AsyncIterator[ImportResult]:
    """Save every line's transcript; what became of each, in the order of the lines.

    Many saves are under way at once, so that they share commits. Two of the same session are
    saved one after the other, the later line last. Raises ``StorageError`` when the database
    fails; what was reported before is kept.
    """
    under_way: deque[tuple[Line, asyncio.Task[Verdict]]] = deque()
    latest: dict[str, asyncio.Task[Verdict]] = {}
    size = 0
    try:
        async for line in lines:
            if line.text is not None and not line.text.strip():
                continue
            length = len(line.text or b"")
            while under_way and (len(under_way) >= SAVES_AT_ONCE or size + length > BYTES_AT_ONCE):
                first, task = under_way.popleft()
                yield ImportResult(first, await task)
                size -= len(first.text or b"")
            try:
                id, messages = parsed(line, max_line=max_line)
            except RefusedLine as refusal:
                task = asyncio.create_task(_refused(refusal))
            else:
                task = asyncio.create_task(_saved(db, id, messages, latest.get(id)))
                latest[id] = task
                task.add_done_callback(_forget(latest, id))
            under_way.append((line, task))
            size += length
        while under_way:
            first, task = under_way.popleft()
            yield ImportResult(first, await task)
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)


def parsed(line: Line, *, max_line: int) -> tuple[str, list[Any]]:
    """The session's id and its messages. Raises ``Refused``."""
    if line.text is None:
        raise RefusedLine(f"longer than {max_line} bytes; --max-line-mib raises the limit")
    try:
        text = line.text.removeprefix(codecs.BOM_UTF8) if line.number == 1 else line.text
        value = _json(text)
    except UnicodeDecodeError as error:
        raise RefusedLine(f"not UTF-8: byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise RefusedLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RefusedLine("not JSON we can read: it nests too deep") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise RefusedLine(f"not JSON we can read: {error}") from error
    if not isinstance(value, dict):
        raise RefusedLine('not an object {"session_id": …, "messages": […]}')
    for name, kind, wanted in (("session_id", str, "a string"), ("messages", list, "an array")):
        if name not in value:
            raise RefusedLine(f"{name} is missing")
        if not isinstance(value[name], kind):
            raise RefusedLine(f"{name} must be {wanted}")
    return value["session_id"], value["messages"]


def _json(text: bytes) -> Any:
    """The value, read by pydantic's parser: it makes the same of all that it takes, in half the
    time. What it does not take (lone surrogates, for one) or what is no JSON is Python's."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text.decode())


async def _saved(
    db: SessionsDB, id: str, messages: list[Any], before_it: asyncio.Task[Verdict] | None
) -> Verdict:
    if before_it is not None:
        await asyncio.wait((before_it,))
    try:
        return await _save(db, id, messages)
    except StorageError as error:
        if isinstance(error.__cause__, (DataError, IntegrityError)):  # this line's own fault
            return RefusedLine(str(error))
        raise
    except SessionsDBError as error:
        return RefusedLine(str(error))


async def _save(db: SessionsDB, id: str, messages: list[Any]) -> Verdict:
    if messages:
        # Most are new, and then there is nothing to compare with: a third of what a save does.
        with contextlib.suppress(VersionConflict):
            await db.store.append(id, messages, expected_version=0)
            return "saved"
    before = await db.store.version(id)
    after = await db.store.save(id, messages)
    return "unchanged" if after == before else "saved"


async def _refused(refusal: RefusedLine) -> Verdict:
    return refusal


def _forget(latest: dict[str, asyncio.Task[Verdict]], id: str) -> Any:
    def forget(task: asyncio.Task[Verdict]) -> None:
        if latest.get(id) is task:
            del latest[id]

    return forget
