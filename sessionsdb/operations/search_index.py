"""The index over the words of messages: find transcripts that changed, and index them.

The writes of messages know nothing of the index. The indexer compares each session with its mark:
``last_seq`` tells of new messages, ``rewrites`` of removed and replaced ones, and the number of
removed messages of those that were purged. Where the last two differ, the whole transcript is
compared with its documents, message by message, and only the difference is written.

The state of a session is read before its messages are. So a write in between leaves a mark that is
behind, and the session is indexed again. The mark is moved only from the version that was read:
of two indexers at one session only one writes.

Sessions are found in two ways. ``changed_page`` goes through them by ``updated_at``, and so finds
new messages at once. A transaction that commits late, an import and a clock that was set back can
all put a session behind that place. So ``session_page`` also goes through all sessions by key,
again and again. A page of either costs a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine import clock
from sessionsdb.engine.repeatable import repeatable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.search_text import searchable_text
from sessionsdb.messages.search_words import MAX_CHARACTERS, digest_of_words, words_of
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.search_types import Document, Indexable, IndexedPart, Mark

PAGE_MESSAGES = 50
"""Messages that are read at once. A message may have 1 MiB."""

PART_CHARACTERS = 300_000
"""The characters of one batch, about. Their words are told apart in 0.05 s."""

PART_MESSAGES = 200
"""The messages of one batch, about. Other writes wait for the transaction with their words."""

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_SELECT = """
SELECT s.namespace, s.id, s.incarnation, s.last_seq, s.rewrites, s.last_seq - s.message_count,
       k.version, k.seq, k.rewrites, k.removed, s.updated_at
FROM sessions AS s
LEFT JOIN search_marks AS k ON k.namespace = s.namespace AND k.session_id = s.id
"""

_PAGE_OF_NAMESPACE = Statement(f"""{_SELECT}
WHERE s.namespace = :namespace AND s.id > :id ORDER BY s.id LIMIT :limit
""")
_PAGE_OF_ALL = Statement(f"""{_SELECT}
WHERE (s.namespace, s.id) > (:namespace, :id) ORDER BY s.namespace, s.id LIMIT :limit
""")
_CHANGED = Statement(f"""{_SELECT}
WHERE s.namespace = :namespace AND (s.updated_at, s.id) > (:updated_at, :id)
ORDER BY s.updated_at, s.id LIMIT :limit
""")
_LAST_CHANGE = Statement("""
SELECT updated_at, id FROM sessions WHERE namespace = :namespace
ORDER BY updated_at DESC, id DESC LIMIT 1
""")

# Skips from namespace to namespace in the primary key.
_NAMESPACES = Statement("""
WITH RECURSIVE known(namespace) AS (
    SELECT pg_catalog.min(s.namespace) FROM sessions AS s
    UNION ALL
    SELECT (SELECT pg_catalog.min(n.namespace) FROM sessions AS n WHERE n.namespace > k.namespace)
    FROM known AS k WHERE k.namespace IS NOT NULL
)
SELECT namespace FROM known WHERE namespace IS NOT NULL
""")

_MESSAGES = Statement(f"""
SELECT seq, role,
       CASE WHEN payload IS NULL
            THEN pg_catalog.substr(content, 1, {MAX_CHARACTERS}) ELSE '' END,
       payload, created_at
FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :after AND seq <= :until
ORDER BY seq LIMIT :limit
""")

_DOCUMENTS = Statement("""
SELECT id, seq, digest FROM search_documents
WHERE namespace = :namespace AND session_id = :session_id AND seq > :after AND seq <= :until
""")

_IS_USED = Statement("SELECT 1 FROM search_marks WHERE namespace = :namespace LIMIT 1")

_HAS_MESSAGES = Statement("""
SELECT 1 FROM sessions WHERE namespace = :namespace AND last_seq > 0 LIMIT 1
""")


class ChangePlace(NamedTuple):
    """A place in the order of ``changed_page``: the time as the driver gives it, and an id."""

    updated_at: Any
    id: str


class Part(NamedTuple):
    """Messages of one session behind its mark, as they were read."""

    session: Indexable
    reached: int
    """The last ``seq`` that the part covers."""
    messages: list[Row]
    documents: list[Row]
    """The documents of the same messages that are in the index."""


# ---- finding -------------------------------------------------------------------------------------


def session_page(
    connection: Connection, namespace: str | None, after: SessionKey, limit: int
) -> list[Indexable]:
    """Return the next ``limit`` sessions by key. ``namespace``: ``None`` for all of them."""
    if namespace is None:
        place = {"namespace": after[0], "id": after[1], "limit": limit}
        return [_indexable(row) for row in _PAGE_OF_ALL.rows(connection, place)]
    place = {"namespace": namespace, "id": after[1], "limit": limit}
    return [_indexable(row) for row in _PAGE_OF_NAMESPACE.rows(connection, place)]


def changed_page(
    connection: Connection, namespace: str, after: ChangePlace, limit: int
) -> list[tuple[Indexable, ChangePlace]]:
    """Return the next ``limit`` sessions by the time of their last change, and their places."""
    rows = _CHANGED.rows(connection, {"namespace": namespace, "limit": limit, **after._asdict()})
    return [(_indexable(row), ChangePlace(row[10], row[1])) for row in rows]


def last_change(connection: Connection, namespace: str) -> ChangePlace:
    """Return the last place in the order of ``changed_page``."""
    row = _LAST_CHANGE.row(connection, {"namespace": namespace})
    return ChangePlace(*(row or (clock.as_stored(connection, _EPOCH_START), "")))


def namespaces(connection: Connection) -> list[str]:
    """Return the namespaces that have a session."""
    return [row[0] for row in _NAMESPACES.rows(connection, {})]


def is_indexed(connection: Connection, namespace: str) -> bool:
    """Return whether a transcript of this namespace was ever indexed."""
    return _IS_USED.row(connection, {"namespace": namespace}) is not None


def has_messages(connection: Connection, namespace: str) -> bool:
    """Return whether a session of this namespace has had a message."""
    return _HAS_MESSAGES.row(connection, {"namespace": namespace}) is not None


def _indexable(row: Row) -> Indexable:
    mark = None if row[6] is None else Mark(*row[6:10])
    return Indexable((row[0], row[1]), row[2], row[3], row[4], row[5], mark)


# ---- indexing ------------------------------------------------------------------------------------


def read_parts(connection: Connection, due: Sequence[Indexable]) -> list[Part]:
    """Read the messages of these sessions that are to be indexed, up to the size of a batch.

    The first session has a part, and the others as far as they fit. A long transcript takes several
    batches.
    """
    parts: list[Part] = []
    characters = messages = 0
    for session in due:
        if characters >= PART_CHARACTERS or messages >= PART_MESSAGES:
            break
        part = _read_part(
            connection, session, PART_CHARACTERS - characters, PART_MESSAGES - messages
        )
        parts.append(part)
        messages += len(part.messages)
        characters += _size(part.messages)
    return parts


def _read_part(connection: Connection, session: Indexable, characters: int, count: int) -> Part:
    place = {
        "namespace": session.key[0],
        "session_id": session.key[1],
        "after": session.indexed_seq,
        "until": session.last_seq,
    }
    documents: Sequence[Row] = []
    if session.mark is not None:
        documents = _DOCUMENTS.rows(connection, place)
    rows: list[Row] = []
    while True:
        page = _MESSAGES.rows(connection, {**place, "limit": PAGE_MESSAGES})
        rows += page
        if len(page) < PAGE_MESSAGES:
            return Part(session, session.last_seq, rows, list(documents))
        place["after"] = page[-1][0]
        if len(rows) >= count or _size(rows) >= characters:
            reached = page[-1][0]
            return Part(session, reached, rows, [row for row in documents if row[1] <= reached])


def _size(rows: Sequence[Row]) -> int:
    return sum(len(content) + len(payload or "") for _, _, content, payload, _ in rows)


def index_part(part: Part) -> IndexedPart:
    """Tell the words of a part, and return its difference to the index. Uses no database."""
    session = part.session
    stored = {seq: (id, digest) for id, seq, digest in part.documents}
    added: list[Document] = []
    kept: set[int] = set()
    for seq, role, content, payload, created_at in part.messages:
        words = words_of(searchable_text(role, content, payload))
        if not words:
            continue
        digest = digest_of_words(words)
        if seq in stored and stored[seq][1] == digest:
            kept.add(stored[seq][0])
        else:
            milliseconds = (clock.as_utc(created_at) - _EPOCH_START) // _MILLISECOND
            added.append(Document(seq, milliseconds, digest, words))
    mark = Mark(
        (session.mark.version if session.mark else 0) + 1,
        part.reached,
        session.rewrites,
        session.removed,
    )
    removed = [row[0] for row in part.documents if row[0] not in kept]
    return IndexedPart(session.key, session.incarnation, mark, removed, added)


@repeatable(
    "a mark is moved only from the version that was read, so a second write changes nothing"
)
def write_parts(connection: Connection, parts: Sequence[IndexedPart]) -> set[SessionKey]:
    """Write the documents of these parts, and move their marks.

    Return the sessions whose marks were moved. Nothing is written for the others: another indexer
    was first, messages were purged, or the session was deleted.
    """
    return dialect_of(connection).write_search_parts(connection, sorted(parts))


@repeatable("an index that exists is left as it is")
def create_index(connection: Connection) -> None:
    """Make the parts of the index that need a feature of the database, where they are missing.

    Raises ``SearchUnavailable`` if the database does not have the feature.
    """
    dialect_of(connection).create_search_index(connection)


# ---- purging -------------------------------------------------------------------------------------


class Purged(NamedTuple):
    """The messages of one session that were purged in a transaction."""

    number: int
    last_seq: int


@cache
def _marked(in_ids: str) -> Statement:
    return Statement(f"""
SELECT session_id FROM search_marks WHERE namespace = :namespace AND session_id {in_ids}
""")


_MOVE_MARK = Statement("""
UPDATE search_marks SET removed = removed + CAST(:number AS bigint), version = version + 1
WHERE namespace = :namespace AND session_id = :session_id
""")

# Their messages are gone. Where a session is purged in steps, a step reads only the first rows.
_FORGET = Statement("""
DELETE FROM search_documents
WHERE namespace = :namespace AND session_id = :session_id AND seq <= :last_seq
  AND seq NOT IN (
      SELECT m.seq FROM messages AS m
      WHERE m.namespace = :namespace AND m.session_id = :session_id AND m.seq <= :last_seq
  )
""")


def forget_purged(connection: Connection, namespace: str, purged: Mapping[str, Purged]) -> None:
    """Delete the documents of messages that were purged from locked sessions.

    The mark of a session counts the purged messages, so the rest of the transcript is not compared
    again. An indexer that read one of these messages before does not write it: the mark has another
    version then.
    """
    if not purged:
        return
    dialect = dialect_of(connection)
    marked = _marked(dialect.in_ids).rows(
        connection, {"namespace": namespace, **dialect.ids_values(list(purged))}
    )
    # In key order, as an indexer locks marks, so that neither waits for the other.
    for session_id in sorted(row[0] for row in marked):
        values = {"namespace": namespace, "session_id": session_id}
        _MOVE_MARK.rows(connection, values | purged[session_id]._asdict())
        _FORGET.rows(connection, values | purged[session_id]._asdict())
