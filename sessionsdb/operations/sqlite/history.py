"""Pages of transcripts on SQLite, which has no round trips to save."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row
from sessionsdb.operations.history_page import HistoryPage, bounded, read_page

BOUNDED = bounded("length(CAST(b.content AS BLOB))")


def read_pages(connection: Connection, pages: Sequence[HistoryPage]) -> list[Sequence[Row]]:
    return [read_page(connection, page, BOUNDED) for page in pages]
