"""Stop messages by the wish of a caller: the transitions ``cancel`` and ``interrupt``.

See ``mailbox.py``. The mailbox is locked first. So a commit that locked it before wins, and a
commit that comes later finds another epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, case, insert, or_, select, update

from sessionsdb.engine.clock import now, read_now
from sessionsdb.errors import UnknownReceipt, UnknownSession
from sessionsdb.messages.codec import from_inbox
from sessionsdb.messages.extra import INTERRUPTED
from sessionsdb.operations import question_rows, questions, registry
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.pieces import read_partial_text
from sessionsdb.operations.row_conditions import is_mailbox, is_message
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.running_messages import NO_TURN, RunningTurn, read_running
from sessionsdb.operations.state_changes import NO_LEASE, StateChanges, later
from sessionsdb.operations.tree import lock_subtree
from sessionsdb.schema import inbox, mailboxes, messages, sessions

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
    status = connection.execute(
        select(inbox.c.status).where(*is_message(namespace, session_id, position))
    ).scalar()
    if status is None:
        raise UnknownReceipt(session_id, position)
    if status == "pending":
        _cancel_pending(connection, key, [position], "cancel")
    elif status == "running":
        turn = read_running(connection, [key]).get(key, NO_TURN)
        _stop_turn(connection, key, turn, [position], "cancel", keep_partial=keep_partial)
    return status in UNFINISHED


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
        mailbox = connection.execute(
            select(mailboxes.c.owner, mailboxes.c.wake_at, mailboxes.c.question).where(
                *is_mailbox(key)
            )
        ).one()
        positions: list[int] = []
        if mailbox.owner is not None:
            turn = read_running(connection, [key]).get(key, NO_TURN)
            positions = [one.position for one in turn.all]
            _stop_turn(connection, key, turn, positions, "interrupt", keep_partial=keep_partial)
        elif mailbox.question is not None:
            questions.withdraw(connection, key, mailbox.question)
            withdrawn = True
        elif mailbox.wake_at is not None:
            positions = _in_backoff(connection, key)
            _cancel_pending(connection, key, positions, "interrupt")
        stopped += [(id, position) for position in positions]
    return Interrupted(stopped, withdrawn)


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
    questions.withdraw_answer(connection, key, positions)
    _mark_cancelled(connection, key, positions, by)
    left = mailboxes.c.pending - len(positions)
    is_waiting = mailboxes.c.wake_at.is_not(None)
    is_held = mailboxes.c.question.is_not(None)
    ready_at: ColumnElement[Any] = mailboxes.c.ready_at
    if waited:
        ready_at = case((is_waiting, now(connection)), else_=ready_at)
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            pending=left,
            # So a claim walks over fewer holes.
            head=case(
                (left == 0, mailboxes.c.tail + 1),
                (mailboxes.c.head == min(positions), mailboxes.c.head + 1),
                else_=mailboxes.c.head,
            ),
            ready_at=case((left > 0, ready_at), else_=None),
            wake_at=None
            if waited
            else case((or_(left > 0, is_held), mailboxes.c.wake_at), else_=None),
        )
    )


def _in_backoff(connection: Connection, key: SessionKey) -> list[int]:
    """Return the positions of the messages that are tried again later, in the order of the claim.

    A message that was requeued in the meantime may stand before them. It was not tried yet. Of a
    mailbox that is held none is: it waits for the answer to a question.
    """
    waiting = connection.execute(
        select(mailboxes.c.head, mailboxes.c.tail, mailboxes.c.answer).where(
            *is_mailbox(key), mailboxes.c.wake_at.is_not(None), mailboxes.c.question.is_(None)
        )
    ).one_or_none()
    if waiting is None:
        return []
    rows = connection.execute(
        select(inbox.c.position)
        .where(
            inbox.c.namespace == key[0],
            inbox.c.session_id == key[1],
            inbox.c.status == "pending",
            inbox.c.attempts > 0,
            or_(inbox.c.ahead, inbox.c.position.between(waiting.head, waiting.tail)),
        )
        .order_by(
            case((inbox.c.position == waiting.answer, 0), else_=1),
            inbox.c.ahead.desc(),
            inbox.c.position,
        )
    )
    return list(rows.scalars())


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
    questions.withdraw_answer(connection, key, cancelled)
    left = mailboxes.c.pending - len(cancelled)
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            **NO_LEASE,
            epoch=mailboxes.c.epoch + 1,
            pending=left,
            head=case((left == 0, mailboxes.c.tail + 1), else_=mailboxes.c.head),
            ready_at=case((left > 0, now(connection)), else_=None),
        )
    )


def _mark_cancelled(
    connection: Connection, key: SessionKey, positions: Sequence[int], by: StoppedBy
) -> None:
    connection.execute(
        update(inbox)
        .where(
            inbox.c.namespace == key[0],
            inbox.c.session_id == key[1],
            inbox.c.position.in_(positions),
        )
        .values(
            status="cancelled",
            stopped_by=by,
            finished_at=read_now(connection),
            ahead=False,
            joined=False,
        )
    )


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
    connection.execute(
        update(inbox)
        .where(
            inbox.c.namespace == key[0],
            inbox.c.session_id == key[1],
            inbox.c.position.in_(positions),
        )
        .values(first_seq=first_seq, last_seq=last_seq)
    )


def _read_asked(
    connection: Connection, key: SessionKey, positions: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the messages of a stopped turn as rows of its transcript, without notices."""
    found = connection.execute(
        select(
            inbox.c.position,
            inbox.c.content,
            inbox.c.payload,
            inbox.c.sender,
            inbox.c.enqueued_at,
            inbox.c.extra,
            inbox.c.answers,
        ).where(
            inbox.c.namespace == key[0],
            inbox.c.session_id == key[1],
            inbox.c.position.in_(positions),
        )
    )
    asked = {row.position: row for row in found}
    return [
        {
            **from_inbox(asked[position].content, asked[position].payload)._asdict(),
            "position": position,
            "sender": asked[position].sender,
            "sent_at": asked[position].enqueued_at,
            "extra": asked[position].extra,
        }
        for position in positions
        if not question_rows.is_notice(connection, key, asked[position].answers)
    ]


def _append(
    connection: Connection, key: SessionKey, rows: Sequence[dict[str, Any]]
) -> tuple[int, int]:
    """Append rows to a transcript, and return their first and last ``seq``."""
    present = read_now(connection)
    last_seq = connection.execute(
        update(sessions)
        .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
        .values(
            version=sessions.c.version + 1,
            last_seq=sessions.c.last_seq + len(rows),
            message_count=sessions.c.message_count + len(rows),
            updated_at=later(sessions.c.updated_at, present),
            last_active=later(sessions.c.last_active, present),
        )
        .returning(sessions.c.last_seq)
    ).scalar_one()
    first_seq = last_seq - len(rows) + 1
    connection.execute(
        insert(messages),
        [
            {"namespace": key[0], "session_id": key[1], "seq": seq, "created_at": present, **row}
            for seq, row in enumerate(rows, first_seq)
        ],
    )
    return first_seq, last_seq
