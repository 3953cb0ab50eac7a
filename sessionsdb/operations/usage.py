"""The tokens that turns used, kept with the messages of their inbox."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, select, update

from sessionsdb.operations.inbox_types import Lease, Usage
from sessionsdb.operations.row_conditions import at_positions
from sessionsdb.schema import inbox


def _more(name: str) -> Any:
    more = bindparam(f"more_{name}", type_=BigInteger)
    column = inbox.c[name]
    return func.coalesce(more + func.coalesce(column, 0), column)


ADDED = {name: _more(name) for name in Usage._fields}
"""The columns with the tokens of ``parameters`` added."""


def parameters(usage: Usage) -> dict[str, int | None]:
    return {f"more_{name}": tokens for name, tokens in usage._asdict().items()}


def add_to_stopped(connection: Connection, lease: Lease, usage: Usage) -> None:
    """Add the tokens of a turn that was stopped to the last message that was cancelled with it."""
    of_turn = (
        inbox.c.namespace == lease.namespace,
        inbox.c.session_id == lease.session_id,
        at_positions(connection, lease.positions),
        inbox.c.epoch == lease.epoch,
        inbox.c.status == "cancelled",
    )
    position = connection.execute(
        select(inbox.c.position).where(*of_turn).order_by(inbox.c.position.desc()).limit(1)
    ).scalar()
    if position is not None:
        connection.execute(
            update(inbox).where(*of_turn, inbox.c.position == position).values(ADDED),
            parameters(usage),
        )
