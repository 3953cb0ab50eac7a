"""Save the conversations of a file of another program, in any form of ``messages/formats``."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from pydantic_core import from_json
from sqlalchemy.exc import DataError, IntegrityError

from sessionsdb import validation
from sessionsdb.admin.transcript_import import MAX_SAVES, RefusedLine, Verdict
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidArgument, InvalidSessionId, SessionsDBError, StorageError
from sessionsdb.messages.codec import encode_all
from sessionsdb.messages.formats.form import Conversation, Document, Form
from sessionsdb.messages.formats.reading import read_file
from sessionsdb.messages.formats.registry import FORMS, form_of_document
from sessionsdb.operations.importing import OtherTranscript, TranscriptImport, import_transcript


class ImportedSession(NamedTuple):
    """A conversation and its verdict."""

    conversation: Conversation
    verdict: Verdict


def parse_document(name: str, text: bytes) -> tuple[Document, list[tuple[int, str]]]:
    """Return the values of a file, and its lines that are no JSON: JSON lines, or one JSON value.

    A file whose first line is a whole value, and that has more lines, is JSON lines. Raises
    ``InvalidArgument`` if it is neither.
    """
    text = text.removeprefix(codecs.BOM_UTF8)
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    if len(lines) > 1:
        try:
            _parse(lines[0][1])
        except ValueError:
            pass
        else:
            values, bad = _parse_lines(lines)
            return Document(name, values, True), bad
    try:
        return Document(name, [_parse(text)], False), []
    except ValueError as error:
        raise InvalidArgument(f"is not JSON: {error}") from None


def _parse_lines(lines: Iterable[tuple[int, bytes]]) -> tuple[list[Any], list[tuple[int, str]]]:
    values: list[Any] = []
    bad: list[tuple[int, str]] = []
    for number, line in lines:
        try:
            values.append(_parse(line.removeprefix(codecs.BOM_UTF8)))
        except ValueError as error:
            bad.append((number, f"not JSON: {error}"))
    return values, bad


def _parse(text: bytes) -> Any:
    """Parse JSON. Raises ``ValueError``, also for JSON that is nested too deep."""
    try:
        # The first parser takes half the time of the other, and refuses some valid JSON.
        return from_json(text)
    except ValueError:
        try:
            return json.loads(text.decode())
        except RecursionError:
            raise ValueError("it is nested too deep") from None


def read_document(
    document: Document, *, form: Form | None = None, id: str | None = None
) -> tuple[Form, list[Conversation]] | None:
    """Return the form of a document and its conversations, each with the id of its session.

    ``form``: read it as this form. ``id``: the id of the one session in it. ``None`` if it is of no
    known form. Raises ``InvalidArgument`` if there is an ``id`` and more than one root session, or
    if a document of the given form has no message.
    """
    known = form or form_of_document(document)
    if known is None:
        return None
    found = read_file(known, document)
    if form is not None and not any(map(_holds_message, found)):
        raise InvalidArgument(f"has no message in the form {form.name}")
    return known, _with_ids(found, document.name, id)


def _holds_message(conversation: Conversation) -> bool:
    """Return whether a record is a message of any form: forms of messages overlap."""
    return any(
        isinstance(record, dict) and any(form.recognise(record) for form in FORMS)
        for record in conversation.messages
    )


def _with_ids(found: list[Conversation], name: str, id: str | None) -> list[Conversation]:
    """Give each conversation an id: its own, or the name of the file. Repeated ones get a number.

    The ids of a file that grows stay.
    """
    roots = sum(one.parent is None for one in found)
    if id is not None and roots > 1:
        raise InvalidArgument(f"holds {roots} conversations, so --id can't name its session")
    names: list[str] = []
    parents: list[str | None] = []
    for one in found:
        own = one.id or name
        parent = one.parent
        if id is not None and parent is not None and roots:
            own, parent = id + own.removeprefix(parent), id
        elif id is not None:
            own = id
        names.append(own)
        parents.append(parent)
    return [
        replace(one, id=own, parent=parent)
        for one, own, parent in zip(found, _numbered(names), parents, strict=True)
    ]


def _numbered(names: list[str]) -> list[str]:
    """Return the names in their order, and a repeated one with a number that no other one has."""
    taken = set(names)
    used: dict[str, int] = {}
    given = []
    for name in names:
        number = used.get(name, 0) + 1
        own = name
        if number > 1:  # two conversations of a file with one id
            while (own := f"{name}-{number}") in taken:
                number += 1
            taken.add(own)
        used[name] = number
        given.append(own)
    return given


async def save_conversations(
    db: SessionsDB, conversations: list[Conversation], *, max_message: int
) -> AsyncIterator[ImportedSession]:
    """Save conversations, and yield the verdicts in their order.

    A conversation is refused if one of its messages is over ``max_message`` bytes, or if its
    session has other messages. Up to 128 saves run at once. A conversation with a parent is saved
    after all before it. Raises ``StorageError`` when the database fails.
    """
    waiting: list[Conversation] = []
    for one in conversations:
        if waiting and (len(waiting) >= MAX_SAVES or one.parent is not None):
            for imported in await _save_all(db, waiting, max_message):
                yield imported
            waiting = []
        waiting.append(one)
    for imported in await _save_all(db, waiting, max_message):
        yield imported


async def _save_all(
    db: SessionsDB, conversations: list[Conversation], max_message: int
) -> list[ImportedSession]:
    tasks = [asyncio.create_task(_save(db, one, max_message)) for one in conversations]
    try:
        verdicts = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return list(map(ImportedSession, conversations, verdicts))


async def _save(db: SessionsDB, conversation: Conversation, max_message: int) -> Verdict:
    try:
        request = TranscriptImport(
            db.namespace,
            validation.session_id(conversation.id),
            encode_all(conversation.messages, max_bytes=max_message),
            conversation.times,
            validation.optional_session_id(conversation.parent),
        )
        operation = partial(import_transcript, request=request)
        changed = await open_database_of(db).write(operation, wakes=())
    except InvalidSessionId as error:
        return RefusedLine(f"{error}; name the session with --id")
    except OtherTranscript as error:
        return RefusedLine(
            f"{error}, and the session stays as it is; import this file as another session with "
            "--id, or delete the session first"
        )
    except StorageError as error:
        if isinstance(error.__cause__, (DataError, IntegrityError)):
            return RefusedLine(str(error))
        raise
    except SessionsDBError as error:
        return RefusedLine(str(error))
    return "saved" if changed else "unchanged"
