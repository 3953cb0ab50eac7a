"""Read a page of hits of a search.

The candidates of the index are read, then compared with their messages beside the event loop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from sessionsdb.operations import search

if TYPE_CHECKING:
    from sessionsdb.operations.search_types import Search
    from sessionsdb.runtime.reads import Reads
    from sessionsdb.types import SearchHit

MIN_CANDIDATES = 10
"""The documents that one statement looks for at least. Some may be behind their messages."""

MAX_CANDIDATES = 50
"""The documents that one statement looks for at most. A message may have 1 MiB."""

SMALL_TEXT = 20_000
"""The characters that are compared on the event loop. That takes at most 0.03 s."""


async def search_page(reads: Reads, wanted: Search) -> list[SearchHit]:
    """Return a page of hits, the newest message first.

    Raises ``SearchUnavailable`` if the namespace has messages, and nothing of it is indexed.
    """
    hits: list[SearchHit] = []
    operation, before = search.first_candidates, wanted.before
    while len(hits) < wanted.limit:
        count = min(max(wanted.limit - len(hits), MIN_CANDIDATES), MAX_CANDIDATES)
        part = wanted._replace(before=before, limit=count)
        rows = await reads.read(partial(operation, wanted=part))
        if search.text_size(rows) <= SMALL_TEXT:
            hits += search.hits_of(wanted, rows)
        else:
            hits += await asyncio.to_thread(search.hits_of, wanted, rows)
        if len(rows) < count:
            break
        operation, before = search.candidates, search.last_place(rows)
    return hits[: wanted.limit]
