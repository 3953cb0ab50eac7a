"""The parameters that several routes share."""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote, unquote_to_bytes

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BeforeValidator
from starlette.convertors import Convertor, register_url_convertor

from sessionsdb.errors import InvalidArgument
from sessionsdb.types import OpenQuestion, Receipt, SessionId, SessionSummary

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


_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _session_id(
    request: Request, id: Annotated[str, Path(description="The session's id, percent-encoded.")]
) -> str:
    raw = request.scope.get("raw_path") or b""
    try:
        # A web server puts other characters in the place of bytes that are not UTF-8.
        unquote_to_bytes(raw).decode("utf-8", "strict")
        if _BROKEN.search(raw):
            raise ValueError
        # The server leaves two characters of a path encoded, see `bounds.py`.
        return unquote(id, errors="strict")
    except ValueError:
        raise InvalidArgument("the path is not percent-encoded UTF-8") from None


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
    return _cursor(session.last_active, session.id)


def session_at(cursor: str | None) -> SessionSummary | None:
    """Return the session of a cursor, with its place only. Raises ``InvalidArgument``."""
    if cursor is None:
        return None
    last_active, id = _place(cursor)
    return SessionSummary(
        id=SessionId(id),
        channel="",
        peer="",
        created_at=last_active,
        last_active=last_active,
        message_count=0,
    )


def place_of_question(question: OpenQuestion) -> str:
    """Return the cursor behind a question in a list, which may be deleted before the next page."""
    return _cursor(question.asked_at, question.id)


def question_at(cursor: str | None) -> OpenQuestion | str | None:
    """Return the question of a cursor, with its place only. Raises ``InvalidArgument``.

    The id of a question is a cursor too, while the question is there. It has a colon.
    """
    if cursor is None or ":" in cursor:
        return cursor
    asked_at, id = _place(cursor)
    session_id = SessionId(id.rpartition(":")[0])
    receipt = Receipt(session_id=session_id, position=1)
    return OpenQuestion(id=id, session_id=session_id, prompt="", asked_at=asked_at, receipt=receipt)


def _cursor(time: datetime, id: str) -> str:
    place = [time.astimezone(UTC).isoformat(), id]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[datetime, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        time, id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        return datetime.fromisoformat(time).astimezone(UTC), str(id)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise InvalidArgument("after is no cursor; pass the `next` of a page") from None
