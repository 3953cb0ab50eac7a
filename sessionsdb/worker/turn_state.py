"""The state that a handler reads and changes during a turn."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, NamedTuple

from sessionsdb.messages.state_values import Changes, encode_changes
from sessionsdb.operations import state
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.state import ScopeKey, StateUpdate
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.types import StateScope


class _ReadScope(NamedTuple):
    """A scope that the handler has asked for."""

    key: ScopeKey
    before: Changes
    """The JSON of each key when it was read."""
    values: dict[str, Any]
    """The values, which the handler may change."""


class TurnState:
    """The scopes that one turn has read."""

    def __init__(self, database: OpenDatabase, lease: Lease) -> None:
        self._database = database
        self._lease = lease
        self._scopes: dict[StateScope | ScopeKey, _ReadScope] = {}
        self._reading = asyncio.Lock()

    async def values(self, scope: StateScope) -> dict[str, Any]:
        """Return the dict of a scope, the same at each call."""
        async with self._reading:  # several tasks of a handler get one dict
            if scope not in self._scopes:
                self._scopes[scope] = await self._read(scope)
        return self._scopes[scope].values

    async def values_of(self, key: ScopeKey) -> dict[str, Any]:
        """Return the dict of any scope of the namespace, the same at each call."""
        async with self._reading:
            if key not in self._scopes:
                found = await self._database.read(partial(state.read, key=key))
                self._scopes[key] = _ReadScope(key, self._encode(found.values), found.values)
        return self._scopes[key].values

    async def _read(self, scope: StateScope) -> _ReadScope:
        key, found = await self._database.read(
            partial(
                state.read_of_session,
                namespace=self._lease.namespace,
                session_id=self._lease.session_id,
                scope=scope,
            )
        )
        return _ReadScope(key, self._encode(found.values), found.values)

    def updates(self) -> list[StateUpdate]:
        """Return the changes since the scopes were read. Raises ``InvalidArgument``."""
        updates = []
        for scope in self._scopes.values():
            present = self._encode(scope.values)
            changes: Changes = {
                key: present.get(key)
                for key in scope.before | present
                if present.get(key) != scope.before.get(key)
            }
            if changes:
                updates.append(StateUpdate(scope.key, self._lease.session_id, changes))
        return updates

    def _encode(self, values: dict[str, Any]) -> Changes:
        return encode_changes(values, max_bytes=self._database.limits.state_bytes)
