"""Sessions in the memory of one process: rows, and the parts that store and broker share.

Together with ``memory_store.py`` and ``memory_broker.py`` it is the smallest implementation of both
protocols. It stores nothing, and knows no running turns.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sessionsdb import validation
from sessionsdb.errors import InvalidMessage, SessionEnded, UnknownSession, VersionConflict
from sessionsdb.types import (
    ForkPoint,
    OpenQuestion,
    Outcome,
    Question,
    Receipt,
    Schedule,
    SessionDetails,
    SessionId,
    SessionMessage,
    Status,
    TranscriptEntry,
)

Message = dict[str, Any]
MAX_ATTEMPTS = 2


@dataclass
class Row:
    """A message of a transcript."""

    seq: int
    text: str
    created_at: datetime
    key: str | None = None
    sender: str | None = None
    author: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def message(self) -> Message:
        return dict(json.loads(self.text))


@dataclass
class Item:
    """A message of an inbox."""

    position: int
    text: str
    enqueued_at: datetime
    sender: str | None = None
    author: str | None = None
    metadata: dict[str, Any] | None = None
    key: str | None = None
    request: str = ""
    """What the key was used for."""
    status: Status = "pending"
    attempts: int = 0
    ahead: bool = False
    error: str | None = None
    died: int = 0
    """The place in the order of deaths."""
    reply: SessionMessage | None = None
    finished_at: datetime | None = None
    asked: str | None = None
    """The id of the question that its turn asked."""


@dataclass
class Asked:
    """A question of a session."""

    open: OpenQuestion
    closed: str | None = None
    answer: str | None = None
    receipt: Receipt | None = None


@dataclass
class Session:
    """A session with everything that belongs to it."""

    id: str
    channel: str
    peer: str
    created_at: datetime
    updated_at: datetime
    last_active: datetime
    parent: str | None = None
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    version: int = 1
    last_seq: int = 0
    rows: list[Row] = field(default_factory=list)
    inbox: list[Item] = field(default_factory=list)
    ended_at: datetime | None = None
    end_reason: str | None = None
    forked_from: ForkPoint | None = None
    held: str | None = None
    """The id of its open question."""
    reports_to: str | None = None
    spawn_key: str | None = None
    spawn_request: str = ""
    incarnation: str = field(default_factory=lambda: uuid4().hex)

    @property
    def pending(self) -> list[Item]:
        return [item for item in self.inbox if item.status == "pending"]


class Memory:
    """All sessions, and the operations that store and broker have in common."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.states: dict[tuple[str, ...], tuple[dict[str, Any], int]] = {}
        self.questions: dict[str, Asked] = {}
        self.schedules: dict[str, Schedule] = {}
        self.changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.deaths = 0
        self._now = datetime.now(UTC)

    def now(self) -> datetime:
        """Return a time that is later than all before it."""
        self._now = max(datetime.now(UTC), self._now + timedelta(microseconds=1))
        return self._now

    def session(self, id: str) -> Session:
        if validation.session_id(id) not in self.sessions:
            raise UnknownSession(id)
        return self.sessions[id]

    def live(self, id: str) -> Session:
        session = self.session(id)
        if session.ended_at is not None:
            raise SessionEnded(id)
        return session

    def make(self, id: str, channel: str = "", peer: str = "", **fields: Any) -> Session:
        now = self.now()
        self.sessions[id] = Session(id, channel, peer, now, now, now, **fields)
        return self.sessions[id]

    def root(self, session: Session) -> Session:
        while session.parent is not None:
            session = self.sessions[session.parent]
        return session

    def below(self, id: str) -> list[Session]:
        """Return a session and all below it, parents before children."""
        found = [self.sessions[id]]
        for one in found:
            found += [child for child in self.sessions.values() if child.parent == one.id]
        return found

    # ---- transcripts -------------------------------------------------------------------------

    def encoded(self, messages: Sequence[Any]) -> list[str]:
        texts = []
        for index, message in enumerate(messages):
            try:
                if not isinstance(message, dict):
                    raise TypeError("it is no object")
                texts.append(json.dumps(message, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise InvalidMessage(f"message {index} can't be stored: {error}") from error
        return texts

    def expect(self, session: Session | None, id: str, version: int | None) -> None:
        actual = 0 if session is None else session.version
        if version is not None and version != actual:
            raise VersionConflict(id, version, actual)

    def add(
        self, session: Session, texts: Sequence[str], keys: Sequence[str | None] | None = None
    ) -> list[int]:
        """Append messages whose keys are new, and return the seq of each."""
        seqs = []
        for text, key in zip(texts, keys or [None] * len(texts), strict=True):
            known = [row for row in session.rows if key is not None and row.key == key]
            if not known:
                session.last_seq += 1
                known = [Row(session.last_seq, text, self.now(), key)]
                session.rows += known
                self.touch(session)
            seqs.append(known[0].seq)
        return seqs

    def touch(self, session: Session) -> None:
        session.version += 1
        session.updated_at = session.last_active = self.now()
        self.tell(session.id)

    def tell(self, id: str) -> None:
        """Wake all that wait for a change of a session."""
        self.changed.pop(id, asyncio.Event()).set()

    def cut(self, session: Session, keep_through: int) -> list[Message]:
        removed = [row.message for row in session.rows if row.seq > keep_through]
        if removed:
            session.rows = [row for row in session.rows if row.seq <= keep_through]
            self.touch(session)
        return removed

    # ---- values ------------------------------------------------------------------------------

    def entry(self, session: Session, row: Row) -> TranscriptEntry:
        return TranscriptEntry(
            session_id=SessionId(session.id),
            seq=row.seq,
            message=row.message,
            created_at=row.created_at,
            key=row.key,
            sender=None if row.sender is None else SessionId(row.sender),
            author=row.author,
            metadata=row.metadata,
        )

    def shown(self, row: Row) -> SessionMessage:
        message = row.message
        content = message.get("content")
        return SessionMessage(
            role=message.get("role") or "assistant",
            content=content if isinstance(content, str) else json.dumps(content),
            timestamp=row.created_at,
            seq=row.seq,
            sender=None if row.sender is None else SessionId(row.sender),
            author=row.author,
            metadata=row.metadata,
        )

    def details(self, session: Session) -> SessionDetails:
        root = self.root(session)
        return SessionDetails(
            id=SessionId(session.id),
            channel=session.channel,
            peer=session.peer,
            created_at=session.created_at,
            last_active=session.last_active,
            message_count=len(session.rows),
            parent=None if session.parent is None else SessionId(session.parent),
            root=None if root is session else SessionId(root.id),
            model=session.model,
            system=session.system,
            tools=session.tools,
            metadata=session.metadata,
            version=session.version,
            pending=len(session.pending),
            running=False,
            ended_at=session.ended_at,
            end_reason=session.end_reason,
            forked_from=session.forked_from,
            held=None if session.held is None else self.questions[session.held].open,
        )

    def outcome(self, session: Session, item: Item) -> Outcome:
        asked = self.questions.get(item.asked or "")
        is_open = asked is not None and session.held == item.asked
        return Outcome(
            receipt=Receipt(session_id=SessionId(session.id), position=item.position),
            status=item.status,
            attempts=item.attempts,
            reply=item.reply,
            error=item.error,
            enqueued_at=item.enqueued_at,
            finished_at=item.finished_at,
            question=asked.open if asked is not None and is_open else None,
        )

    # ---- turns -------------------------------------------------------------------------------

    async def run_turns(self, answers: Callable[[str, str], str | Question | None]) -> None:
        """Send due schedules, then run turns until no message waits, except behind a question."""
        for schedule in list(self.schedules.values()):
            if schedule.due_at <= self.now():
                del self.schedules[schedule.id]
                session = self.sessions[schedule.session_id]
                self.queue(session, json.dumps(schedule.message), author=schedule.author)
        while ready := [one for one in self.sessions.values() if self._next(one) is not None]:
            for session in ready:
                item = self._next(session)
                assert item is not None
                await asyncio.sleep(0)
                self._run(session, item, answers)

    def queue(self, session: Session, text: str, **fields: Any) -> Item:
        item = Item(len(session.inbox) + 1, text, self.now(), **fields)
        session.inbox.append(item)
        session.last_active = self.now()
        return item

    def _next(self, session: Session) -> Item | None:
        waiting = sorted(session.pending, key=lambda item: not item.ahead)
        if not waiting or (session.held is not None and not waiting[0].ahead):
            return None
        return waiting[0]

    def _run(
        self, session: Session, item: Item, answers: Callable[[str, str], str | Question | None]
    ) -> None:
        item.attempts += 1
        message = json.loads(item.text)
        content = message.get("content")
        try:
            answer = answers(session.id, content if isinstance(content, str) else str(content))
        except Exception as error:
            item.error = f"{type(error).__name__}: {error}"
            if item.attempts >= MAX_ATTEMPTS:
                self.deaths += 1
                item.died = self.deaths
                self.finish(session, item, "dead")
            return
        self.add(session, [item.text])
        row = session.rows[-1]
        row.sender, row.author, row.metadata = item.sender, item.author, item.metadata
        if isinstance(answer, str):
            self.add(session, [json.dumps({"role": "assistant", "content": answer})])
            item.reply = self.shown(session.rows[-1])
            self._report(session, answer)
        self.finish(session, item, "done")
        if isinstance(answer, Question):
            self._ask(session, item, answer)

    def _ask(self, session: Session, item: Item, question: Question) -> None:
        item.asked = session.held = f"{session.id}:{item.position}"
        self.questions[item.asked] = Asked(
            OpenQuestion(
                id=item.asked,
                session_id=SessionId(session.id),
                prompt=question.prompt,
                data=question.data,
                asked_at=self.now(),
                receipt=Receipt(session_id=SessionId(session.id), position=item.position),
                accept_message=question.accept_message,
            )
        )

    def _report(self, session: Session, answer: str) -> None:
        if session.reports_to is not None:
            parent, session.reports_to = self.sessions[session.reports_to], None
            self.queue(
                parent,
                json.dumps({"role": "user", "content": f"{session.id} says: {answer}"}),
                sender=session.id,
            )

    def finish(self, session: Session, item: Item, status: Status) -> None:
        item.status, item.finished_at, item.ahead = status, self.now(), False
        self.tell(session.id)

    def close_question(self, session: Session, reason: str) -> None:
        if session.held is not None:
            self.questions[session.held].closed = reason
            session.held = None


def copied(row: Row) -> Row:
    return replace(row)
