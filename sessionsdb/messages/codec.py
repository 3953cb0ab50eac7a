"""A message on its way into a row and back: ``(role, content, payload)``.

``role`` and ``content`` are what people and SQL read. ``payload`` is the exact JSON, and NULL
when role and content say it all, which they do for most messages. What is read back equals what
was written to the last character; only ``content`` is a rendering.

The forms understood here are OpenAI's chat messages and response items, Anthropic's content
blocks and Gemini's parts. Whatever else JSON can say is stored just as faithfully, and renders
as JSON.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.json_text import (
    dump,
    is_storable,
    parse,
    storable,
)
from sessionsdb.messages.rendering import (
    COMMON_ROLES,
    role_of,
    text_of,
)

Message = dict[str, Any]

MAX_DEPTH = 256
"""Nesting beyond which a message is refused. Python's JSON reader gives up near 1,000 frames,
counted from wherever it is called: what is accepted here can be read from any depth of stack."""

_PLAIN = ("role", "content")

_LEAVES = frozenset((str, int, float, bool, type(None)))
_CONTAINERS = frozenset((dict, list, tuple))


class StoredMessage(NamedTuple):
    """The three columns that hold one message."""

    role: str
    content: str
    payload: str | None


def encode(message: Any, *, max_bytes: int) -> StoredMessage:
    """The columns for ``message``.

    Raises ``InvalidMessage`` if it is not a JSON object, if JSON can't say it (NaN, bytes, keys
    that are not strings, …), if it nests deeper than ``MAX_DEPTH`` or is larger than ``max_bytes``.
    """
    if not issubclass(type(message), dict):
        raise InvalidMessage(
            f"a message must be a JSON object (a dict), not {type(message).__name__}"
        )
    try:
        return _encoded(message, max_bytes)
    except InvalidMessage:
        raise
    except Exception as error:  # of the methods of what is in it
        raise InvalidMessage(f"message can't be read: its {type(error).__name__}") from error


def _encoded(message: Message, max_bytes: int) -> StoredMessage:
    if (plain := _plain_copy(message, max_bytes)) is not None:
        return plain
    exact = _refuse_what_json_cannot_say(message, max_bytes)
    payload = dump(message)
    _refuse_large(payload, max_bytes)
    if not exact:
        message = decode("", "", payload)
    return StoredMessage(storable(role_of(message)), storable(text_of(message)), payload)


def encode_all(messages: Any, *, max_bytes: int, first: int = 0) -> list[StoredMessage]:
    """The columns for each of ``messages``; the error names the one that was refused, counted from
    ``first``."""
    if type(messages) not in (list, tuple):
        messages = _listed(messages)
    stored = []
    for index, message in enumerate(messages, first):
        try:
            plain = _plain_copy(message, max_bytes)  # most are, and a transcript may be long
            stored.append(plain or encode(message, max_bytes=max_bytes))
        except InvalidMessage as error:
            raise InvalidMessage(f"message {index}: {error}") from None
    return stored


def _listed(messages: Any) -> list[Any]:
    if not issubclass(type(messages), (list, tuple)):
        raise InvalidMessage(f"messages must be a list of dicts, not {type(messages).__name__}")
    try:
        return list(messages)
    except Exception as error:
        raise InvalidMessage(f"messages can't be read: their {type(error).__name__}") from error


def encode_text(text: Any, *, what: str, max_bytes: int) -> StoredMessage:
    """The columns for a user's ``text``, which must not be empty; ``what`` names it in errors."""
    if type(text) is not str:
        if not issubclass(type(text), str):
            raise InvalidMessage(f"{what} must be a string, not {type(text).__name__}")
        text = str.__str__(text)
    if not text:
        raise InvalidMessage(f"{what} must not be empty")
    message = {"role": "user", "content": text}
    return _plain_copy(message, max_bytes) or encode(message, max_bytes=max_bytes)


def decode(role: str, content: str, payload: str | None) -> Message:
    """The message that was encoded: a fresh object, equal to the original."""
    if payload is None:
        return {"role": role, "content": content}
    message: Message = parse(payload)
    return message


def _plain_copy(message: Message, max_bytes: int) -> StoredMessage | None:
    """The columns of the common ``{"role": …, "content": …}``, which need no payload."""
    if type(message) is not dict or tuple(message) != _PLAIN:
        return None
    role, content = message.values()
    if type(role) is not str or type(content) is not str:
        return None
    if role not in COMMON_ROLES and not (role and is_storable(role)):
        return None
    if not is_storable(content):
        return None
    # As JSON a character takes six bytes at the most, and the braces and names 25.
    if (len(role) + len(content)) * 6 + 25 > max_bytes:
        _refuse_large(dump(message), max_bytes)
    return StoredMessage(role, content, None)


def _refuse_large(payload: str, max_bytes: int) -> None:
    size = len(payload) if payload.isascii() else len(payload.encode())
    if size > max_bytes:
        raise _too_large(str(size), max_bytes)


def _too_large(size: str, max_bytes: int) -> InvalidMessage:
    return InvalidMessage(
        f"message is {size} bytes as JSON, the limit is {max_bytes}; "
        "store large content elsewhere and refer to it, or raise Limits.message_bytes"
    )


def _refuse_what_json_cannot_say(message: Message, max_bytes: int) -> bool:
    """Whether all in it is of exactly the types that JSON's reader makes. A subclass may answer
    as it likes: then what is rendered is what was written, read back."""
    # json.dumps turns keys like 1 and None into strings without a word, and its own check for
    # circles costs more than this walk.
    containers: list[tuple[Any, int]] = [(message, 1)]
    seen = 0
    exact = True
    while containers:
        container, depth = containers.pop()
        if depth > MAX_DEPTH:
            raise InvalidMessage(f"message nests deeper than {MAX_DEPTH} levels, or holds itself")
        if isinstance(container, dict):
            for key in container:
                if type(key) is str:
                    continue
                exact = False
                if not issubclass(type(key), str):
                    raise InvalidMessage(
                        f"message is not JSON: it has a key of type {type(key).__name__}, "
                        "keys must be strings"
                    )
            values = container.values()
        else:
            values = container
        seen += len(container)
        if seen > max_bytes:  # every value is a byte at least
            raise _too_large(f"over {max_bytes}", max_bytes)
        for value in values:
            kind = type(value)
            if kind in _LEAVES:
                continue
            if kind in _CONTAINERS:
                containers.append((value, depth + 1))
                continue
            exact = False
            if issubclass(kind, (dict, list, tuple)):
                containers.append((value, depth + 1))
    return exact
