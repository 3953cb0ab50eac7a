"""``SessionStore``: snapshots of the sessions of Microsoft Agent Framework."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from agent_framework import AgentSession
from agent_framework import SessionStore as BaseSessionStore
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms, ids
from sessionsdb.adapters.framework_sessions import DELETED, lock_or_create, require_form
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.messages.codec import StoredMessage, encode
from sessionsdb.operations import editing, entries, heads, tree
from sessionsdb.operations.editing import EditRequest
from sessionsdb.operations.registry import Registration
from sessionsdb.types import Limits

FORM: Final = "agent-framework-session"

with warnings.catch_warnings():
    # The framework warns of each subclass of this class, which it calls experimental.
    warnings.simplefilter("ignore", FutureWarning)

    class SessionStore(BaseSessionStore):
        """Keeps snapshots of ``AgentSession``, one session of this database for each id.

        ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL.

        The session has the channel ``agent-framework-session``, the id as its peer, and the id
        ``agent-framework-session/ID``. A slash inside of the id is written ``%2F``, a percent sign
        ``%25``. Its transcript is one message: the newest snapshot, as ``AgentSession.to_dict``
        gives it. Each ``get`` returns a new object.
        """

        def __init__(self, db_or_url: SessionsDB | AsyncEngine | str) -> None:
            super().__init__()
            self._handles = Handles(db_or_url)

        def stored_id(self, session_id: str) -> str:
            """Return the id under which ``broker``, ``store`` and the reports know a snapshot."""
            return ids.join(FORM, session_id)

        async def get(self, session_id: str) -> AgentSession | None:
            """Return the newest snapshot as a new object, or ``None``."""
            registration, db = await self._of(session_id)
            found = await open_database_of(db).read(
                partial(_load_newest, registration=registration)
            )
            return None if found is None else AgentSession.from_dict(found)

        async def set(self, session_id: str, session: AgentSession) -> None:
            """Store a snapshot in place of the one before. Raises ``TypeError`` for a subclass of
            ``AgentSession``, and ``ValueError`` for a state that has no JSON form."""
            if type(session) is not AgentSession:
                raise TypeError(
                    f"a snapshot must be of an AgentSession, not of {type(session).__name__}: its "
                    "subclasses can't be restored"
                )
            registration, db = await self._of(session_id)
            snapshot = session.to_dict()
            if isinstance(service_id := snapshot["service_session_id"], Mapping):
                snapshot["service_session_id"] = dict(service_id)
            stored = encode(snapshot, max_bytes=db.limits.message_bytes)
            operation = partial(
                _replace, registration=registration, snapshot=stored, limits=db.limits
            )
            await open_database_of(db).write(operation, wakes=())

        async def delete(self, session_id: str) -> None:
            """Delete a snapshot. An unknown one is not an error."""
            registration, db = await self._of(session_id)
            await open_database_of(db).write(
                partial(_delete, registration=registration), wakes=DELETED
            )

        async def close(self) -> None:
            """Close the database, if this store opened it. The next use opens it again."""
            await self._handles.close()

        async def _of(self, session_id: str) -> tuple[Registration, SessionsDB]:
            self.validate_session_id(session_id)
            db = await self._handles.current()
            stored_id = validation.session_id(self.stored_id(session_id))
            mark = forms.mark(FORM)
            return Registration(db.namespace, stored_id, FORM, session_id, metadata=mark), db


# ---- operations ----------------------------------------------------------------------------------


def _load_newest(connection: Connection, registration: Registration) -> dict[str, Any] | None:
    head = heads.read(connection, registration.namespace, registration.session_id)
    if head is None:
        return None
    require_form(head, registration)
    newest = entries.load_newest(connection, registration.namespace, registration.session_id, 1)
    return newest[0] if newest else None


def _replace(
    connection: Connection, registration: Registration, snapshot: StoredMessage, limits: Limits
) -> None:
    lock_or_create(connection, registration)
    request = EditRequest(
        registration.namespace, registration.session_id, [snapshot], [None], keep_through=0
    )
    editing.edit(connection, request, limits)


def _delete(connection: Connection, registration: Registration) -> None:
    head = heads.read(connection, registration.namespace, registration.session_id)
    if head is not None:
        require_form(head, registration)
        tree.delete_session(connection, registration.namespace, registration.session_id, "detach")
