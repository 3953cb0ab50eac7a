"""Derive the events of a session from its rows, between two looks of a follower.

A look is one snapshot of the database. The events are derived from the place of the follower, which
is its cursor, and from the rows of the snapshot. Nothing else is remembered, so a follower that
comes back with a cursor is told the same as one that stayed.

==============================================  ================================================
difference from the place                       events, in this order
==============================================  ================================================
the session is gone                             ``deleted``
another incarnation                             ``rewritten``, then as from the start
``rewrites``, or the transcript is shorter      ``rewritten``
positions behind ``tail``                       ``queued`` for each, unless it was finished before
messages behind ``seq``                         ``message`` for each, in order
inbox rows finished since ``finished_at``       ``turn``: done, dead or cancelled. One for each
                                                run, behind the messages that the run wrote
a run was told, and another one or none runs    ``reset`` if pieces of it were told, unless it
                                                wrote to the transcript. Then ``turn`` failed if
                                                its messages bear its epoch, attempt and an error
the mailbox waits                               ``turn`` failed, with ``retry_at``
a lease of another epoch                        ``turn`` started
another generation of pieces                    ``reset`` if pieces were told
pieces behind ``number``                        ``delta``, ``data``
the session is closed                           ``ended``
nothing is unfinished                           ``idle``
==============================================  ================================================

Ends of messages have an order, because a mailbox is locked when its messages are finished. Their
times grow, and so do the numbers of the messages that they wrote. A message that a turn wrote leads
to its inbox row, also if that row stands far before the head.

Without a cursor the turn comes first: a follower that joins wants to know it before it is told of
messages that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import Connection

from sessionsdb.errors import DamagedValue, UnknownSession
from sessionsdb.events import (
    DeletedEvent,
    Event,
    IdleEvent,
    RewrittenEvent,
)
from sessionsdb.operations.follow_cursor import Place
from sessionsdb.operations.follow_rows import (
    FollowedRows,
    OpenRow,
    read_pieces,
    read_states,
)
from sessionsdb.operations.follow_teller import EventTeller
from sessionsdb.operations.follow_types import PieceRequest, SessionState
from sessionsdb.operations.keys import SessionKey

Start = Literal["now", "start"] | int
"""A beginning without a cursor: the present, the whole transcript, or behind a ``seq``."""


class Step(NamedTuple):
    """A request for the events behind a place, or for the first ones."""

    key: SessionKey
    place: Place | Start


class Advance(NamedTuple):
    """The events behind a place. At most some hundreds."""

    events: list[Event]
    place: Place | None
    """The place behind them. ``None``: the session was deleted, and nothing follows."""
    state: SessionState | None
    """The state that they lead to. ``None``: there is more to read now."""


def advance(
    connection: Connection, steps: Sequence[Step]
) -> list[Advance | UnknownSession | DamagedValue]:
    """Return the events for each step, from one snapshot.

    A step without a cursor for an unknown session gives ``UnknownSession``, and a step to a damaged
    row gives ``DamagedValue``.
    """
    states = read_states(connection, list(dict.fromkeys(step.key for step in steps)))
    answers: list[Advance | UnknownSession | DamagedValue] = []
    for step in steps:
        state = states.get(step.key)
        if state is not None:
            try:
                answers.append(_advance(connection, step, state))
            except DamagedValue as damage:
                answers.append(damage)
        elif isinstance(step.place, Place):
            teller = EventTeller(step.key, step.place)
            teller.tell(DeletedEvent)
            answers.append(Advance(teller.events, None, None))
        else:
            answers.append(UnknownSession(step.key[1]))
    return answers


def advance_pieces(
    connection: Connection, steps: Sequence[tuple[SessionKey, Place, SessionState]]
) -> list[Advance | DamagedValue]:
    """Return the pieces behind each place, in one statement for all.

    A place before a damaged piece gives ``DamagedValue``.

    Each place is in the run and the generation of its state, and differs from it in pieces only.
    Pieces never change while they are there, so the look and this read need no common snapshot.
    """
    requests = [
        PieceRequest(key, place.run, place.generation, place.number) for key, place, _ in steps
    ]
    answers: list[Advance | DamagedValue] = []
    found = read_pieces(connection, requests)
    for (key, place, state), pieces in zip(steps, found, strict=True):
        teller = EventTeller(key, place)
        try:
            complete = teller.tell_pieces(pieces, state)
        except DamagedValue as damage:
            answers.append(damage)
        else:
            answers.append(Advance(teller.events, teller.place, state if complete else None))
    return answers


def in_run(place: Place, state: SessionState) -> bool:
    """Return whether a place is in the running turn of a state, and in its generation of pieces."""
    return (
        place.phase_name == "running"
        and state.leased
        and place.run == state.epoch
        and place.generation == state.generation
    )


def _advance(connection: Connection, step: Step, state: SessionState) -> Advance:
    rows = FollowedRows(connection, step.key)
    open_rows = rows.open(state)
    place = step.place
    if not isinstance(place, Place):
        place = _begin(rows, state, place, open_rows)
    teller = EventTeller(step.key, place)
    if place.incarnation != state.incarnation:
        teller.place = _begin(rows, state, "start", open_rows)
        teller.tell(RewrittenEvent, version=state.version)
    elif place.rewrites != state.rewrites or place.seq > state.last_seq or place.tail > state.tail:
        # A transcript is shorter only in a database that was restored from a backup.
        teller.move(
            rewrites=state.rewrites,
            seq=min(place.seq, state.last_seq),
            tail=min(place.tail, state.tail),
        )
        teller.tell(RewrittenEvent, version=state.version)
    if teller.place.phase_name == "unknown":
        teller.tell_turn(rows, state, open_rows)
        if teller.place.phase_name == "unknown":
            teller.place = teller.place.in_phase("between" if state.pending else "idle")
            teller.tell(IdleEvent)
    complete = (
        teller.tell_queued(rows, state)
        and teller.tell_transcript(rows, state)
        and teller.tell_state(rows, connection, state, open_rows)
    )
    if complete:
        teller.move(low=_low(state, open_rows))
    return Advance(teller.events, teller.place, state if complete else None)


def _begin(
    rows: FollowedRows, state: SessionState, start: Start, open_rows: Sequence[OpenRow]
) -> Place:
    """Return the place of a follower that has no cursor."""
    if start == "start":
        start = 0
    seq = state.last_seq if start == "now" else start
    low = _low(state, open_rows)
    finished_at, position = rows.last_end(state, low, seq)
    tail = state.head - 1
    if start == "now" and state.leased:
        tail = max(tail, state.last_taken)
    return Place(
        incarnation=state.incarnation,
        seq=seq,
        rewrites=state.rewrites,
        tail=min(tail, state.tail),
        low=low,
        finished_at=finished_at,
        finished_position=position,
    ).in_phase("unknown" if start == "now" else "between")


def _low(state: SessionState, open_rows: Sequence[OpenRow]) -> int:
    return min((row.position for row in open_rows if row.ahead), default=state.head)
