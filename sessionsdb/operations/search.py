"""Search the words of messages.

The index may be behind the transcripts. So each hit is compared with its message. A message
that is gone, or that no longer has the words, is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Row
from sessionsdb.errors import InvalidArgument, SearchUnavailable
from sessionsdb.messages.search_text import searchable_text, snippet_of
from sessionsdb.messages.search_words import matches
from sessionsdb.operations import search_index
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.search_types import LAST_ID, Search
from sessionsdb.types import SearchHit, SessionId

MAX_HITS = 1_000
"""The hits of one page at most."""

_CURSOR = re.compile(r"1-([0-9a-f]{1,16})")


def first_candidates(connection: Connection, wanted: Search) -> Sequence[Row]:
    """Return the newest ``wanted.limit`` documents that may be hits, each with its message.

    Raises ``SearchUnavailable`` if the namespace has messages, and nothing of it is indexed.
    """
    ready = dialect_of(connection).has_search_index(connection)
    if not ready or not search_index.is_indexed(connection, wanted.namespace):
        if search_index.has_messages(connection, wanted.namespace):
            raise SearchUnavailable.without_index(wanted.namespace)
        return []
    return candidates(connection, wanted)


def candidates(connection: Connection, wanted: Search) -> Sequence[Row]:
    """Return the next ``wanted.limit`` documents that may be hits, each with its message."""
    return dialect_of(connection).find_documents(connection, wanted)


def hits_of(wanted: Search, rows: Sequence[Row]) -> list[SearchHit]:
    """Return those candidates that have the words of the query, the newest message first."""
    return [hit for row in rows if (hit := _hit(wanted, row)) is not None]


def text_size(rows: Sequence[Row]) -> int:
    """Return the characters that ``hits_of`` compares, about."""
    return sum(len(content or "") + len(payload or "") for _, _, _, _, content, payload, _ in rows)


def last_place(rows: Sequence[Row]) -> int:
    """Return the place behind which the next candidates are."""
    return int(rows[-1][0])


def _hit(wanted: Search, row: Row) -> SearchHit | None:
    id, session_id, seq, role, content, payload, created_at = row
    if role is None:  # the message was removed
        return None
    text = searchable_text(role, content, payload)
    if not matches(wanted.query, text):
        return None
    snippet = snippet_of(wanted.query, text)
    return SearchHit.from_fields(
        session_id=SessionId(session_id),
        seq=seq,
        role=role,
        snippet=snippet.text,
        marks=snippet.marks,
        created_at=clock.as_utc(created_at),
        cursor=f"1-{id:x}",
    )


def place_of(cursor: str | None) -> int:
    """Return the place of a cursor. Raises ``InvalidArgument`` if it is none."""
    if cursor is None:
        return LAST_ID
    found = _CURSOR.fullmatch(cursor)
    if found is None or (place := int(found[1], 16)) > LAST_ID:
        raise InvalidArgument("after is no cursor of a hit; pass the cursor of the last hit")
    return place
