"""The commit of a turn together with the sends, spawns and state that it staged."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.operations import mailbox, state
from sessionsdb.operations.inbox_types import Commit, Send
from sessionsdb.operations.pieces import delete_pieces
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.spawning import send_message, spawn_child
from sessionsdb.operations.state import StateUpdate
from sessionsdb.operations.tree import Spawn
from sessionsdb.types import Limits

Staged = Send | Spawn | StateUpdate
"""A change that the commit of a turn makes."""


def commit_with_staged(
    connection: Connection,
    worker: str,
    commit: Commit,
    staged: Sequence[Staged],
    limits: Limits,
    *,
    streamed: bool = False,
) -> None:
    """Commit a turn and make the changes that it staged: all of them, or nothing.

    Sends and spawns are made in order. State comes last, because its rows are locked behind
    sessions. ``streamed``: the turn may have pieces, and they are deleted.

    Raises ``LeaseLost``, and the errors of sends, spawns and state.
    """
    sends = [one for one in staged if isinstance(one, Send)]
    keys = [commit.lease.key, *((send.namespace, send.session_id) for send in sends)]
    lock_mailboxes(connection, keys)
    lock_sessions(connection, keys)
    [committed] = mailbox.commit(connection, worker, [commit])
    result_or_raise(committed)
    if streamed:
        delete_pieces(connection, commit.lease.key)
    chain = commit.lease.chain.next(commit.lease.session.id)
    for one in staged:
        if isinstance(one, Send):
            send_message(connection, one, limits)
        elif isinstance(one, Spawn):
            spawn_child(connection, one, limits, chain)
    updates = [one for one in staged if isinstance(one, StateUpdate)]
    state.merge(connection, updates, max_bytes=limits.state_bytes)
