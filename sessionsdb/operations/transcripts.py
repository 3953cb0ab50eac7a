"""Transcripts: the ordered messages of a session.

Every change holds the session's row, and hands out ``seq`` under it: the order of ``seq`` is the
order of commits. ``seq`` never goes back, not even over a rewrite, so a cursor stays true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    select,
)

from sessionsdb.engine.clock import sqlite_now
from sessionsdb.engine.postgresql.arrays import column, columns
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import SessionsDBError, UnknownSession, VersionConflict
from sessionsdb.messages.codec import Message, StoredMessage, decode
from sessionsdb.operations import registry
from sessionsdb.schema import messages


class Append(NamedTuple):
    """Messages to put at the end of a transcript."""

    namespace: str
    session_id: str
    messages: Sequence[StoredMessage]
    expected_version: int | None = None


# ---- reading ---------------------------------------------------------------------------------

_LOAD = Statement("""
SELECT role, content, payload FROM messages
WHERE namespace = :namespace AND session_id = :session_id
ORDER BY seq
""")

_VERSION = Statement("""
SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id
""")


def load(connection: Connection, namespace: str, session_id: str) -> list[Message] | None:
    """The whole transcript as fresh objects; ``None`` for an unknown id."""
    rows = _LOAD.rows(connection, {"namespace": namespace, "session_id": session_id})
    if not rows and not registry.exists(connection, namespace, session_id):
        return None
    return [decode(role, content, payload) for role, content, payload in rows]


def version(connection: Connection, namespace: str, session_id: str) -> int | None:
    found = _VERSION.row(connection, {"namespace": namespace, "session_id": session_id})
    return None if found is None else found[0]


# ---- appending -------------------------------------------------------------------------------

# One statement. `locked` takes the session rows in key order and sees them as they are now, not
# as the snapshot had them; only those that are at the expected version are changed, and only
# their messages are written.
_APPEND_POSTGRESQL = Statement("""
WITH locked AS MATERIALIZED (
    SELECT s.namespace, s.id, s.version, r.expected, r.bump, r.count, r.number
    FROM unnest(
        CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:expected AS bigint[]),
        CAST(:bumps AS bigint[]), CAST(:counts AS bigint[])
    ) WITH ORDINALITY AS r(namespace, id, expected, bump, count, number)
    JOIN sessions AS s ON s.namespace = r.namespace AND s.id = r.id
    ORDER BY s.namespace, s.id
    FOR NO KEY UPDATE OF s
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM locked
),
changed AS (
    UPDATE sessions AS s
    SET version = s.version + l.bump,
        last_seq = s.last_seq + l.count,
        message_count = s.message_count + l.count,
        updated_at = greatest(s.updated_at, clock.now),
        last_active = greatest(s.last_active, clock.now)
    FROM clock, locked AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
      AND (l.expected IS NULL OR l.expected = l.version)
      AND l.count > 0
    RETURNING l.number, s.namespace, s.id, s.version, s.last_seq - l.count AS base
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, write_id)
    SELECT c.namespace, c.id, c.base + m.place, m.role, m.content, m.payload, clock.now,
           CASE WHEN m.place = 1 THEN CAST(:write_id AS text) || ':' || c.version END
    FROM clock, changed AS c JOIN unnest(
        CAST(:numbers AS bigint[]), CAST(:places AS bigint[]), CAST(:roles AS text[]),
        CAST(:contents AS text[]), CAST(:payloads AS text[])
    ) AS m(number, place, role, content, payload) ON m.number = c.number
)
SELECT number, version FROM locked
""")

_APPEND_SQLITE = Statement("""
UPDATE sessions
SET version = version + :bump,
    last_seq = last_seq + :count,
    message_count = message_count + :count,
    updated_at = max(updated_at, :now),
    last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :id
  AND (:expected IS NULL OR version = :expected)
RETURNING version, last_seq - :count AS base
""")

_WRITE_SQLITE = Statement("""
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at)
VALUES (:namespace, :session_id, :seq, :role, :content, :payload, :created_at)
""")


class _Group(NamedTuple):
    """Appends to one session, done as one."""

    namespace: str
    session_id: str
    expected: int | None
    appends: list[tuple[int, int]]  # place in the list of requests, and whether it changes anything
    messages: list[StoredMessage]
    bump: int


def append(
    connection: Connection,
    requests: Sequence[Append],
    *,
    create: bool = True,
    write_id: str | None = None,
) -> list[int | SessionsDBError]:
    """Put each request's messages behind its session's last; the new version for each.

    A session that is unknown is made, with channel ``store``; with ``create=False`` its requests
    are answered with ``UnknownSession``, and the whole is one statement on PostgreSQL. Several
    requests for one session are served in order; one with an ``expected_version`` must be its
    session's only one.
    """
    groups = _grouped(requests)
    answers: dict[int, int | SessionsDBError] = {}
    missing: Sequence[_Group] = groups
    if not create or connection.dialect.name == "sqlite":
        new = [group for group in groups if create and group.expected == 0]
        known = [group for group in groups if not (create and group.expected == 0)]
        missing = [*_append_groups(connection, known, answers, write_id), *new]
    if create and missing:
        # All are made before any that exists is locked, both in key order: two transactions that
        # make the same sessions then can't wait for each other.
        for group in missing:
            if group.expected in (None, 0):
                registry.create_for_store(connection, group.namespace, group.session_id)
        missing = _append_groups(connection, missing, answers, write_id)
    for group in missing:
        for place, _ in group.appends:
            if create and group.expected is not None:
                answers[place] = VersionConflict(group.session_id, group.expected, 0)
            else:
                answers[place] = UnknownSession(group.session_id)
    return [answers[place] for place in range(len(requests))]


def find_appended(connection: Connection, request: Append, write_id: str) -> int | None:
    """The version that the append stamped ``write_id`` made, if it has been committed. Appends
    that were merged into one are all told the last one's version."""
    found = find_stamped(connection, request.namespace, request.session_id, write_id)
    return None if found is None else found[0]


