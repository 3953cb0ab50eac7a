"""The streamed pieces of turns on SQLite."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.piece_types import Run, RunPieces

# The fence, and how many pieces the generation has: their numbers have no gap.
STORED = Statement("""
SELECT coalesce((
    SELECT p.number + 1 FROM pieces AS p
    WHERE p.namespace = :namespace AND p.session_id = :session_id AND p.epoch = :epoch
      AND p.generation = :generation
    ORDER BY p.number DESC LIMIT 1
), 0)
FROM mailboxes
WHERE namespace = :namespace AND session_id = :session_id AND owner = :worker AND epoch = :epoch
""")

WRITE = Statement("""
INSERT INTO pieces
    (namespace, session_id, epoch, generation, number, start, text, kind, data, written_at)
VALUES (:namespace, :session_id, :epoch, :generation, :number, :start, :text, :kind, :data, :now)
""")

VOID = Statement("""
DELETE FROM pieces
WHERE namespace = :namespace AND session_id = :session_id AND epoch = :epoch
  AND generation < :generation
""")

# A step of a walk over the primary key that reads one entry for each run. For a comparison of rows
# SQLite would read all pieces of the run before. So each column has a search of its own.
NEXT_RUN = Statement("""
SELECT * FROM (
    SELECT namespace, session_id, epoch FROM pieces
    WHERE namespace = :namespace AND session_id = :session_id AND epoch > :epoch
    ORDER BY epoch LIMIT 1
)
UNION ALL
SELECT * FROM (
    SELECT namespace, session_id, epoch FROM pieces
    WHERE namespace = :namespace AND session_id > :session_id
    ORDER BY session_id, epoch LIMIT 1
)
UNION ALL
SELECT * FROM (
    SELECT namespace, session_id, epoch FROM pieces
    WHERE namespace > :namespace
    ORDER BY namespace, session_id, epoch LIMIT 1
)
LIMIT 1
""")

IS_CURRENT = Statement("""
SELECT 1 FROM mailboxes
WHERE namespace = :namespace AND session_id = :session_id AND epoch = :epoch AND owner IS NOT NULL
""")


def write_pieces(
    connection: Connection, worker: str, runs: Sequence[RunPieces]
) -> list[int | None]:
    present = stored_now(connection)
    counts: list[int | None] = []
    for run, generation, number, pieces in runs:
        where = run._asdict() | {"generation": generation}
        row = STORED.row(connection, where | {"worker": worker})
        counts.append(None if row is None else row[0])
        if row is None or row[0] != number:
            continue
        if number == 0 and generation > 0:
            VOID.rows(connection, where)
        written = [
            (*run, generation, place, *piece, present) for place, piece in enumerate(pieces, number)
        ]
        WRITE.each(connection, written)
    return counts


def find_runs(connection: Connection, after: Run, limit: int) -> list[tuple[Run, bool]]:
    found: list[tuple[Run, bool]] = []
    while len(found) < limit:
        row = NEXT_RUN.row(connection, after._asdict())
        if row is None:
            break
        after = Run(*row)
        found.append((after, IS_CURRENT.row(connection, after._asdict()) is None))
    return found
