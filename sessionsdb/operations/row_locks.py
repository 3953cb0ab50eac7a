"""Row locks, always in the same order, so that no two transactions wait for each other.

All mailboxes of an operation come first, in key order, then all its sessions, in key order. On
SQLite a writing transaction is the only one, and there is nothing to lock.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select

from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey, chunks
from sessionsdb.operations.row_conditions import MAX_KEYS, among
from sessionsdb.schema import mailboxes


def lock_mailboxes(connection: Connection, keys: Collection[SessionKey]) -> None:
    """Lock these mailboxes until the transaction ends. Unknown ones are passed over."""
    dialect_of(connection).lock_mailboxes(connection, keys)


def locked_elsewhere(connection: Connection, keys: Collection[SessionKey]) -> set[SessionKey]:
    """Lock these mailboxes, wait for none, and return those that another transaction has locked."""
    found: set[SessionKey] = set()
    for some in chunks(sorted(set(keys)), MAX_KEYS):
        here = select(mailboxes.c.namespace, mailboxes.c.session_id).where(among(some))
        free = here.with_for_update(key_share=True, skip_locked=True)
        locked = {(row.namespace, row.session_id) for row in connection.execute(free)}
        if len(locked) < len(some):  # locked elsewhere, or unknown
            found |= {(row.namespace, row.session_id) for row in connection.execute(here)} - locked
    return found


def lock_sessions(connection: Connection, keys: Collection[SessionKey]) -> None:
    """Lock these sessions until the transaction ends.

    A transaction that touches mailboxes must have locked them before.
    """
    dialect_of(connection).lock_sessions(connection, keys)
