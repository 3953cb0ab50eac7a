"""Conditions that select rows by their keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, TextClause, literal_column, text, true, tuple_

from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.schema import inbox, mailboxes

MAX_KEYS = 500
"""How many keys one statement names. It has at most 32,767 parameters."""

AHEAD: ColumnElement[Any] = literal_column("inbox.ahead")
"""The condition for messages that are ahead of the others, as it stands in ``ix_inbox_ahead``.

For the column SQLAlchemy writes ``ahead = 1`` on SQLite, which does not use that index.
"""


def within(
    namespace: ColumnElement[Any], namespaces: Collection[str] | None
) -> ColumnElement[bool]:
    """Return the condition for rows of these namespaces. ``None`` means all of the database."""
    return true() if namespaces is None else namespace.in_(sorted(namespaces))


def within_sql(column: str, count: int | None) -> str:
    """Return the same condition as the end of the WHERE of a ``Statement``.

    ``count`` is the number of namespaces, ``None`` for all of the database. Its parameters get
    their values from ``within_values``.
    """
    if count is None:
        return ""
    return f"AND {column} IN ({', '.join(f':namespace{number}' for number in range(count))})"


def within_values(namespaces: Collection[str] | None) -> dict[str, str]:
    """Return the values of the parameters of ``within_sql``."""
    return {f"namespace{number}": name for number, name in enumerate(sorted(namespaces or ()))}


def is_mailbox(key: SessionKey) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for the mailbox of a session."""
    return mailboxes.c.namespace == key[0], mailboxes.c.session_id == key[1]


def among(keys: Collection[SessionKey]) -> ColumnElement[bool]:
    """Return the condition for the mailboxes with these keys, at most ``MAX_KEYS``."""
    return tuple_(mailboxes.c.namespace, mailboxes.c.session_id).in_(sorted(keys))


def is_message(namespace: str, session_id: str, position: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for one message of an inbox."""
    return (
        inbox.c.namespace == namespace,
        inbox.c.session_id == session_id,
        inbox.c.position == position,
    )


def at_positions(connection: Connection, positions: Sequence[int]) -> TextClause:
    """Return the condition for messages of an inbox at these positions.

    It has one parameter: a statement has at most 32,767 of them, and a turn may have more messages.
    """
    dialect = dialect_of(connection)
    return text(f"inbox.position {dialect.in_positions}").bindparams(
        **dialect.positions_values(positions)
    )
