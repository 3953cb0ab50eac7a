"""The parameters that several routes share."""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Header, Path, Query
from pydantic import BeforeValidator
from starlette.convertors import Convertor, register_url_convertor

from sessionsdb.errors import InvalidArgument
from sessionsdb.types import SessionId, SessionSummary

MAX_LIMIT = 1_000
"""The rows of one page at most."""

MAX_WAIT_SECONDS = 60.0
"""The longest wait of one request."""


NUMBER = "sessionsdb_number"
"""The kind of a path parameter that matches digits only, as in ``{seq:sessionsdb_number}``."""


class _Number(Convertor[str]):
    """Matches digits, and leaves their check to the parameter.

    ``int`` of Starlette fails with 500 at more than 4,300 digits.
    """

    regex = "[0-9]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor(NUMBER, _Number())


def _session_id(id: Annotated[str, Path(description="The session's id, percent-encoded.")]) -> str:
    # The server leaves two characters of a path encoded, see `server.py`.
    return unquote(id, errors="strict")


def _time_as_text(value: Any) -> Any:
    # A number would be taken for seconds since 1970, which the document does not say.
    if value is not None and (not isinstance(value, str) or _NUMBER.fullmatch(value.strip())):
        raise ValueError("must be a time, as in 2026-01-31T12:00:00Z")
    return value


_NUMBER = re.compile(r"[-+]?[\d._]+(?:e[-+]?\d+)?", re.IGNORECASE)

Moment = Annotated[datetime, BeforeValidator(_time_as_text)]
Position = Annotated[int, Path(ge=1, le=2**63 - 1, description="The position in the inbox.")]
Seq = Annotated[int, Path(ge=1, le=2**63 - 1, description="The `seq` of a message.")]
SessionIdPath = Annotated[str, Depends(_session_id)]
Limit = Annotated[int, Query(ge=0, le=MAX_LIMIT, description=f"At most {MAX_LIMIT}.")]
Wait = Annotated[
    float | None,
    Query(ge=0, le=MAX_WAIT_SECONDS, description="Wait at most so many seconds for the reply."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Names this request. Repeated with the same key and body it changes nothing, "
        "and has the first answer."
    ),
]


def place_of(session: SessionSummary) -> str:
    """Return the cursor behind a session in a list: its last activity and its id."""
    place = [session.last_active.astimezone(UTC).isoformat(), session.id]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def session_at(cursor: str | None) -> SessionSummary | None:
    """Return the session of a cursor, with its place only. Raises ``InvalidArgument``."""
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        time, id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        last_active = datetime.fromisoformat(time).astimezone(UTC)
        return SessionSummary(
            id=SessionId(id),
            channel="",
            peer="",
            created_at=last_active,
            last_active=last_active,
            message_count=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise InvalidArgument("after is no cursor; pass the `next` of a page") from None
