"""The reads of followers on PostgreSQL: one statement for any number of sessions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.follow_types import (
    END_COLUMNS,
    PIECE_COLUMNS,
    STATE_COLUMNS,
    PieceRequest,
)
from sessionsdb.operations.keys import SessionKey

_KEYS = ArrayTable("r", namespace="text", id="text", ordinality="ordinal")

# The newest piece is one step at the end of the primary key. It is not looked for while no turn
# runs: the condition on the mailbox is checked before the scan.
READ_STATES = Statement(f"""
SELECT r.ordinal - 1, {STATE_COLUMNS}, p.generation, p.number
FROM {_KEYS}
JOIN sessions AS s ON s.namespace = r.namespace AND s.id = r.id
JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.id
LEFT JOIN LATERAL (
    SELECT n.generation, n.number FROM pieces AS n
    WHERE m.owner IS NOT NULL AND n.namespace = m.namespace AND n.session_id = m.session_id
      AND n.epoch = m.epoch
    ORDER BY n.generation DESC, n.number DESC LIMIT 1
) AS p ON true
""")

_REQUESTS = ArrayTable(
    "r",
    namespace="text",
    id="text",
    epoch="bigint",
    generation="integer",
    first="bigint",
    ordinality="ordinal",
)

READ_PIECES = Statement(f"""
SELECT r.ordinal - 1, x.*
FROM {_REQUESTS}, LATERAL (
    SELECT {PIECE_COLUMNS} FROM pieces AS p
    WHERE p.namespace = r.namespace AND p.session_id = r.id AND p.epoch = r.epoch
      AND p.generation = r.generation AND p.number >= r.first
    ORDER BY p.number LIMIT :limit
) AS x
ORDER BY 1, 2
""")

# LIMIT lets the planner look each one up by its key: it takes a join for one with the whole inbox.
READ_ENDS = Statement(f"""
SELECT x.*
FROM pg_catalog.unnest(CAST(:positions AS bigint[])) AS r(position), LATERAL (
    SELECT {END_COLUMNS} FROM inbox AS i
    WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.position = r.position
      AND i.finished_at IS NOT NULL
    LIMIT 1
) AS x
""")


def read_states(connection: Connection, keys: Sequence[SessionKey]) -> Sequence[Row]:
    return READ_STATES.rows(connection, _KEYS.parameters(keys))


def read_pieces(
    connection: Connection, requests: Sequence[PieceRequest], limit: int
) -> Sequence[Row]:
    parameters = _REQUESTS.parameters([(*key, *numbers) for key, *numbers in requests])
    return READ_PIECES.rows(connection, parameters | {"limit": limit})


def read_ends(connection: Connection, key: SessionKey, positions: Sequence[int]) -> Sequence[Row]:
    return READ_ENDS.rows(
        connection, {"namespace": key[0], "session_id": key[1], "positions": list(positions)}
    )
