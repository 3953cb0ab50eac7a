"""The stored form of a message: ``(role, content, payload)``.

``role`` and ``content`` are for people and for SQL, and ``content`` is only a rendering.
``payload`` is the exact JSON. It is NULL for the common message of a role and a text, which the
two other columns hold completely. ``decode`` returns a message that equals the encoded one to the
last character.

The rendering knows OpenAI's chat messages and response items, Anthropic's content blocks and
Gemini's parts. All other JSON objects are stored as exactly, and rendered as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.json_text import (
    dump,
    parse,
    parse_object,
    replace_unstorable,
    utf8_size,
)
from sessionsdb.messages.reasoning import is_reasoning
from sessionsdb.messages.rendering import render_role, render_text
from sessionsdb.untrusted_values import is_instance, is_storable, plain_text

Message = dict[str, Any]

MAX_DEPTH = 256
"""The maximum nesting of a message. Python's JSON reader fails near 1,000 frames of the whole
stack, so a message of this depth can be read from a deep stack too."""

_PLAIN_KEYS = ("role", "content")
_COMMON_ROLES = frozenset(("user", "assistant", "system", "tool"))

_LIMIT_OF = {"message": "Limits.message_bytes", "value": "Limits.state_bytes"}
"""The limit that bounds the size of a value in JSON, by the name of the value in errors."""

_LEAVES = frozenset((str, int, float, bool, type(None)))
_CONTAINERS = frozenset((dict, list, tuple))


class StoredMessage(NamedTuple):
    """The three columns that hold one message."""

    role: str
    content: str
    payload: str | None


_make = tuple.__new__
"""Half of the time of a call of ``StoredMessage``, which passes its values by another function."""


class EncodedMessage(dict[str, Any]):
    """A message together with its columns, which are not made again. Nobody may change it."""

    __slots__ = ("stored",)

    stored: StoredMessage

    @classmethod
    def of(cls, message: Message, *, max_bytes: int) -> EncodedMessage:
        """Return an encoded message. Raises ``InvalidMessage`` as ``encode`` does."""
        return cls._made(message, encode(message, max_bytes=max_bytes))

    @classmethod
    def of_all(cls, messages: Sequence[Message], *, max_bytes: int) -> list[Message]:
        """Return each message encoded. Raises ``InvalidMessage`` as ``encode_all`` does."""
        stored = encode_all(messages, max_bytes=max_bytes)
        return [
            message if columns.payload is None else cls._made(message, columns)
            for message, columns in zip(messages, stored, strict=True)
        ]

    @classmethod
    def _made(cls, message: Message, stored: StoredMessage) -> EncodedMessage:
        made = cls(message)
        made.stored = stored
        return made


def encode(message: Any, *, max_bytes: int) -> StoredMessage:
    """Return the columns for ``message``.

    Raises ``InvalidMessage`` if it is not a JSON object, nests deeper than ``MAX_DEPTH``, or is
    larger than ``max_bytes``. Also for a value that JSON does not have, for example NaN, bytes, or
    a key that is not a string.
    """
    if type(message) is EncodedMessage:
        return message.stored
    if not is_instance(message, dict):
        raise InvalidMessage(
            f"a message must be a JSON object (a dict), not {type(message).__name__}"
        )
    try:
        return _encode_object(message, max_bytes)
    except InvalidMessage:
        raise
    except Exception as error:  # from a method of a value in the message
        raise InvalidMessage(f"message can't be read: its {type(error).__name__}") from error


def _encode_object(message: Message, max_bytes: int) -> StoredMessage:
    if (plain := _encode_plain(message, max_bytes)) is not None:
        return plain
    exact = check_json_types(message, max_bytes)
    payload = dump(message)
    _check_size(payload, max_bytes)
    if not exact:
        # A subclass can give the rendering another value than it gave the payload.
        message = decode("", "", payload)
    role, content = render_role(message), render_text(message)
    return StoredMessage(replace_unstorable(role), replace_unstorable(content), payload)


def encode_all(messages: Any, *, max_bytes: int, first_index: int = 0) -> list[StoredMessage]:
    """Return the columns for each message. An error names the index of the refused message.

    The first message has the index ``first_index``.
    """
    if type(messages) not in (list, tuple):
        messages = _as_list(messages)
    stored = []
    for index, message in enumerate(messages, first_index):
        try:
            # Most messages are plain, and a transcript can be long: save a call for each.
            plain = _encode_plain(message, max_bytes)
            stored.append(plain or encode(message, max_bytes=max_bytes))
        except InvalidMessage as error:
            raise InvalidMessage(f"message {index}: {error}") from None
    return stored


def _as_list(messages: Any) -> list[Any]:
    if not is_instance(messages, list, tuple):
        raise InvalidMessage(f"messages must be a list of dicts, not {type(messages).__name__}")
    try:
        return list(messages)
    except Exception as error:
        raise InvalidMessage(f"messages can't be read: their {type(error).__name__}") from error


def encode_text(text: Any, *, field: str, max_bytes: int) -> StoredMessage:
    """Return the columns for a message of a user. ``field`` names the argument in errors.

    Raises ``InvalidMessage`` if ``text`` is empty or larger than ``max_bytes``.
    """
    if type(text) is not str:
        if not is_instance(text, str):
            raise InvalidMessage(f"{field} must be a string, not {type(text).__name__}")
        text = plain_text(text)
    if not text:
        raise InvalidMessage(f"{field} must not be empty")
    message = {"role": "user", "content": text}
    return _encode_plain(message, max_bytes) or encode(message, max_bytes=max_bytes)


def encode_incoming(message: Any, *, field: str, max_bytes: int) -> StoredMessage:
    """Return the columns for a message that is sent: a text, or a JSON object of any form.

    Its role is ``user`` unless the message says otherwise. ``field`` names the argument in errors.
    Raises ``InvalidMessage`` as ``encode`` does, and for an empty text.
    """
    if type(message) is str:
        return encode_text(message, field=field, max_bytes=max_bytes)
    if not is_instance(message, dict):
        if not is_instance(message, str):
            raise InvalidMessage(
                f"{field} must be a string or a JSON object (a dict), not {type(message).__name__}"
            )
        return encode_text(message, field=field, max_bytes=max_bytes)
    stored = encode(message, max_bytes=max_bytes)
    if not stored.content:
        raise InvalidMessage(f"{field} must not be empty")
    if stored.payload is None:
        return stored
    return _stored_incoming(parse(stored.payload), stored.content, stored.payload)


def from_inbox(content: str, payload: str | None) -> StoredMessage:
    """Return the columns of the transcript for a message that stands in the inbox.

    The inbox has no column for the role: without a payload it is ``user``. Raises ``DamagedValue``.
    """
    if payload is None:
        return StoredMessage("user", content, None)
    message = parse_object(payload)
    return _encode_plain(message, utf8_size(payload)) or _stored_incoming(message, content, payload)


def inbox_payload(message: StoredMessage) -> str | None:
    """Return the payload with which a message stands in the inbox, see ``from_inbox``."""
    if message.payload is None and message.role != "user":
        return dump(decode(*message))
    return message.payload


def _stored_incoming(message: Message, content: str, payload: str) -> StoredMessage:
    role = replace_unstorable(render_role(message, unsaid="user"))
    return StoredMessage(role, content, payload)


def size_of(message: StoredMessage) -> int:
    """Return the size of a message in bytes, as JSON in UTF-8."""
    return utf8_size(dump(decode(*message)) if message.payload is None else message.payload)


def encode_data(data: Any, *, max_bytes: int) -> str:
    """Return the JSON of any value that JSON has, as ``parse`` of ``json_text.py`` reads it.

    Raises ``InvalidMessage`` if JSON does not have it, if it nests deeper than ``MAX_DEPTH``, or if
    it is larger than ``max_bytes``.
    """
    try:
        check_json_types({"data": data}, max_bytes, noun="data")
        text = dump(data, noun="data")
    except InvalidMessage:
        raise
    except Exception as error:  # from a method of a value in the data
        raise InvalidMessage(f"data can't be read: its {type(error).__name__}") from error
    size = utf8_size(text)
    if size > max_bytes:
        raise _size_error(str(size), max_bytes, "data")
    return text


def decode(role: str, content: str, payload: str | None) -> Message:
    """Return the encoded message as a new object, equal to the original."""
    if payload is None:
        return {"role": role, "content": content}
    message: Message = parse(payload)
    return message


def decode_rows(rows: Sequence[Sequence[Any]]) -> list[Message]:
    """Return the encoded messages of rows whose first columns are ``role, content, payload``.

    By index, since asyncpg unpacks its records slowly: 0.11 µs a message instead of 0.14.
    """
    return [
        {"role": row[0], "content": row[1]} if row[2] is None else parse(row[2]) for row in rows
    ]


def _encode_plain(message: Message, max_bytes: int) -> StoredMessage | None:
    """Return the columns of a common ``{"role": …, "content": …}`` without a payload, or ``None``
    for any other message.

    Nearly all messages come through here, so it avoids calls: 0.6 µs a message and not 0.9.
    """
    if type(message) is not dict or tuple(message) != _PLAIN_KEYS:
        return None
    role, content = message.values()
    if type(role) is not str or type(content) is not str:
        return None
    if role not in _COMMON_ROLES and (
        not (role and is_storable(role)) or is_reasoning({"role": role})
    ):
        return None
    if not (content.isascii() and "\x00" not in content) and not is_storable(content):
        return None
    # JSON takes at most 6 bytes for a character, and 25 for the braces and the names.
    if (len(role) + len(content)) * 6 + 25 > max_bytes:
        _check_size(dump(message), max_bytes)
    return _make(StoredMessage, (role, content, None))


def _check_size(payload: str, max_bytes: int) -> None:
    size = utf8_size(payload)
    if size > max_bytes:
        raise _size_error(str(size), max_bytes)


def _size_error(size: str, max_bytes: int, noun: str = "message") -> InvalidMessage:
    limit = _LIMIT_OF.get(noun)
    return InvalidMessage(
        f"{noun} is {size} bytes as JSON, the limit is {max_bytes}; store large content elsewhere "
        f"and refer to it{f', or raise {limit}' if limit else ''}"
    )


def check_json_types(
    message: Message | list[Any], max_bytes: int, *, noun: str = "message"
) -> bool:
    """Refuse keys that are not strings, deep nesting and a huge message.

    Returns whether all values have exactly the types that the JSON reader makes.
    """
    # json.dumps turns keys such as 1 and None into strings without an error, and its own check
    # for circles costs more than this walk.
    containers: list[tuple[Any, int]] = [(message, 1)]
    value_count = 0
    exact = True
    while containers:
        container, depth = containers.pop()
        if depth > MAX_DEPTH:
            raise InvalidMessage(f"{noun} nests deeper than {MAX_DEPTH} levels, or holds itself")
        if isinstance(container, dict):
            for key in container:
                if type(key) is str:
                    continue
                exact = False
                if not is_instance(key, str):
                    raise InvalidMessage(
                        f"{noun} is not JSON: it has a key of type {type(key).__name__}, "
                        "keys must be strings"
                    )
            values = container.values()
        else:
            values = container
        value_count += len(container)
        if value_count > max_bytes:  # each value takes at least one byte
            raise _size_error(f"over {max_bytes}", max_bytes, noun)
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
