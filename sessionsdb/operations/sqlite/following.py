"""The reads of followers on SQLite: one statement for any number of sessions."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.follow_types import (
    END_COLUMNS,
    PIECE_COLUMNS,
    STATE_COLUMNS,
    PieceRequest,
)
from sessionsdb.operations.keys import SessionKey


def _newest(column: str) -> str:
    """Return a column of the newest piece: one step at the end of the primary key."""
    return f"""
        CASE WHEN m.owner IS NOT NULL THEN (
            SELECT n.{column} FROM pieces AS n
            WHERE n.namespace = m.namespace AND n.session_id = m.session_id AND n.epoch = m.epoch
            ORDER BY n.generation DESC, n.number DESC LIMIT 1
        ) END
    """


# CROSS JOIN keeps the order: the sessions are looked up by their keys.
READ_STATES = Statement(f"""
SELECT r.key, {STATE_COLUMNS}, {_newest("generation")}, {_newest("number")}
FROM json_each(:keys) AS r
CROSS JOIN sessions AS s ON s.namespace = json_extract(r.value, '$[0]')
    AND s.id = json_extract(r.value, '$[1]')
CROSS JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
""")

READ_PIECES = Statement(f"""
SELECT {PIECE_COLUMNS} FROM pieces AS p
WHERE p.namespace = :namespace AND p.session_id = :session_id AND p.epoch = :epoch
  AND p.generation = :generation AND p.number >= :first
ORDER BY p.number LIMIT :limit
""")

READ_ENDS = Statement(f"""
SELECT {END_COLUMNS}
FROM json_each(:positions) AS r
CROSS JOIN inbox AS i ON i.namespace = :namespace AND i.session_id = :session_id
    AND i.position = r.value
WHERE i.finished_at IS NOT NULL
""")


def read_states(connection: Connection, keys: Sequence[SessionKey]) -> Sequence[Row]:
    return READ_STATES.rows(connection, {"keys": json.dumps(keys)})


def read_pieces(
    connection: Connection, requests: Sequence[PieceRequest], limit: int
) -> Sequence[Row]:
    found: list[Row] = []
    for ordinal, ((namespace, session_id), epoch, generation, first) in enumerate(requests):
        rows = READ_PIECES.rows(
            connection,
            {
                "namespace": namespace,
                "session_id": session_id,
                "epoch": epoch,
                "generation": generation,
                "first": first,
                "limit": limit,
            },
        )
        found += [(ordinal, *row) for row in rows]
    return found


def read_ends(connection: Connection, key: SessionKey, positions: Sequence[int]) -> Sequence[Row]:
    return READ_ENDS.rows(
        connection,
        {"namespace": key[0], "session_id": key[1], "positions": json.dumps(positions)},
    )
