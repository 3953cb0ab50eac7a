"""Transcripts as MCP resources with URIs such as ``sessionsdb://sessions/{id}``."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote

from mcp_types import Resource, ResourceTemplate

MIME_TYPE = "application/json"

PREFIX = "sessionsdb://sessions/"

MAX_MESSAGES = 500

TEMPLATE = ResourceTemplate(
    name="session",
    title="A session's transcript",
    uri_template=f"{PREFIX}{{id}}{{?before}}",
    description="The latest messages of a session, newest last. If truncated is true, there are "
    "older messages. Read them with before=next_before.",
    mime_type=MIME_TYPE,
)


class TranscriptRequest(NamedTuple):
    """The content of a URI: a session and a cursor."""

    session_id: str
    before: str | None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``sessions_history``, which checks them."""
        return {"session_id": self.session_id, "limit": MAX_MESSAGES, "before": self.before}


def transcript_uri(session_id: str) -> str:
    """Return the URI of the transcript of a session."""
    return PREFIX + quote(session_id, safe="")


def parse_uri(uri: str) -> TranscriptRequest | None:
    """Return the content of a URI, or ``None`` if it is not the URI of a transcript."""
    if not uri.startswith(PREFIX):
        return None
    path, _, query = uri.removeprefix(PREFIX).partition("?")
    try:
        session_id = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return None
    if not session_id or "/" in path:
        return None
    return TranscriptRequest(session_id, parse_qs(query).get("before", [None])[0])


def as_resource(session: dict[str, Any]) -> Resource:
    """Return a session in the result of ``sessions_list`` as a resource."""
    return Resource(
        name=session["id"],
        uri=transcript_uri(session["id"]),
        description=f"{session['message_count']} messages, from {session['channel']}, "
        f"last active {session['last_active']}",
        mime_type=MIME_TYPE,
    )
