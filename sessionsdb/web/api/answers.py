"""Responses with JSON, and the headers that carry versions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header, Request, Response
from pydantic import BaseModel

from sessionsdb.errors import InvalidArgument

JSON = "application/json"

_ETAG = re.compile(r'(?:W/)?"(\d{1,18})"')


def answer(
    value: Any, status: int = 200, *, version: int | None = None, media_type: str = JSON
) -> Response:
    """Return a response with JSON in ASCII, which has room for every message.

    ``version`` is sent as the ``ETag``.
    """
    headers = {} if version is None else {"ETag": f'"{version}"'}
    return Response(as_json(value), status, headers, media_type)


def as_json(value: Any) -> bytes:
    return json.dumps(_plain(value), separators=(",", ":"), default=_time).encode("ascii")


def _time(value: datetime) -> str:
    """Return a time as pydantic writes it. Pydantic itself refuses lone surrogates in keys."""
    return value.isoformat().replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    # Only up to the values: messages are JSON already, and may be large.
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def unchanged(request: Request, version: int) -> Response | None:
    """Return ``304 Not Modified`` if the caller has this version already."""
    given = request.headers.get("if-none-match", "")
    if str(version) in _ETAG.findall(given):
        return Response(status_code=304, headers={"ETag": f'"{version}"'})
    return None


def expected_version(
    if_match: Annotated[
        str | None,
        Header(description='Only at this version: the `ETag` of an answer, as in `"3"`.'),
    ] = None,
    if_none_match: Annotated[
        Literal["*"] | None, Header(description="`*`: only if the session does not exist.")
    ] = None,
) -> int | None:
    """Return the version that a write expects, ``None`` for any."""
    if if_none_match is not None:
        return 0
    if if_match is None:
        return None
    found = _ETAG.fullmatch(if_match)
    if found is None:
        raise InvalidArgument('If-Match must be the ETag of an answer, as in "3"')
    return int(found[1])
