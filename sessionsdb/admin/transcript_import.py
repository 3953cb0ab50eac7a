"""Save transcripts from JSON lines: many sessions at once, the lines of one session in order.

A line of a full export restores the whole session, if it does not exist yet.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json
from sqlalchemy.exc import DataError, IntegrityError

from sessionsdb import validation
from sessionsdb.admin.session_links import Link, check_parent, link, parents_first
from sessionsdb.admin.session_restore import merge_shared, parse_restored, parse_shared, restore
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.errors import SessionsDBError, StorageError, VersionConflict
from sessionsdb.messages.codec import encode_all
from sessionsdb.operations.keys import chunks
from sessionsdb.operations.transcript_types import Append
from sessionsdb.runtime.database_access import WORK

MAX_SAVES = 128
"""Saves that run at once."""

MAX_BYTES = 32 * 1024 * 1024
"""Bytes of the lines whose saves run at once. A larger line is saved alone."""


class Line(NamedTuple):
    """One line of the input."""

    number: int
    """1 for the first line."""
    text: bytes | None
    """The line without its line end, ``None`` if it was longer than the limit."""
    end: int
    """The number of bytes from the start of the input to the end of this line."""


class RefusedLine(Exception):
    """The reason why a line can't be imported."""


Verdict = Literal["saved", "unchanged"] | RefusedLine


class ImportResult(NamedTuple):
    """A line and its verdict."""

    line: Line
    verdict: Verdict


class _Child(NamedTuple):
    """A session that gets its parent behind the last line."""

    line: Line
    """The line of the session, without its text."""
    link: Link


@dataclass
class ImportSummary:
    """The number of lines with each verdict."""

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
    """Save the transcript of every line, and yield the verdicts in the order of the lines.

    Up to 128 saves run at once, so that they share commits. Two lines of one session are saved in
    order, so the later line wins. A line is refused if it is longer than ``max_line`` bytes. Raises
    ``StorageError`` when the database fails. Lines with a verdict are saved by then.

    Restored sessions get their parents behind the last line. A line whose session is saved, but
    can't get its parent, has a second verdict then, which says so.
    """
    children: dict[str, _Child] = {}
    running: deque[tuple[Line, asyncio.Task[Verdict]]] = deque()
    latest: dict[str, asyncio.Task[Verdict]] = {}
    size = 0
    try:
        async for line in lines:
            if line.text is not None and not line.text.removeprefix(codecs.BOM_UTF8).strip():
                continue
            length = len(line.text or b"")
            while running and (len(running) >= MAX_SAVES or size + length > MAX_BYTES):
                first, task = running.popleft()
                yield ImportResult(first, await task)
                size -= len(first.text or b"")
            try:
                value = parse_line(line, max_line=max_line)
            except RefusedLine as refusal:
                task = asyncio.create_task(_refuse(refusal))
            else:
                id = value.get("session_id", "")  # of a state that sessions share there is none
                child_line = line._replace(text=b"")
                task = asyncio.create_task(
                    _save_after(latest.get(id), db, value, child_line, children)
                )
                latest[id] = task
                task.add_done_callback(_remove_from(latest, id))
            running.append((line, task))
            size += length
        while running:
            first, task = running.popleft()
            yield ImportResult(first, await task)
        links = parents_first({id: child.link for id, child in children.items()})
        for chunk in chunks(links):
            operation = partial(link, namespace=db.namespace, links=chunk)
            for one in await open_database_of(db).write(operation, wakes=(WORK,)):
                reason = f"is restored without its parent {one.parent}, which is below it"
                verdict = RefusedLine(f"session {one.session_id} {reason}")
                yield ImportResult(children[one.session_id].line, verdict)
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


def parse_line(line: Line, *, max_line: int) -> dict[str, Any]:
    """Return the object of a line: a session with its messages, or a state that sessions share.

    Raises ``RefusedLine``.
    """
    if line.text is None:
        raise RefusedLine(f"longer than {max_line} bytes")
    try:
        # Files that were joined have the mark of each at the start of a line.
        value = _parse_json(line.text.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError as error:
        raise RefusedLine(f"not UTF-8: byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise RefusedLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RefusedLine("not readable JSON: it is nested too deep") from error
    except ValueError as error:  # a number with more digits than Python converts
        raise RefusedLine(f"not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise RefusedLine('not an object {"session_id": …, "messages": […]}')
    if "shared_state" in value:
        return {"shared_state": value["shared_state"]}
    for name, type_, description in (
        ("session_id", str, "a string"),
        ("messages", list, "an array"),
    ):
        if name not in value:
            raise RefusedLine(f"{name} is missing")
        if not isinstance(value[name], type_):
            raise RefusedLine(f"{name} must be {description}")
    return value


def _parse_json(text: bytes) -> Any:
    # pydantic's parser takes half the time of Python's and returns equal values. It refuses some
    # valid JSON, lone surrogates for example, so Python's parser reads again what it refuses.
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text.decode())


async def _save_after(
    previous: asyncio.Task[Verdict] | None,
    db: SessionsDB,
    value: dict[str, Any],
    line: Line,
    children: dict[str, _Child],
) -> Verdict:
    if previous is not None:
        await asyncio.wait((previous,))
    try:
        if "shared_state" in value:
            return await _merge_shared(db, value["shared_state"])
        if "stored" in value and await _restore(db, value, line, children):
            return "saved"
        return await _save(db, value["session_id"], value["messages"])
    except StorageError as error:
        by_restored_row = "stored" in value and isinstance(error, StatementRefused)
        if by_restored_row or isinstance(error.__cause__, (DataError, IntegrityError)):
            return RefusedLine(str(error))  # caused by this line
        raise
    except SessionsDBError as error:
        return RefusedLine(str(error))


async def _restore(
    db: SessionsDB, value: dict[str, Any], line: Line, children: dict[str, _Child]
) -> bool:
    """Restore a session of a full export. Return false if it exists."""
    restored = parse_restored(value["session_id"], value["messages"], value, db.limits)
    parent = restored.session.get("parent_id")
    if parent is not None:
        parent = validation.session_id(parent)
        check_parent(restored.session_id, parent)
        incarnation = restored.session.get("incarnation")
        link = Link(restored.session_id, parent, incarnation)
        children[restored.session_id] = _Child(line, link)
    operation = partial(restore, namespace=db.namespace, restored=restored, limits=db.limits)
    return await open_database_of(db).write(operation, wakes=(WORK,))


async def _merge_shared(db: SessionsDB, given: Any) -> Verdict:
    shared = parse_shared(db.namespace, given, db.limits)
    operation = partial(merge_shared, shared=shared, limits=db.limits)
    changed = await open_database_of(db).write(operation, wakes=())
    return "saved" if changed else "unchanged"


async def _save(db: SessionsDB, id: str, messages: list[Any]) -> Verdict:
    if messages:
        # Most sessions are new. An append saves the comparison, a third of the cost of a save.
        with contextlib.suppress(VersionConflict):
            database = open_database_of(db)
            await database.batched_calls.append_to_new(
                Append(
                    db.namespace,
                    validation.session_id(id),
                    encode_all(messages, max_bytes=db.limits.message_bytes),
                    expected_version=0,
                )
            )
            return "saved"
    before = await db.store.version(id)
    after = await db.store.save(id, messages)
    return "unchanged" if after == before else "saved"


async def _refuse(refusal: RefusedLine) -> Verdict:
    return refusal


def _remove_from(latest: dict[str, asyncio.Task[Verdict]], id: str) -> Any:
    def remove(task: asyncio.Task[Verdict]) -> None:
        if latest.get(id) is task:
            del latest[id]

    return remove
