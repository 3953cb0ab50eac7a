"""SessionStore over SQL."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from sessionsdb import arguments
from sessionsdb.content import encode_all
from sessionsdb.engine.core import Core
from sessionsdb.interfaces import SessionStore
from sessionsdb.operations import family, registry, transcripts
from sessionsdb.operations.transcripts import Append
from sessionsdb.types import Children, ListOptions, SessionRecord


class SqlSessionStore(SessionStore):
    """The persistence side of one namespace; ``SessionStore`` says what each method promises."""

    def __init__(self, core: Core, namespace: str) -> None:
        self._core = core
        self._namespace = namespace

    async def load(self, id: str) -> builtins.list[dict[str, Any]] | None:
        return await self._core.runner.read(
            partial(
                transcripts.load,
                namespace=self._namespace,
                session_id=arguments.session_id(id),
            )
        )

    async def save(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        return await self._core.saves.save(
            self._namespace,
            arguments.session_id(id),
            messages,
            expected_version=arguments.optional_whole(expected_version, "expected_version"),
        )

    async def append(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        return await self._core.hot.append(
            Append(
                self._namespace,
                arguments.session_id(id),
                encode_all(messages, max_bytes=self._core.limits.message_bytes),
                arguments.optional_whole(expected_version, "expected_version"),
            )
        )

    async def version(self, id: str) -> int | None:
        return await self._core.runner.read(
            partial(
                transcripts.version,
                namespace=self._namespace,
                session_id=arguments.session_id(id),
            )
        )

    async def list(self) -> builtins.list[SessionRecord]:
        return await self.list_paginated(ListOptions())

    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        offset, limit = arguments.page(options)
        return await self._core.runner.read(
            partial(registry.records, namespace=self._namespace, offset=offset, limit=limit)
        )

    async def delete(self, id: str, *, children: Children = "detach") -> None:
        operation = partial(
            family.remove,
            namespace=self._namespace,
            session_id=arguments.session_id(id),
            children=arguments.one_of(children, get_args(Children), "children"),
        )
        await self._core.runner.write(operation)
        self._core.wakeups.announce("done")  # whoever waits on its messages is told
