"""Pages of transcripts on PostgreSQL: many in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.history_page import SELECT_MESSAGE, HistoryPage, bounded, read_page

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
    together: list[list[Row]] = [[] for _ in newest]
    for number, rows in groupby(found, _PAGE):
        together[number - 1].extend(rows)
    for page_rows in together:
        page_rows.sort(key=_SEQ)
    ordered = iter(together)
    return [
        next(ordered)
        if page.after is None and page.max_bytes is None
        else read_page(connection, page, BOUNDED)
        for page in pages
    ]
