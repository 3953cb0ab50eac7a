"""Checks of what callers pass in, before anything is written.

What comes back is of the exact type: a subclass of ``str`` or ``int`` may answer as it likes, and
drivers look at the exact type. So a check asks a value's type and never the value, whose own
methods may fail, and reads it by the methods of ``str``, ``int``, ``float`` or ``datetime``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from sessionsdb.errors import InvalidArgument, InvalidSessionId
from sessionsdb.types import (
    Limits,
    ListOptions,
    Receipt,
    SessionId,
    SessionSummary,
    SpawnRequest,
)

T = TypeVar("T")
C = TypeVar("C", bound=str)

SESSION_ID_CHARACTERS = 512
NAMESPACE_CHARACTERS = 64
NAME_CHARACTERS = 4_096
KEY_CHARACTERS = 512
TOOLS = 10_000
NAMESPACES = 10_000
METADATA_DEPTH = 64
LARGEST_INTEGER = 2**63 - 1
MOST_TOKENS = 10**12
"""More is a mistake of the caller's, and sums of it would not fit in the reports."""
LONGEST_SECONDS = 1e10
"""About 300 years: from now on it leads to a moment that both databases can keep."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


# ---- text ----------------------------------------------------------------------------------------


def session_id(value: Any) -> SessionId:
    """``value`` as an id. Raises ``InvalidSessionId``."""
    if type(value) is not str:
        if not is_instance(value, str):
            raise InvalidSessionId(f"a session id must be a string, not {type_name(value)}")
        value = str.__str__(value)
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


def optional_session_id(value: Any) -> SessionId | None:
    return None if value is None else session_id(value)


def namespace(value: Any) -> str:
    """``value`` as a namespace: 1 to 64 characters. Raises ``InvalidArgument``."""
    return _bounded(name(value, "namespace"), "namespace", NAMESPACE_CHARACTERS)


def namespaces(value: Any) -> list[str]:
    """``value`` as a list of namespaces, each once."""
    listed = _listed(value, "namespaces", NAMESPACES)
    return list(dict.fromkeys(namespace(one) for one in listed))


def idempotency_key(value: Any) -> str | None:
    """``value`` as a key: ``None``, or 1 to 512 characters. Raises ``InvalidArgument``."""
    if value is None:
        return None
    return _bounded(name(value, "idempotency_key"), "idempotency_key", KEY_CHARACTERS)


def name(value: Any, what: str, *, empty: bool = False) -> str:
    """``value`` as text that names something; ``what`` it is for is in the error."""
    text = _text(value, what, "a string")
    if not text and not empty:
        raise InvalidArgument(f"{what} must not be empty")
    return _bounded(text, what, NAME_CHARACTERS)


def optional_name(value: Any, what: str, *, empty: bool = False) -> str | None:
    return None if value is None else name(value, what, empty=empty)


def optional_text(value: Any, what: str) -> str | None:
    """``value`` as text of any length, or ``None``."""
    return None if value is None else _storable(_text(value, what, "a string or None"), what)


def one_of(value: Any, choices: tuple[C, ...], what: str) -> C:
    """``value`` if it is one of ``choices``."""
    text = str.__str__(value) if is_instance(value, str) else None
    for choice in choices:
        if choice == text:
            return choice
    named = " or ".join(f'"{choice}"' for choice in choices)
    raise InvalidArgument(f"{what} must be {named}, not {short_repr(value)}")


def tools(value: Any) -> list[str] | None:
    """``value`` as a list of tool names, or ``None`` for no restriction."""
    if value is None:
        return None
    return [name(tool, "a tool's name") for tool in _listed(value, "tools", TOOLS)]


def metadata(value: Any) -> dict[str, Any] | None:
    """A copy of ``value`` as a JSON object, or ``None``."""
    if value is None:
        return None
    if not is_instance(value, dict):
        raise InvalidArgument(f"metadata must be a dict, not {type_name(value)}")
    try:
        copy: dict[str, Any] = _json(value, METADATA_DEPTH)
        json.dumps(copy)  # an integer of more digits than Python converts
    except InvalidArgument:
        raise
    except ValueError as error:
        raise InvalidArgument(f"metadata is not JSON: {error}") from None
    except Exception as error:
        raise InvalidArgument(f"metadata can't be read: its {type_name(error)}") from error
    return copy


# ---- numbers -------------------------------------------------------------------------------------


def integer(value: Any, what: str, *, least: int = 0, most: int | None = None) -> int:
    """``value`` as a whole number from ``least`` on. Beyond what databases can hold it is as good
    as the largest, unless ``most`` is given: then it is refused."""
    if not is_instance(value, int) or type(value) is bool:
        raise InvalidArgument(f"{what} must be a whole number, not {short_repr(value)}")
    number = int.__int__(value)
    if number < least:
        raise InvalidArgument(f"{what} must be {least} or more, not {short_repr(number)}")
    if most is not None and number > most:
        raise InvalidArgument(f"{what} must be at most {most}, not {short_repr(number)}")
    return min(number, LARGEST_INTEGER)


def optional_integer(
    value: Any, what: str, *, least: int = 0, most: int | None = None
) -> int | None:
    return None if value is None else integer(value, what, least=least, most=most)


def cursor(value: Any, what: str) -> int | None:
    """``value`` as a place in a transcript, which may lie outside of it."""
    if value is None:
        return None
    if not is_instance(value, int) or type(value) is bool:
        raise InvalidArgument(
            f"{what} must be a message's seq, a whole number, not {short_repr(value)}"
        )
    return max(-1, min(int.__int__(value), LARGEST_INTEGER))


def seconds(value: Any, what: str) -> float:
    """``value`` as a duration in seconds, 0 or more; no longer than ``LONGEST_SECONDS``."""
    number: float | None = None
    if is_instance(value, float):
        number = float.__float__(value)
    elif is_instance(value, int) and type(value) is not bool:
        number = min(int.__int__(value), LONGEST_SECONDS)
    if number is None or not number >= 0:
        raise InvalidArgument(
            f"{what} must be a number of seconds, 0 or more, not {short_repr(value)}"
        )
    return float(min(number, LONGEST_SECONDS))


def positive_seconds(value: Any, what: str) -> float:
    """``value`` as a duration in seconds, more than 0 and finite."""
    duration = seconds(value, what)
    if not 0 < duration < LONGEST_SECONDS:
        raise InvalidArgument(
            f"{what} must be more than 0 seconds, and finite, not {short_repr(value)}"
        )
    return duration


def boolean(value: Any, what: str) -> bool:
    """``value``, which must be ``True`` or ``False``: the text "no" would count as true."""
    if type(value) is not bool:
        raise InvalidArgument(f"{what} must be True or False, not {short_repr(value)}")
    return value


def aware_datetime(value: Any, what: str) -> datetime:
    """``value`` as an aware time; one without a zone would mean another hour on another host."""
    if not is_instance(value, datetime):
        raise InvalidArgument(f"{what} must be a datetime, not {type_name(value)}")
    try:
        zoned = datetime.utcoffset(value) is not None
        utc = datetime.astimezone(value, UTC) if zoned else None
        if utc is not None:
            time = (utc.hour, utc.minute, utc.second, utc.microsecond)
            return datetime(utc.year, utc.month, utc.day, *time, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{what} is out of range: {datetime.isoformat(value)} has no equal in UTC"
        ) from None
    except Exception as error:
        raise InvalidArgument(f"{what} can't be read: its {type_name(error)}") from error
    raise InvalidArgument(f"{what} must have a time zone: {datetime.isoformat(value)} has none")


# ---- values --------------------------------------------------------------------------------------
#
# Pydantic has checked them, unless they were made by model_construct or model_copy.


def receipt(value: Any) -> tuple[SessionId, int]:
    """The session and the position of a receipt."""
    given = strict_instance(value, Receipt, "receipt")
    return session_id(_field(given, "session_id")), integer(_field(given, "position"), "position")


def list_options(value: Any) -> tuple[int, int | None]:
    """The offset and the limit of a page."""
    given = strict_instance(value, ListOptions, "options")
    return (
        integer(_field(given, "offset", 0), "offset"),
        optional_integer(_field(given, "limit"), "limit"),
    )


def list_position(value: Any) -> tuple[datetime, SessionId]:
    """Where a session's summary stands in the order of ``list``."""
    given = strict_instance(value, SessionSummary, "after")
    return aware_datetime(_field(given, "last_active"), "last_active"), session_id(
        _field(given, "id")
    )


