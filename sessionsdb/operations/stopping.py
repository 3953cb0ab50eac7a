"""Stop messages by the wish of a caller: the transitions ``cancel`` and ``interrupt``.

See ``mailbox.py``. The mailbox is locked first. So a commit that locked it before wins, and a
commit that comes later finds another epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, insert

from sessionsdb.engine.clock import as_stored, as_utc, present_sql, present_values, read_now
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import UnknownReceipt, UnknownSession
from sessionsdb.messages.codec import from_inbox
from sessionsdb.messages.extra import INTERRUPTED
from sessionsdb.operations import question_rows, questions, registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.pieces import read_partial_text
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.running_messages import NO_TURN, RunningTurn, read_running
from sessionsdb.operations.state_changes import NO_LEASE_SQL, StateChanges
from sessionsdb.operations.tree import lock_subtree
from sessionsdb.schema import messages

StoppedBy = Literal["cancel", "interrupt"]


class Interrupted(NamedTuple):
    """What an interrupt has stopped."""

    places: list[tuple[str, int]]
    """The session and the position of each message that was cancelled."""
    withdrawn: bool
    """Whether a question was withdrawn."""

    @property
    def changed(self) -> bool:
        return self.withdrawn or bool(self.places)


_IS_MAILBOX = "namespace = :namespace AND session_id = :session_id"
_IS_MESSAGE = f"{_IS_MAILBOX} AND position = :position"

_STATUS = Statement(f"SELECT status FROM inbox WHERE {_IS_MESSAGE}")


def cancel(
    connection: Connection,
    namespace: str,
    session_id: str,
    position: int,
    *,
    keep_partial: bool = True,
) -> bool:
    """Cancel one message, and return false if it was finished already.

    Of a running batch the other messages are pending again, and the attempt is not counted. Raises
    ``UnknownReceipt``.
    """
    key = (namespace, session_id)
    lock_mailboxes(connection, [key])
    lock_sessions(connection, [key])
    row = _STATUS.row(connection, {**_ids(key), "position": position})
    if row is None:
        raise UnknownReceipt(session_id, position)
    [status] = row
    if status == "pending":
        _cancel_pending(connection, key, [position], "cancel")
    elif status == "running":
        turn = read_running(connection, [key]).get(key, NO_TURN)
        _stop_turn(connection, key, turn, [position], "cancel", keep_partial=keep_partial)
    return status in UNFINISHED


_WORK = Statement(f"SELECT owner, wake_at, question FROM mailboxes WHERE {_IS_MAILBOX}")


def interrupt(
    connection: Connection,
    namespace: str,
    session_id: str,
    *,
    subtree: bool = False,
    keep_partial: bool = True,
) -> Interrupted:
    """Cancel all messages that run or wait for another attempt, and withdraw open questions.

    Raises ``UnknownSession``.
    """
    if subtree:
        ids = lock_subtree(connection, namespace, session_id)
    else:
        ids = [session_id]
        lock_mailboxes(connection, [(namespace, session_id)])
        lock_sessions(connection, [(namespace, session_id)])
    if not ids or not registry.exists(connection, namespace, session_id):
        raise UnknownSession(session_id)
    stopped: list[tuple[str, int]] = []
    withdrawn = False
    for id in sorted(ids):
        key = (namespace, id)
        [[owner, wake_at, question]] = _WORK.rows(connection, _ids(key))
        positions: list[int] = []
        if owner is not None:
            turn = read_running(connection, [key]).get(key, NO_TURN)
            positions = [one.position for one in turn.all]
            _stop_turn(connection, key, turn, positions, "interrupt", keep_partial=keep_partial)
        elif question is not None:
            questions.withdraw(connection, key, question)
            withdrawn = True
        elif wake_at is not None:
            positions = _in_backoff(connection, key)
            _cancel_pending(connection, key, positions, "interrupt")
        stopped += [(id, position) for position in positions]
    return Interrupted(stopped, withdrawn)


@cache
def _leave_pending(present: str, *, has_waited: bool) -> Statement:
    ready_at, wake_at = (
        (f"CASE WHEN wake_at IS NOT NULL THEN {present} ELSE ready_at END", "NULL")
        if has_waited
        else (
            "ready_at",
            "CASE WHEN pending > :count OR question IS NOT NULL THEN wake_at END",
        )
    )
    # The head moves over the first one, so a claim walks over fewer holes.
    return Statement(f"""