def find_stamped(
    connection: Connection, namespace: str, session_id: str, write_id: str
) -> tuple[int, int] | None:
    """The version that a write stamped ``write_id`` made and its first ``seq``, if it has been
    committed.

    Asked when the connection broke before the answer came: the stamp is near the end of the
    transcript, and is looked for backwards from there.
    """
    recent = (
        select(messages.c.write_id, messages.c.seq)
        .where(messages.c.namespace == namespace, messages.c.session_id == session_id)
        .order_by(messages.c.seq.desc())
        .limit(10_000)
        .subquery()
    )
    found = connection.execute(
        select(recent).where(recent.c.write_id.startswith(f"{write_id}:"))
    ).first()
    return None if found is None else (int(found.write_id.rpartition(":")[2]), found.seq)


def _grouped(requests: Sequence[Append]) -> list[_Group]:
    order = sorted(range(len(requests)), key=lambda place: requests[place][:2])
    groups = []
    for (namespace, session_id), places in groupby(order, key=lambda place: requests[place][:2]):
        appends = [(place, 1 if requests[place].messages else 0) for place in places]
        groups.append(
            _Group(
                namespace,
                session_id,
                requests[appends[0][0]].expected_version,
                appends,
                [message for place, _ in appends for message in requests[place].messages],
                sum(changes for _, changes in appends),
            )
        )
    return groups


def _append_groups(
    connection: Connection,
    groups: Sequence[_Group],
    answers: dict[int, int | SessionsDBError],
    write_id: str | None,
) -> list[_Group]:
    """Append what can be appended; returns the groups whose session does not exist."""
    if connection.dialect.name == "postgresql":
        found = _on_postgresql(connection, groups, write_id)
    else:
        found = _on_sqlite(connection, groups)
    missing = []
    for group, before in zip(groups, found, strict=True):
        if before is None:
            missing.append(group)
        elif group.expected is not None and group.expected != before:
            answers[group.appends[0][0]] = VersionConflict(group.session_id, group.expected, before)
        else:
            made = before
            for place, changes in group.appends:
                made += changes
                answers[place] = made
    return missing


def _on_postgresql(
    connection: Connection, groups: Sequence[_Group], write_id: str | None
) -> list[int | None]:
    """The version each session had before; ``None`` where there is none."""
    written = [
        (number, place, *message)
        for number, group in enumerate(groups, 1)
        for place, message in enumerate(group.messages, 1)
    ]
    numbers, places, roles, contents, payloads = columns(written, 5)
    rows = _APPEND_POSTGRESQL.rows(
        connection,
        {
            "namespaces": [g.namespace for g in groups],
            "ids": [g.session_id for g in groups],
            "expected": column([g.expected for g in groups]),
            "bumps": [g.bump for g in groups],
            "counts": [len(g.messages) for g in groups],
            "numbers": numbers,
            "places": places,
            "roles": roles,
            "contents": contents,
            "payloads": payloads,
            "write_id": write_id,
        },
    )
    found = dict(tuple(row) for row in rows)
    return [found.get(number) for number in range(1, len(groups) + 1)]


def _on_sqlite(connection: Connection, groups: Sequence[_Group]) -> list[int | None]:
    present = sqlite_now(connection)
    found: list[int | None] = []
    written: list[tuple[Any, ...]] = []
    for group in groups:
        moved = None
        if group.messages:
            moved = _APPEND_SQLITE.row(
                connection,
                {
                    "namespace": group.namespace,
                    "id": group.session_id,
                    "expected": group.expected,
                    "bump": group.bump,
                    "count": len(group.messages),
                    "now": present,
                },
            )
        if moved is None:
            found.append(version(connection, group.namespace, group.session_id))
            continue
        made, base = moved
        found.append(made - group.bump)
        written.extend(
            message_rows(group.namespace, group.session_id, base, group.messages, present)
        )
    _WRITE_SQLITE.each(connection, written)
    return found


def message_rows(
    namespace: str, session_id: str, base: int, stored: Sequence[StoredMessage], present: str
) -> Iterator[tuple[Any, ...]]:
    """The messages behind the ``seq`` ``base``, as SQLite takes them."""
    for seq, (role, content, payload) in enumerate(stored, base + 1):
        yield (namespace, session_id, seq, role, content, payload, present)
