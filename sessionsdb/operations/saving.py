"""Saving: a transcript made equal to what the caller has, by writing only what differs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.clock import sqlite_now
from sessionsdb.engine.postgresql.arrays import columns
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import VersionConflict
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import registry
from sessionsdb.operations.history import FIRST_SEQ
from sessionsdb.operations.transcripts import find_stamped, message_rows


class TranscriptMark(NamedTuple):
    """A state of a transcript, and how to know that it is still in it.

    Versions alone would not do: a session that was deleted and made again counts from the
    beginning. So there must also be, at ``seq``, a message with this ``write_id``.
    """

    version: int
    seq: int
    write_id: str


class SaveResult(NamedTuple):
    """What a save did."""

    version: int
    mark: TranscriptMark | None
    """By which the transcript is known again; ``None`` if no message bears a ``write_id``."""


# The session's row is held from here on: nobody appends between the comparison and the writing.
_HOLD_POSTGRESQL = Statement("""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id
FOR NO KEY UPDATE
""")

_HOLD_SQLITE = Statement("""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id
""")

_STORED = Statement("""
SELECT seq, role, content, payload, write_id FROM messages
WHERE namespace = :namespace AND session_id = :session_id
ORDER BY seq
""")

_CUT = Statement("""
DELETE FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :last_kept
""")

_MARKED = """
    version = :version AND EXISTS (
        SELECT 1 FROM messages AS m
        WHERE m.namespace = :namespace AND m.session_id = :session_id
          AND m.seq = :marked AND m.write_id = :mark
    )
"""

# Held, so that a change that is under way is waited for.
_IS_MARKED_SQLITE = Statement(f"""
SELECT version FROM sessions
WHERE namespace = :namespace AND id = :session_id AND {_MARKED}
""")

_IS_MARKED_POSTGRESQL = Statement(f"{_IS_MARKED_SQLITE.sql} FOR NO KEY UPDATE")


def _added(count: str, condition: str = "true") -> tuple[Statement, Statement]:
    """What puts messages behind the last one, on PostgreSQL and on SQLite."""
    on_postgresql = Statement(f"""
WITH changed AS (
    UPDATE sessions
    SET version = version + 1,
        last_seq = last_seq + CAST(:added AS bigint),
        message_count = {count},
        updated_at = greatest(updated_at, statement_timestamp()),
        last_active = greatest(last_active, statement_timestamp())
    WHERE namespace = :namespace AND id = :session_id AND {condition}
    RETURNING version, last_seq - CAST(:added AS bigint) AS base, updated_at
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, write_id)
    SELECT :namespace, :session_id, c.base + m.place, m.role, m.content, m.payload, c.updated_at,
           CASE WHEN m.place = 1 THEN CAST(:write_id AS text) || ':' || c.version END
    FROM changed AS c, unnest(
        CAST(:roles AS text[]), CAST(:contents AS text[]), CAST(:payloads AS text[])
    ) WITH ORDINALITY AS m(role, content, payload, place)
)
SELECT version, base FROM changed
""")
    on_sqlite = Statement(f"""
UPDATE sessions
SET version = version + 1,
    last_seq = last_seq + :added,
    message_count = {count},
    updated_at = max(updated_at, :now),
    last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id AND {condition}
RETURNING version, last_seq - :added AS base, updated_at
""")
    return on_postgresql, on_sqlite


_ADD = _added(":count")
_EXTEND = _added("message_count + CAST(:added AS bigint)", _MARKED)

_WRITE_SQLITE = Statement("""
INSERT INTO messages
    (namespace, session_id, seq, role, content, payload, created_at, write_id)
