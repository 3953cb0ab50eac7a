"""The commit of a turn together with the sends, spawns and state that it staged."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, select

from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import LeaseLost, TranscriptRewritten
from sessionsdb.operations import child_reports, mailbox, questions, state
from sessionsdb.operations.editing import EditRequest, edit_transcript
from sessionsdb.operations.inbox_types import Commit, Lease, Send
from sessionsdb.operations.inserting import Insertion, insert
from sessionsdb.operations.pieces import delete_pieces
from sessionsdb.operations.question_rows import Ask
from sessionsdb.operations.row_conditions import is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.spawning import send_message, spawn_child
from sessionsdb.operations.state import ScopeKey, StateUpdate
from sessionsdb.operations.tree import Spawn
from sessionsdb.schema import mailboxes, sessions
from sessionsdb.types import Limits

Staged = Send | Spawn | StateUpdate | EditRequest | Insertion | Ask
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

    Edits change the transcript that the turn began with, so they come before its messages. Sends
    and spawns are made in order, then the report of a child to its parent, unless the turn asks a
    question. State comes last, because its rows are locked behind sessions. A question holds the
    session in the same transaction, so no claim comes between. ``streamed``: the turn may have
    pieces, and they are deleted.

    Raises ``LeaseLost``, and the errors of edits, sends, spawns and state.
    """
    sends = [one for one in staged if isinstance(one, Send)]
    keys = [commit.lease.key, *((send.namespace, send.session_id) for send in sends)]
    asks = any(isinstance(one, Ask) for one in staged)
    report = None if asks else child_reports.of_commit(commit)
    if report is not None:
        keys += child_reports.open_among(connection, [report.child]).values()
    lock_mailboxes(connection, keys)
    lock_sessions(connection, keys)
    updates = [one for one in staged if isinstance(one, StateUpdate)]
    edits = [one for one in staged if isinstance(one, EditRequest | Insertion)]
    if edits:
        _check_fence(connection, worker, commit.lease)
        commit, of_edits = _make_edits(connection, commit, edits)
        updates = _joined(of_edits + updates)
    [committed] = mailbox.commit(connection, worker, [commit])
    result_or_raise(committed)
    if commit.lease.sees_withdrawal:
        questions.mark_seen(connection, commit.lease)
    if streamed:
        delete_pieces(connection, commit.lease.key)
    chain = commit.lease.chain.next(commit.lease.session_id)
    for one in staged:
        if isinstance(one, Send):
            send_message(connection, one, limits)
        elif isinstance(one, Spawn):
            spawn_child(connection, one, limits, chain)
        elif isinstance(one, Ask):
            questions.hold(connection, commit.lease, one)
    if report is not None:
        child_reports.send(connection, [report])
    state.merge(connection, updates, max_bytes=limits.state_bytes)


def _check_fence(connection: Connection, worker: str, lease: Lease) -> None:
    """Raise ``LeaseLost`` or ``TranscriptRewritten`` if the turn can't commit.

    The commit checks both again. An edit that is made first would fail with another error when the
    transcript is no longer the one that the handler has read.
    """
    row = connection.execute(
        select(sessions.c.rewrites)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == sessions.c.namespace,
                mailboxes.c.session_id == sessions.c.id,
            ),
        )
        .where(*is_mailbox(lease.key), mailboxes.c.owner == worker)
        .where(mailboxes.c.epoch == lease.epoch)
    ).one_or_none()
    if row is None:
        raise LeaseLost(lease.session_id)
    if row.rewrites != lease.rewrites:
        raise TranscriptRewritten(lease.session_id)


def _make_edits(
    connection: Connection, commit: Commit, edits: Sequence[EditRequest | Insertion]
) -> tuple[Commit, list[StateUpdate]]:
    """Make the edits of a turn. The turn then commits although its own edits are rewrites."""
    rewrites, updates = commit.lease.rewrites, []
    for one in edits:
        if isinstance(one, Insertion):
            rewrites += insert(connection, one)
            continue
        result = edit_transcript(connection, one)
        rewrites += bool(result.edited.removed)
        updates += result.state
    return commit._replace(lease=commit.lease._replace(rewrites=rewrites)), updates


def _joined(updates: Sequence[StateUpdate]) -> list[StateUpdate]:
    """Return one update for each scope. The last change of a key wins."""
    joined: dict[ScopeKey, StateUpdate] = {}
    for one in updates:
        earlier = joined.get(one.key, one)
        joined[one.key] = one._replace(changes=earlier.changes | one.changes)
    return list(joined.values())
