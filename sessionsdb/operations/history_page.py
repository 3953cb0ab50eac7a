"""One page of a transcript, and the SQL that reads it on every database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row, Statement

FIRST_SEQ, LAST_SEQ = -1, 2**63 - 1
"""Before and behind every ``seq``."""


class HistoryPage(NamedTuple):
    """The request for a page: the newest ``limit`` messages before ``before``.

    With ``after`` the page has the oldest ``limit`` messages behind it instead. ``before`` and
    ``after`` are ``seq``s and are not part of the page. With ``max_bytes`` the page ends before the
    message with which its texts would be larger, and has at least one message.
    """

    namespace: str
    session_id: str
    limit: int
    before: int | None = None
    after: int | None = None
    max_bytes: int | None = None

    @property
    def lower(self) -> int:
        return FIRST_SEQ if self.after is None else max(self.after, FIRST_SEQ)

    @property
    def upper(self) -> int:
        return LAST_SEQ if self.before is None else self.before


SELECT_MESSAGE = """
    SELECT m.role, m.content, coalesce(m.sent_at, m.created_at), m.seq, m.sender, m.extra,
           {page} AS page
    FROM messages AS m
"""
"""Selects the row of one message. ``page`` is the number of the page that the row belongs to."""

_PAGE = f"""
    {SELECT_MESSAGE.format(page=1)}
    WHERE m.namespace = :namespace AND m.session_id = :session_id
      AND m.seq > :after AND m.seq < :before
"""


class Edges(NamedTuple):
    """The statements for pages whose texts have at most ``max_bytes`` bytes together."""

    newest: Statement
    oldest: Statement


def bounded(size: str, *, functions: str = "") -> Edges:
    """Return the statements for a database where ``size`` is the size of ``b.content`` in bytes.

    ``functions`` stands before the name of each function: the schema that has it. The sizes are
    added up in the database, which sends no text that the page does not hold.
    """

    def page(order: str, last: str) -> Statement:
        compare = ">=" if order == "DESC" else "<="
        return Statement(f"""
            {_PAGE} AND m.seq {compare} (
                SELECT {functions}{last}(s.seq)
                FROM (
                    SELECT c.seq, {functions}sum(c.size) OVER (ORDER BY c.seq {order}) AS total,
                           {functions}row_number() OVER (ORDER BY c.seq {order}) AS number
                    FROM (
                        SELECT b.seq, {size} AS size
                        FROM messages AS b
                        WHERE b.namespace = :namespace AND b.session_id = :session_id
                          AND b.seq > :after AND b.seq < :before
                        ORDER BY b.seq {order} LIMIT :limit
                    ) AS c
                ) AS s
                WHERE s.total <= :max_bytes OR s.number = 1
            )
            ORDER BY m.seq {order} LIMIT :limit
        """)

    return Edges(newest=page("DESC", "min"), oldest=page("ASC", "max"))


NEWEST = Statement(f"{_PAGE} ORDER BY m.seq DESC LIMIT :limit")
OLDEST = Statement(f"{_PAGE} ORDER BY m.seq LIMIT :limit")
UNBOUNDED = Edges(NEWEST, OLDEST)


def page_values(page: HistoryPage) -> dict[str, str | int]:
    """Return the parameters of ``NEWEST`` and ``OLDEST``."""
    return {
        "namespace": page.namespace,
        "session_id": page.session_id,
        "limit": page.limit,
        "after": page.lower,
        "before": page.upper,
    }


def read_page(connection: Connection, page: HistoryPage, bounded: Edges) -> Sequence[Row]:
    """Return the rows of one page, oldest first. ``bounded`` is for a page with ``max_bytes``."""
    parameters = page_values(page)
    edges = UNBOUNDED
    if page.max_bytes is not None:
        edges = bounded
        parameters["max_bytes"] = page.max_bytes
    if page.after is not None:
        return edges.oldest.rows(connection, parameters)
    return edges.newest.rows(connection, parameters)[::-1]
