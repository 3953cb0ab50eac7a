"""A ``SessionBroker`` in memory, without ``search``."""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from types import EllipsisType
from typing import Any
from uuid import uuid4

from sessionsdb import validation
from sessionsdb.cron import Cron, InvalidCron
from sessionsdb.errors import (
    IdempotencyConflict,
    InboxFull,
    InvalidArgument,
    InvalidMessage,
    QuestionAnswered,
    QuestionClosed,
    SessionBusy,
    SessionEnded,
    SessionExists,
    SpawnDenied,
    UnknownQuestion,
    UnknownReceipt,
)
from sessionsdb.events import DeletedEvent, Event, IdleEvent, MessageEvent
from sessionsdb.types import (
    CatchUp,
    ForkPoint,
    Limits,
    OpenQuestion,
    Outcome,
    Receipt,
    Schedule,
    SearchHit,
    SessionDetails,
    SessionId,
    SessionMessage,
    SessionSummary,
    SpawnedSession,
    SpawnRequest,
    WhenBusy,
)
from tests.support.memory_sessions import Item, Memory, Message, Session, copied
from tests.support.memory_store import page

LIMITS = Limits()


class MemoryBroker:
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    # ---- sessions ----------------------------------------------------------------------------

    async def register(
        self,
        id: str,
        *,
        channel: str,
        peer: str,
        parent: str | None = None,
        model: str | None = None,
        system: str | None = None,
        tools: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> SessionSummary:
        known = self.memory.sessions.get(validation.session_id(id))
        if known is not None:
            if not exist_ok:
                raise SessionExists(id)
            return self.memory.details(self.memory.live(id)).summary
        if parent is not None:
            self.memory.live(parent)
        made = self.memory.make(
            id,
            channel,
            peer,
            parent=parent,
            model=model,
            system=system,
            tools=None if tools is None else list(tools),
            metadata=metadata or {},
        )
        return self.memory.details(made).summary

    async def get(self, id: str) -> SessionDetails:
        return self.memory.details(self.memory.session(id))

    async def update(
        self,
        id: str,
        *,
        channel: str | EllipsisType = ...,
        peer: str | EllipsisType = ...,
        model: str | EllipsisType | None = ...,
        system: str | EllipsisType | None = ...,
        tools: Sequence[str] | EllipsisType | None = ...,
        metadata: dict[str, Any] | EllipsisType | None = ...,
    ) -> SessionDetails:
        session = self.memory.session(id)
        fields = {"channel": channel, "peer": peer, "model": model, "system": system}
        for name, value in {**fields, "tools": tools, "metadata": metadata}.items():
            if value is not ...:
                setattr(session, name, value)
        return self.memory.details(session)

    async def list(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: bool = False,
    ) -> builtins.list[Any]:
        memory = self.memory
        found = [
            memory.details(one)
            for one in memory.sessions.values()
            if channel in (None, one.channel)
            and peer in (None, one.peer)
            and parent in (None, one.parent)
            and root in (None, memory.root(one).id)
            and (active_since is None or one.last_active >= active_since)
            and (include_ended or one.ended_at is None)
        ]
        found.sort(key=lambda one: (one.last_active, one.id), reverse=newest_first)
        if after is not None:
            last = memory.details(memory.session(after)) if isinstance(after, str) else after
            place = (last.last_active, last.id)
            found = [
                one
                for one in found
                if (one.last_active, one.id) != place
                and ((one.last_active, one.id) < place) == newest_first
            ]
        return [one if details else one.summary for one in found[:limit]]

    async def fork(
        self, id: str, *, at: int | None = None, new_id: str | None = None
    ) -> SessionSummary:
        source = self.memory.session(id)
        new_id = f"fork-{uuid4()}" if new_id is None else new_id
        if new_id in self.memory.sessions:
            raise SessionExists(new_id, for_fork=True)
        rows = [copied(row) for row in source.rows if at is None or row.seq <= at]
        made = self.memory.make(
            new_id,
            source.channel,
            source.peer,
            model=source.model,
            system=source.system,
            tools=source.tools,
            metadata=dict(source.metadata),
            rows=rows,
            last_seq=rows[-1].seq if rows else 0,
            forked_from=ForkPoint(id=SessionId(id), seq=rows[-1].seq if rows else 0),
        )
        return self.memory.details(made).summary

    async def history(
        self,
        id: str,
        limit: int | None = None,
        *,
        before: int | None = None,
        after: int | None = None,
        max_bytes: int | None = None,
    ) -> builtins.list[SessionMessage]:
        rows = page(self.memory.session(id).rows, 50 if limit is None else limit, before, after)
        found = [self.memory.shown(row) for row in rows]
        while max_bytes is not None and len(found) > 1:
            if sum(len(one.content.encode()) for one in found) <= max_bytes:
                break
            del found[-1 if after is not None else 0]
        return found

    async def search(
        self,
        query: str,
        *,
        channel: str | None = None,
        peer: str | None = None,
        root: str | None = None,
        limit: int = 20,
        after: SearchHit | str | None = None,
    ) -> builtins.list[SearchHit]:
        raise NotImplementedError

    async def end(self, id: str, *, subtree: bool = False, reason: str | None = None) -> int:
        self.memory.session(id)
        ended = 0
        for one in self.memory.below(id) if subtree else [self.memory.sessions[id]]:
            if one.ended_at is None:
                ended += 1
                one.ended_at, one.end_reason = self.memory.now(), reason
                self.memory.close_question(one, "ended")
                for item in one.pending:
                    self.memory.finish(one, item, "cancelled")
                for schedule in await self.schedules(one.id):
                    del self.memory.schedules[schedule.id]
        return ended

    async def reopen(self, id: str) -> SessionDetails:
        session = self.memory.session(id)
        session.ended_at = session.end_reason = None
        return self.memory.details(session)

    async def follow(
        self,
        id: str,
        *,
        after: str | int | Mapping[str, str] | None = None,
        subtree: bool = False,
    ) -> AsyncGenerator[Event, None]:
        session = self.memory.session(id)
        seq = 0 if after == "start" else session.last_seq if after is None else int(str(after))
        place = {"session_id": SessionId(id), "at": self.memory.now()}
        if after is None:
            yield IdleEvent(**place, cursor=str(seq))
        while self.memory.sessions.get(id) is session:
            changed = self.memory.changed[id]
            for row in [row for row in session.rows if row.seq > seq]:
                seq = row.seq
                yield MessageEvent(**place, cursor=str(seq), message=self.memory.shown(row))
            if not changed.is_set():
                await changed.wait()
        yield DeletedEvent(**place, cursor=str(seq))

    # ---- messages ----------------------------------------------------------------------------

    async def send(
        self,
        id: str,
        message: str | Message,
        *,
        sender: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        when_busy: WhenBusy = "queue",
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> Receipt:
        session = self.memory.live(id)
        text = self._text(message)
        if sender is not None:
            self.memory.session(sender)
        known = self._known(session, idempotency_key, text)
        if known is not None:
            return known
        if when_busy == "reject" and (session.pending or session.held):
            raise SessionBusy(id, len(session.pending))
        if len(session.pending) >= LIMITS.pending:
            raise InboxFull(id, LIMITS.pending)
        item = self.memory.queue(
            session,
            text,
            sender=sender,
            author=author,
            metadata=metadata,
            key=idempotency_key,
            request=text,
        )
        return Receipt(session_id=SessionId(id), position=item.position)

    def _text(self, message: str | Message) -> str:
        if message == "":
            raise InvalidMessage("the text is empty")
        whole = {"role": "user", "content": message} if isinstance(message, str) else message
        return self.memory.encoded([whole])[0]

    def _known(self, session: Session, key: str | None, request: str) -> Receipt | None:
        for item in session.inbox:
            if key is not None and item.key == key:
                if item.request != request:
                    raise IdempotencyConflict(session.id, key)
                id = SessionId(session.id)
                return Receipt(session_id=id, position=item.position, duplicate=True)
        return None

    async def spawn(
        self,
        parent: str,
        request: SpawnRequest,
        *,
        idempotency_key: str | None = None,
        connection: object = None,
    ) -> SpawnedSession:
        above = self.memory.live(parent)
        for child in self.memory.below(parent)[1:]:
            if idempotency_key is not None and child.spawn_key == idempotency_key:
                if child.spawn_request != request.model_dump_json():
                    raise IdempotencyConflict(parent, idempotency_key)
                return SpawnedSession(id=SessionId(child.id))
        extra = set(request.tools or ()) - set(above.tools or ())
        if above.tools is not None and extra:
            raise SpawnDenied(parent, f"it has not the tools {extra}")
        if self._depth(above) >= LIMITS.depth:
            raise SpawnDenied(parent, "the tree would be too deep")
        made = self.memory.make(
            f"spawn-{uuid4()}",
            "spawned",
            f"spawned-by-{parent}",
            parent=parent,
            model=above.model if request.model is None else request.model,
            system=above.system if request.system is None else request.system,
            tools=above.tools if request.tools is None else request.tools,
            reports_to=parent if request.report == "each" else None,
            spawn_key=idempotency_key,
            spawn_request=request.model_dump_json(),
        )
        receipt = await self.send(made.id, request.prompt, sender=parent)
        reply = None
        if request.wait_for_first_reply:
            reply = (await self.wait(receipt, request.wait_timeout_secs)).reply
        return SpawnedSession(id=SessionId(made.id), first_reply=reply)

    def _depth(self, session: Session) -> int:
        depth = 0
        while session.parent is not None:
            session, depth = self.memory.sessions[session.parent], depth + 1
        return depth

    def _item(self, receipt: Receipt) -> tuple[Session, Item]:
        session = self.memory.session(receipt.session_id)
        for item in session.inbox:
            if item.position == receipt.position:
                return session, item
        raise UnknownReceipt(session.id, receipt.position)

    async def outcome(self, receipt: Receipt) -> Outcome:
        return self.memory.outcome(*self._item(receipt))

    async def wait(
        self, receipt: Receipt, timeout: float = 60.0, *, waiter: str | None = None
    ) -> Outcome:
        session, item = self._item(receipt)
        try:
            async with asyncio.timeout(timeout):
                while not (outcome := self.memory.outcome(session, item)).final:
                    await self.memory.changed[session.id].wait()
        except TimeoutError:
            return self.memory.outcome(session, item)
        return outcome

    async def cancel(self, receipt: Receipt, *, keep_partial: bool = True) -> Outcome:
        session, item = self._item(receipt)
        if item.status == "pending":
            self.memory.finish(session, item, "cancelled")
        return self.memory.outcome(session, item)

    async def interrupt(
        self, id: str, *, subtree: bool = False, keep_partial: bool = True
    ) -> builtins.list[Outcome]:
        self.memory.close_question(self.memory.session(id), "withdrawn")
        return []

    async def inbox(
        self, id: str, *, limit: int = 100, after: Receipt | int | None = None
    ) -> builtins.list[Outcome]:
        session = self.memory.session(id)
        behind = after.position if isinstance(after, Receipt) else after or 0
        waiting = [one for one in session.inbox if one.status in ("pending", "dead")]
        return [
            self.memory.outcome(session, one).model_copy(
                update={
                    "message": SessionMessage(
                        role="user",
                        content=str(json.loads(one.text).get("content")),
                        timestamp=one.enqueued_at,
                    )
                }
            )
            for one in waiting
            if one.position > behind
        ][:limit]

    # ---- dead letters ------------------------------------------------------------------------

    def _dead(self, id: str | None) -> builtins.list[tuple[Session, Item]]:
        sessions = self.memory.sessions.values() if id is None else [self.memory.session(id)]
        dead = [(one, item) for one in sessions for item in one.inbox if item.status == "dead"]
        return sorted(dead, key=lambda one: one[1].died)

    async def dead_letters(
        self, id: str | None = None, *, limit: int = 100
    ) -> builtins.list[Outcome]:
        dead = self._dead(id)
        return [self.memory.outcome(*one) for one in dead[max(0, len(dead) - limit) :]]

    async def requeue(self, receipt: Receipt) -> None:
        session, item = self._item(receipt)
        if item.status != "dead":
            raise InvalidArgument("the message is not dead")
        self.memory.live(session.id)
        item.status, item.attempts, item.ahead, item.finished_at = "pending", 0, True, None

    async def requeue_all(
        self, id: str | None = None, *, since: datetime | None = None, error: str | None = None
    ) -> int:
        found = [
            outcome.receipt
            for outcome in await self.dead_letters(id, limit=10_000)
            if (error is None or error in (outcome.error or ""))
            and (
                since is None or (outcome.finished_at is not None and outcome.finished_at >= since)
            )
        ]
        for receipt in found:
            await self.requeue(receipt)
        return len(found)

    # ---- questions ---------------------------------------------------------------------------

    async def questions(
        self,
        id: str | None = None,
        *,
        limit: int = 100,
        after: OpenQuestion | str | None = None,
    ) -> builtins.list[OpenQuestion]:
        if id is not None:
            self.memory.session(id)
        held = [one.held for one in self.memory.sessions.values() if id in (None, one.id)]
        found = [self.memory.questions[one].open for one in held if one is not None]
        found.sort(key=lambda one: one.asked_at)
        if after is not None:
            last = after if isinstance(after, OpenQuestion) else self.memory.questions[after].open
            found = [one for one in found if one.asked_at > last.asked_at]
        return found[:limit]

    async def answer(
        self,
        question_id: str,
        message: str | Message,
        *,
        author: str | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        asked = self.memory.questions.get(question_id)
        if asked is None:
            raise UnknownQuestion(question_id)
        text = self._text(message)
        if asked.receipt is not None:
            if asked.answer != text:
                raise QuestionAnswered(question_id)
            return asked.receipt.model_copy(update={"duplicate": True})
        if asked.closed is not None:
            raise QuestionClosed(question_id, asked.closed)
        session = self.memory.session(asked.open.session_id)
        session.held = None
        item = self.memory.queue(session, text, author=author, ahead=True)
        asked.answer = text
        asked.receipt = Receipt(session_id=SessionId(session.id), position=item.position)
        return asked.receipt

    # ---- schedules ---------------------------------------------------------------------------

    async def schedule(
        self,
        id: str,
        message: str | Message,
        *,
        at: datetime | None = None,
        cron: str | None = None,
        tz: str = "UTC",
        name: str | None = None,
        sender: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        catch_up: CatchUp = "one",
    ) -> Schedule:
        if self.memory.session(id).ended_at is not None:
            raise SessionEnded(id)
        if (at is None) == (cron is None) or (at is not None and at.tzinfo is None):
            raise InvalidArgument("pass either at, with a time zone, or cron")
        due_at = at
        if cron is not None:
            try:
                due_at = Cron.parse(cron, tz).next_after(self.memory.now())
            except InvalidCron as error:
                raise InvalidArgument(str(error)) from error
        assert due_at is not None
        same = [
            one.id
            for one in self.memory.schedules.values()
            if name is not None and (one.session_id, one.name) == (id, name)
        ]
        made = Schedule(
            id=same[0] if same else uuid4().hex,
            session_id=SessionId(id),
            message=json.loads(self._text(message)),
            at=at,
            cron=cron,
            tz=tz,
            name=name,
            author=author,
            metadata=metadata,
            catch_up=catch_up,
            created_at=self.memory.now(),
            due_at=due_at,
        )
        self.memory.schedules[made.id] = made
        return made

    async def schedules(self, id: str | None = None) -> builtins.list[Schedule]:
        if id is not None:
            self.memory.session(id)
        found = [one for one in self.memory.schedules.values() if id in (None, one.session_id)]
        return sorted(found, key=lambda one: one.due_at)

    async def unschedule(self, schedule_id: str) -> bool:
        return self.memory.schedules.pop(schedule_id, None) is not None