VALUES (:namespace, :session_id, :seq, :role, :content, :payload, :created_at, :write_id)
""")


def save(
    connection: Connection,
    namespace: str,
    session_id: str,
    wanted: Sequence[StoredMessage],
    *,
    expected_version: int | None = None,
) -> SaveResult:
    """Make the transcript equal to ``wanted``, by writing only what differs.

    The common beginning stays as it is, what differs behind it is deleted and the rest appended
    with new ``seq``s. A transcript that is equal already is not touched. A session that is
    unknown is made, with channel ``store``.
    """
    key = {"namespace": namespace, "session_id": session_id}
    found = _lock_version(connection, key)
    if expected_version is not None and expected_version != (found or 0):
        raise VersionConflict(session_id, expected_version, found or 0)
    if found is None:
        registry.create_for_store(connection, namespace, session_id)
        found = _lock_version(connection, key)
        assert found is not None
        if expected_version is not None and found != expected_version:
            raise VersionConflict(session_id, expected_version, found)

    kept = _common_prefix(connection, key, wanted)
    added = wanted[kept.messages :]
    if kept.messages == kept.stored and not added:
        return SaveResult(found, kept.mark(found))
    if kept.messages < kept.stored:
        _CUT.rows(connection, key | {"last_kept": kept.last_seq})
    saved = _add(connection, _ADD, key | {"count": len(wanted)}, added, uuid4().hex)
    assert saved is not None
    return saved if added else SaveResult(saved.version, kept.mark(saved.version))


def extend(
    connection: Connection,
    namespace: str,
    session_id: str,
    mark: TranscriptMark,
    added: Sequence[StoredMessage],
    write_id: str,
) -> SaveResult | None:
    """Put messages behind the transcript, if it is still as ``mark`` says, in one statement on
    PostgreSQL; ``None`` if it is not, and then nothing is written."""
    key = {"namespace": namespace, "session_id": session_id}
    marked = {"version": mark.version, "marked": mark.seq, "mark": mark.write_id}
    if not added:
        on_postgresql = connection.dialect.name == "postgresql"
        is_marked = _IS_MARKED_POSTGRESQL if on_postgresql else _IS_MARKED_SQLITE
        return SaveResult(mark.version, mark) if is_marked.row(connection, key | marked) else None
    return _add(connection, _EXTEND, key | marked, added, write_id)


def find_extended(
    connection: Connection, namespace: str, session_id: str, write_id: str
) -> SaveResult | None:
    """What ``extend`` did under this ``write_id``, if it was committed: asked when the connection
    broke before the answer came."""
    found = find_stamped(connection, namespace, session_id, write_id)
    if found is None:
        return None
    version, seq = found
    return SaveResult(version, TranscriptMark(version, seq, f"{write_id}:{version}"))


def _lock_version(connection: Connection, key: dict[str, Any]) -> int | None:
    on_postgresql = connection.dialect.name == "postgresql"
    found = (_HOLD_POSTGRESQL if on_postgresql else _HOLD_SQLITE).row(connection, key)
    return None if found is None else found[0]


class _CommonPrefix(NamedTuple):
    """The common beginning of what is stored and what is wanted."""

    messages: int
    last_seq: int
    stamped: tuple[int, str] | None
    """The last message in it with a ``write_id``: its ``seq``, and that."""
    stored: int
    """How many messages are stored in all."""

    def mark(self, version: int) -> TranscriptMark | None:
        """That of a transcript of just these messages, at this version."""
        return None if self.stamped is None else TranscriptMark(version, *self.stamped)


def _common_prefix(
    connection: Connection, key: dict[str, Any], wanted: Sequence[StoredMessage]
) -> _CommonPrefix:
    rows = _STORED.rows(connection, key)
    count, last_seq, stamped = 0, FIRST_SEQ, None
    for (seq, role, content, payload, write_id), message in zip(rows, wanted, strict=False):
        # The payload says it all: a rendering of an older version of this package may differ.
        if payload != message[2] or (payload is None and (role, content, None) != message):
            break
        count, last_seq = count + 1, seq
        if write_id is not None:
            stamped = (seq, write_id)
    return _CommonPrefix(count, last_seq, stamped, len(rows))


def _add(
    connection: Connection,
    statements: tuple[Statement, Statement],
    parameters: dict[str, Any],
    added: Sequence[StoredMessage],
    write_id: str,
) -> SaveResult | None:
    """Put the messages behind what there is; ``None`` if there is no session it holds for."""
    on_postgresql, on_sqlite = statements
    parameters = parameters | {"added": len(added)}
    if connection.dialect.name == "postgresql":
        roles, contents, payloads = columns(added, 3)
        texts = {"roles": roles, "contents": contents, "payloads": payloads}
        changed = on_postgresql.row(connection, parameters | texts | {"write_id": write_id})
    else:
        changed = on_sqlite.row(connection, parameters | {"now": sqlite_now(connection)})
    if changed is None:
        return None
    version, base = changed[:2]
    stamp = f"{write_id}:{version}"
    if connection.dialect.name == "sqlite":
        rows = message_rows(
            parameters["namespace"], parameters["session_id"], base, added, changed[2]
        )
        stamps = itertools.chain([stamp], itertools.repeat(None))
        _WRITE_SQLITE.each(
            connection, [(*row, mark) for row, mark in zip(rows, stamps, strict=False)]
        )
    return SaveResult(version, TranscriptMark(version, base + 1, stamp) if added else None)
