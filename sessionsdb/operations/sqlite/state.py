"""Writes of state on SQLite."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Statement

_WRITE_SCOPE = Statement("""
INSERT INTO state_scopes
    (namespace, scope, owner, session_id, channel, peer, version, bytes, updated_at)
VALUES (:namespace, :scope, :owner, :session_id, :channel, :peer, :version, :bytes, :now)
ON CONFLICT (namespace, scope, owner) DO UPDATE
SET version = excluded.version, bytes = excluded.bytes, updated_at = excluded.updated_at
""")

_WRITE_VALUE = Statement("""
INSERT INTO state_values (namespace, scope, owner, key, value)
VALUES (:namespace, :scope, :owner, :key, :value)
ON CONFLICT (namespace, scope, owner, key) DO UPDATE SET value = excluded.value
""")


def write_state_value(
    connection: Connection,
    scope: Mapping[str, str | None],
    key: str,
    value: str,
    version: int,
    size: int,
) -> None:
    # Two executions of single rows: RETURNING and CTEs cost more here.
    place = (scope["namespace"], scope["scope"], scope["owner"])
    beside = (scope["session_id"], scope["channel"], scope["peer"])
    _WRITE_SCOPE.each(connection, [(*place, *beside, version, size, stored_now(connection))])
    _WRITE_VALUE.each(connection, [(*place, key, value)])