UPDATE mailboxes
SET pending = pending - :count,
    head = CASE WHEN pending = :count THEN tail + 1 WHEN head = :first THEN head + 1 ELSE head END,
    ready_at = CASE WHEN pending > :count THEN {ready_at} END,
    wake_at = {wake_at}
WHERE {_IS_MAILBOX}
""")


def _cancel_pending(
    connection: Connection, key: SessionKey, positions: Sequence[int], by: StoppedBy
) -> None:
    """Cancel pending messages.

    The backoff of a mailbox belongs to the first message that was tried. Without that message the
    next one is ready.
    """
    if not positions:
        return
    waited = not set(positions).isdisjoint(_in_backoff(connection, key)[:1])
    _mark_cancelled(connection, key, positions, by)
    questions.withdraw_answers(connection, key, positions)
    _leave_pending(present_sql(connection), has_waited=waited).rows(
        connection,
        {
            **_ids(key),
            **present_values(connection),
            "count": len(positions),
            "first": min(positions),
        },
    )


_WAITING = Statement(f"""
SELECT head, tail, answer FROM mailboxes
WHERE {_IS_MAILBOX} AND wake_at IS NOT NULL AND question IS NULL
""")

_TRIED = Statement(f"""
SELECT t.position FROM (
    SELECT position, ahead FROM inbox
    WHERE {_IS_MAILBOX} AND status = 'pending' AND attempts > 0 AND ahead
    UNION ALL
    SELECT position, ahead FROM inbox
    WHERE {_IS_MAILBOX} AND status = 'pending' AND attempts > 0 AND NOT ahead
      AND position >= :head AND position <= :tail
) AS t
ORDER BY CASE WHEN t.position = :answer THEN 0 ELSE 1 END, t.ahead DESC, t.position
""")


def _in_backoff(connection: Connection, key: SessionKey) -> list[int]:
    """Return the positions of the messages that are tried again later, in the order of the claim.

    A message that was requeued in the meantime may stand before them. It was not tried yet. Of a
    mailbox that is held none is: it waits for the answer to a question.
    """
    waiting = _WAITING.row(connection, _ids(key))
    if waiting is None:
        return []
    head, tail, answer = waiting
    rows = _TRIED.rows(connection, {**_ids(key), "head": head, "tail": tail, "answer": answer})
    return [position for (position,) in rows]


@cache
def _end_lease(present: str) -> Statement:
    return Statement(f"""
UPDATE mailboxes
SET {NO_LEASE_SQL}, epoch = epoch + 1, pending = pending - :count,
    head = CASE WHEN pending = :count THEN tail + 1 ELSE head END,
    ready_at = CASE WHEN pending > :count THEN {present} END
WHERE {_IS_MAILBOX}
""")


def _stop_turn(
    connection: Connection,
    key: SessionKey,
    turn: RunningTurn,
    positions: Collection[int],
    by: StoppedBy,
    *,
    keep_partial: bool,
) -> None:
    """End the lease of a running turn, cancel these messages of it, and give the others back.

    With ``keep_partial`` the cancelled messages enter the transcript, and behind them the text that
    the turn has streamed. The staged changes of the turn are dropped.
    """
    changes = StateChanges(connection)
    changes.return_to_pending(
        key, (one for one in turn.begun if one.position not in positions), uncounted=1
    )
    changes.return_to_pending(key, (one for one in turn.joined if one.position not in positions))
    changes.apply()
    cancelled = [one.position for one in turn.all if one.position in positions]
    _mark_cancelled(connection, key, cancelled, by)
    if keep_partial and cancelled:
        _keep_partial(connection, key, cancelled)
    questions.withdraw_answers(connection, key, cancelled)
    _end_lease(present_sql(connection)).rows(
        connection, {**_ids(key), **present_values(connection), "count": len(cancelled)}
    )


@cache
def _set_cancelled(in_positions: str, present: str) -> Statement:
    return Statement(f"""
