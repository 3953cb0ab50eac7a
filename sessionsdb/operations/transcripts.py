"""Transcripts: the ordered messages of a session.

Every change locks the session's row and assigns ``seq`` under that lock: the order of ``seq`` is
the order of commits. ``seq`` never goes back, not even when a transcript is rewritten, so that a
cursor stays valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sqlalchemy import Connection, select

from sessionsdb.engine.statement import Row, Statement
from sessionsdb.errors import SessionsDBError, UnknownSession, VersionConflict
from sessionsdb.messages.codec import Message, decode_rows
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.transcript_types import Append, SessionAppend
from sessionsdb.schema import messages

RECENT_MESSAGES = 10_000
"""How many of a session's newest messages are searched for the one that a lost write made."""

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
    """Return the whole transcript as new objects, or ``None`` for an unknown session."""
    rows = load_rows(connection, namespace, session_id)
    return None if rows is None else decode_rows(rows)


def load_rows(connection: Connection, namespace: str, session_id: str) -> Sequence[Row] | None:
    """Return the rows of the whole transcript, oldest first, or ``None`` for an unknown session."""
    key = {"namespace": namespace, "session_id": session_id}
    rows = _LOAD.rows(connection, key)
    if not rows:
        if not registry.exists(connection, namespace, session_id):
            return None
        # On PostgreSQL it may have been created with its messages between the two statements.
        rows = _LOAD.rows(connection, key)
    return rows


def version(connection: Connection, namespace: str, session_id: str) -> int | None:
    """Return the version of the transcript, or ``None`` for an unknown session."""
    row = _VERSION.row(connection, {"namespace": namespace, "session_id": session_id})
    return None if row is None else row[0]


# ---- appending -------------------------------------------------------------------------------


def append(
    connection: Connection,
    requests: Sequence[Append],
    *,
    create: bool = True,
    write_id: str | None = None,
) -> list[int | SessionsDBError]:
    """Append the messages of each request, and return the new version or the error of each.

    An unknown session is created with channel ``store``. With ``create=False`` its requests get
    ``UnknownSession``, and all of it is one statement on PostgreSQL. Several requests for one
    session are served in order. A request with an ``expected_version`` must be the only one of its
    session.
    """
    dialect = dialect_of(connection)
    appends = _by_session(requests)
    answers: dict[int, int | SessionsDBError] = {}
    missing: Sequence[SessionAppend] = appends
    if not create or not dialect.has_row_locks:
        missing = _append(connection, appends, answers, write_id)
    if create and missing:
        # All are created before any session that exists is locked, both in key order. Otherwise two
        # transactions that create the same sessions could wait for each other.
        # Another call may create a session, and a third one delete it before it is locked here.
        for _ in range(registry.CREATE_ATTEMPTS):
            missing = _append(connection, _create(connection, missing), answers, write_id)
            if not any(one.may_create for one in missing):
                break
    for one in missing:
        for index, _ in one.requests:
            if create and one.expected_version:
                answers[index] = VersionConflict(one.session_id, one.expected_version, 0)
            else:
                answers[index] = UnknownSession(one.session_id)
    return [answers[index] for index in range(len(requests))]


def find_appended(connection: Connection, request: Append, write_id: str) -> int | None:
    """Return the version that the append with this ``write_id`` made, ``None`` if none was.

    Appends to one session that were done as one all get the version of the last.
    """
    write = find_write(connection, request.namespace, request.session_id, write_id)
    return None if write is None else write[0]


def find_write(
    connection: Connection, namespace: str, session_id: str, write_id: str
) -> tuple[int, int] | None:
    """Return the version that the write with this ``write_id`` made, and its first ``seq``.

    ``None``: it was not committed. This is for a write whose answer was lost with the connection.
    Its messages are near the end of the transcript, so they are searched backwards from there.
    """
    recent = (
        select(messages.c.write_id, messages.c.seq)
        .where(messages.c.namespace == namespace, messages.c.session_id == session_id)
        .order_by(messages.c.seq.desc())
        .limit(RECENT_MESSAGES)
        .subquery()
    )
    row = connection.execute(
        select(recent).where(recent.c.write_id.startswith(f"{write_id}:"))
    ).first()
    return None if row is None else (int(row.write_id.rpartition(":")[2]), row.seq)


def _by_session(requests: Sequence[Append]) -> list[SessionAppend]:
    """One for each session, in key order."""

    def key(index: int) -> tuple[str, ...]:
        return requests[index][:2]

    appends = []
    for (namespace, session_id), indices in groupby(sorted(range(len(requests)), key=key), key=key):
        raises = [(index, 1 if requests[index].messages else 0) for index in indices]
        appends.append(
            SessionAppend(
                namespace,
                session_id,
                requests[raises[0][0]].expected_version,
                raises,
                [message for index, _ in raises for message in requests[index].messages],
                sum(by for _, by in raises),
            )
        )
    return appends


def _create(connection: Connection, appends: Sequence[SessionAppend]) -> list[SessionAppend]:
    """Create the sessions of the appends that may create them.

    Version 0 means that there is no session. So a session that is created here is at the version
    that its appends expect.
    """
    created = registry.create_all_for_store(
        connection,
        {
            (one.namespace, one.session_id): one.requests[0][1] > 0
            for one in appends
            if one.may_create
        },
    )
    return [
        one._replace(expected_version=None) if (one.namespace, one.session_id) in created else one
        for one in appends
    ]


def _append(
    connection: Connection,
    appends: Sequence[SessionAppend],
    answers: dict[int, int | SessionsDBError],
    write_id: str | None,
) -> list[SessionAppend]:
    """Append, add to ``answers``, and return the appends to sessions that do not exist."""
    versions = dialect_of(connection).append(connection, appends, write_id)
    missing = []
    for one, before in zip(appends, versions, strict=True):
        if before is None:
            missing.append(one)
        elif one.expected_version is not None and one.expected_version != before:
            conflict = VersionConflict(one.session_id, one.expected_version, before)
            answers[one.requests[0][0]] = conflict
        else:
            version = before
            for index, by in one.requests:
                version += by
                answers[index] = version
    return missing
