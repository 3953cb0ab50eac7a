"""History: pages of transcripts, rendered for reading.

A page is one scan of the primary key from its edge: it costs as much as it shows. Many pages are
read together, in one statement on PostgreSQL and in one call of the driver's thread on SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from sys import getsizeof
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc, is_utc
from sessionsdb.engine.statement import Row
from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import UnknownSession
from sessionsdb.messages.extra import extra_fields
from sessionsdb.messages.json_text import dump
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.history_page import FIRST_SEQ, HistoryPage
from sessionsdb.operations.newer_rows import (
    NO_STATE,
    NewRows,
    ReadState,
    read_behind,
    stand,
)
from sessionsdb.types import SessionMessage

_TIMESTAMP = 2
"""The place of a column in a row of ``SELECT_MESSAGE``."""


MESSAGE_BYTES = 620
"""The memory of a message without its texts and its metadata, about."""


class RememberedPage(NamedTuple):
    """The newest messages of a transcript."""

    messages: Sequence[SessionMessage]
    """Newest last. Nobody changes the list."""
    state: ReadState = NO_STATE
    size: int = 0
    """The memory of the messages in bytes, about. 0: the messages can't be remembered."""
    has_metadata: bool = False
    """Whether a message may have metadata."""

    def copy(self) -> list[SessionMessage]:
        """Return the messages for a caller, who may change the list and the metadata."""
        if not self.has_metadata:
            return list(self.messages)
        return [
            message if message.metadata is None else message.model_copy(deep=True)
            for message in self.messages
        ]


NO_PAGE = RememberedPage(())
"""Stands for the remembered page before the first one is remembered. All of it is read then."""


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
    whole = [one.page for one in requests if one.remembered is None]
    new = [(one.page, one.remembered) for one in requests if one.remembered is not None]
    dialect = dialect_of(connection)
    pages = iter(dialect.read_pages(connection, whole) if whole else ())
    new_pages = iter(dialect.read_new_pages(connection, new) if new else ())
    return [
        next(pages) or _no_rows(connection, one.page)
        if one.remembered is None
        else next(new_pages) or UnknownSession(one.page.session_id)
        for one in requests
    ]


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


def join(remembered: RememberedPage, new: NewRows, limit: int) -> RememberedPage | None:
    """Join the remembered messages and the new ones into a page of at most ``limit``.

    ``None``: the remembered messages are not those of this database.
    """
    state, _, rows = new
    messages: Sequence[SessionMessage] = messages_of(rows)
    size = _size(messages)
    has_metadata = any(message.metadata is not None for message in messages)
    if read_behind(remembered.state, state) > FIRST_SEQ and len(rows) < limit:
        if not stand(remembered.state, new):
            return None
        kept = remembered.messages
        dropped = kept[: max(0, len(kept) + len(rows) - limit)]
        messages = [*kept[len(dropped) :], *messages] if rows else kept
        size += remembered.size - _size(dropped)
        has_metadata = has_metadata or remembered.has_metadata
    if state.last_at is None or not _is_whole(messages, state, limit):
        size = 0
    return RememberedPage(messages, state, size, has_metadata)


def _is_whole(messages: Sequence[SessionMessage], state: ReadState, limit: int) -> bool:
    """Return whether the messages are those that the counters of the session tell of."""
    return (
        len(messages) == min(state.message_count, limit)
        and bool(messages)
        and messages[-1].seq == state.last_seq
    )


def _size(messages: Sequence[SessionMessage]) -> int:
    size = MESSAGE_BYTES * len(messages)
    for message in messages:
        size += getsizeof(message.content)
        if message.metadata is not None:
            size += 8 * len(dump(message.metadata))
    return size


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
