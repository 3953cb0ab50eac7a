"""Search the words of messages.

The index may be behind the transcripts. So each hit is compared with its message. A message
that is gone, or that no longer has the words, is not shown.
"""

from __future__ import annotations

import re

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

MIN_CANDIDATES = 10
"""The documents that one statement looks for at least. Some may be behind their messages."""

MAX_CANDIDATES = 50
"""The documents that one statement looks for at most. A message may have 1 MiB."""

_CURSOR = re.compile(r"1-([0-9a-f]{1,16})")


def search(connection: Connection, wanted: Search) -> list[SearchHit]:
    """Return a page of hits, the newest message first.

    Raises ``SearchUnavailable`` if the namespace has messages, and nothing of it is indexed.
    """
    ready = dialect_of(connection).has_search_index(connection)
    if not ready or not search_index.is_indexed(connection, wanted.namespace):
        if search_index.has_messages(connection, wanted.namespace):
            raise SearchUnavailable.without_index(wanted.namespace)
        return []
    hits: list[SearchHit] = []
    before = wanted.before
    while len(hits) < wanted.limit:
        count = min(max(wanted.limit - len(hits), MIN_CANDIDATES), MAX_CANDIDATES)
        rows = dialect_of(connection).find_documents(
            connection, wanted._replace(before=before, limit=count)
        )
        hits += [hit for row in rows if (hit := _hit(wanted, row)) is not None]
        if len(rows) < count:
            break
        before = rows[-1][0]
    return hits[: wanted.limit]


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
