"""The errors of the package in the words of the command line: options instead of arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from sessionsdb import (
    InboxFull,
    InvalidArgument,
    InvalidCursor,
    InvalidSessionId,
    SearchUnavailable,
    SessionEnded,
    SessionExists,
    SessionHasChildren,
    SessionsDBError,
    UnknownQuestion,
    UnknownSession,
)
from sessionsdb.types import DEFAULT_NAMESPACE
from sessionsdb.untrusted_values import short_repr

_OPTIONS = {
    "a state's key": "a key of --set or --remove",
    "a tool's name": "--tool",
    "active_since": "--active-since",
    "after": "--after",
    "allowed_hosts": "--allowed-host",
    "at": "--at",
    "author": "--author",
    "batch": "--batch",
    "before": "--before",
    "channel": "--channel",
    "concurrency": "--concurrency",
    "cron": "--cron",
    "error": "--error",
    "host": "--host",
    "idempotency_key": "--idempotency-key",
    "lease_seconds": "--lease",
    "limit": "--limit",
    "max_attempts": "--max-attempts",
    "mcp": "--mcp",
    "metadata": "--metadata",
    "model": "--model",
    "name": "--name",
    "namespace": "--namespace",
    "peer": "--peer",
    "poll_interval": "--poll",
    "proxies": "--proxy",
    "reason": "--reason",
    "schedule_id": "SCHEDULE_ID",
    "sender": "--sender",
    "system": "--system",
    "the query": "the query",
    "timeout": "--wait",
    "tools": "--tool",
    "turn_timeout": "--turn-timeout",
    "tz": "--tz",
    "wait_timeout_secs": "--wait",
}
"""The option of each argument of the API. The error about an argument begins with its name."""

_ARGUMENT = re.compile(
    r"(?:a state's key|a tool's name|the query|\w+)(?= (?!in the database URL\b))"
)
_LIMIT = re.compile(r",? or raise Limits\.\w+")
"""No option of a command raises a limit."""
_DATABASE_OPTION = re.compile(r"\b(transaction_pooler|read_url)(=True)?\b")
_SECRET_IN_URL = re.compile(r"(://[^:/@?]*):(?:[^?]*@|[^@]*@)")
_SECRET_IN_QUERY = re.compile(r"(?<=[?&])(?:password|passfile|sslpassword)=[^&]*&?")
"""Both are for a whole URL: a password may hold blanks."""
_ADVISED = re.compile(
    r"(?:(?<=run: )|(?<=with: )|(?<=\| ))sessionsdb "
    r"(migrate|doctor|import|search|list|questions|reopen)\b"
)
"""The commands that a message says to run, on the database of the command that failed."""


def in_options(
    error: SessionsDBError, url: str | None = None, namespace: str = DEFAULT_NAMESPACE
) -> str:
    """Return the message of an error for a user of the command line."""
    return name_url(_LIMIT.sub("", _in_options(error)), url, namespace)


def is_usage_error(error: Exception) -> bool:
    """Return whether the error is about an option or argument that is wrong in any database."""
    if isinstance(error, InvalidSessionId | InvalidCursor):
        return True
    named = _ARGUMENT.match(str(error)) if isinstance(error, InvalidArgument) else None
    return named is not None and named[0] in _OPTIONS


def in_arguments(error: InvalidArgument, words: Mapping[str, str]) -> str:
    """Return the message of an error with the ``words`` of one command for its arguments."""
    return _ARGUMENT.sub(lambda found: words.get(found[0], found[0]), str(error), count=1)


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
        case UnknownSession() if error.is_sender:
            return (
                f"--sender is no session: {error.session_id}; leave it out for a message of a "
                "user, or list the sessions of the namespace with: sessionsdb list --ended"
            )
        case UnknownSession():
            return (
                f"unknown session: {error.session_id}; list the sessions of the namespace with: "
                "sessionsdb list --ended"
            )
        case UnknownQuestion():
            return (
                f"unknown question: {short_repr(error.question_id)}; list the open ones with: "
                "sessionsdb questions"
            )
        case SearchUnavailable():
            return str(error).replace("index_search=True", "--index-search")
        case InvalidCursor():
            return (
                f"--after is no place in session {error.session_id}: {error.reason}; give start, "
                "a message's seq, or the cursor of an event of this session"
            )
        case InvalidArgument():
            text = in_arguments(error, _OPTIONS)
            return _DATABASE_OPTION.sub(lambda found: "--" + found[1].replace("_", "-"), text)
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
        lambda match: match[0] + (database if match[1] in ("migrate", "doctor") else place), text
    )
