"""Locks on SQLite: none, because its writing transaction is the only one."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from sessionsdb.operations.keys import SessionKey


def lock_mailboxes(connection: Connection, keys: Collection[SessionKey]) -> None:
    pass


def lock_sessions(connection: Connection, keys: Collection[SessionKey]) -> None:
    pass


def lock_waits(connection: Connection, namespace: str) -> None:
    pass