def spawn_request(value: Any) -> SpawnRequest:
    """``value`` with its settings and its wait checked; the prompt is checked as a message."""
    given = strict_instance(value, SpawnRequest, "request")
    return SpawnRequest.model_construct(
        prompt=_field(given, "prompt"),
        model=optional_text(_field(given, "model"), "model"),
        system=optional_text(_field(given, "system"), "system"),
        tools=tools(_field(given, "tools")),
        wait_for_first_reply=boolean(
            _field(given, "wait_for_first_reply", False), "wait_for_first_reply"
        ),
        wait_timeout_secs=seconds(_field(given, "wait_timeout_secs", 60), "wait_timeout_secs"),
    )


def limits(value: Any) -> Limits:
    """``value``, with every limit a number it may be."""
    given = strict_instance(value, Limits, "limits")
    try:
        return Limits.model_validate(dict(vars(given)))
    except ValidationError as error:
        reasons = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        raise InvalidArgument(f"limits are wrong: {reasons}") from None
    except Exception as error:
        raise InvalidArgument(f"limits can't be read: {type_name(error)}") from error


def strict_instance(value: Any, model: type[T], what: str) -> T:
    """``value`` if it is a ``model``."""
    if not is_instance(value, model):
        raise InvalidArgument(f"{what} must be a {model.__name__}, not {type_name(value)}")
    return cast(T, value)


