"""The pieces of replies that running turns stream.

A row is one piece: text, or data of a kind. The pieces of a turn bear the epoch of its lease, which
together with the session is called a run. Pieces are visible while the mailbox of the session has
an owner, and the same epoch. So the pieces of a turn that has ended or lost its lease are void and
invisible from that moment on. The commit of a turn deletes them. All others are swept later.

Pieces are written without durability, so a crash of the server may take back the last ones. A write
names the number of its first piece. If that is not how many are stored, nothing is written, and the
worker writes the whole run anew under the next generation. Only the highest generation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.repeatable import repeatable
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.piece_types import Run, RunPieces

BEFORE_ALL = Run("", "", -1)
"""The cursor of a sweep that begins."""

_PARTIAL_TEXT = Statement("""
SELECT p.text
FROM mailboxes AS m
JOIN pieces AS p ON p.namespace = m.namespace AND p.session_id = m.session_id AND p.epoch = m.epoch
WHERE m.namespace = :namespace AND m.session_id = :session_id AND p.text IS NOT NULL
  AND p.generation = (
      SELECT n.generation FROM pieces AS n
      WHERE n.namespace = m.namespace AND n.session_id = m.session_id AND n.epoch = m.epoch
      ORDER BY n.generation DESC LIMIT 1
  )
ORDER BY p.number
""")

_DELETE = Statement("""
DELETE FROM pieces WHERE namespace = :namespace AND session_id = :session_id
""")

# The run is looked at again: the reading before it may have been in another snapshot.
_DELETE_VOID = Statement("""
DELETE FROM pieces
WHERE namespace = :namespace AND session_id = :session_id AND epoch = :epoch
  AND NOT EXISTS (
      SELECT 1 FROM mailboxes AS m
      WHERE m.namespace = :namespace AND m.session_id = :session_id AND m.epoch = :epoch
        AND m.owner IS NOT NULL
  )
""")


class Swept(NamedTuple):
    """The result of one step of a sweep."""

    deleted_runs: int
    last: Run | None
    """The cursor of the next step, ``None`` at the end."""


def read_partial_text(connection: Connection, key: SessionKey) -> str:
    """Return the text that the running turn of a session has streamed so far."""
    rows = _PARTIAL_TEXT.rows(connection, {"namespace": key[0], "session_id": key[1]})
    return "".join(text for (text,) in rows)


@repeatable("a piece is stored once under its number, and only by the holder of the lease")
def write_pieces(
    connection: Connection, worker: str, runs: Sequence[RunPieces]
) -> list[int | None]:
    """Store the pieces of each run, if the worker holds the lease and the numbers continue.

    Return for each run how many pieces of its generation were stored before, or ``None`` if the
    lease is lost. The pieces of a run are stored if that count is its ``number``. They were stored
    by an earlier try if the count is ``number`` and the count of its pieces together. Otherwise
    rows were lost. The first pieces of a generation delete the rows of earlier generations.

    The mailboxes are not locked: a flush of many sessions would wait for each transaction that
    holds one of them. A commit between the look at the fence and the write leaves void rows.
    """
    return dialect_of(connection).write_pieces(connection, worker, runs)


def delete_pieces(connection: Connection, key: SessionKey) -> None:
    """Delete all pieces of a session, whose running turn ends in this transaction."""
    _DELETE.rows(connection, {"namespace": key[0], "session_id": key[1]})


@repeatable("void pieces stay void, so deleting them again deletes nothing else")
def sweep(connection: Connection, after: Run, limit: int) -> Swept:
    """Delete the void pieces among the next ``limit`` runs behind ``after``.

    Void pieces are left by turns that failed, were stopped or lost their worker.
    """
    found = dialect_of(connection).find_runs(connection, after, limit)
    void = [run for run, is_void in found if is_void]
    for run in void:
        _DELETE_VOID.rows(connection, run._asdict())
    return Swept(len(void), found[-1][0] if len(found) == limit else None)