UPDATE inbox
SET status = 'cancelled', stopped_by = :by, finished_at = {present}, ahead = FALSE, joined = FALSE
WHERE {_IS_MAILBOX} AND position {in_positions}
""")


def _mark_cancelled(
    connection: Connection, key: SessionKey, positions: Sequence[int], by: StoppedBy
) -> None:
    dialect = dialect_of(connection)
    _set_cancelled(dialect.in_positions, present_sql(connection)).rows(
        connection,
        {
            **_ids(key),
            **dialect.positions_values(positions),
            **present_values(connection),
            "by": by,
        },
    )


@cache
def _name_range(in_positions: str) -> Statement:
    return Statement(f"""
UPDATE inbox SET first_seq = :first_seq, last_seq = :last_seq
WHERE {_IS_MAILBOX} AND position {in_positions}
""")


def _keep_partial(connection: Connection, key: SessionKey, positions: Sequence[int]) -> None:
    """Write the questions of a stopped turn, and the streamed part of its reply.

    Nothing is added to a payload: the mark ``interrupted`` stands beside the message.
    """
    rows = _read_asked(connection, key, positions)
    partial = read_partial_text(connection, key)
    if partial:
        rows.append(
            {
                "role": "assistant",
                "content": partial,
                "payload": None,
                "position": positions[-1],
                "sender": None,
                "sent_at": None,
                "extra": INTERRUPTED,
            }
        )
    if not rows:
        return
    first_seq, last_seq = _append(connection, key, rows)
    dialect = dialect_of(connection)
    _name_range(dialect.in_positions).rows(
        connection,
        {
            **_ids(key),
            **dialect.positions_values(positions),
            "first_seq": first_seq,
            "last_seq": last_seq,
        },
    )


class _Asked(NamedTuple):
    """The columns of a message that enters the transcript."""

    position: int
    content: str
    payload: str | None
    sender: str | None
    enqueued_at: datetime | str
    extra: str | None
    answers: int | None


@cache
def _select_asked(in_positions: str) -> Statement:
    return Statement(f"""
SELECT {", ".join(_Asked._fields)} FROM inbox WHERE {_IS_MAILBOX} AND position {in_positions}
""")


def _read_asked(
    connection: Connection, key: SessionKey, positions: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the messages of a stopped turn as rows of its transcript, without notices."""
    dialect = dialect_of(connection)
    found = _select_asked(dialect.in_positions).rows(
        connection, {**_ids(key), **dialect.positions_values(positions)}
    )
    asked = {row.position: row for row in map(_Asked._make, found)}
    return [
        {
            **from_inbox(asked[position].content, asked[position].payload)._asdict(),
            "position": position,
            "sender": asked[position].sender,
            "sent_at": as_utc(asked[position].enqueued_at),
            "extra": asked[position].extra,
        }
        for position in positions
        if not question_rows.is_notice(connection, key, asked[position].answers)
    ]


_ADD_TO_TRANSCRIPT = Statement("""
UPDATE sessions
SET version = version + 1, last_seq = last_seq + :count, message_count = message_count + :count,
    updated_at = CASE WHEN updated_at > :now THEN updated_at ELSE :now END,
    last_active = CASE WHEN last_active > :now THEN last_active ELSE :now END
WHERE namespace = :namespace AND id = :session_id
RETURNING last_seq
""")


def _append(
    connection: Connection, key: SessionKey, rows: Sequence[dict[str, Any]]
) -> tuple[int, int]:
    """Append rows to a transcript, and return their first and last ``seq``."""
    present = read_now(connection)
    [[last_seq]] = _ADD_TO_TRANSCRIPT.rows(
        connection, {**_ids(key), "now": as_stored(connection, present), "count": len(rows)}
    )
    first_seq = last_seq - len(rows) + 1
    connection.execute(
        insert(messages),
        [
            {**_ids(key), "seq": seq, "created_at": present, **row}
            for seq, row in enumerate(rows, first_seq)
        ],
    )
    return first_seq, last_seq


def _ids(key: SessionKey) -> dict[str, Any]:
    return {"namespace": key[0], "session_id": key[1]}
