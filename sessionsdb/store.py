"""The ``SessionStore`` of a SQL database."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from sessionsdb import operations, validation
from sessionsdb.messages.codec import encode, encode_all
from sessionsdb.messages.state_values import encode_changes
from sessionsdb.protocols import SessionStore
from sessionsdb.runtime import current_turn
from sessionsdb.runtime.database_access import DONE, STOP, WORK, hint_about
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.reads import Reads
from sessionsdb.runtime.requests import edit_request
from sessionsdb.types import (
    Children,
    Edit,
    Edited,
    ListOptions,
    SessionRecord,
    State,
    StateScope,
    TranscriptEntry,
)

if TYPE_CHECKING:
    from sessionsdb.operations.editing import EditRequest


class SqlSessionStore(SessionStore):
    """The store of one namespace. ``SessionStore`` documents each method."""

    def __init__(self, database: OpenDatabase, namespace: str, reads: Reads | None = None) -> None:
        """``reads`` runs the reads that may be older than the last write, by default the primary.

        Everything that a caller may decide a write by is read from the primary.
        """
        self._database = database
        self._reads: Reads = database if reads is None else reads
        self._namespace = namespace

    async def load(self, id: str) -> builtins.list[dict[str, Any]] | None:
        return await self._database.transcript_loads.load(
            (self._namespace, validation.session_id(id))
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
            expected_version=validation.version(expected_version),
        )

    async def append(
        self,
        id: str,
        messages: Sequence[dict[str, Any]],
        *,
        keys: Sequence[str | None] | None = None,
        create: bool = True,
        expected_version: int | None = None,
    ) -> int:
        if keys is not None or create is not True:
            edit = Edit(
                append=messages, keys=keys, create=create, expected_version=expected_version
            )
            return (await self.edit(id, edit)).version
        return await self._database.batched_calls.append(
            operations.transcript_types.Append(
                self._namespace,
                validation.session_id(id),
                encode_all(messages, max_bytes=self._database.limits.message_bytes),
                validation.version(expected_version),
            )
        )

    async def entries(
        self, id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> builtins.list[TranscriptEntry]:
        page = operations.entries.EntryPage(
            self._namespace,
            validation.session_id(id),
            validation.integer(limit, "limit"),
            validation.cursor(before, "before"),
            validation.cursor(after, "after"),
        )
        return await self._reads.read(partial(operations.entries.read_entries, page=page))

    async def find(self, key: str, *, id: str | None = None) -> TranscriptEntry | None:
        return await self._database.read(
            partial(
                operations.entries.find,
                namespace=self._namespace,
                key=validation.message_key(key),
                session_id=validation.optional_session_id(id),
            )
        )

    async def edit(self, id: str, edit: Edit) -> Edited:
        limits = self._database.limits
        request = self._edit_request(id, edit)
        return await self._database.write(
            partial(operations.editing.edit, request=request, limits=limits), wakes=()
        )

    async def pop(
        self, id: str, count: int = 1, *, expected_version: int | None = None
    ) -> builtins.list[dict[str, Any]]:
        request = self._edit_request(id, Edit(expected_version=expected_version, create=False))
        count = validation.integer(count, "count")
        return await self._database.write(
            partial(operations.editing.pop, request=request, count=count), wakes=()
        )

    async def truncate(
        self, id: str, *, keep_through: int, expected_version: int | None = None
    ) -> int:
        edit = Edit(
            keep_through=validation.integer(keep_through, "keep_through"),
            expected_version=expected_version,
            create=False,
        )
        return (await self.edit(id, edit)).version

    async def replace(
        self,
        id: str,
        seq: int,
        message: dict[str, Any],
        *,
        expected_version: int | None = None,
    ) -> int:
        operation = partial(
            operations.editing.replace,
            request=self._edit_request(id, Edit(expected_version=expected_version, create=False)),
            seq=validation.stored_number(seq, "seq"),
            message=encode(message, max_bytes=self._database.limits.message_bytes),
        )
        return await self._database.write(operation, wakes=())

    def _edit_request(self, id: str, edit: Edit) -> EditRequest:
        in_own_turn = current_turn.is_inside(
            self._database, (self._namespace, validation.session_id(id))
        )
        return edit_request(
            self._namespace, id, edit, self._database.limits, in_own_turn=in_own_turn
        )

    async def version(self, id: str) -> int | None:
        return await self._database.read(
            partial(
                operations.transcripts.version,
                namespace=self._namespace,
                session_id=validation.session_id(id),
            )
        )

    async def list(self) -> builtins.list[SessionRecord]:
        return await self.list_paginated(ListOptions())

    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        offset, limit = validation.list_options(options)
        return await self._reads.read(
            partial(
                operations.registry.records, namespace=self._namespace, offset=offset, limit=limit
            )
        )

    async def state(self, id: str, *, scope: StateScope = "session") -> State:
        _, found = await self._database.read(
            partial(
                operations.state.read_of_session,
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
            operations.state.update_state,
            namespace=self._namespace,
            session_id=validation.session_id(id),
            scope=validation.state_scope(scope),
            changes=encode_changes(changes, max_bytes=max_bytes),
            expected_version=validation.version(expected_version),
            max_bytes=max_bytes,
        )
        return await self._database.write(operation, wakes=())

    async def delete(self, id: str, *, children: Children = "detach") -> None:
        session_id = validation.session_id(id)
        operation = partial(
            operations.tree.delete_session,
            namespace=self._namespace,
            session_id=session_id,
            children=validation.one_of(children, get_args(Children), "children"),
        )
        stopped = hint_about(
            STOP, None if children == "cascade" else [(self._namespace, session_id)]
        )
        await self._database.write(
            operation,
            wakes=lambda reported: (WORK, DONE, stopped) if reported else (DONE, stopped),
        )
