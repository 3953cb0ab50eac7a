"""Transcripts as resources: ``sessionsdb://sessions/{id}``."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote

from mcp_types import Resource, ResourceTemplate

MIME_TYPE = "application/json"

PREFIX = "sessionsdb://sessions/"

MESSAGES = 500

TEMPLATE = ResourceTemplate(
    name="session",
    title="A session's transcript",
    uri_template=f"{PREFIX}{{id}}{{?before}}",
    description="The latest messages of a session, newest last. If truncated is true, there are "
    "older ones: read them with before=next_before.",
    mime_type=MIME_TYPE,
)


class Wanted(NamedTuple):
    """What an address asks for."""

    session_id: str
    before: str | None

    def arguments(self) -> dict[str, Any]:
        """As the arguments of ``sessions_history``, which checks them."""
        return {"session_id": self.session_id, "limit": MESSAGES, "before": self.before}


def address(session_id: str) -> str:
    """The address of a session's transcript."""
    return PREFIX + quote(session_id, safe="")


def parse(uri: str) -> Wanted | None:
    """What an address asks for; ``None`` if it is not one of ours."""
    if not uri.startswith(PREFIX):
        return None
    path, _, query = uri.removeprefix(PREFIX).partition("?")
    try:
        session_id = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return None
    if not session_id or "/" in path:
        return None
    return Wanted(session_id, parse_qs(query).get("before", [None])[0])


def listed(session: dict[str, Any]) -> Resource:
    """A session of ``sessions_list`` as a resource."""
    return Resource(
        name=session["id"],
        uri=address(session["id"]),
        description=f"{session['message_count']} messages, from {session['channel']}, "
        f"last active {session['last_active']}",
        mime_type=MIME_TYPE,
    )
