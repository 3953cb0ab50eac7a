"""Saving: make a transcript equal to the caller's by writing only the difference."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InvalidArgument, VersionConflict
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.transcript_types import (
    ATTRIBUTE_COLUMNS,
    NO_ATTRIBUTES,
    Attributes,
    TranscriptMark,
)
from sessionsdb.operations.transcripts import find_write


class SaveResult(NamedTuple):
    """The result of a save."""

    version: int
    mark: TranscriptMark | None
    """Identifies the state of the transcript. ``None`` if no message has a ``write_id``."""


_STORED = Statement(f"""
SELECT seq, role, content, payload, write_id, {ATTRIBUTE_COLUMNS} FROM messages
WHERE namespace = :namespace AND session_id = :session_id
ORDER BY seq
""")

_DELETE_TAIL = Statement("""
DELETE FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :last_kept
""")


def save(
    connection: Connection,
    namespace: str,
    session_id: str,
    messages: Sequence[StoredMessage],
    *,
    expected_version: int | None = None,
    in_own_turn: bool = False,
) -> SaveResult:
    """Make the transcript equal to ``messages`` by writing only the difference.

    The common prefix stays. The messages behind it are deleted, and the rest is appended
    with new ``seq``s. An appended message that equals a deleted one keeps its sender, author,
    metadata, key and time of sending. A transcript that is already equal is not changed. An unknown
    session is created with channel ``store``. Raises ``VersionConflict``.

    ``in_own_turn``: the caller is the handler of a turn of this session. A save that removes
    messages raises ``InvalidArgument`` then.
    """
    dialect = dialect_of(connection)
    # Locked until the commit: nothing is appended between the comparison and the write.
    version = dialect.lock_version(connection, namespace, session_id)
    if expected_version is not None and expected_version != (version or 0):
        raise VersionConflict(session_id, expected_version, version or 0)
    if version is None:
        locked, created = registry.lock_or_create(
            connection, namespace, session_id, dialect.lock_version, writes=bool(messages)
        )
        version = locked
        if not created and expected_version is not None:  # another call was faster
            raise VersionConflict(session_id, expected_version, version)

    key = {"namespace": namespace, "session_id": session_id}
    kept = _common_prefix(connection, key, messages)
    added = messages[kept.messages :]
    if kept.messages == kept.stored and not added:
        return SaveResult(version, kept.mark(version))
    if kept.messages < kept.stored:
        if in_own_turn:
            raise InvalidArgument(
                f"a handler can't remove messages of its own session {session_id}: the turn would "
                "not commit; append with save, or use turn.edit, which changes them with the commit"
            )
        _DELETE_TAIL.rows(connection, key | {"last_kept": kept.last_seq})
    write_id = uuid4().hex
    attributes = carried_attributes(kept.removed, added)
    written = dialect.write_tail(
        connection,
        namespace,
        session_id,
        added,
        attributes,
        write_id,
        message_count=len(messages),
        rewrites=1 if kept.messages < kept.stored else 0,
    )
    assert written is not None
    version, base = written
    return (
        _result(version, base + 1, write_id) if added else SaveResult(version, kept.mark(version))
    )


def extend(
    connection: Connection,
    namespace: str,
    session_id: str,
    mark: TranscriptMark,
    added: Sequence[StoredMessage],
    write_id: str,
) -> SaveResult | None:
    """Append to a transcript that is still in the state ``mark``: one statement on PostgreSQL.

    ``None``: the transcript is in another state, and nothing was written.
    """
    dialect = dialect_of(connection)
    if not added:
        marked = dialect.lock_marked(connection, namespace, session_id, mark)
        return SaveResult(mark.version, mark) if marked else None
    written = dialect.extend(connection, namespace, session_id, added, write_id, mark)
    if written is None:
        return None
    version, base = written
    return _result(version, base + 1, write_id)


def find_extended(
    connection: Connection, namespace: str, session_id: str, write_id: str
) -> SaveResult | None:
    """Return the result of the ``extend`` with this ``write_id``, ``None`` if not committed."""
    write = find_write(connection, namespace, session_id, write_id)
    return None if write is None else _result(*write, write_id)


def _result(version: int, first_seq: int, write_id: str) -> SaveResult:
    """Of a write whose first message has this ``seq``: it is the one that bears the id."""
    return SaveResult(version, TranscriptMark(version, first_seq, f"{write_id}:{version}"))


Message = tuple[str, str, str | None]
"""Role, content and payload."""


class RemovedMessage(NamedTuple):
    """A message that a save or an edit deletes."""

    message: Message
    attributes: Attributes


def carried_attributes(
    removed: Sequence[RemovedMessage], added: Sequence[Message]
) -> list[Attributes]:
    """Return for each added message the attributes of the removed message that it repeats.

    The messages that are equal at both ends of the lists belong together, because a summary often
    replaces the older messages. Before them equal messages belong together in their order.
    """
    attributes = [NO_ATTRIBUTES] * len(added)
    if all(one.attributes == NO_ATTRIBUTES for one in removed):
        return attributes
    same = 0
    for old, new in zip(reversed(removed), reversed(added), strict=False):
        if not equal(old.message, new):
            break
        same += 1
        attributes[-same] = old.attributes
    waiting: dict[str | Message, deque[Attributes]] = {}
    for old in removed[: len(removed) - same]:
        waiting.setdefault(_identity(old.message), deque()).append(old.attributes)
    for index, new in enumerate(added[: len(added) - same]):
        if found := waiting.get(_identity(new)):
            attributes[index] = found.popleft()
    return attributes


def _identity(message: Message) -> str | Message:
    """Return the value that equal messages share.

    A payload is the whole message: the role and content that an older version of this package
    rendered from it may differ.
    """
    return message[:3] if message[2] is None else message[2]


def equal(one: Message, other: Message) -> bool:
    """Return whether two stored messages are the same message."""
    return _identity(one) == _identity(other)


class _CommonPrefix(NamedTuple):
    """The common prefix of the stored messages and the new ones."""

    messages: int
    last_seq: int
    written: tuple[int, str] | None
    """``seq`` and ``write_id`` of the last message in it that has one."""
    stored: int
    """How many messages are stored in all."""
    removed: list[RemovedMessage]
    """The stored messages behind the prefix."""

    def mark(self, version: int) -> TranscriptMark | None:
        """The mark of a transcript of only these messages, at this version."""
        return None if self.written is None else TranscriptMark(version, *self.written)


def _common_prefix(
    connection: Connection, key: dict[str, Any], new: Sequence[StoredMessage]
) -> _CommonPrefix:
    rows = _STORED.rows(connection, key)
    count, last_seq, written = 0, FIRST_SEQ, None
    for (seq, role, content, payload, write_id, *_), message in zip(rows, new, strict=False):
        # Inlined `equal`: a transcript can be long.
        if payload != message[2] or (payload is None and (role, content, None) != message):
            break
        count, last_seq = count + 1, seq
        if write_id is not None:
            written = (seq, write_id)
    removed = [
        removed_message((role, content, payload), columns)
        for _seq, role, content, payload, _write_id, *columns in rows[count:]
    ]
    return _CommonPrefix(count, last_seq, written, len(rows), removed)


def removed_message(message: Message, columns: Sequence[Any]) -> RemovedMessage:
    """Return a message that is deleted, with the values of its ``ATTRIBUTE_COLUMNS``.

    The position of a message that did not come through the inbox tells which message it answers.
    Behind other messages that is no longer true, so it is not carried over.
    """
    attributes = Attributes._make(columns)
    if attributes.sent_at is None:
        attributes = attributes._replace(position=None)
    return RemovedMessage(message, attributes)
