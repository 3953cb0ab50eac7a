"""The session of this database that an adapter reads and writes, as it would register it."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection

from sessionsdb.adapters import forms
from sessionsdb.operations import heads, transcripts
from sessionsdb.operations.heads import Head
from sessionsdb.operations.registry import Registration
from sessionsdb.runtime.database_access import DONE, STOP, Topics, hint_about

DELETED: Final[Topics] = (DONE, hint_about(STOP, None))
"""The topics that a delete wakes: callers may wait there, and a worker may run a turn there."""


def require_form(head: Head, registration: Registration) -> None:
    """Raise ``AnotherForm`` for a session of another form than the registration's.

    Metadata of a caller may have replaced the mark. Then the channel tells the form.
    """
    form = (registration.metadata or {})[forms.FORM_KEY]
    forms.require_form(head, form, unmarked=head.channel == registration.channel)


def lock_or_create(connection: Connection, registration: Registration) -> Head:
    """Lock a session, which is created first if it does not exist. Raises ``AnotherForm``."""
    while True:
        head = heads.lock(connection, registration.namespace, registration.session_id)
        if head is not None:
            require_form(head, registration)
            return head
        # If another writer creates it at the same time, this waits for that one.
        heads.create(connection, registration)


def load_messages(connection: Connection, registration: Registration) -> list[dict[str, Any]]:
    """Return the messages of a session, none if it does not exist. Raises ``AnotherForm``."""
    head = heads.read(connection, registration.namespace, registration.session_id)
    if head is None:
        return []
    require_form(head, registration)
    return transcripts.load(connection, registration.namespace, registration.session_id) or []
