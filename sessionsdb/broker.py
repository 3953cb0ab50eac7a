"""SessionBroker over SQL."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from types import EllipsisType
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb import arguments
from sessionsdb.engine import joined, telemetry
from sessionsdb.engine.core import Core
from sessionsdb.errors import InvalidArgument, StorageError
from sessionsdb.interfaces import SessionBroker
from sessionsdb.operations import inbox, listing, mailbox, registry
from sessionsdb.operations.history import Page
from sessionsdb.operations.listing import Filter
from sessionsdb.operations.registry import Registration
from sessionsdb.requests import send_message, send_request, spawn_child, spawn_request
from sessionsdb.types import (
    DEFAULT_HISTORY_LIMIT,
    Outcome,
    Receipt,
    SessionDetails,
    SessionId,
    SessionMessage,
    SessionSummary,
    SpawnedSession,
    SpawnRequest,
)


class SqlSessionBroker(SessionBroker):
    """The live side of one namespace; ``SessionBroker`` says what each method promises."""

    def __init__(self, core: Core, namespace: str) -> None:
        self._core = core
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
        registration = Registration(
            self._namespace,
            arguments.session_id(id),
            channel=arguments.name(channel, "channel"),
            peer=arguments.name(peer, "peer", empty=True),
            parent=arguments.optional_session_id(parent),
            model=arguments.optional_text(model, "model"),
            system=arguments.optional_text(system, "system"),
            tools=arguments.tools(tools),
            metadata=arguments.metadata(metadata),
        )
        made = await self._core.runner.write(
            partial(
                registry.register,
                registration=registration,
                exist_ok=arguments.flag(exist_ok, "exist_ok"),
            )
        )
        return made.summary

    async def get(self, id: str) -> SessionDetails:
        return await self._core.runner.read(
            partial(registry.get, namespace=self._namespace, session_id=arguments.session_id(id))
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
            changes["channel"] = arguments.name(channel, "channel")
        if peer is not ...:
            changes["peer"] = arguments.name(peer, "peer", empty=True)
        if model is not ...:
            changes["model"] = arguments.optional_text(model, "model")
        if system is not ...:
            changes["system"] = arguments.optional_text(system, "system")
        if tools is not ...:
            changes["tools"] = arguments.tools(tools)
        if metadata is not ...:
            changes["metadata"] = arguments.metadata(metadata)
        operation = partial(
            registry.change,
            namespace=self._namespace,
            session_id=arguments.session_id(id),
            values=changes,
        )
        return await self._core.runner.write(operation)

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
    ) -> builtins.list[SessionSummary]:
        wanted = Filter(
            channel=arguments.optional_name(channel, "channel"),
            peer=arguments.optional_name(peer, "peer", empty=True),
            parent=arguments.optional_session_id(parent),
            root=arguments.optional_session_id(root),
            active_since=(
                None if active_since is None else arguments.moment(active_since, "active_since")
            ),
            include_ended=arguments.flag(include_ended, "include_ended"),
            limit=arguments.optional_whole(limit, "limit"),
        )
        cursor: SessionId | None = None
        if arguments.is_a(after, SessionSummary):
            wanted = wanted._replace(after=arguments.place(after))
        elif after is not None:
            cursor = arguments.session_id(after)
        return await self._core.runner.read(
            partial(_page, namespace=self._namespace, wanted=wanted, cursor=cursor)
        )

    async def end(self, id: str, *, subtree: bool = False, reason: str | None = None) -> int:
        operation = partial(
            mailbox.end,
            namespace=self._namespace,
            session_id=arguments.session_id(id),
            subtree=arguments.flag(subtree, "subtree"),
            reason=arguments.optional_text(reason, "reason"),
        )
        ended = await self._core.runner.write(operation)
        self._core.wakeups.announce("done")
        return ended

    # ---- the transcript ----------------------------------------------------------------------

    async def history(
        self,
        id: str,
        limit: int | None = None,
        *,
        before: int | None = None,
        after: int | None = None,
    ) -> builtins.list[SessionMessage]:
        return await self._core.hot.history(
            Page(
                self._namespace,
                arguments.session_id(id),
                DEFAULT_HISTORY_LIMIT if limit is None else arguments.whole(limit, "limit"),
                before=arguments.cursor(before, "before"),
                after=arguments.cursor(after, "after"),
            )
        )

    # ---- the inbox ---------------------------------------------------------------------------

    async def send(
        self,
        id: str,
        text: str,
        *,
        sender: str | None = None,
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> Receipt:
        with telemetry.on.sending(self._namespace, id) as sending:
            request = send_request(
                self._namespace,
                id,
                text,
                self._core.limits,
                sender,
                idempotency_key,
                trace=sending.trace,
            )
            if connection is not None:
                operation = partial(send_message, request=request, limits=self._core.limits)
                receipt = await joined.run(self._core, connection, operation)
            else:
                receipt = await self._core.hot.send(request)
                self._core.wakeups.announce("work")
            sending.duplicate = receipt.duplicate
            return receipt

    async def spawn(
        self,
        parent: str,
        request: SpawnRequest,
        *,
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> SpawnedSession:
        request = arguments.spawn_request(request)
        if connection is not None and request.wait_for_first_reply:
            raise InvalidArgument(
                "wait_for_first_reply can't be used with connection: nobody can answer before "
                "your transaction commits; spawn, commit, then wait on the child's first message"
            )
        with telemetry.on.sending(self._namespace, parent) as sending:
            spawn = spawn_request(
                self._namespace,
                parent,
                request,
                self._core.limits,
                idempotency_key,
                trace=sending.trace,
            )
            operation = partial(spawn_child, spawn=spawn, limits=self._core.limits)
            if connection is not None:
                child = await joined.run(self._core, connection, operation)
            else:
                child = await self._core.runner.write(operation)
                self._core.wakeups.announce("work")
            sending.duplicate = child != spawn.session_id
        if connection is not None:
            return SpawnedSession(id=child)
        reply = None
        if request.wait_for_first_reply:
            # The child is committed: whatever becomes of the wait, the caller gets its id.
            with contextlib.suppress(StorageError):
                outcome = await self._core.waits.wait(
                    (self._namespace, child, 1), request.wait_timeout_secs
                )
                reply = outcome.reply
        return SpawnedSession(id=child, first_reply=reply)

    async def outcome(self, receipt: Receipt) -> Outcome:
        session_id, position = arguments.receipt(receipt)
        return await self._core.runner.read(
            partial(
                inbox.outcome,
                namespace=self._namespace,
                session_id=session_id,
                position=position,
            )
        )

    async def wait(
        self, receipt: Receipt, timeout: float = 60.0, *, waiter: str | None = None
    ) -> Outcome:
        ticket = (self._namespace, *arguments.receipt(receipt))
        seconds = arguments.seconds(timeout, "timeout")
        with telemetry.on.waiting() as waiting:
            if waiter is None:
                outcome = await self._core.waits.wait(ticket, seconds)
            else:
                waiter = arguments.session_id(waiter)
                outcome = await self._core.waits.wait_as(waiter, ticket, seconds)
            waiting.answered = outcome.final
            return outcome

    async def dead_letters(
        self, id: str | None = None, *, limit: int = 100
    ) -> builtins.list[Outcome]:
        return await self._core.runner.read(
            partial(
                _dead_letters,
                namespace=self._namespace,
                session_id=arguments.optional_session_id(id),
                limit=arguments.whole(limit, "limit"),
            )
        )

    async def requeue(self, receipt: Receipt) -> None:
        session_id, position = arguments.receipt(receipt)
        operation = partial(
            mailbox.requeue,
            namespace=self._namespace,
            session_id=session_id,
            position=position,
        )
        await self._core.runner.write(operation)
        self._core.wakeups.announce("work")


def _page(
    connection: Connection, namespace: str, wanted: Filter, cursor: SessionId | None
) -> builtins.list[SessionSummary]:
    if cursor is not None:
        wanted = wanted._replace(after=listing.place_of(connection, namespace, cursor))
    return listing.page(connection, namespace, wanted)


def _dead_letters(
    connection: Connection, namespace: str, session_id: str | None, limit: int
) -> builtins.list[Outcome]:
    if session_id is not None:
        registry.require(connection, namespace, session_id)
    return inbox.dead_letters(connection, namespace, session_id, limit=limit)
