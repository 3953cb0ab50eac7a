"""History: pages of a transcript, rendered for reading.

A page is one scan of the primary key from its edge: it costs what it shows. Many pages are read
together, in one statement on PostgreSQL and in one hop on SQLite.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.errors import UnknownSession
from sessionsdb.operations import registry
from sessionsdb.types import SessionId, SessionMessage

FIRST_SEQ, LAST_SEQ = -1, 2**63 - 1


class HistoryPage(NamedTuple):
    """The last ``limit`` messages (before ``before``); with ``after`` the first ``limit`` behind
    it. Both are ``seq``s and stand outside of the page."""

    namespace: str
    session_id: str
    limit: int
    before: int | None = None
    after: int | None = None


# Who sent a message: its inbox row says. The replies of a turn bear the position of the last
# message they answer, and stand behind it. Most messages have no position, or no sender, and then
# nothing more is looked up: what stands in a WHERE would be looked up first.
_MESSAGE = """
    SELECT m.role, m.content, m.created_at, m.seq,
           CASE WHEN m.role = 'user' AND m.position IS NOT NULL THEN (
               SELECT CASE WHEN NOT EXISTS (
                   SELECT 1 FROM messages AS b
                   WHERE b.namespace = m.namespace AND b.session_id = m.session_id
                     AND b.seq = m.seq - 1 AND b.position = m.position
               ) THEN i.sender END
               FROM inbox AS i
               WHERE i.namespace = m.namespace AND i.session_id = m.session_id
                 AND i.position = m.position AND i.sender IS NOT NULL
           ) END AS sender,
           {page} AS page
    FROM messages AS m
"""

_ONE = f"""
    {_MESSAGE.format(page=1)}
    WHERE m.namespace = :namespace AND m.session_id = :session_id
      AND m.seq > :after AND m.seq < :before
"""
LAST_ONES = Statement(f"{_ONE} ORDER BY m.seq DESC LIMIT :limit")
FIRST_ONES = Statement(f"{_ONE} ORDER BY m.seq LIMIT :limit")

# PostgreSQL's, for many pages: each is read as if it were asked for alone.
_MANY_PAGES = Statement(f"""
SELECT p.*
FROM unnest(
    CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:limits AS bigint[]),
    CAST(:afters AS bigint[]), CAST(:befores AS bigint[])
) WITH ORDINALITY AS r(namespace, session_id, most, after, before, page),
LATERAL (
    {_MESSAGE.format(page="r.page")}
    WHERE m.namespace = r.namespace AND m.session_id = r.session_id
      AND m.seq > r.after AND m.seq < r.before
    ORDER BY m.seq DESC LIMIT r.most
) AS p
""")


_SEQ, _PAGE = itemgetter(3), itemgetter(5)


def read(
    connection: Connection, pages: Sequence[HistoryPage]
) -> list[list[SessionMessage] | UnknownSession]:
    """Each page, newest last; ``UnknownSession`` where there is no such session."""
    together = len(pages) > 1 and connection.dialect.name == "postgresql"
    found = _many(connection, pages) if together else [_one(connection, page) for page in pages]
    return [
        messages
        if messages or registry.exists(connection, page.namespace, page.session_id)
        else UnknownSession(page.session_id)
        for page, messages in zip(pages, found, strict=True)
    ]


def _one(connection: Connection, page: HistoryPage) -> list[SessionMessage]:
    rows = (LAST_ONES if page.after is None else FIRST_ONES).rows(
        connection,
        {
            "namespace": page.namespace,
            "session_id": page.session_id,
            "limit": page.limit,
            "after": _after(page),
            "before": _before(page),
        },
    )
    return _messages(rows if page.after is not None else reversed(rows))


def _many(connection: Connection, pages: Sequence[HistoryPage]) -> list[list[SessionMessage]]:
    """All at once, but for those that begin behind a message: readers who follow a session, one
    after another."""
    found: list[list[SessionMessage]] = [[] for _ in pages]
    last_ones = [number for number, page in enumerate(pages) if page.after is None]
    for number, page in enumerate(pages):
        if page.after is not None:
            found[number] = _one(connection, page)
    rows_of: dict[int, list[Row]] = {}
    for row in _MANY_PAGES.rows(
        connection,
        {
            "namespaces": [pages[n].namespace for n in last_ones],
            "ids": [pages[n].session_id for n in last_ones],
            "limits": [pages[n].limit for n in last_ones],
            "afters": [_after(pages[n]) for n in last_ones],
            "befores": [_before(pages[n]) for n in last_ones],
        },
    ):
        rows_of.setdefault(_PAGE(row), []).append(row)
    for number, rows in rows_of.items():
        rows.sort(key=_SEQ)
        found[last_ones[number - 1]] = _messages(rows)
    return found


def _after(page: HistoryPage) -> int:
    return FIRST_SEQ if page.after is None else max(page.after, FIRST_SEQ)


def _before(page: HistoryPage) -> int:
    return LAST_SEQ if page.before is None else page.before


def _messages(rows: Iterable[Row]) -> list[SessionMessage]:
    return SessionMessage.list_from_fields(
        {
            "role": role,
            "content": content,
            "timestamp": as_utc(created_at),
            "seq": seq,
            "sender": None if sender is None else SessionId(sender),
        }
        for role, content, created_at, seq, sender, _page in rows
    )
