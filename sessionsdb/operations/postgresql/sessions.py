"""Sessions and receipts on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, FromClause, Text, bindparam, column, func
from sqlalchemy.dialects.postgresql import ARRAY

from sessionsdb.engine.postgresql.arrays import columns
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import MessageKey

_INSERT = Statement("""
INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer, model, system,
                      tools, metadata, idempotency_key, fingerprint,
                      created_at, updated_at, last_active)
VALUES (:namespace, :id, :parent_id, :root_id, :depth, :channel, :peer, :model, :system,
        :tools, :metadata, :idempotency_key, :fingerprint,
        statement_timestamp(), statement_timestamp(), statement_timestamp())
ON CONFLICT (namespace, id) DO NOTHING
RETURNING id
""")


def insert_session(connection: Connection, values: dict[str, Any]) -> bool:
    return _INSERT.row(connection, values) is not None


def receipt_table(receipts: Sequence[MessageKey]) -> FromClause:
    namespaces, ids, positions = columns(receipts, 3)
    return (
        func.unnest(
            bindparam("namespaces", namespaces, ARRAY(Text)),
            bindparam("ids", ids, ARRAY(Text)),
            bindparam("positions", positions, ARRAY(BigInteger)),
        )
        .table_valued(
            column("namespace", Text),
            column("session_id", Text),
            column("position", BigInteger),
        )
        .render_derived()
    )
