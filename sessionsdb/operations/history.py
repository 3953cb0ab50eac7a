"""History: pages of transcripts, rendered for reading.

A page is one scan of the primary key from its edge: it costs as much as it shows. Many pages are
read together, in one statement on PostgreSQL and in one call of the driver's thread on SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc, is_utc
from sessionsdb.engine.statement import Row
from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import UnknownSession
from sessionsdb.messages.extra import extra_fields
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.history_page import HistoryPage
from sessionsdb.operations.newer_rows import NewRows, ReadState
from sessionsdb.types import SessionMessage

_TIMESTAMP = 2
"""The place of a column in a row of ``SELECT_MESSAGE``."""


class PageRequest(NamedTuple):
    """The request for a page."""

    page: HistoryPage
    remembered: ReadState | None = None
    """The state in which the page is remembered. Such a page has a limit and no other bound.

    ``None``: the page is not to be remembered.
    """


PageRows = Sequence[Row] | NewRows
"""The rows of a page, newest last. ``NewRows`` if the page is to be remembered."""


def read(
    connection: Connection, requests: Sequence[PageRequest]
) -> list[PageRows | UnknownSession]:
    """Return the rows of each page, or ``UnknownSession``.

    Each caller makes the messages of its page itself, by ``messages_of``. So the messages of a
    batch do not all exist at once, and Python's garbage collector runs less. On PostgreSQL a turn
    that reads 50, of 64 at once, takes 232 µs of processor time instead of 344.
    """
    dialect = dialect_of(connection)
    whole = [one.page for one in requests if one.remembered is None]
    new = [(one.page, one.remembered) for one in requests if one.remembered is not None]
    found = iter(dialect.read_pages(connection, whole) if whole else ())
    found_new = iter(dialect.read_new_pages(connection, new) if new else ())
    answers: list[PageRows | UnknownSession] = []
    for page, remembered in requests:
        if remembered is None:
            answers.append(next(found) or _no_rows(connection, page))
        else:
            answers.append(next(found_new) or UnknownSession(page.session_id))
    return answers


def _no_rows(connection: Connection, page: HistoryPage) -> Sequence[Row] | UnknownSession:
    """Find out why a page has no rows, and return its answer."""
    if not registry.exists(connection, page.namespace, page.session_id):
        return UnknownSession(page.session_id)
    if page.limit and page.before is None and (page.after or 0) <= 0:
        # On PostgreSQL it may have been created with its messages after the pages were read.
        [rows] = dialect_of(connection).read_pages(connection, [page])
        return rows
    return ()


def read_page(connection: Connection, page: HistoryPage) -> list[SessionMessage]:
    """Return the messages of a page, newest last. Raises ``UnknownSession``."""
    [rows] = dialect_of(connection).read_pages(connection, [page])
    return messages_of(rows or result_or_raise(_no_rows(connection, page)))


def messages_of(rows: Sequence[Row]) -> list[SessionMessage]:
    """Return the messages of rows of ``SELECT_MESSAGE``."""
    return SessionMessage.list_from_fields(_fields_of(rows))


def _fields_of(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    are_utc = bool(rows) and is_utc(rows[0][_TIMESTAMP])  # all times of a page are in one form
    for role, content, timestamp, seq, sender, extra, _page in rows:
        fields = {
            "role": role,
            "content": content,
            "timestamp": timestamp if are_utc else as_utc(timestamp),
            "seq": seq,
            "sender": sender,
            "author": None,
            "metadata": None,
            "interrupted": False,
        }
        if extra is not None:
            fields.update(extra_fields(extra))
        yield fields
