"""Checks of what callers pass in, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sessionsdb.errors import InvalidArgument, InvalidSessionId
from sessionsdb.types import SessionId

SESSION_ID_CHARACTERS = 512
NAMESPACE_CHARACTERS = 64
NAME_CHARACTERS = 4_096
KEY_CHARACTERS = 512
LARGEST_INTEGER = 2**63 - 1
LONGEST_SECONDS = 1e12

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def session_id(value: Any) -> SessionId:
    """``value`` as an id. Raises ``InvalidSessionId``."""
    if not isinstance(value, str):
        raise InvalidSessionId(f"a session id must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidSessionId("a session id must not be empty")
    if len(value) > SESSION_ID_CHARACTERS:
        raise InvalidSessionId(
            f"session id {value[:40]!r}… has {len(value)} characters, "
            f"the limit is {SESSION_ID_CHARACTERS}"
        )
    if not value.isprintable() and _UNSTORABLE.search(value):
        raise InvalidSessionId(
            f"session id {value[:40]!r} holds a NUL or a lone surrogate, which databases can't keep"
        )
    return SessionId(value)


def namespace(value: Any) -> str:
    """``value`` as a namespace: 1 to 64 characters. Raises ``InvalidArgument``."""
    return _bounded(name(value, "namespace"), "namespace", NAMESPACE_CHARACTERS)


def idempotency_key(value: Any) -> str | None:
    """``value`` as a key: ``None``, or 1 to 512 characters. Raises ``InvalidArgument``."""
    if value is None:
        return None
    return _bounded(name(value, "idempotency_key"), "idempotency_key", KEY_CHARACTERS)


def name(value: Any, what: str, *, empty: bool = False) -> str:
    """``value`` as text that names something; ``what`` it is for is in the error."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be a string, not {type(value).__name__}")
    if not value and not empty:
        raise InvalidArgument(f"{what} must not be empty")
    return _bounded(value, what, NAME_CHARACTERS)


def optional_text(value: Any, what: str) -> str | None:
    """``value`` as text of any length, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be a string or None, not {type(value).__name__}")
    return _storable(value, what)


def tools(value: Any) -> list[str] | None:
    """``value`` as a list of tool names, or ``None`` for no restriction."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise InvalidArgument(f"tools must be a list of names, not {type(value).__name__}")
    return [name(tool, "a tool's name") for tool in value]


def metadata(value: Any) -> dict[str, Any] | None:
    """``value`` as a JSON object, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidArgument(f"metadata must be a dict, not {type(value).__name__}")
    try:
        same = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"metadata is not JSON: {error}") from None
    if same != value:
        raise InvalidArgument("metadata is not JSON: its keys must be strings, its arrays lists")
    return value


def whole(value: Any, what: str, *, least: int = 0) -> int:
    """``value`` as a whole number from ``least`` on."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{what} must be a whole number, not {_shown(value)}")
    if value < least:
        raise InvalidArgument(f"{what} must be {least} or more, not {_shown(value)}")
    return min(value, LARGEST_INTEGER)


def optional_whole(value: Any, what: str, *, least: int = 0) -> int | None:
    return None if value is None else whole(value, what, least=least)


def cursor(value: Any, what: str) -> int | None:
    """``value`` as a place in a transcript, which may lie outside of it."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(
            f"{what} must be a message's seq, a whole number, not {_shown(value)}"
        )
    return max(-1, min(value, LARGEST_INTEGER))


def seconds(value: Any, what: str) -> float:
    """``value`` as a duration in seconds, 0 or more."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
        raise InvalidArgument(f"{what} must be a number of seconds, 0 or more, not {_shown(value)}")
    return float(min(value, LONGEST_SECONDS))


def positive_seconds(value: Any, what: str) -> float:
    """``value`` as a duration in seconds, more than 0 and finite."""
    duration = seconds(value, what)
    if not 0 < duration < LONGEST_SECONDS:
        raise InvalidArgument(
            f"{what} must be more than 0 seconds, and finite, not {_shown(value)}"
        )
    return duration


def moment(value: Any, what: str) -> datetime:
    """``value`` as an aware time; one without a zone would mean another hour on another host."""
    if not isinstance(value, datetime):
        raise InvalidArgument(f"{what} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise InvalidArgument(f"{what} must have a time zone: {value.isoformat()} has none")
    return value.astimezone(UTC)


def _shown(value: Any) -> str:
    """A wrong value as an error names it: cut, and also where it has no short form of its own."""
    try:
        return f"{value!r:.60}"
    except Exception:  # an integer of more than 4,300 digits, or a __repr__ that fails
        return f"a {type(value).__name__} that can't be shown"


def _storable(value: str, what: str) -> str:
    if not value.isprintable() and _UNSTORABLE.search(value):
        raise InvalidArgument(
            f"{what} holds a NUL or a lone surrogate, which databases can't keep: {value[:40]!r}"
        )
    return value


def _bounded(value: str, what: str, characters: int) -> str:
    if len(value) > characters:
        raise InvalidArgument(
            f"{what} {value[:40]!r}… has {len(value)} characters, the limit is {characters}"
        )
    return _storable(value, what)