# ---- looking at values ---------------------------------------------------------------------------


def is_instance(value: Any, *wanted: type) -> bool:
    """Whether the type of ``value`` says so; ``isinstance`` would ask the value, too."""
    return issubclass(type(value), wanted)


def type_name(value: Any) -> str:
    """The type of a wrong value, as an error names it."""
    return type(value).__name__[:60]


_SHORT = (str, bytes, int, float, bool, type(None))


def short_repr(value: Any) -> str:
    """A wrong value as an error names it: cut, and by its type where it has no short form."""
    if type(value) not in _SHORT:
        return f"a {type_name(value)}"
    try:
        return f"{value!r:.60}" if not is_instance(value, str, bytes) else f"{value[:60]!r:.60}"
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"


def _field(value: Any, name: str, default: Any = None) -> Any:
    # Not by getattr: a value made by model_construct may have no such field.
    return vars(value).get(name, default)


def _text(value: Any, what: str, wanted: str) -> str:
    if type(value) is str:
        return value
    if not is_instance(value, str):
        raise InvalidArgument(f"{what} must be {wanted}, not {type_name(value)}")
    return str.__str__(value)


def _listed(value: Any, what: str, most: int) -> list[Any]:
    if is_instance(value, str, bytes, dict) or not is_instance(value, Iterable):
        raise InvalidArgument(f"{what} must be a list of names, not {type_name(value)}")
    try:
        listed = list(islice(value, most + 1))  # it may be without end
    except Exception as error:
        raise InvalidArgument(f"{what} can't be read: its {type_name(error)}") from error
    if len(listed) > most:
        raise InvalidArgument(f"{what} must be at most {most} names")
    return listed


def _json(value: Any, depth: int) -> Any:
    """A copy of ``value`` that JSON says as it is."""
    if value is None or type(value) is bool:
        return value
    if is_instance(value, str):
        return str.__str__(value)
    if is_instance(value, int):
        return int.__int__(value)
    if is_instance(value, float):
        number = float.__float__(value)
        if not math.isfinite(number):
            raise InvalidArgument(f"metadata is not JSON: {number} is no number there")
        return number
    if is_instance(value, dict, list) and not depth:
        raise InvalidArgument(
            f"metadata nests deeper than {METADATA_DEPTH} levels, or holds itself"
        )
    if is_instance(value, dict):
        copy = {}
        for key, item in value.items():
            if not is_instance(key, str):
                raise InvalidArgument(
                    f"metadata is not JSON: it has a key of type {type_name(key)}, "
                    "keys must be strings"
                )
            copy[str.__str__(key)] = _json(item, depth - 1)
        return copy
    if is_instance(value, list):
        return [_json(item, depth - 1) for item in value]
    raise InvalidArgument(f"metadata is not JSON: it holds a {type_name(value)}")


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
