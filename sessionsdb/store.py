"""The ``SessionStore`` of a SQL database."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from sessionsdb import validation
from sessionsdb.messages.codec import encode_all
from sessionsdb.messages.state_values import encode_changes
from sessionsdb.operations import registry, state, transcripts, tree
from sessionsdb.operations.transcript_types import Append
from sessionsdb.protocols import SessionStore
from sessionsdb.runtime import current_turn
from sessionsdb.runtime.database_access import DONE, STOP, hint_about
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.types import Children, ListOptions, SessionRecord, State, StateScope


class SqlSessionStore(SessionStore):
    """The store of one namespace. ``SessionStore`` documents each method."""

    def __init__(self, database: OpenDatabase, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def load(self, id: str) -> builtins.list[dict[str, Any]] | None:
        return await self._database.read(
            partial(
                transcripts.load,
                namespace=self._namespace,
                session_id=validation.session_id(id),
            )
        )

    async def save(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        session_id = validation.session_id(id)
        return await self._database.transcript_cache.save(
            self._namespace,
            session_id,
            messages,
            in_own_turn=current_turn.is_inside(self._database, (self._namespace, session_id)),
            expected_version=validation.optional_integer(expected_version, "expected_version"),
        )

    async def append(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        return await self._database.batched_calls.append(
            Append(
                self._namespace,
                validation.session_id(id),
                encode_all(messages, max_bytes=self._database.limits.message_bytes),
                validation.optional_integer(expected_version, "expected_version"),
            )
        )

    async def version(self, id: str) -> int | None:
        return await self._database.read(
            partial(
                transcripts.version,
                namespace=self._namespace,
                session_id=validation.session_id(id),
            )
        )

    async def list(self) -> builtins.list[SessionRecord]:
        return await self.list_paginated(ListOptions())

    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        offset, limit = validation.list_options(options)
        return await self._database.read(
            partial(registry.records, namespace=self._namespace, offset=offset, limit=limit)
        )

    async def state(self, id: str, *, scope: StateScope = "session") -> State:
        _, found = await self._database.read(
            partial(
                state.read_of_session,
                namespace=self._namespace,
                session_id=validation.session_id(id),
                scope=validation.state_scope(scope),
            )
        )
        return found

    async def update_state(
        self,
        id: str,
        changes: dict[str, Any],
        *,
        scope: StateScope = "session",
        expected_version: int | None = None,
    ) -> State:
        max_bytes = self._database.limits.state_bytes
        operation = partial(
            state.update_state,
            namespace=self._namespace,
            session_id=validation.session_id(id),
            scope=validation.state_scope(scope),
            changes=encode_changes(changes, max_bytes=max_bytes),
            expected_version=validation.optional_integer(expected_version, "expected_version"),
            max_bytes=max_bytes,
        )
        return await self._database.write(operation, wakes=())

    async def delete(self, id: str, *, children: Children = "detach") -> None:
        session_id = validation.session_id(id)
        operation = partial(
            tree.delete_session,
            namespace=self._namespace,
            session_id=session_id,
            children=validation.one_of(children, get_args(Children), "children"),
        )
        stopped = None if children == "cascade" else [(self._namespace, session_id)]
        await self._database.write(operation, wakes=(DONE, hint_about(STOP, stopped)))
