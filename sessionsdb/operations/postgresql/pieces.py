"""The streamed pieces of turns on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.piece_types import Run, RunPieces

_RUNS = ArrayTable(
    "r",
    namespace="text",
    session_id="text",
    epoch="bigint",
    generation="integer",
    number="bigint",
    ordinality="place",
)
_PIECES = ArrayTable(
    "w",
    place="bigint",
    number="bigint",
    start="bigint",
    text="text",
    kind="text",
    data="text",
)

# The statement is a transaction of its own. It switches the wait for its commit off: no commit
# waits for the disk or for a standby because of it. A lost commit is found by the numbers.
#
# The fence is one condition on both tables, as in COMMIT of committing.py. The number of the last
# piece tells how many the generation has: their numbers have no gap. A row that is there already
# was written by an earlier try of the same statement, whose answer was lost.
_WRITE = f"""
WITH setting AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now,
           pg_catalog.set_config('synchronous_commit', 'off', true) AS synchronous_commit
),
run AS MATERIALIZED (
    SELECT m.namespace, m.session_id, m.epoch, r.generation, r.number, r.place,
           coalesce((
               SELECT p.number + 1 FROM pieces AS p
               WHERE p.namespace = r.namespace AND p.session_id = r.session_id
                 AND p.epoch = r.epoch AND p.generation = r.generation
               ORDER BY p.number DESC LIMIT 1
           ), 0) AS stored
    FROM {_RUNS}
    JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
    WHERE r.epoch = CASE WHEN m.owner = :worker THEN m.epoch END
),
{{voided}}written AS (
    INSERT INTO pieces
        (namespace, session_id, epoch, generation, number, start, text, kind, data, written_at)
    SELECT r.namespace, r.session_id, r.epoch, r.generation, w.number, w.start, w.text, w.kind,
           w.data, s.now
    FROM setting AS s, run AS r JOIN {_PIECES} ON w.place = r.place
    WHERE r.stored = r.number AND s.synchronous_commit IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT r.place, r.stored FROM run AS r
"""

WRITE = Statement(_WRITE.format(voided=""))

# For one run. Values of an array would have the planner walk over all pieces.
_VOIDED = """voided AS (
    DELETE FROM pieces AS p
    WHERE p.namespace = :namespace AND p.session_id = :session_id AND p.epoch = :epoch
      AND p.generation < :generation AND EXISTS (SELECT 1 FROM run AS r WHERE r.stored = 0)
),
"""

WRITE_ANEW = Statement(_WRITE.format(voided=_VOIDED))

# A walk over the primary key that reads one entry for each run.
_NEXT_RUN = """
    SELECT p.namespace, p.session_id, p.epoch, {number} AS number FROM pieces AS p
    WHERE (p.namespace, p.session_id, p.epoch) > ({after})
    ORDER BY p.namespace, p.session_id, p.epoch LIMIT 1
"""

FIND_RUNS = Statement(f"""
WITH RECURSIVE run(namespace, session_id, epoch, number) AS (
    SELECT * FROM ({
    _NEXT_RUN.format(
        number="1",
        after="CAST(:namespace AS text), CAST(:session_id AS text), CAST(:epoch AS bigint)",
    )
}) AS f
    UNION ALL
    SELECT n.namespace, n.session_id, n.epoch, n.number
    FROM run AS r, LATERAL ({
    _NEXT_RUN.format(number="r.number + 1", after="r.namespace, r.session_id, r.epoch")
}) AS n
    WHERE r.number < :limit
)
SELECT r.namespace, r.session_id, r.epoch, m.session_id IS NULL
FROM run AS r
LEFT JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
    AND m.epoch = r.epoch AND m.owner IS NOT NULL
ORDER BY r.number
""")


def write_pieces(
    connection: Connection, worker: str, runs: Sequence[RunPieces]
) -> list[int | None]:
    anew = [place for place, run in enumerate(runs) if run.generation > 0 and run.number == 0]
    others = [place for place in range(len(runs)) if place not in anew]
    counts: list[int | None] = [None] * len(runs)
    for places in ([others] if others else []) + [[place] for place in anew]:
        chosen = [runs[place] for place in places]
        parameters = {"worker": worker, **_parameters(chosen)}
        if places is others:
            rows = WRITE.rows(connection, parameters)
        else:
            one = chosen[0]
            where = one.run._asdict() | {"generation": one.generation}
            rows = WRITE_ANEW.rows(connection, parameters | where)
        for ordinal, stored in rows:
            counts[places[ordinal - 1]] = stored
    return counts


def _parameters(runs: Sequence[RunPieces]) -> dict[str, Any]:
    return {
        **_RUNS.parameters([(*one.run, one.generation, one.number) for one in runs]),
        **_PIECES.parameters(
            [
                (place, number, *piece)
                for place, one in enumerate(runs, 1)
                for number, piece in enumerate(one.pieces, one.number)
            ]
        ),
    }


def find_runs(connection: Connection, after: Run, limit: int) -> list[tuple[Run, bool]]:
    rows = FIND_RUNS.rows(connection, after._asdict() | {"limit": limit})
    return [(Run(namespace, id, epoch), void) for namespace, id, epoch, void in rows]
