"""The messages of an inbox that wait, run or died."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.outcomes import outcome_with_message, select_with_message
from sessionsdb.types import Outcome

_OF_SESSION = "p.namespace = :namespace AND p.session_id = :session_id AND p.position > :after"
_MAILBOX = "mailboxes AS b WHERE b.namespace = :namespace AND b.session_id = :session_id"

# The dead messages have no limit of their own, or PostgreSQL walks over the primary key until it
# has enough of them.
_POSITIONS = f"""
    SELECT f.position FROM (
        SELECT w.position FROM (
            SELECT p.position FROM inbox AS p
            WHERE {_OF_SESSION} AND p.status IN {UNFINISHED_SQL}
              AND p.position >= (SELECT b.head FROM {_MAILBOX})
              AND p.position <= (SELECT b.tail FROM {_MAILBOX})
            ORDER BY p.position
            LIMIT :limit
        ) AS w
        UNION
        SELECT p.position FROM inbox AS p
        WHERE {_OF_SESSION} AND p.ahead AND p.status IN {UNFINISHED_SQL}
        UNION
        SELECT p.position FROM inbox AS p WHERE {_OF_SESSION} AND p.dead_at IS NOT NULL
    ) AS f
    ORDER BY f.position
    LIMIT :limit
"""


@cache
def _page(in_positions: str, reply_join: str) -> Statement:
    return Statement(f"""
{select_with_message(reply_join)}
WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.position {in_positions}
ORDER BY i.position
""")


def read(
    connection: Connection, namespace: str, session_id: str, *, limit: int, after: int
) -> list[Outcome]:
    """Return at most ``limit`` messages behind the position ``after``, by position.

    Unfinished messages stand from head to tail or are ahead. So the finished messages before the
    head, which may be many, are not read. Raises ``UnknownSession``.
    """
    registry.require(connection, namespace, session_id)
    page = {"namespace": namespace, "session_id": session_id, "after": after, "limit": limit}
    dialect = dialect_of(connection)
    statement = _page(dialect.in_few(_POSITIONS), dialect.reply_join)
    return [outcome_with_message(connection, row) for row in statement.rows(connection, page)]
