"""The errors of the package in the words of the command line: options instead of arguments."""

from __future__ import annotations

import re
import shlex

from sessionsdb import (
    InboxFull,
    InvalidArgument,
    SessionEnded,
    SessionExists,
    SessionHasChildren,
    SessionsDBError,
    UnknownSession,
)
from sessionsdb.types import DEFAULT_NAMESPACE

_OPTIONS = {
    "active_since": "--active-since",
    "after": "--after",
    "at": "--at",
    "batch": "--batch",
    "before": "--before",
    "channel": "--channel",
    "concurrency": "--concurrency",
    "idempotency_key": "--idempotency-key",
    "lease_seconds": "--lease",
    "limit": "--limit",
    "max_attempts": "--max-attempts",
    "metadata": "--metadata",
    "model": "--model",
    "name": "--name",
    "namespace": "--namespace",
    "peer": "--peer",
    "poll_interval": "--poll",
    "reason": "--reason",
    "sender": "--sender",
    "system": "--system",
    "timeout": "--wait",
    "turn_timeout": "--turn-timeout",
    "wait_timeout_secs": "--wait",
}
"""The option of each argument of the API."""

_FIRST_WORD = re.compile(r"\w+(?= )")
_TRANSACTION_POOLER = re.compile(r"\btransaction_pooler(=True)?\b")
_SECRET_IN_URL = re.compile(r"(://[^:/@?\s]*):[^?\s]*@")
_SECRET_IN_QUERY = re.compile(r"(?<=[?&])(?:password|passfile|sslpassword)=[^&\s]*&?")
_ADVISED = re.compile(
    r"(?:(?<=run: )|(?<=with: )|(?<=\| ))sessionsdb (migrate|import|search|list|reopen)\b"
)
"""The commands that a message says to run, on the database of the command that failed."""


def in_options(
    error: SessionsDBError, url: str | None = None, namespace: str = DEFAULT_NAMESPACE
) -> str:
    """Return the message of an error for a user of the command line."""
    return name_url(_in_options(error), url, namespace)


def _in_options(error: SessionsDBError) -> str:
    match error:
        case SessionEnded():
            return (
                f"session has ended: {error.session_id}; it takes no messages and spawns no "
                "children, let it take messages again with: sessionsdb reopen "
                f"{shlex.quote(error.session_id)}"
            )
        case SessionExists() if error.for_fork:
            return f"session exists already: {error.session_id}; give another --new-id"
        case SessionExists():
            return (
                f"session exists already: {error.session_id}; use --exist-ok to leave it "
                f"unchanged, or sessionsdb update to change it"
            )
        case SessionHasChildren():
            return (
                f"session has children: {error.session_id}; delete them first, or use "
                "--children cascade or --children detach"
            )
        case InboxFull():
            return (
                f"inbox of session {error.session_id} is full: {error.limit} messages wait "
                "already; try again when its worker has caught up"
            )
        case UnknownSession():
            return (
                f"unknown session: {error.session_id}; list the sessions of the namespace with: "
                "sessionsdb list --ended"
            )
        case InvalidArgument():
            text = _FIRST_WORD.sub(lambda m: _OPTIONS.get(m[0], m[0]), str(error), count=1)
            return _TRANSACTION_POOLER.sub("--transaction-pooler", text)
    return str(error)


def name_url(text: str, url: str | None, namespace: str = DEFAULT_NAMESPACE) -> str:
    """Return ``text`` with the database and the namespace in the commands that it says to run.

    The password is left out. Without the database, the command would work on another one.
    """
    if url is None:
        return text
    shown = _SECRET_IN_QUERY.sub("", _SECRET_IN_URL.sub(r"\1@", url)).rstrip("?&")
    database = f" --url {shlex.quote(shown)}"
    place = database
    if namespace != DEFAULT_NAMESPACE:
        place += f" --namespace {shlex.quote(namespace)}"
    return _ADVISED.sub(
        lambda match: match[0] + (database if match[1] == "migrate" else place), text
    )
