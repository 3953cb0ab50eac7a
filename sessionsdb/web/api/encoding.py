"""Encode the messages of a request in a thread, so that a hostile one does not stop the server.

A megabyte of empty blocks takes 14 s to render.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Depends, Request

from sessionsdb.messages.codec import EncodedMessage
from sessionsdb.web.api.access import Caller

SMALL_BODY = 10_000
"""The bytes of a body whose messages are encoded at once. That takes at most 0.2 s."""


class Encoder:
    """Encodes the messages of one request."""

    def __init__(self, size: int) -> None:
        self._is_small = size <= SMALL_BODY

    async def all(self, caller: Caller, messages: list[Any]) -> list[Any]:
        """Return messages that the verbs take as they are. Raises ``InvalidMessage``."""
        if self._is_small:
            return messages
        max_bytes = caller.db.limits.message_bytes
        return await asyncio.to_thread(EncodedMessage.of_all, messages, max_bytes=max_bytes)

    async def one(self, caller: Caller, message: str | dict[Any, Any]) -> str | dict[Any, Any]:
        """Return a message that the verbs take as it is. Raises ``InvalidMessage``."""
        if self._is_small or isinstance(message, str):
            return message
        max_bytes = caller.db.limits.message_bytes
        return await asyncio.to_thread(EncodedMessage.of, message, max_bytes=max_bytes)


async def _encoder(request: Request) -> Encoder:
    return Encoder(len(await request.body()))


Encoding = Annotated[Encoder, Depends(_encoder)]
