"""History, sessions and checkpoints of Microsoft Agent Framework in this database.

::

    from sessionsdb.adapters.agent_framework import HistoryProvider

    agent = Agent(client, context_providers=[HistoryProvider("sqlite:///app.db")])
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Final

from agent_framework import HistoryProvider as BaseHistoryProvider
from agent_framework import Message
from agent_framework._sessions import filter_new_messages
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms, ids
from sessionsdb.adapters.agent_framework_checkpoints import CheckpointStorage
from sessionsdb.adapters.agent_framework_sessions import SessionStore
from sessionsdb.adapters.framework_sessions import load_messages, lock_or_create
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.messages.codec import StoredMessage, encode_all
from sessionsdb.operations import entries, heads
from sessionsdb.operations.registry import Registration

__all__ = ["CheckpointStorage", "HistoryProvider", "SessionStore"]

FORM: Final = "agent-framework"


class HistoryProvider(BaseHistoryProvider):
    """Keeps the messages of agents, one transcript for each session and ``source_id``.

    ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL. ``skip_excluded``: leave out the
    messages that a compaction marked as excluded. The framework documents the other arguments.

    A session has the channel ``agent-framework``, the framework's session id as its peer, and the
    id ``SOURCE/SESSION``. A slash inside of a name is written ``%2F``, a percent sign ``%25``. The
    messages of a run without a session are in the session ``SOURCE``.

    An agent may save messages that are stored already, up to the whole conversation. The new ones
    are told from the end of the transcript, under the lock of the session. So a save costs as much
    as its messages, however long the transcript is, and two saves at once lose and double nothing.
    """

    DEFAULT_SOURCE_ID: ClassVar[str] = "sessionsdb"

    def __init__(
        self,
        db_or_url: SessionsDB | AsyncEngine | str,
        *,
        source_id: str = DEFAULT_SOURCE_ID,
        load_messages: bool = True,
        store_inputs: bool = True,
        store_context_messages: bool = False,
        store_context_from: set[str] | None = None,
        store_outputs: bool = True,
        skip_excluded: bool = False,
    ) -> None:
        super().__init__(
            source_id,
            load_messages=load_messages,
            store_inputs=store_inputs,
            store_context_messages=store_context_messages,
            store_context_from=store_context_from,
            store_outputs=store_outputs,
        )
        self.skip_excluded = skip_excluded
        self._handles = Handles(db_or_url)

    def stored_id(self, session_id: str | None) -> str:
        """Return the id under which ``broker``, ``store`` and the reports know a session."""
        return ids.join(self.source_id, *(() if session_id is None else (session_id,)))

    async def get_messages(
        self, session_id: str | None, *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Message]:
        """Return the messages of a session in order. An unknown session has none."""
        db = await self._handles.current()
        registration = self._registration(db, session_id)
        found = await open_database_of(db).read(partial(load_messages, registration=registration))
        messages = [Message.from_dict(message) for message in found]
        if not self.skip_excluded:
            return messages
        return [one for one in messages if not one.additional_properties.get("_excluded", False)]

    async def save_messages(
        self,
        session_id: str | None,
        messages: Sequence[Message],
        *,
        state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the messages that the session does not have yet, in one transaction."""
        if not messages:
            return
        db = await self._handles.current()
        stored = encode_all(
            [message.to_dict() for message in messages], max_bytes=db.limits.message_bytes
        )
        operation = partial(
            _save, registration=self._registration(db, session_id), given=messages, stored=stored
        )
        await open_database_of(db).write(operation, wakes=())

    async def close(self) -> None:
        """Close the database, if this provider opened it. The next use opens it again."""
        await self._handles.close()

    def _registration(self, db: SessionsDB, session_id: str | None) -> Registration:
        return Registration(
            db.namespace,
            validation.session_id(self.stored_id(session_id)),
            FORM,
            session_id or "",
            metadata=forms.mark(FORM),
        )


# ---- operations ----------------------------------------------------------------------------------


def _save(
    connection: Connection,
    registration: Registration,
    given: Sequence[Message],
    stored: Sequence[StoredMessage],
) -> None:
    """Append the new ones of the given messages.

    The framework tells them by the longest overlap with the end of the stored messages. Only as
    many stored messages as were given can overlap with the given ones.
    """
    head = lock_or_create(connection, registration)
    newest = entries.load_newest(
        connection, registration.namespace, registration.session_id, len(given)
    )
    existing = [Message.from_dict(message) for message in newest]
    count = len(filter_new_messages(existing, given))
    if count:
        heads.append(connection, registration.namespace, head, stored[len(stored) - count :])
