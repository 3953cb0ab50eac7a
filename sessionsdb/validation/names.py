"""Checks of ids, names, texts and metadata."""

from __future__ import annotations

import json
from typing import Any, TypeVar, get_args

from sessionsdb.errors import InvalidArgument, InvalidSessionId
from sessionsdb.types import SessionId, StateScope
from sessionsdb.untrusted_values import is_instance, is_storable, plain_text, short_repr, type_name
from sessionsdb.validation.bounds import (
    MAX_KEY_CHARACTERS,
    MAX_KIND_CHARACTERS,
    MAX_MESSAGE_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_NAME_CHARACTERS,
    MAX_NAMESPACE_CHARACTERS,
    MAX_NAMESPACES,
    MAX_REASON_CHARACTERS,
    MAX_SCHEDULE_NAME_CHARACTERS,
    MAX_SCHEMA_BYTES,
    MAX_SESSION_ID_CHARACTERS,
    MAX_STATE_KEY_CHARACTERS,
    MAX_SYSTEM_CHARACTERS,
    MAX_TOOLS,
    MAX_TOOLS_CHARACTERS,
)
from sessionsdb.validation.checks import (
    as_text,
    bounded_list,
    bounded_text,
    json_copy,
    optional_text,
)

C = TypeVar("C", bound=str)


def session_id(value: Any) -> SessionId:
    """Check the id of a session. Raises ``InvalidSessionId``."""
    if type(value) is not str:
        if not is_instance(value, str):
            raise InvalidSessionId(f"a session id must be a string, not {type_name(value)}")
        value = plain_text(value)
    if not value:
        raise InvalidSessionId("a session id must not be empty")
    if len(value) > MAX_SESSION_ID_CHARACTERS:
        raise InvalidSessionId(
            f"session id {value[:40]!r}… has {len(value)} characters, "
            f"the limit is {MAX_SESSION_ID_CHARACTERS}"
        )
    if not is_storable(value):
        raise InvalidSessionId(
            f"session id {value[:40]!r} holds a NUL or a lone surrogate, which databases can't keep"
        )
    return SessionId(value)


def optional_session_id(value: Any) -> SessionId | None:
    return None if value is None else session_id(value)


def namespace(value: Any) -> str:
    """Check the name of a namespace: 1 to 64 characters."""
    return name(value, "namespace", maximum=MAX_NAMESPACE_CHARACTERS)


def schema(value: Any) -> str:
    """Check the name of a PostgreSQL schema: 1 to 63 bytes, not reserved by PostgreSQL."""
    text = name(value, "schema")
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        raise InvalidArgument(
            f"schema {text[:40]!r}… has {size} bytes, the limit is {MAX_SCHEMA_BYTES}"
        )
    # PostgreSQL puts the role's name for "$user" into a search_path, quoted or not.
    if text.startswith("pg_") or text in ("information_schema", "$user"):
        raise InvalidArgument(f"schema {text!r} is a name of PostgreSQL itself; use another one")
    return text


def namespaces(value: Any) -> list[str] | None:
    """Check the namespaces of a worker, at least one. ``"*"`` gives ``None``: every namespace."""
    if is_instance(value, str):
        if plain_text(value) != "*":
            raise InvalidArgument(f'namespaces must be a list, or "*", not {short_repr(value)}')
        return None
    given = bounded_list(value, "namespaces", MAX_NAMESPACES)
    if not given:
        raise InvalidArgument(
            'namespaces is empty, so the worker would do nothing; name at least one, or give "*"'
        )
    return list(dict.fromkeys(namespace(one) for one in given))


def idempotency_key(value: Any) -> str | None:
    """Check an idempotency key: ``None``, or 1 to 512 characters."""
    if value is None:
        return None
    return name(value, "idempotency_key", maximum=MAX_KEY_CHARACTERS)


def state_key(value: Any) -> str:
    """Check a key of a state: 1 to 256 characters."""
    return name(value, "a state's key", maximum=MAX_STATE_KEY_CHARACTERS)


def state_scope(value: Any) -> StateScope:
    """Check the scope of a state: session, peer or namespace."""
    scopes: tuple[StateScope, ...] = get_args(StateScope)
    return one_of(value, scopes, "scope")


def message_key(value: Any) -> str:
    """Check the key of a message: 1 to 256 bytes in UTF-8."""
    key = name(value, "key")
    size = len(key.encode())
    if size > MAX_MESSAGE_KEY_BYTES:
        raise InvalidArgument(
            f"key {key[:40]!r}… has {size} bytes, the limit is {MAX_MESSAGE_KEY_BYTES}"
        )
    return key


