"""A ``SessionStore`` in memory."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from typing import Any

from sessionsdb import validation
from sessionsdb.errors import (
    InvalidArgument,
    SessionHasChildren,
    UnknownSession,
    VersionConflict,
)
from sessionsdb.types import (
    Children,
    Edit,
    Edited,
    ListOptions,
    SessionId,
    SessionRecord,
    State,
    StateScope,
    TranscriptEntry,
)
from tests.support.memory_sessions import Memory, Message, Row, Session


def page(
    rows: Sequence[Row], limit: int, before: int | None, after: int | None
) -> builtins.list[Row]:
    """Return the newest rows, or the oldest ones behind ``after``."""
    found = [row for row in rows if before is None or row.seq < before]
    if after is not None:
        return [row for row in found if row.seq > after][:limit]
    return found[max(0, len(found) - limit) :]


class MemoryStore:
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    async def load(self, id: str) -> builtins.list[Message] | None:
        session = self.memory.sessions.get(validation.session_id(id))
        return None if session is None else [row.message for row in session.rows]

    async def save(
        self, id: str, messages: Sequence[Message], *, expected_version: int | None = None
    ) -> int:
        texts = self.memory.encoded(messages)
        session = self._expected(id, expected_version) or self.memory.make(id)
        kept = 0
        for row, text in zip(session.rows, texts, strict=False):
            if row.text != text:
                break
            kept += 1
        self.memory.cut(session, session.rows[kept - 1].seq if kept else 0)
        self.memory.add(session, texts[kept:])
        return session.version

    async def append(
        self,
        id: str,
        messages: Sequence[Message],
        *,
        keys: Sequence[str | None] | None = None,
        create: bool = True,
        expected_version: int | None = None,
    ) -> int:
        texts = self.memory.encoded(messages)
        session = self._expected(id, expected_version)
        if session is None and not create:
            raise UnknownSession(id)
        session = session or self.memory.make(id)
        self.memory.add(session, texts, keys)
        return session.version

    def _expected(self, id: str, version: int | None) -> Session | None:
        session = self.memory.sessions.get(validation.session_id(id))
        self.memory.expect(session, id, version)
        return session

    async def entries(
        self, id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> builtins.list[TranscriptEntry]:
        session = self.memory.session(id)
        return [self.memory.entry(session, row) for row in page(session.rows, limit, before, after)]

    async def find(self, key: str, *, id: str | None = None) -> TranscriptEntry | None:
        for session in self.memory.sessions.values():
            for row in session.rows:
                if row.key == key and id in (None, session.id):
                    return self.memory.entry(session, row)
        return None

    async def edit(self, id: str, edit: Edit) -> Edited:
        memory = self.memory
        texts = memory.encoded(edit.append)
        session = memory.sessions.get(validation.session_id(id))
        if session is None and not edit.create:
            raise UnknownSession(id)
        known = {row.key: row.seq for row in session.rows} if session else {}
        if session and edit.append and edit.keys and all(key in known for key in edit.keys):
            return Edited(
                version=session.version, appended=[known[key] for key in edit.keys], removed=[]
            )
        memory.expect(session, id, edit.expected_version)
        if edit.expected_tail is not None:
            seqs = [row.seq for row in session.rows] if session else []
            tail = list(edit.expected_tail)
            if seqs[max(0, len(seqs) - len(tail)) :] != tail or bool(seqs) > bool(tail):
                raise VersionConflict(id, 0, 0)
        session = session or memory.make(id)
        removed = []
        if edit.keep_through is not None:
            removed = memory.cut(session, edit.keep_through)
        appended = memory.add(session, texts, edit.keys)
        for scope, changes in (edit.state or {}).items():
            await self.update_state(id, changes, scope=scope)
        if edit.metadata is not None:
            session.metadata = edit.metadata
        return Edited(version=session.version, appended=appended, removed=removed)

    async def pop(
        self, id: str, count: int = 1, *, expected_version: int | None = None
    ) -> builtins.list[Message]:
        session = self.memory.session(id)
        self.memory.expect(session, id, expected_version)
        kept = session.rows[: max(0, len(session.rows) - count)]
        return self.memory.cut(session, kept[-1].seq if kept else 0)

    async def truncate(
        self, id: str, *, keep_through: int, expected_version: int | None = None
    ) -> int:
        session = self.memory.session(id)
        self.memory.expect(session, id, expected_version)
        self.memory.cut(session, keep_through)
        return session.version

    async def replace(
        self, id: str, seq: int, message: Message, *, expected_version: int | None = None
    ) -> int:
        session = self.memory.session(id)
        self.memory.expect(session, id, expected_version)
        [text] = self.memory.encoded([message])
        for row in session.rows:
            if row.seq == seq:
                row.text = text
                self.memory.touch(session)
                return session.version
        raise InvalidArgument(f"no message {seq}")

    async def version(self, id: str) -> int | None:
        session = self.memory.sessions.get(validation.session_id(id))
        return None if session is None else session.version

    async def list(self) -> builtins.list[SessionRecord]:
        sessions = sorted(self.memory.sessions.values(), key=lambda one: (one.updated_at, one.id))
        return [
            SessionRecord(
                id=SessionId(one.id),
                message_count=len(one.rows),
                created_at=one.created_at,
                updated_at=one.updated_at,
            )
            for one in sessions
        ]

    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        records = (await self.list())[options.offset :]
        return records if options.limit is None else records[: options.limit]

    def _scope(self, id: str, scope: StateScope) -> tuple[str, ...]:
        session = self.memory.session(id)
        if validation.state_scope(scope) == "namespace":
            return ("namespace",)
        if scope == "session":
            return ("session", id)
        root = self.memory.root(session)
        return ("peer", root.channel, root.peer)

    async def state(self, id: str, *, scope: StateScope = "session") -> State:
        values, version = self.memory.states.get(self._scope(id, scope), ({}, 0))
        return State(values=json.loads(json.dumps(values)), version=version)

    async def update_state(
        self,
        id: str,
        changes: dict[str, Any],
        *,
        scope: StateScope = "session",
        expected_version: int | None = None,
    ) -> State:
        key = self._scope(id, scope)
        values, version = self.memory.states.get(key, ({}, 0))
        if expected_version not in (None, version):
            raise VersionConflict(id, expected_version or 0, version, scope=scope)
        merged = {k: v for k, v in {**values, **changes}.items() if v is not None}
        if merged != values:
            self.memory.states[key] = (json.loads(json.dumps(merged)), version + 1)
        return await self.state(id, scope=scope)

    async def delete(self, id: str, *, children: Children = "detach") -> None:
        if validation.session_id(id) not in self.memory.sessions:
            return
        below = [one for one in self.memory.sessions.values() if one.parent == id]
        if below and children == "refuse":
            raise SessionHasChildren(id)
        for child in below:
            if children == "cascade":
                await self.delete(child.id, children=children)
            else:
                child.parent = None
        del self.memory.sessions[id]
        self.memory.states.pop(("session", id), None)
        self.memory.tell(id)
