"""The sessions of a channel, or of a channel and peer, for the lists of framework adapters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.state_values import decode_value
from sessionsdb.operations.heads import COLUMNS, Head, head_of
from sessionsdb.schema import CHANNEL_PREFIX, PEER_PREFIX

# The index over channel and peer has the beginnings of both. So the whole texts are compared too,
# behind a coalesce: without it SQLite would not find the index, see session_list.py.
_CHANNEL = f"""
    s.namespace = :namespace
    AND pg_catalog.substr(s.channel, 1, {CHANNEL_PREFIX}) = :channel_start
    AND coalesce(s.channel, '') = :channel
"""
_CONTACT = f"""{_CHANNEL}
    AND pg_catalog.substr(s.peer, 1, {PEER_PREFIX}) = :peer_start
    AND coalesce(s.peer, '') = :peer
"""


class ListedSession(NamedTuple):
    """A session with its newest message, as the database has them.

    A list has many of these and needs little of each, so nothing is decoded here.
    """

    id: str
    peer: str
    metadata: str | None
    """JSON."""
    created_at: datetime | str
    incarnation: str | None
    rewrites: int
    last_seq: int
    newest: str | None
    """The payload of the newest message, or ``None`` without messages."""

    @property
    def revision(self) -> str:
        """The same as ``Head.revision``."""
        return f"{self.incarnation}:{self.rewrites}:{self.last_seq}"


_LISTED = ", ".join(f"s.{name}" for name in ListedSession._fields[:-1])
_NEWEST = """(
    SELECT m.payload FROM messages AS m
    WHERE m.namespace = s.namespace AND m.session_id = s.id
    ORDER BY m.seq DESC LIMIT 1
)"""


def _of_contact(condition: str, columns: str, joins: str = "") -> Statement:
    # There is an index of the sessions that live, and one of those that have ended.
    return Statement(f"""
    SELECT {columns} FROM sessions AS s {joins} WHERE {condition} AND s.ended_at IS NULL
    UNION ALL
    SELECT {columns} FROM sessions AS s {joins} WHERE {condition} AND s.ended_at IS NOT NULL
    """)


_HEADS_OF_CHANNEL = _of_contact(_CHANNEL, COLUMNS)
_HEADS_OF_CONTACT = _of_contact(_CONTACT, COLUMNS)
_LISTED_OF_CHANNEL = _of_contact(_CHANNEL, f"{_LISTED}, {_NEWEST}")
_LISTED_OF_CONTACT = _of_contact(_CONTACT, f"{_LISTED}, {_NEWEST}")

_VALUES = """
    JOIN state_scopes AS c ON c.namespace = s.namespace AND c.session_id = s.id
    JOIN state_values AS v ON v.namespace = c.namespace AND v.scope = c.scope AND v.owner = c.owner
"""
_VALUES_OF_CHANNEL = _of_contact(_CHANNEL, "s.id, v.key, v.value", _VALUES)
_VALUES_OF_CONTACT = _of_contact(_CONTACT, "s.id, v.key, v.value", _VALUES)


def read_heads(
    connection: Connection, namespace: str, channel: str, peer: str | None = None
) -> list[Head]:
    """Return the sessions of a channel, or of a channel and peer, in no order."""
    statement = _HEADS_OF_CHANNEL if peer is None else _HEADS_OF_CONTACT
    return list(map(head_of, _rows(connection, statement, namespace, channel, peer)))


def read_listed(
    connection: Connection, namespace: str, channel: str, peer: str | None = None
) -> list[ListedSession]:
    """Return the same sessions, each with its newest message."""
    statement = _LISTED_OF_CHANNEL if peer is None else _LISTED_OF_CONTACT
    return list(map(ListedSession._make, _rows(connection, statement, namespace, channel, peer)))


def read_states(
    connection: Connection, namespace: str, channel: str, peer: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the states of the same sessions, by id. A session without a state is left out.

    One statement reads them. Their scopes in the list of an IN took longer than all other work of
    a list, most of it for texts of SQL.
    """
    statement = _VALUES_OF_CHANNEL if peer is None else _VALUES_OF_CONTACT
    found: dict[str, dict[str, Any]] = {}
    for id, name, text in _rows(connection, statement, namespace, channel, peer):
        found.setdefault(id, {})[name] = decode_value(text)
    return found


def _rows(
    connection: Connection, statement: Statement, namespace: str, channel: str, peer: str | None
) -> Sequence[Row]:
    peer = peer or ""
    parameters = {
        "namespace": namespace,
        "channel": channel,
        "channel_start": channel[:CHANNEL_PREFIX],
        "peer": peer,
        "peer_start": peer[:PEER_PREFIX],
    }
    return statement.rows(connection, parameters)