def message_keys(value: Any, count: int) -> list[str | None]:
    """Check a list of a key or ``None`` for each of ``count`` messages. ``None``: no keys."""
    if value is None:
        return [None] * count
    given = bounded_list(value, "keys", max(count, 1))
    if len(given) != count:
        raise InvalidArgument(
            f"keys must have one item for each message: {len(given)} keys, {count} messages"
        )
    keys = [None if key is None else message_key(key) for key in given]
    named = [key for key in keys if key is not None]
    if len(set(named)) < len(named):
        raise InvalidArgument("keys must differ: a session has a key at most once")
    return keys


def name(value: Any, field: str, *, empty: bool = False, maximum: int = MAX_NAME_CHARACTERS) -> str:
    """Check a name: 1 to ``maximum`` characters, or 0 with ``empty``."""
    text = as_text(value, field, "a string")
    if not text and not empty:
        raise InvalidArgument(f"{field} must not be empty")
    return bounded_text(text, field, maximum)


def kind(value: Any) -> str:
    """Check the kind of a streamed piece of data: 1 to 64 characters."""
    return name(value, "kind", maximum=MAX_KIND_CHARACTERS)


def schedule_name(value: Any) -> str | None:
    """Check the name of a schedule: ``None``, or 1 to 64 characters."""
    if value is None:
        return None
    return name(value, "name", maximum=MAX_SCHEDULE_NAME_CHARACTERS)


def schedule_id(value: Any) -> str:
    """Check the id of a schedule. One that no schedule can have is not refused."""
    return name(value, "schedule_id")


def streamed_text(value: Any) -> str:
    """Check a piece of text to stream: any string, also an empty one."""
    return as_text(value, "text", "a string")


def optional_name(value: Any, field: str, *, empty: bool = False) -> str | None:
    return None if value is None else name(value, field, empty=empty)


def model(value: Any) -> str | None:
    """Check the name of a model: ``None``, or at most 4,096 characters."""
    return optional_text(value, "model", MAX_NAME_CHARACTERS)


def system(value: Any) -> str | None:
    """Check a system prompt: ``None``, or at most 1,048,576 characters."""
    return optional_text(value, "system", MAX_SYSTEM_CHARACTERS)


def reason(value: Any) -> str | None:
    """Check the reason of an end: ``None``, or at most 10,000 characters."""
    return optional_text(value, "reason", MAX_REASON_CHARACTERS)


def error_text(value: Any) -> str | None:
    """Check a text to find in errors: ``None``, or at most 4,096 characters."""
    return optional_text(value, "error", MAX_NAME_CHARACTERS)


def one_of(value: Any, choices: tuple[C, ...], field: str) -> C:
    """Check that the value is one of ``choices``."""
    for choice in choices:
        if value is choice:  # a default
            return choice
    text = plain_text(value) if is_instance(value, str) else None
    for choice in choices:
        if choice == text:
            return choice
    named = " or ".join(f'"{choice}"' for choice in choices)
    raise InvalidArgument(f"{field} must be {named}, not {short_repr(value)}")


def tools(value: Any) -> list[str] | None:
    """Check a list of tool names. ``None`` means no restriction."""
    if value is None:
        return None
    names = [name(tool, "a tool's name") for tool in bounded_list(value, "tools", MAX_TOOLS)]
    characters = sum(map(len, names))
    if characters > MAX_TOOLS_CHARACTERS:
        raise InvalidArgument(
            f"the names in tools have {characters} characters, the limit is {MAX_TOOLS_CHARACTERS}"
        )
    return names


def metadata(value: Any) -> dict[str, Any] | None:
    """Check that the value is a JSON object or ``None``, and return a deep copy."""
    if value is None:
        return None
    if not is_instance(value, dict):
        raise InvalidArgument(f"metadata must be a dict, not {type_name(value)}")
    try:
        copy: dict[str, Any] = json_copy(value, MAX_METADATA_DEPTH)
        # Fails for an integer of more digits than Python converts.
        size = len(json.dumps(copy, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except InvalidArgument:
        raise
    except ValueError as error:
        raise InvalidArgument(f"metadata is not JSON: {error}") from None
    except Exception as error:
        raise InvalidArgument(f"metadata can't be read: its {type_name(error)}") from error
    if size > MAX_METADATA_BYTES:
        raise InvalidArgument(
            f"metadata is {size} bytes as JSON, the limit is {MAX_METADATA_BYTES}; store large "
            "values elsewhere and refer to them"
        )
    return copy
