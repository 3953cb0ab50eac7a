"""Turn the rows behind a place of a session into events: see ``following.py``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby, takewhile
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc, as_utc_or_none
from sessionsdb.events import (
    DataEvent,
    DeltaEvent,
    EndedEvent,
    Event,
    IdleEvent,
    MessageEvent,
    QueuedEvent,
    ResetEvent,
    TurnEvent,
)
from sessionsdb.messages.json_text import parse
from sessionsdb.operations.follow_cursor import Place, encode, prefix_of
from sessionsdb.operations.follow_rows import (
    PAGE,
    PIECES,
    EndRow,
    FollowedRows,
    OpenRow,
    read_pieces,
)
from sessionsdb.operations.follow_types import Piece, PieceRequest, SessionState
from sessionsdb.operations.history import messages_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.types import Receipt, SessionId, SessionMessage


class EventTeller:
    """Collects events, and moves the place behind each of them."""

    def __init__(self, key: SessionKey, place: Place) -> None:
        self._key = key
        self._id = SessionId(key[1])
        self._prefix = prefix_of(key)
        self._present = datetime.now(UTC)
        self.place = place
        self.events: list[Event] = []

    def move(self, **numbers: Any) -> None:
        self.place = self.place._replace(**numbers)

    def tell(self, event: type[Any], *, at: datetime | None = None, **fields: Any) -> None:
        self.events.append(
            event(
                session_id=self._id,
                at=at or self._present,
                cursor=encode(self._prefix, self.place),
                **fields,
            )
        )

    def receipt(self, position: int) -> Receipt:
        return Receipt(session_id=self._id, position=position)

    # Each of the next methods returns whether it told everything: then the next one may go on.

    def tell_queued(self, rows: FollowedRows, state: SessionState) -> bool:
        if self.place.tail >= state.tail:
            return True
        told = (self.place.finished_at, self.place.finished_position)
        found, has_more = rows.queued(self.place, state)
        for row in found:
            self.move(tail=row.position)
            if row.finished is not None and row.finished <= told:
                continue
            if self.place.phase_name == "idle":
                self.place = self.place.in_phase("between")
            message = SessionMessage(
                role=row.role,
                content=row.content,
                timestamp=row.enqueued_at,
                sender=None if row.sender is None else SessionId(row.sender),
                author=row.extra.author,
                metadata=row.extra.metadata,
            )
            self.tell(
                QueuedEvent,
                at=row.enqueued_at,
                receipt=self.receipt(row.position),
                message=message,
            )
        if has_more:
            return False
        self.move(tail=state.tail)
        return True

    def tell_transcript(self, rows: FollowedRows, state: SessionState) -> bool:
        """Tell messages, and the ends of turns behind the messages that they wrote."""
        found, has_more = (
            rows.messages(self.place, state) if self.place.seq < state.last_seq else ([], False)
        )
        messages = messages_of(found)
        positions = [row[-1] for row in found if row[-1] is not None]
        ends, later = rows.ends(self.place, state, positions)
        if later:
            # Ends of the next page come before these. The messages of these wait for them.
            first = min(end.first_seq or end.last_seq or 0 for end in later)
            before = [one for one in messages if (one.seq or 0) < first]
            if before or (ends[0].last_seq or 0) <= self.place.seq:
                messages, has_more = before, True
            else:  # a clock went back between the ends: no page has an event that comes first
                ends += later
        last_seq = state.last_seq
        if has_more:
            last_seq = int(messages[-1].seq or 0) if messages else self.place.seq
        # A turn whose last message is on a later page is told there, and so are all ends behind it.
        ends = list(takewhile(lambda end: (end.last_seq or 0) <= last_seq, ends))
        told = 0
        for _, group in groupby(ends, key=lambda end: (end.finished_at, end.epoch, end.status)):
            run = list(group)
            written = run[0].last_seq
            while told < len(messages) and (messages[told].seq or 0) <= (written or 0):
                self._tell_message(messages[told])
                told += 1
            self._tell_end(run)
        for message in messages[told:]:
            self._tell_message(message)
        if has_more or len(ends) >= PAGE:
            return False
        self.move(seq=max(self.place.seq, state.last_seq))
        return True

    def _tell_message(self, message: SessionMessage) -> None:
        self.move(seq=message.seq or 0)
        self.tell(MessageEvent, at=message.timestamp, message=message)

    def _tell_end(self, run: Sequence[EndRow]) -> None:
        first = run[0]
        is_told_run = first.epoch is not None and first.epoch == self.place.run
        if is_told_run:
            if first.last_seq is None:
                self._void_pieces()
            self.place = self.place.without_pieces()
        if is_told_run or self.place.phase_name in ("idle", "waiting"):
            self.place = self.place.in_phase("between")
        finished_at, position = run[-1].order
        if (finished_at, position) > (self.place.finished_at, self.place.finished_position):
            self.move(finished_at=finished_at, finished_position=position)
        self.tell(
            TurnEvent,
            at=first.finished_at,
            status=first.status,
            run=first.epoch,
            attempt=first.attempts,
            receipts=[self.receipt(end.position) for end in run],
            error=first.error if first.status == "dead" else None,
        )

    def _void_pieces(self) -> None:
        """Tell that the pieces of the told run are void, if there were any."""
        has_pieces = self.place.number > 0
        self.place = self.place.without_pieces()
        if has_pieces:
            self.tell(ResetEvent, run=self.place.run)

    def tell_state(
        self,
        rows: FollowedRows,
        connection: Connection,
        state: SessionState,
        open_rows: Sequence[OpenRow],
    ) -> bool:
        self.tell_turn(rows, state, open_rows)
        if state.leased and state.generation is not None:
            if state.generation != self.place.generation:
                self._void_pieces()
                self.move(generation=state.generation)
            if (state.number or 0) >= self.place.number:
                request = PieceRequest(self._key, state.epoch, state.generation, self.place.number)
                [pieces] = read_pieces(connection, [request])
                if not self.tell_pieces(pieces, state):
                    return False
        if state.closed and not self.place.ended:
            self.move(ended=1)
            self.tell(EndedEvent)
        elif self.place.ended and not state.closed:
            self.place = self.place._replace(ended=0).in_phase("between")
        if not (state.leased or state.wake_at is not None or state.closed):
            phase = self.place.phase_name
            self.place = self.place.in_phase("between" if state.pending else "idle")
            if not state.pending and phase != "idle":
                self.tell(IdleEvent)
        return True

    def tell_turn(
        self, rows: FollowedRows, state: SessionState, open_rows: Sequence[OpenRow]
    ) -> None:
        """Tell the end of a run that left no trace, and the run, backoff or question of now."""
        is_waiting = state.wake_at is not None and state.question is None
        is_same_run = self.place.run == state.epoch
        if self.place.phase_name == "running" and not (state.leased and is_same_run):
            self._void_pieces()
            failed = [
                row
                for row in open_rows
                if row.status == "pending"
                and row.epoch == self.place.run
                and row.attempts == self.place.attempt
                and row.error is not None
            ]
            self.place = self.place.in_phase("between")
            if failed and not is_waiting:
                self._tell_failed(failed, None)
        if state.question is not None:
            if not (self.place.phase_name == "held" and is_same_run):
                self._tell_held(rows, state.question, state)
        elif is_waiting and not (self.place.phase_name == "waiting" and is_same_run):
            self._void_pieces()
            failed = [
                row
                for row in open_rows
                if row.status == "pending" and row.attempts > 0 and row.epoch == state.epoch
            ]
            self.place = self.place.in_phase("waiting")
            self.move(run=state.epoch)
            if failed:
                self.move(attempt=failed[0].attempts)
                self._tell_failed(failed, as_utc_or_none(state.wake_at))
        elif state.leased and not (self.place.phase_name == "running" and is_same_run):
            self._void_pieces()
            running = [row for row in open_rows if row.status == "running"]
            self.place = self.place.in_phase("running")
            self.move(run=state.epoch, attempt=running[0].attempts if running else 0)
            self.tell(
                TurnEvent,
                at=as_utc_or_none(running[0].claimed_at) if running else None,
                status="started",
                run=state.epoch,
                attempt=self.place.attempt,
                receipts=[self.receipt(row.position) for row in running],
            )

    def _tell_held(self, rows: FollowedRows, position: int, state: SessionState) -> None:
        self._void_pieces()
        question, attempt = rows.question(position)
        self.place = self.place.in_phase("held")
        self.move(run=state.epoch, attempt=attempt)
        self.tell(
            TurnEvent,
            at=None if question is None else question.asked_at,
            status="held",
            run=state.epoch,
            attempt=attempt,
            receipts=[self.receipt(position)],
            question=question,
        )

    def _tell_failed(self, failed: Sequence[OpenRow], retry_at: datetime | None) -> None:
        self.tell(
            TurnEvent,
            status="failed",
            run=self.place.run,
            attempt=self.place.attempt,
            receipts=[self.receipt(row.position) for row in failed],
            error=failed[0].error,
            retry_at=retry_at,
        )

    def tell_pieces(self, pieces: Sequence[Piece], state: SessionState) -> bool:
        """Tell pieces that stand side by side, texts together as one event.

        A gap ends them: rows that a failing server has lost come again in another generation.
        """
        texts: list[Piece] = []
        for piece in pieces:
            if piece.number != self.place.number:
                break
            if piece.text is None:
                self._tell_texts(texts)
                texts = []
                self.move(number=piece.number + 1)
                self.tell(
                    DataEvent,
                    at=as_utc(piece.written_at),
                    run=state.epoch,
                    kind=piece.kind or "",
                    data=None if piece.data is None else parse(piece.data),
                )
            else:
                texts.append(piece)
                self.move(number=piece.number + 1)
        self._tell_texts(texts)
        return len(pieces) < PIECES

    def _tell_texts(self, pieces: Sequence[Piece]) -> None:
        if not pieces:
            return
        text = "".join(piece.text or "" for piece in pieces)
        self.move(number=pieces[-1].number + 1, offset=pieces[0].start + len(text))
        self.tell(
            DeltaEvent,
            at=as_utc(pieces[-1].written_at),
            run=self.place.run,
            offset=pieces[0].start,
            text=text,
        )
