"""Pages of transcripts on PostgreSQL: many in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.history_page import SELECT_MESSAGE, HistoryPage, bounded, read_page
from sessionsdb.operations.newer_rows import NewRows, ReadState
from sessionsdb.operations.postgresql.newer_rows import (
    REQUEST_COLUMNS,
    new_rows_of,
    one_request,
    select_new_rows,
    values_of,
)

_PAGES = ArrayTable(
    "r",
    namespace="text",
    session_id="text",
    max_rows="bigint",
    after="bigint",
    before="bigint",
    ordinality="page",
)

# Each page is read as if it were asked for alone.
NEWEST_OF_MANY = Statement(f"""
SELECT p.*
FROM {_PAGES},
LATERAL (
    {SELECT_MESSAGE.format(page="r.page")}
    WHERE m.namespace = r.namespace AND m.session_id = r.session_id
      AND m.seq > r.after AND m.seq < r.before
    ORDER BY m.seq DESC LIMIT r.max_rows
) AS p
""")

# The size of a long text is in its header, so the text itself is not read for it.
BOUNDED = bounded("pg_catalog.octet_length(b.content)", functions="pg_catalog.")

_REQUEST = {**REQUEST_COLUMNS, "max_rows": "bigint"}
_REQUESTS = ArrayTable("r", ordinality="number", **_REQUEST)

_COLUMNS = {
    "role": "t.role",
    "content": "t.content",
    "timestamp": "coalesce(t.sent_at, t.created_at)",
    "seq": "t.seq",
    "sender": "t.sender",
    "extra": "t.extra",
}
"""The columns of ``SELECT_MESSAGE``. The number of the request is the last one."""

_NEWEST = "ORDER BY t.seq DESC LIMIT r.max_rows"

_NEW_OF_ONE = Statement(select_new_rows(one_request(_REQUEST), _COLUMNS, rest=_NEWEST))
_NEW_OF_MANY = Statement(select_new_rows(str(_REQUESTS), _COLUMNS, rest=_NEWEST))

_SEQ, _PAGE = itemgetter(3), itemgetter(6)


def read_pages(connection: Connection, pages: Sequence[HistoryPage]) -> list[Sequence[Row]]:
    """Read all pages that end at their newest message in one statement.

    Pages with ``after`` are read one by one: they are for readers that follow a session. So are
    pages with ``max_bytes``.
    """
    newest = [page for page in pages if page.after is None and page.max_bytes is None]
    if len(newest) < 2:
        return [read_page(connection, page, BOUNDED) for page in pages]
    found = NEWEST_OF_MANY.rows(
        connection,
        _PAGES.parameters(
            [
                (page.namespace, page.session_id, page.limit, page.lower, page.upper)
                for page in newest
            ]
        ),
    )
    ordered = iter(_by_page(found, len(newest)))
    return [
        next(ordered)
        if page.after is None and page.max_bytes is None
        else read_page(connection, page, BOUNDED)
        for page in pages
    ]


def read_new_pages(
    connection: Connection, requests: Sequence[tuple[HistoryPage, ReadState]]
) -> list[NewRows | None]:
    """Read all pages in one statement."""
    values = [
        (*values_of((page.namespace, page.session_id), remembered), page.limit)
        for page, remembered in requests
    ]
    if len(values) == 1:
        found = _NEW_OF_ONE.rows(connection, dict(zip(_REQUEST, *values, strict=True)))
    else:
        found = _NEW_OF_MANY.rows(connection, _REQUESTS.parameters(values))
    return [new_rows_of(rows) if rows else None for rows in _by_page(found, len(values))]


def _by_page(found: Sequence[Row], count: int) -> list[list[Row]]:
    """Return the rows of each page, oldest first."""
    pages: list[list[Row]] = [[] for _ in range(count)]
    for number, rows in groupby(found, _PAGE):
        pages[number - 1].extend(rows)
    for rows_of_page in pages:
        rows_of_page.sort(key=_SEQ)
    return pages
