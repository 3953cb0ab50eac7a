"""A durable conversation store of Pydantic AI: ``pip install 'sessionsdb[pydantic-ai]'``.

::

    store = ConversationStore("sqlite:///sessions.db")
    conversation = await store.load("chat-1") or Conversation(conversation_id="chat-1")
    result = await agent.run("hello", conversation=conversation)
    await store.save(result)

A conversation is a session, and an entry a message of its transcript, as
``ModelMessagesTypeAdapter`` writes it. The id of an entry is the key of its message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import pydantic
from pydantic_ai import conversation_store as framework
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
)
from pydantic_ai.messages import ModelMessagesTypeAdapter
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.codec import encode_all
from sessionsdb.operations import log_records, message_log
from sessionsdb.operations.log_records import RecordWrite
from sessionsdb.operations.message_log import LogEntry, NewEntry
from sessionsdb.operations.registry import Registration

FORM: Final = "pydantic-ai"
"""The form of these sessions, and their channel."""

_RECORDS: Final = pydantic.TypeAdapter(
    list[ConversationRecord],
    config=pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"),
)

T = TypeVar("T")


class ConversationStore(framework.ConversationStore):
    """Conversations of Pydantic AI in this database.

    ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL. A URL is opened at the first use,
    in each event loop that uses the store: see ``Handles``.

    ``load``, ``save``, ``branch``, ``fork``, ``list_conversations`` and ``delete`` are those of the
    framework. Below them:

    - A record and its new entries are written in one transaction. Of two writers at once one gets
      ``ConversationConflict``, and has written nothing.
    - A save costs as much as it adds, and a load as much as it returns.
    - Branches and forks share entries: each message is stored once.
    - ``delete`` removes the entries of a conversation that no other conversation uses. It keeps
      the entries of a source that its forks use, until the last of them is deleted.
    - Without a ``scope`` the peer of the session is its own id, and with one it is the scope.

    Conversations are sessions with the channel ``pydantic-ai``, so the broker, the tools and the
    command line show them. ``save`` raises ``AnotherForm`` for a session with other messages.
    """

    def __init__(self, db_or_url: SessionsDB | AsyncEngine | str) -> None:
        self._handles = Handles(db_or_url)

    async def close(self) -> None:
        """Close the database of a URL in this event loop, if no other adapter uses it.

        A handle that the caller gave stays open. The next use opens the database again.
        """
        await self._handles.close()

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation, or ``None``.

        A head and branches whose messages were purged since are left out of it.
        """
        if not _can_be_id(conversation_id):
            return None
        found = await self._from_database(log_records.read_record, session_id=conversation_id)
        return None if found is None else _record(conversation_id, found)

    async def read_records(
        self, *, scope: str | None = None, limit: int | None = None
    ) -> Sequence[ConversationRecord]:
        """Return records, saved last first. The cost depends on the number of those returned."""
        peer = None if scope is None else _peer(scope)
        wanted = limit
        while True:
            found = await self._from_database(
                log_records.read_records, channel=FORM, peer=peer, limit=wanted
            )
            records = [_record(id, fields) for id, fields in found]
            if scope is not None:
                # The peer of a conversation without a scope is its id, which may be equal.
                records = [record for record in records if record.scope == scope]
            if limit is None or len(records) >= limit or len(found) < (wanted or 0):
                records.sort(key=lambda record: record.updated_at, reverse=True)
                return records[:limit]
            wanted = (wanted or 0) * 2 + 1

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and its new entries in one transaction.

        Raises ``ConversationConflict``, and ``AnotherForm`` for a session whose messages are not
        those of a conversation. Raises ``InvalidSessionId`` for an id of more than 512 characters.
        """
        db = await self._handles.current()
        session_id = validation.session_id(record.conversation_id)
        peer = session_id if record.scope is None else _peer(record.scope)
        request = RecordWrite(
            db.namespace,
            session_id,
            Registration(db.namespace, session_id, FORM, peer, metadata=forms.mark(FORM)),
            _check,
            _RECORDS.dump_python([record], mode="json")[0],
            expected_revision,
            _new_entries(new_entries, db.limits.message_bytes),
            _in_utc(record.updated_at),
        )
        operation = partial(log_records.write_record, request=request)
        if not await open_database_of(db).write(operation, wakes=()):
            raise ConversationConflict(record.conversation_id)

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a record, and the entries that no other conversation uses.

        Raises ``ConversationConflict``.
        """
        db = await self._handles.current()
        operation = partial(
            log_records.delete_record,
            namespace=db.namespace,
            session_id=conversation_id,
            expected_revision=expected_revision,
        )
        if not _can_be_id(conversation_id) or not await open_database_of(db).write(
            operation, wakes=()
        ):
            raise ConversationConflict(conversation_id)

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry. Raises ``LookupError``."""
        [entry] = await self.read_history(entry_id, limit=1)
        return entry

    async def read_history(
        self, head_id: str | None, *, limit: int | None = None
    ) -> list[ConversationEntry]:
        """Return the newest ``limit`` entries up to a head, oldest first. Raises ``LookupError``.

        The cost depends on the entries that are returned, and on the branches and forks between
        them.
        """
        line = await self._from_database(message_log.read_line, head=head_id, limit=limit)
        return _entries(line)

    async def _from_database(self, operation: Callable[..., T], **arguments: Any) -> T:
        db = await self._handles.current()
        namespace = db.namespace

        def read(connection: Connection) -> T:
            return operation(connection, namespace, **arguments)

        return await open_database_of(db).read_snapshot(read)


def _check(details: Any) -> None:
    forms.require_form(details, FORM)


def _can_be_id(conversation_id: str) -> bool:
    try:
        validation.session_id(conversation_id)
    except InvalidArgument:
        return False
    return True


def _peer(scope: str) -> str:
    """Return the peer of the sessions of a scope: a digest if the scope can't be stored as one."""
    try:
        return validation.name(scope, "scope")
    except InvalidArgument:
        return f"sha256:{hashlib.sha256(scope.encode(errors='surrogatepass')).hexdigest()}"


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _record(conversation_id: str, fields: dict[str, Any]) -> ConversationRecord:
    [record] = _RECORDS.validate_python([fields])
    # A fork by the broker has a copy of the record of its source.
    record.conversation_id = conversation_id
    return record


def _new_entries(entries: Sequence[ConversationEntry], max_bytes: int) -> list[NewEntry]:
    messages = ModelMessagesTypeAdapter.dump_python(
        [entry.message for entry in entries], mode="json"
    )
    stored = encode_all(messages, max_bytes=max_bytes)
    validation.message_keys([entry.id for entry in entries], len(stored))
    return [
        NewEntry(entry.id, entry.parent_id, message)
        for entry, message in zip(entries, stored, strict=True)
    ]


def _entries(line: Sequence[LogEntry]) -> list[ConversationEntry]:
    messages = ModelMessagesTypeAdapter.validate_python([entry.message for entry in line])
    return [
        ConversationEntry(id=entry.id, parent_id=entry.parent_id, message=message)
        for entry, message in zip(line, messages, strict=True)
    ]
