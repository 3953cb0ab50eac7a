"""Restore sessions from the lines of a full export."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, Table, insert
from sqlalchemy.types import TypeEngine

from sessionsdb import validation
from sessionsdb.errors import DamagedValue, InvalidArgument, InvalidMessage
from sessionsdb.messages.codec import StoredMessage, encode_all
from sessionsdb.messages.json_text import dump, parse
from sessionsdb.messages.state_values import Changes, encode_values
from sessionsdb.operations import json_columns, registry, state
from sessionsdb.operations.consistency import find_inconsistencies, read_counters
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.schedules import new_schedule_id
from sessionsdb.operations.state import ScopeKey, StateUpdate, session_scope
from sessionsdb.schema import (
    UTCDateTime,
    inbox,
    mailboxes,
    messages,
    questions,
    schedules,
    sessions,
)
from sessionsdb.types import Limits
from sessionsdb.untrusted_values import is_storable

MAX_ADDED = 2**31
"""An import adds a random number up to this to ``rewrites``. Two imports of one file hardly ever
give the same sum."""

MAX_RESTORED = 2**62
"""The largest number of a restored row. Counters and epochs grow from there."""

MAX_RESTORED_INTEGER = 2**30
"""The same for a column of 32 bits."""

_GIVEN = ("namespace", "session_id", "id", "parent_id", "root_id", "depth")
"""Columns that are not those of the file. A session is restored as a root, and gets its place in a
tree with its parent: see ``session_links.py``."""


class Restored(NamedTuple):
    """A session of a full export."""

    session_id: str
    session: Mapping[str, Any]
    mailbox: Mapping[str, Any]
    inbox: Sequence[Mapping[str, Any]]
    messages: Sequence[StoredMessage]
    message_rows: Sequence[Mapping[str, Any]]
    """For each message the columns beside it."""
    questions: Sequence[Mapping[str, Any]]
    schedules: Sequence[Mapping[str, Any]]
    state: Changes


def parse_restored(
    id: str, messages: list[Any], line: Mapping[str, Any], limits: Limits
) -> Restored:
    """Read a session of a full export. Raises ``InvalidArgument``."""
    stored = _object(line["stored"], "stored")
    return Restored(
        validation.session_id(id),
        _object(stored.get("session"), "stored.session"),
        _object(stored.get("mailbox"), "stored.mailbox"),
        _objects(line.get("inbox"), "inbox"),
        encode_all(messages, max_bytes=limits.message_bytes),
        _objects(stored.get("messages"), "stored.messages"),
        _objects(stored.get("questions", []), "stored.questions"),
        _objects(stored.get("schedules", []), "stored.schedules"),
        dict(encode_values(stored.get("state", {}), max_bytes=limits.state_bytes)),
    )


def parse_shared(namespace: str, given: Any, limits: Limits) -> StateUpdate:
    """Read the state of a namespace or of a peer. Raises ``InvalidArgument``."""
    shared = _object(given, "shared_state")
    changes: Changes = dict(encode_values(shared.get("values", {}), max_bytes=limits.state_bytes))
    if shared.get("scope") == "namespace":
        key = ScopeKey(namespace, "namespace", "")
    elif shared.get("scope") == "peer":
        channel = validation.name(shared.get("channel"), "shared_state.channel")
        peer = validation.name(shared.get("peer"), "shared_state.peer", empty=True)
        key = state.peer_scope(namespace, channel, peer)
    else:
        raise InvalidArgument('shared_state.scope must be "peer" or "namespace"')
    return StateUpdate(key, "of the import", changes)


def merge_shared(connection: Connection, shared: StateUpdate, limits: Limits) -> bool:
    """Merge a state into the stored one. Return whether it changed anything."""
    before = state.read(connection, shared.key).version
    state.merge(connection, [shared], max_bytes=limits.state_bytes)
    return state.read(connection, shared.key).version != before


def _object(given: Any, field: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidArgument(f"{field} must be an object")
    return given


def _objects(given: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise InvalidArgument(f"{field} must be an array")
    return [_object(one, f"each item of {field}") for one in given]


def restore(connection: Connection, namespace: str, restored: Restored, limits: Limits) -> bool:
    """Insert a session with all its rows, without its parent. Return false if it exists.

    Raises ``InvalidArgument`` for rows that the tables can't hold, and for a mailbox that its rows
    contradict. A worker serves many sessions with one statement, which such a mailbox would fail.
    """
    session_id = restored.session_id
    if registry.exists(connection, namespace, session_id):
        return False
    if len(restored.messages) != len(restored.message_rows):
        raise InvalidArgument("stored.messages must have one row for each message")
    seqs = [row.get("seq") for row in restored.message_rows]
    if any(isinstance(seq, int) and seq < 0 for seq in seqs):
        raise InvalidArgument("messages.seq must be 0 or larger")
    counters = {
        "message_count": len(seqs),
        "last_seq": max(
            seq for seq in (0, restored.session.get("last_seq"), *seqs) if isinstance(seq, int)
        ),
    }
    key = {"namespace": namespace, "session_id": session_id}
    session = _row(sessions, restored.session) | {"namespace": namespace, "id": session_id}
    # The file may have been edited: a message may differ from the one that had its number before.
    # Followers, and processes that remember the old messages, see the new number of rewrites.
    counters["rewrites"] = session.get("rewrites", 0) + 1 + secrets.randbelow(MAX_ADDED)
    if not _insert_session(connection, session | counters):
        return False
    _insert(connection, mailboxes, [_row(mailboxes, restored.mailbox) | key])
    _insert(
        connection,
        messages,
        [
            _row(messages, row) | key | message._asdict()
            for message, row in zip(restored.messages, restored.message_rows, strict=True)
        ],
    )
    _insert(connection, inbox, [_row(inbox, row) | key for row in restored.inbox])
    _insert(connection, questions, [_row(questions, row) | key for row in restored.questions])
    # An id of its own: the session may be restored beside the one that was exported.
    _insert(
        connection,
        schedules,
        [_row(schedules, row) | key | {"id": new_schedule_id()} for row in restored.schedules],
    )
    scope = session_scope(namespace, session_id)
    changes = StateUpdate(scope, session_id, restored.state)
    if restored.state:
        state.merge(connection, [changes], max_bytes=limits.state_bytes)
    _check_counters(connection, namespace, session_id)
    return True


def _insert_session(connection: Connection, row: dict[str, Any]) -> bool:
    """Insert the row of a session that did not exist. Return false if it was created since."""
    if not dialect_of(connection).has_row_locks:  # this transaction is the only one that writes
        _insert(connection, sessions, [row])
        return True
    from sqlalchemy.dialects import postgresql  # which an import into SQLite does not need

    new = postgresql.insert(sessions).values(row)
    ignoring = new.on_conflict_do_nothing(index_elements=["namespace", "id"])
    return connection.execute(ignoring.returning(sessions.c.id)).one_or_none() is not None


def _check_counters(connection: Connection, namespace: str, session_id: str) -> None:
    """Raise ``InvalidArgument`` if the counters and states differ from the rows."""
    [counters], _ = read_counters(connection, (namespace, session_id), 1)
    if found := find_inconsistencies(counters):
        details = "; ".join(one.detail for one in found)
        raise InvalidArgument(f"the rows of session {session_id} contradict each other: {details}")


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, of which some may lack columns that have a default."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    for group in groups.values():
        connection.execute(insert(table), group)


def _row(table: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row. Raises ``InvalidArgument`` for what is no column of the table."""
    row = {}
    for name, value in given.items():
        if name in _GIVEN:
            continue
        column = table.c.get(name)
        if column is None:
            raise InvalidArgument(f"{table.name} has no column {name:.60}")
        field = f"{table.name}.{name}"
        if isinstance(column.type, UTCDateTime):
            row[name] = _time(field, value)
        else:
            row[name] = _value(field, value, column.type)
            if (wanted := json_columns.FORMS.get(table, {}).get(name)) is not None:
                _check_json(field, value, wanted)
    return row


def _value(field: str, value: Any, of_column: TypeEngine[Any]) -> Any:
    """Check a value of a column."""
    wanted = of_column.python_type
    if type(value) is not wanted:
        raise InvalidArgument(f"{field} must be {wanted.__name__}")
    if isinstance(value, str) and not is_storable(value):
        raise InvalidArgument(f"{field} has characters that no database keeps")
    most = MAX_RESTORED_INTEGER if type(of_column) is Integer else MAX_RESTORED
    if isinstance(value, int) and not 0 <= value <= most:
        raise InvalidArgument(f"{field} must be between 0 and {most}")
    return value


def _check_json(field: str, value: str, wanted: type) -> None:
    try:
        given = parse(value)
        dump(given)  # as an answer of the HTTP server does
    except (DamagedValue, InvalidMessage, RecursionError):
        raise InvalidArgument(f"{field} must be JSON text") from None
    if type(given) is not wanted:
        raise InvalidArgument(f"{field} must be the text of a {json_columns.NAMES[wanted]}")


def _time(field: str, value: Any) -> datetime:
    try:
        moment = validation.aware_datetime(datetime.fromisoformat(value), field)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{field} must be a time in ISO 8601 with a zone") from error
    return validation.stored_time(moment, field)
