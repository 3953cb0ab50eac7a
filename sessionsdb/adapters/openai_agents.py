"""Sessions of the OpenAI Agents SDK: ``pip install 'sessionsdb[openai-agents]'``.

::

    session = Session("chat-1", "sqlite:///sessions.db")
    result = await Runner.run(agent, "hello", session=session)

An item of the SDK is a message of the transcript, as the SDK wrote it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

from agents.items import TResponseInputItem
from agents.memory import session as sdk
from agents.memory.session_settings import (
    SessionSettings,
    coerce_session_settings,
    resolve_session_limit,
)
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import UnknownSession, VersionConflict
from sessionsdb.messages.codec import StoredMessage, encode_all
from sessionsdb.operations import heads
from sessionsdb.operations.entries import load_newest
from sessionsdb.operations.heads import Head
from sessionsdb.operations.registry import Registration
from sessionsdb.protocols import SessionStore
from sessionsdb.types import Edit

FORM: Final = "openai-agents"
"""The form of these sessions, and the channel of a session that this adapter creates."""

T = TypeVar("T")


class Session:
    """One session for the ``session`` argument of the SDK's ``Runner``.

    ``session_id``: the id of the session, 1 to 512 characters. The first items create the session,
    with the channel ``openai-agents`` and its id as the peer. A session that the broker registered
    or sent messages to works as well.

    ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL. A URL is opened at the first use,
    in each event loop that uses the session: see ``Handles``.

    ``session_settings``: the SDK's settings. Its ``limit`` is the number of newest items that
    ``get_items`` returns by default.

    Several objects may be the same session, in one process or in many. Items are in the order of
    their commits. A caller that is cancelled during a write gets ``CancelledError`` when the write
    has ended.

    Each method raises ``AnotherForm`` for a session of another framework's messages, and
    ``StorageError`` when the database fails.
    """

    session_id: str
    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        db_or_url: SessionsDB | AsyncEngine | str,
        *,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        self._bind(session_id, Handles(db_or_url), session_settings)

    def _bind(
        self,
        session_id: str,
        handles: Handles,
        session_settings: SessionSettings | dict[str, Any] | None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = coerce_session_settings(
            SessionSettings() if session_settings is None else session_settings
        )
        self._handles = handles

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the newest ``limit`` items, oldest first.

        ``None`` is the limit of the settings, and without one all items. 0 or less gives none. The
        cost depends on the items that are returned, not on those that are stored.
        """
        limit = resolve_session_limit(limit, self.session_settings)
        if limit is not None and limit <= 0:
            return []
        if limit is None:
            return await (await self._store()).load(self.session_id) or []
        db = await self._handles.current()
        # 0.18 ms of processor time for 20 items, and 0.37 ms through `SessionStore.entries`.
        newest = partial(
            _newest_items,
            namespace=db.namespace,
            session_id=validation.session_id(self.session_id),
            limit=validation.integer(limit, "limit"),
        )
        return await open_database_of(db).read(newest)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items, all or none. Raises ``InvalidMessage`` for an item that is not JSON."""
        if items:
            await finish_before_cancel(self._add(list(items)))

    async def _add(self, items: list[TResponseInputItem]) -> None:
        db = await self._handles.current()
        if await self._exists(db):
            # In a batch with the appends of others: 3 times as many a second with 64 callers.
            await db.store.append(self.session_id, items)
            return
        registration = Registration(
            db.namespace,
            validation.session_id(self.session_id),
            FORM,
            self.session_id,
            metadata=forms.mark(FORM),
        )
        append = partial(
            _append,
            registration=registration,
            items=encode_all(items, max_bytes=db.limits.message_bytes),
        )
        await open_database_of(db).write(append, wakes=())

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it, or ``None`` if there is none.

        Of many callers at once each one gets another item.
        """
        return await finish_before_cancel(self._pop())

    async def _pop(self) -> TResponseInputItem | None:
        store = await self._store()
        try:
            popped = await store.pop(self.session_id)
        except UnknownSession:
            return None
        return popped[0] if popped else None

    async def clear_session(self) -> None:
        """Remove all items. The session stays, with its inbox and its state."""
        await finish_before_cancel(self._clear())

    async def _clear(self) -> None:
        store = await self._store()
        try:
            await store.truncate(self.session_id, keep_through=0)
        except UnknownSession:
            return

    async def branch(self, new_session_id: str | None = None, *, at: int | None = None) -> Session:
        """Return a new session that begins with the first ``at`` items of this one.

        ``None`` and a number beyond the end are all items. The rows are copied by the database. The
        new session has the state of this one, and an empty inbox: see ``SessionBroker.fork``. Its
        id is ``branch-<uuid>`` by default.

        Raises ``UnknownSession`` if this session has no items yet, ``SessionExists`` for the new
        id, and ``InvalidArgument`` for a negative number.
        """
        store = await self._store()
        db = await self._handles.current()
        seq = None
        if at is not None:
            kept = await store.entries(self.session_id, at, after=0)
            seq = kept[-1].seq if kept else 0
        new_id = f"branch-{uuid4()}" if new_session_id is None else new_session_id
        await finish_before_cancel(db.broker.fork(self.session_id, at=seq, new_id=new_id))
        branched = Session.__new__(Session)
        branched._bind(new_id, self._handles, self.session_settings)
        return branched

    async def close(self) -> None:
        """Close the database of a URL in this event loop, if no other adapter uses it.

        A handle that the caller gave stays open. The next use opens the database again.
        """
        await self._handles.close()

    async def _store(self) -> SessionStore:
        """Return the store, after a look at the form of the session."""
        db = await self._handles.current()
        await self._exists(db)
        return db.store

    async def _exists(self, db: SessionsDB) -> bool:
        """Return whether the session exists. Raises ``AnotherForm``.

        It is looked at in each use: another process may have deleted it and created it again.
        """
        look = partial(
            _find,
            namespace=db.namespace,
            session_id=validation.session_id(self.session_id),
        )
        return await open_database_of(db).read(look) is not None

    # ---- compaction ------------------------------------------------------------------------------

    async def _get_compaction_snapshot(
        self,
        limit: int,
        *,
        prune_prefix: Callable[[TResponseInputItem], bool] | None = None,
    ) -> Any:
        """Return the newest items, and a function that replaces the end of them if none changed.

        ``OpenAIResponsesCompactionSession`` and ``EncryptedSession`` of the SDK look for this
        method. Without it they do not compact a session with a limit.
        """
        store = await self._store()
        # The version is read first. If the items are newer, the replacement is refused later.
        version = await store.version(self.session_id)
        entries = await store.entries(self.session_id, limit + 1) if version is not None else []
        rows = entries[-limit:] if limit > 0 else []

        async def replace_suffix(start: int, output: list[TResponseInputItem]) -> bool:
            if version is None or not rows[start:]:
                return False
            keep_through = rows[start].seq - 1
            replacement = (
                self._replace_end(keep_through, output, version)
                if prune_prefix is None
                else self._replace_end_and_prune(keep_through, output, version, prune_prefix)
            )
            return await finish_before_cancel(_or_false(replacement))

        items = [entry.message for entry in rows]
        return sdk._CompactionSnapshot(items, len(entries) <= limit, replace_suffix)

    async def _replace_end(
        self, keep_through: int, output: list[TResponseInputItem], version: int
    ) -> None:
        edit = Edit(
            append=output, keep_through=keep_through, expected_version=version, create=False
        )
        db = await self._handles.current()
        await db.store.edit(self.session_id, edit)

    async def _replace_end_and_prune(
        self,
        keep_through: int,
        output: list[TResponseInputItem],
        version: int,
        prune_prefix: Callable[[TResponseInputItem], bool],
    ) -> None:
        """Replace the end, and remove the first items as long as they may be pruned.

        Only the first item is read if it stays. Otherwise the whole transcript is saved again.
        """
        db = await self._handles.current()
        first = await db.store.entries(self.session_id, 1, after=0)
        if not first or first[0].seq > keep_through or not prune_prefix(first[0].message):
            await self._replace_end(keep_through, output, version)
            return
        behind = await db.store.entries(self.session_id, _ALL, after=keep_through)
        kept = (await db.store.load(self.session_id) or [])[: -len(behind) or None]
        while kept and prune_prefix(kept[0]):
            kept.pop(0)
        await db.store.save(self.session_id, [*kept, *output], expected_version=version)


def _find(connection: Connection, namespace: str, session_id: str) -> Head | None:
    head = heads.read(connection, namespace, session_id)
    if head is not None:
        forms.require_form(head, FORM, unmarked=True)
    return head


def _append(
    connection: Connection, registration: Registration, items: Sequence[StoredMessage]
) -> None:
    """Append items to a session, which is created first if it does not exist."""
    namespace, session_id = registration.namespace, registration.session_id
    while (head := heads.lock(connection, namespace, session_id)) is None:
        # If another writer creates it at the same time, this waits for that one.
        heads.create(connection, registration)
    forms.require_form(head, FORM, unmarked=True)
    heads.append(connection, namespace, head, items)


def _newest_items(
    connection: Connection, namespace: str, session_id: str, limit: int
) -> list[dict[str, Any]]:
    if _find(connection, namespace, session_id) is None:
        return []
    return load_newest(connection, namespace, session_id, limit)


_ALL: Final = 2**31 - 1


async def _or_false(replacement: Awaitable[None]) -> bool:
    """Return whether a replacement was made. It is not if the transcript was changed before."""
    try:
        await replacement
    except (UnknownSession, VersionConflict):
        return False
    return True
