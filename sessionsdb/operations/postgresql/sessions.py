"""Sessions and receipts on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Connection, FromClause, bindparam, column, func

from sessionsdb.engine.postgresql.arrays import columns
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import MessageKey
from sessionsdb.schema import PlainText

_INSERT = Statement("""
INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer, model, system,
                      tools, metadata, idempotency_key, fingerprint, incarnation, version,
                      created_at, updated_at, last_active)
VALUES (:namespace, :id, :parent_id, :root_id, :depth, :channel, :peer, :model, :system,
        :tools, :metadata, :idempotency_key, :fingerprint, :incarnation, :version,
        pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp(),
        pg_catalog.statement_timestamp())
ON CONFLICT (namespace, id) DO NOTHING
RETURNING id
""")


def insert_session(connection: Connection, values: dict[str, Any]) -> bool:
    return _INSERT.row(connection, values) is not None


def receipt_table(receipts: Sequence[MessageKey]) -> FromClause:
    namespaces, ids, positions = columns(receipts, 3)
    return (
        func.unnest(
            bindparam("namespaces", namespaces, ARRAY(PlainText)),
            bindparam("ids", ids, ARRAY(PlainText)),
            bindparam("positions", positions, ARRAY(BigInteger)),
        )
        .table_valued(
            column("namespace", PlainText),
            column("session_id", PlainText),
            column("position", BigInteger),
        )
        .render_derived()
    )
