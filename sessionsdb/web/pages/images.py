"""The images inside of messages: they are found, counted and decoded.

Only data in base64 is shown. An image on another server is not loaded: its owner would learn who
reads the transcript.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

MAX_IMAGES = 20
"""The images of one message that a page shows."""

_MAX_DEPTH = 32
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,")
_TYPES = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp"))
_TYPE_KEYS = ("media_type", "mediaType", "mime_type", "mimeType")
_DATA_KEYS = ("data", "base64", "bytes")
_FORMATS = frozenset(("png", "jpeg", "gif", "webp"))

_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def count_images(message: Mapping[str, Any]) -> int:
    """Return how many images of a message a page can show, at most ``MAX_IMAGES``."""
    return sum(1 for _ in islice(_encoded(message, 0), MAX_IMAGES))


def image_of(message: Mapping[str, Any], number: int) -> tuple[str, bytes] | None:
    """Return the media type and the bytes of an image, by its number from 1.

    The type is told by the first bytes, never by the message: a browser must not take the data for
    a page. ``None``: there is no such image, or its data is no image of a common type.
    """
    encoded = next(islice(_encoded(message, 0), number - 1, number), None)
    if encoded is None or number > MAX_IMAGES:
        return None
    try:
        found = base64.b64decode(encoded, validate=False)
    except (binascii.Error, ValueError):
        return None
    media_type = _type_of(found)
    return None if media_type is None else (media_type, found)


def _type_of(found: bytes) -> str | None:
    if found.startswith(b"RIFF") and found[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for begin, kind in _BEGINNINGS.items() if found.startswith(begin)), None)


def _encoded(value: Any, depth: int) -> Iterator[str]:
    """Yield the data of each image of a value, in base64, in their order."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        if (found := _DATA_URL.match(value)) is not None:
            yield value[found.end() :]
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _encoded(item, depth + 1)
    elif isinstance(value, Mapping):
        if (data := _own_data(value)) is not None:
            yield data
            return
        for item in value.values():
            yield from _encoded(item, depth + 1)


def _own_data(block: Mapping[str, Any]) -> str | None:
    """Return the data of a block that names its type: Anthropic, Gemini, LangChain, Bedrock."""
    holder: Any
    if any(block.get(key) in _TYPES for key in _TYPE_KEYS if isinstance(block.get(key), str)):
        holder = block
    elif isinstance(block.get("format"), str) and block["format"] in _FORMATS:
        holder = block.get("source")
    else:
        return None
    if not isinstance(holder, Mapping):
        return None
    data = next((holder[key] for key in _DATA_KEYS if isinstance(holder.get(key), str)), None)
    return None if data is None or data.startswith(("data:", "http")) else data
