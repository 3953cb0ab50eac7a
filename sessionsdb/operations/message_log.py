"""A log of messages in which each one names the message before it, its parent.

A line of the log is a chain of parents, from a head down to a message without a parent. Lines
share their beginnings: after a branch or a fork two messages have the same parent, which may be in
another session. A message is stored once, in the session that appended it. Its key is its id.

The parent of a message is the message with a key before it in its session, unless the column
``extra`` names another one. So a line without branches needs no more than a transcript, and is read
by one scan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.codec import Message, StoredMessage, decode
from sessionsdb.messages.extra import decode_extra, encode_extra
from sessionsdb.operations.keys import chunks
from sessionsdb.schema import messages, sessions

PARENT = "parent"
"""The name of the parent in the metadata of a message."""

_PAGE = 500


class LogEntry(NamedTuple):
    """A message of the log."""

    id: str
    parent_id: str | None
    message: Message


class NewEntry(NamedTuple):
    """A message to append."""

    id: str
    parent_id: str | None
    message: StoredMessage


class Place(NamedTuple):
    """The place of a message."""

    session_id: str
    seq: int


class UnknownEntry(LookupError):
    """No message of the namespace has this id."""

    def __init__(self, entry_id: str) -> None:
        super().__init__(f"unknown entry: {entry_id}")


_DOWNWARDS = Statement("""
SELECT seq, key, role, content, payload, extra FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq <= :seq AND key IS NOT NULL
ORDER BY seq DESC LIMIT :limit
""")


def find_places(
    connection: Connection, namespace: str, ids: Collection[str], *, at_first: str | None = None
) -> dict[str, Place]:
    """Return the places of the messages that exist.

    Several sessions may have a message with the same id, as after ``SessionBroker.fork``. Then the
    message of the session ``at_first`` counts, and otherwise that of the session made first.
    """
    places: dict[str, Place] = {}
    for chunk in chunks(list(ids)):
        rows = connection.execute(
            select(messages.c.key, messages.c.session_id, messages.c.seq)
            .join(
                sessions,
                (sessions.c.namespace == messages.c.namespace)
                & (sessions.c.id == messages.c.session_id),
            )
            .where(messages.c.namespace == namespace, messages.c.key.in_(chunk))
            .order_by(sessions.c.created_at, sessions.c.id)
        )
        for key, session_id, seq in rows:
            if session_id == at_first:
                places[key] = Place(session_id, seq)
            else:
                places.setdefault(key, Place(session_id, seq))
    return places


def read_line(
    connection: Connection, namespace: str, head: str | None, limit: int | None = None
) -> list[LogEntry]:
    """Return the newest ``limit`` messages of the line that ends with ``head``, newest last.

    The cost depends on two numbers: of the messages that are returned, and of the places where the
    line leaves one session for another or goes back behind a branch. A line begins behind the
    messages that were purged, and of parents in a circle behind the first that comes again. Raises
    ``UnknownEntry`` for the head.
    """
    line: list[LogEntry] = []
    seen: set[str] = set()
    following = head
    while following is not None and (limit is None or len(line) < limit):
        place = find_places(connection, namespace, [following]).get(following)
        if place is None:
            if line:
                break
            raise UnknownEntry(following)
        rest = None if limit is None else limit - len(line)
        for entry, goes_on in _read_run(connection, namespace, place, rest):
            if entry.id in seen:
                return line[::-1]
            seen.add(entry.id)
            line.append(entry)
            following = entry.parent_id
            if not goes_on or (limit is not None and len(line) == limit):
                break
    return line[::-1]


def _read_run(
    connection: Connection, namespace: str, place: Place, limit: int | None
) -> Iterator[tuple[LogEntry, bool]]:
    """Yield messages from a place downwards, each with whether the next one is its parent."""
    rows = _read_downwards(connection, namespace, place, limit)
    row = next(rows, None)
    while row is not None:
        below = next(rows, None)
        _, key, role, content, payload, extra = row
        named = named_parent(extra)
        parent = named.parent_id if named is not None else None if below is None else below[1]
        yield LogEntry(key, parent, decode(role, content, payload)), named is None
        row = below


def _read_downwards(
    connection: Connection, namespace: str, place: Place, limit: int | None
) -> Iterator[Row]:
    # The row below the last one tells the parent of that one.
    page = _PAGE if limit is None else min(limit + 1, _PAGE)
    seq = place.seq
    while True:
        rows = _DOWNWARDS.rows(
            connection,
            {"namespace": namespace, "session_id": place.session_id, "seq": seq, "limit": page},
        )
        yield from rows
        if len(rows) < page:
            return
        seq, page = rows[-1][0] - 1, _PAGE


class NamedParent(NamedTuple):
    """A parent that is not the message before, or ``None`` for a message without a parent."""

    parent_id: str | None


def named_parent(extra: str | None) -> NamedParent | None:
    """Return the parent that a message names, or ``None`` if it is the message before."""
    if extra is None:
        return None
    metadata = decode_extra(extra).metadata
    return NamedParent(metadata[PARENT]) if metadata and PARENT in metadata else None


def extras_of(entries: Sequence[NewEntry], last_id: str | None) -> list[str | None]:
    """Return the ``extra`` of each new message behind a transcript that ends with ``last_id``."""
    extras: list[str | None] = []
    for entry in entries:
        metadata: dict[str, Any] = {PARENT: entry.parent_id}
        extras.append(None if entry.parent_id == last_id else encode_extra(None, metadata))
        last_id = entry.id
    return extras
