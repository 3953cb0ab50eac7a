"""The mark of a session's form: the framework whose messages are in its transcript.

The messages of one framework mean nothing to another one. So an adapter writes its form into the
metadata of each session that it creates, and refuses the sessions of another form by name.
"""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument, UnknownSession
from sessionsdb.types import SessionDetails

FORM_KEY: Final = "form"
"""The key of the mark in the metadata of a session."""


class Marked(Protocol):
    """A session that may bear a mark."""

    @property
    def id(self) -> str: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def message_count(self) -> int: ...


class AnotherForm(InvalidArgument):
    """The transcript of the session has messages of another form. Nothing was written.

    ``found`` is ``None`` for a session without a mark, which no adapter created.
    """

    def __init__(self, session_id: str, form: str, found: str | None) -> None:
        what = "messages that no adapter wrote" if found is None else f"messages of {found}"
        super().__init__(
            f"session {session_id} has {what}, and can't be used as a session of {form}; "
            "use another session id"
        )
        self.session_id = session_id
        self.form = form
        self.found = found


def mark(form: str) -> dict[str, Any]:
    """Return the metadata of a new session of this form."""
    return {FORM_KEY: form}


def form_of(details: Marked) -> str | None:
    """Return the form of a session, or ``None`` for a session without a mark."""
    found = details.metadata.get(FORM_KEY)
    return found if isinstance(found, str) else None


def form_in(metadata: str | None) -> str | None:
    """Return the form in a session's metadata as JSON, or ``None`` without a mark."""
    found = json.loads(metadata).get(FORM_KEY) if metadata else None
    return found if isinstance(found, str) else None


def require_form(details: Marked, form: str, *, unmarked: bool = False) -> None:
    """Raise ``AnotherForm`` if the transcript is not of this form.

    ``unmarked``: whether the messages of a session without a mark can be of this form. A session
    without a mark and without messages can be of any form.
    """
    found = form_of(details)
    if found == form:
        return
    if found is None and (unmarked or details.message_count == 0):
        return
    raise AnotherForm(details.id, form, found)


async def find_session(
    db: SessionsDB, session_id: str, form: str, *, unmarked: bool = False
) -> SessionDetails | None:
    """Return a session of this form, or ``None`` if there is no such session.

    Raises ``AnotherForm``, as ``require_form`` does.
    """
    try:
        details = await db.broker.get(session_id)
    except UnknownSession:
        return None
    require_form(details, form, unmarked=unmarked)
    return details


async def create_session(
    db: SessionsDB, session_id: str, form: str, *, channel: str, peer: str, unmarked: bool = False
) -> SessionDetails:
    """Create a session with the mark of this form, or return the one that exists.

    Of two adapters that create it at the same time, one creates it. If the forms are not the same,
    this raises ``AnotherForm`` for the other one.
    """
    found = await find_session(db, session_id, form, unmarked=unmarked)
    if found is not None:
        return found
    await db.broker.register(
        session_id, channel=channel, peer=peer, metadata=mark(form), exist_ok=True
    )
    details = await db.broker.get(session_id)
    require_form(details, form, unmarked=unmarked)
    return details
