"""The ``SessionBroker`` of a SQL database."""

from __future__ import annotations

import builtins
import contextlib
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import Connection

from sessionsdb import messages, operations, runtime, telemetry, validation
from sessionsdb.engine.runner import Operation
from sessionsdb.errors import InvalidArgument, StorageError, UnknownReceipt
from sessionsdb.protocols import SessionBroker
from sessionsdb.runtime import current_turn
from sessionsdb.runtime.database_access import DONE, STOP, WORK, Topics, hint_about
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.reads import Reads
from sessionsdb.types import (
    DEFAULT_HISTORY_LIMIT,
    CatchUp,
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
from sessionsdb.untrusted_values import is_instance

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sessionsdb.events import Event
    from sessionsdb.operations.inbox_types import Send
    from sessionsdb.operations.session_end import Ended
    from sessionsdb.operations.session_list import SessionFilter
    from sessionsdb.operations.stop_calls import Stopped

_WHEN_BUSY: tuple[WhenBusy, ...] = get_args(WhenBusy)


class SqlSessionBroker(SessionBroker):
    """The broker of one namespace. ``SessionBroker`` documents each method."""

    def __init__(self, database: OpenDatabase, namespace: str, reads: Reads | None = None) -> None:
        """``reads`` runs the reads that may be older than the last write, by default the primary.

        Everything that a caller may decide a write by is read from the primary.
        """
        self._database = database
        self._reads: Reads = database if reads is None else reads
        self._namespace = namespace

    # ---- the registry ------------------------------------------------------------------------

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
        registration = operations.registry.Registration(
            self._namespace,
            validation.session_id(id),
            channel=validation.name(channel, "channel"),
            peer=validation.name(peer, "peer", empty=True),
            parent=validation.optional_session_id(parent),
            model=validation.model(model),
            system=validation.system(system),
            tools=validation.tools(tools),
            metadata=validation.metadata(metadata),
        )
        registered = await self._database.write(
            partial(
                operations.registry.register,
                registration=registration,
                exist_ok=validation.boolean(exist_ok, "exist_ok"),
            ),
            wakes=(),
        )
        return registered.summary

    async def get(self, id: str) -> SessionDetails:
        return await self._database.read(
            partial(
                operations.registry.get,
                namespace=self._namespace,
                session_id=validation.session_id(id),
            )
        )

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
        changes: dict[str, Any] = {}
        if channel is not ...:
            changes["channel"] = validation.name(channel, "channel")
        if peer is not ...:
            changes["peer"] = validation.name(peer, "peer", empty=True)
        if model is not ...:
            changes["model"] = validation.model(model)
        if system is not ...:
            changes["system"] = validation.system(system)
        if tools is not ...:
            changes["tools"] = validation.tools(tools)
        if metadata is not ...:
            changes["metadata"] = validation.metadata(metadata)
        change = operations.session_rows.SessionChange(
            self._namespace, validation.session_id(id), operations.registry.as_stored(changes)
        )
        return await self._database.batched_calls.update(change)

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
        filter_ = operations.session_list.SessionFilter(
            channel=validation.optional_name(channel, "channel"),
            peer=validation.optional_name(peer, "peer", empty=True),
            parent=validation.optional_session_id(parent),
            root=validation.optional_session_id(root),
            active_since=(
                None
                if active_since is None
                else validation.aware_datetime(active_since, "active_since")
            ),
            include_ended=validation.boolean(include_ended, "include_ended"),
            limit=validation.optional_integer(limit, "limit"),
            newest_first=validation.boolean(newest_first, "newest_first"),
            details=validation.boolean(details, "details"),
        )
        cursor: SessionId | None = None
        if is_instance(after, SessionSummary):
            filter_ = filter_._replace(after=validation.list_position(after))
        elif after is not None:
            cursor = validation.session_id(after)
        return await self._reads.read(
            partial(_list_page, namespace=self._namespace, filter_=filter_, cursor=cursor)
        )

    async def fork(
        self, id: str, *, at: int | None = None, new_id: str | None = None
    ) -> SessionSummary:
        given = validation.optional_session_id(new_id)
        operation = partial(
            operations.forking.fork,
            namespace=self._namespace,
            session_id=validation.session_id(id),
            new_id=f"fork-{uuid.uuid4()}" if given is None else given,
            at=validation.optional_integer(at, "at"),
        )
        return await self._database.write(operation, wakes=())

    async def end(self, id: str, *, subtree: bool = False, reason: str | None = None) -> int:
        session_id = validation.session_id(id)
        operation = partial(
            operations.session_end.end,
            namespace=self._namespace,
            session_id=session_id,
            subtree=validation.boolean(subtree, "subtree"),
            reason=validation.reason(reason),
        )
        stopped = hint_about(STOP, None if subtree else [(self._namespace, session_id)])

        def wakes(ended: Ended) -> Topics:
            return (WORK, DONE, stopped) if ended.reported else (DONE, stopped)

        return (await self._database.write(operation, wakes=wakes)).sessions

    async def reopen(self, id: str) -> SessionDetails:
        operation = partial(
            _reopen,
            namespace=self._namespace,
            session_id=validation.session_id(id),
            limits=self._database.limits,
        )
        return await self._database.write(operation, wakes=())

    # ---- the transcript ----------------------------------------------------------------------

    async def history(
        self,
        id: str,
        limit: int | None = None,
        *,
        before: int | None = None,
        after: int | None = None,
        max_bytes: int | None = None,
    ) -> builtins.list[SessionMessage]:
        return await self._reads.read_page(
            operations.history_page.HistoryPage(
                self._namespace,
                validation.session_id(id),
                DEFAULT_HISTORY_LIMIT if limit is None else validation.integer(limit, "limit"),
                before=validation.cursor(before, "before"),
                after=validation.cursor(after, "after"),
                max_bytes=validation.optional_integer(max_bytes, "max_bytes"),
            )
        )

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
        wanted = operations.search_types.Search(
            self._namespace,
            messages.search_words.parse_query(query),
            channel=validation.optional_name(channel, "channel"),
            peer=validation.optional_name(peer, "peer", empty=True),
            root=validation.optional_session_id(root),
            limit=validation.integer(limit, "limit", maximum=operations.search.MAX_HITS),
            before=operations.search.place_of(validation.search_cursor(after)),
        )
        return await runtime.search_pages.search_page(self._reads, wanted)

    # ---- events ------------------------------------------------------------------------------

    async def follow(
        self,
        id: str,
        *,
        after: str | int | Mapping[str, str] | None = None,
        subtree: bool = False,
    ) -> AsyncGenerator[Event, None]:
        key = (self._namespace, validation.session_id(id))
        if validation.boolean(subtree, "subtree"):
            starts = runtime.follow_start.of_subtree(key, after)
            events = runtime.follow_subtree.follow_subtree(self._reads.followed, key, starts)
        else:
            start = runtime.follow_start.of_session(key, after)
            events = runtime.follow_subtree.follow_session(self._reads.followed, key, start)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    # ---- the inbox ---------------------------------------------------------------------------

    async def send(
        self,
        id: str,
        message: str | dict[str, Any],
        *,
        sender: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        when_busy: WhenBusy = "queue",
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> Receipt:
        with telemetry.observed.telemetry.sending(self._namespace, id) as sending:
            request = runtime.requests.send_request(
                self._namespace,
                id,
                message,
                self._database.limits,
                sender,
                idempotency_key,
                trace=sending.trace,
                author=author,
                metadata=metadata,
            )
            how = validation.one_of(when_busy, _WHEN_BUSY, "when_busy")
            if how != "queue":
                receipt = await self._send_when_busy(request, how, connection)
            elif connection is not None:
                operation = partial(
                    operations.spawning.send_message, request=request, limits=self._database.limits
                )
                receipt = await runtime.caller_transaction.run_in_caller_transaction(
                    self._database, connection, operation, key=request[:2], wakes=(WORK,)
                )
            else:
                receipt = await self._database.batched_calls.send(request)
            sending.duplicate = receipt.duplicate
            return receipt

    async def _send_when_busy(
        self,
        request: Send,
        how: Literal["interrupt", "reject"],
        connection: AsyncConnection | None,
    ) -> Receipt:
        key = (request.namespace, request.session_id)
        if how == "interrupt" and (
            request.sender == request.session_id or current_turn.is_inside(self._database, key)
        ):
            raise InvalidArgument(
                f"session {request.session_id} can't interrupt itself: the turn that sends would "
                'be stopped; send with when_busy="queue", or finish the turn'
            )
        operation = partial(
            operations.busy_send.send, request=request, limits=self._database.limits, when_busy=how
        )
        stopping: Topics = (WORK, DONE, hint_about(STOP, [key]))
        if connection is None:
            sent = await self._database.write(
                operation, wakes=lambda sent: stopping if sent.stopped else (WORK,)
            )
        else:
            wakes = stopping if how == "interrupt" else (WORK,)
            sent = await runtime.caller_transaction.run_in_caller_transaction(
                self._database, connection, operation, key=key, wakes=wakes
            )
        return sent.receipt

    async def spawn(
        self,
        parent: str,
        request: SpawnRequest,
        *,
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> SpawnedSession:
        request = validation.spawn_request(request)
        if connection is not None and request.wait_for_first_reply:
            raise InvalidArgument(
                "wait_for_first_reply can't be used with connection: nobody can answer before "
                "your transaction commits; spawn, commit, then wait on the child's first message"
            )
        with telemetry.observed.telemetry.sending(self._namespace, parent) as sending:
            spawn = runtime.requests.spawn_request(
                self._namespace,
                parent,
                request,
                self._database.limits,
                idempotency_key,
                trace=sending.trace,
            )
            operation = partial(
                operations.spawning.spawn_child, spawn=spawn, limits=self._database.limits
            )
            if connection is not None:
                child = await runtime.caller_transaction.run_in_caller_transaction(
                    self._database,
                    connection,
                    operation,
                    key=(spawn.namespace, spawn.parent),
                    wakes=(WORK,),
                )
            else:
                child = await self._database.write(operation, wakes=(WORK,))
            sending.duplicate = child != spawn.session_id
        if connection is not None:
            return SpawnedSession(id=child)
        reply = None
        if request.wait_for_first_reply:
            # The child is committed: the caller gets its id although the wait fails, or although
            # the child is deleted meanwhile.
            with contextlib.suppress(StorageError, UnknownReceipt):
                outcome = await self._database.outcome_waiter.wait(
                    (self._namespace, child, 1), request.wait_timeout_secs
                )
                reply = outcome.reply
        return SpawnedSession(id=child, first_reply=reply)

    async def outcome(self, receipt: Receipt) -> Outcome:
        session_id, position = validation.receipt(receipt)
        return await self._database.read(
            partial(
                operations.outcomes.outcome,
                namespace=self._namespace,
                session_id=session_id,
                position=position,
            )
        )

    async def wait(
        self, receipt: Receipt, timeout: float = 60.0, *, waiter: str | None = None
    ) -> Outcome:
        message = (self._namespace, *validation.receipt(receipt))
        seconds = validation.seconds(timeout, "timeout")
        with telemetry.observed.telemetry.waiting() as waiting:
            if waiter is None:
                outcome = await self._database.outcome_waiter.wait(message, seconds)
            else:
                waiter = validation.session_id(waiter)
                outcome = await self._database.outcome_waiter.wait_as(waiter, message, seconds)
            waiting.answered = outcome.final
            return outcome

    async def cancel(self, receipt: Receipt, *, keep_partial: bool = True) -> Outcome:
        session_id, position = validation.receipt(receipt)
        current_turn.refuse_to_stop(self._database, (self._namespace, session_id), position)
        stopped = await self._stop(
            partial(
                operations.stop_calls.cancel,
                namespace=self._namespace,
                session_id=session_id,
                position=position,
                keep_partial=validation.boolean(keep_partial, "keep_partial"),
            )
        )
        [outcome] = stopped.outcomes
        return outcome

    async def interrupt(
        self, id: str, *, subtree: bool = False, keep_partial: bool = True
    ) -> builtins.list[Outcome]:
        session_id = validation.session_id(id)
        current_turn.refuse_to_stop(self._database, (self._namespace, session_id))
        stopped = await self._stop(
            partial(
                operations.stop_calls.interrupt,
                namespace=self._namespace,
                session_id=session_id,
                subtree=validation.boolean(subtree, "subtree"),
                keep_partial=validation.boolean(keep_partial, "keep_partial"),
            )
        )
        return stopped.outcomes

    async def _stop(self, operation: Operation[Stopped]) -> Stopped:
        # Workers take the next message, waiting callers their outcome, and handlers are cancelled.
        def wakes(stopped: Stopped) -> Topics:
            keys = {(self._namespace, one.receipt.session_id) for one in stopped.outcomes}
            if stopped.outcomes:
                return (WORK, DONE, hint_about(STOP, keys)) if stopped.changed else ()
            return (WORK,) if stopped.changed else ()  # a question was withdrawn

        return await self._database.write(operation, wakes=wakes)

    async def questions(
        self,
        id: str | None = None,
        *,
        limit: int = 100,
        after: OpenQuestion | str | None = None,
    ) -> builtins.list[OpenQuestion]:
        edge: tuple[datetime, SessionId, int] | None = None
        cursor: tuple[SessionId, int] | None = None
        if is_instance(after, OpenQuestion):
            edge = validation.question_position(after)
        elif after is not None:
            cursor = validation.question_id(after)
        return await self._reads.read(
            partial(
                operations.question_list.list_open,
                namespace=self._namespace,
                session_id=validation.optional_session_id(id),
                limit=validation.integer(limit, "limit"),
                after=edge,
                cursor=cursor,
            )
        )

    async def answer(
        self,
        question_id: str,
        message: str | dict[str, Any],
        *,
        author: str | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        session_id, position = validation.question_id(question_id)
        with telemetry.observed.telemetry.sending(self._namespace, session_id) as sending:
            request = runtime.requests.answer_request(
                self._namespace,
                session_id,
                position,
                message,
                self._database.limits,
                idempotency_key,
                trace=sending.trace,
                author=author,
            )
            receipt = await self._database.write(
                partial(operations.question_answers.answer, request=request, position=position),
                wakes=(WORK,),
            )
            sending.duplicate = receipt.duplicate
            return receipt

    async def inbox(
        self, id: str, *, limit: int = 100, after: Receipt | int | None = None
    ) -> builtins.list[Outcome]:
        return await self._reads.read(
            partial(
                operations.inbox_page.read,
                namespace=self._namespace,
                session_id=validation.session_id(id),
                limit=validation.integer(limit, "limit"),
                after=validation.inbox_position(after, "after"),
            )
        )

    async def dead_letters(
        self, id: str | None = None, *, limit: int = 100
    ) -> builtins.list[Outcome]:
        return await self._reads.read(
            partial(
                _dead_letters,
                namespace=self._namespace,
                session_id=validation.optional_session_id(id),
                limit=validation.integer(limit, "limit"),
            )
        )

    async def requeue(self, receipt: Receipt) -> None:
        session_id, position = validation.receipt(receipt)
        operation = partial(
            operations.mailbox.requeue,
            namespace=self._namespace,
            session_id=session_id,
            position=position,
        )
        await self._database.write(operation, wakes=(WORK,))

    async def requeue_all(
        self, id: str | None = None, *, since: datetime | None = None, error: str | None = None
    ) -> int:
        wanted = operations.requeuing.DeadFilter(
            self._namespace,
            validation.optional_session_id(id),
            None if since is None else validation.aware_datetime(since, "since"),
            validation.error_text(error),
        )
        if wanted.session_id is not None:
            await self.get(wanted.session_id)
        return await runtime.requeuing.requeue_pages(self._database, wanted)

    # ---- schedules ---------------------------------------------------------------------------

    async def schedule(
        self,
        id: str,
        message: str | dict[str, Any],
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
        limits = self._database.limits
        new = runtime.requests.new_schedule(
            self._namespace,
            id,
            message,
            limits,
            at=at,
            cron=cron,
            tz=tz,
            name=name,
            sender=sender,
            author=author,
            metadata=metadata,
            catch_up=catch_up,
        )
        # Idle workers plan their next poll for it.
        return await self._database.write(
            partial(operations.schedules.put, new=new, limits=limits), wakes=(WORK,)
        )

    async def schedules(self, id: str | None = None) -> builtins.list[Schedule]:
        return await self._reads.read(
            partial(
                operations.schedules.read,
                namespace=self._namespace,
                session_id=validation.optional_session_id(id),
            )
        )

    async def unschedule(self, schedule_id: str) -> bool:
        operation = partial(
            operations.schedules.remove,
            namespace=self._namespace,
            id=validation.schedule_id(schedule_id),
        )
        return await self._database.write(operation, wakes=())


def _list_page(
    connection: Connection, namespace: str, filter_: SessionFilter, cursor: SessionId | None
) -> builtins.list[SessionSummary]:
    if cursor is not None:
        filter_ = filter_._replace(
            after=operations.session_list.cursor_of(connection, namespace, cursor)
        )
    return operations.session_list.list_page(connection, namespace, filter_)


def _reopen(
    connection: Connection, namespace: str, session_id: str, limits: Limits
) -> SessionDetails:
    operations.session_end.reopen(connection, namespace, session_id, limits)
    return operations.registry.get(connection, namespace, session_id)


def _dead_letters(
    connection: Connection, namespace: str, session_id: str | None, limit: int
) -> builtins.list[Outcome]:
    if session_id is not None:
        operations.registry.require(connection, namespace, session_id)
    return operations.outcomes.dead_letters(connection, namespace, session_id, limit=limit)
