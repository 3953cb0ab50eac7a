"""Writes of state on PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement

_WRITE_VALUE = Statement("""
WITH written AS (
    INSERT INTO state_scopes
        (namespace, scope, owner, session_id, channel, peer, version, bytes, updated_at)
    VALUES (:namespace, :scope, :owner, :session_id, :channel, :peer, :version, :bytes,
            pg_catalog.clock_timestamp())
    ON CONFLICT (namespace, scope, owner) DO UPDATE
    SET version = excluded.version, bytes = excluded.bytes, updated_at = excluded.updated_at
)
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
    parameters = {**scope, "key": key, "value": value, "version": version, "bytes": size}
    _WRITE_VALUE.rows(connection, parameters)
