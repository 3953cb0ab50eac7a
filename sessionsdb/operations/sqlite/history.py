"""Pages of transcripts on SQLite, which has no round trips to save."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row
from sessionsdb.operations.history_page import NEWEST, HistoryPage, bounded, page_values, read_page
from sessionsdb.operations.newer_rows import NewRows, ReadState, read_behind
from sessionsdb.operations.sqlite.newer_rows import read_state

BOUNDED = bounded("length(CAST(b.content AS BLOB))")


def read_pages(connection: Connection, pages: Sequence[HistoryPage]) -> list[Sequence[Row]]:
    return [read_page(connection, page, BOUNDED) for page in pages]


def read_new_pages(
    connection: Connection, requests: Sequence[tuple[HistoryPage, ReadState]]
) -> list[NewRows | None]:
    return [_read_new_page(connection, page, remembered) for page, remembered in requests]


def _read_new_page(
    connection: Connection, page: HistoryPage, remembered: ReadState
) -> NewRows | None:
    found = read_state(connection, (page.namespace, page.session_id), remembered)
    if found is None:
        return None
    state, remembered_at = found
    behind = read_behind(remembered, state)
    rows = NEWEST.rows(connection, page_values(page) | {"after": behind})
    return NewRows(state, remembered_at, behind, rows[::-1])
