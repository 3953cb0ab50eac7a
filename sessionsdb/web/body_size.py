"""The bound on the body of a request."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

MAX_BODY_BYTES = 32 * 1024 * 1024
"""The bytes of a body, and of a line of an import."""


class BodyTooLarge(HTTPException):
    """The body of a request has more than ``MAX_BODY_BYTES``."""

    def __init__(self) -> None:
        super().__init__(413, f"the body has more than {MAX_BODY_BYTES} bytes")


def is_too_large(headers: Headers) -> bool:
    """Return whether the header ``Content-Length`` names too many bytes, or no number."""
    length = headers.get("content-length", "0")
    is_number = length.isascii() and length.isdigit() and len(length) <= 20
    return not is_number or int(length) > MAX_BODY_BYTES


def bounded(receive: Receive) -> Receive:
    """Return a channel that raises ``BodyTooLarge`` once the body has too many bytes."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge
        return message

    return counted
