"""Checks of the arguments of public methods, before anything is written.

A check is named for the value that it returns. It raises ``InvalidArgument`` or a subclass, and
``field`` names the argument in the error.

A value may be of a subclass that lies about itself. ``sessionsdb/untrusted_values.py`` has the
rules for reading such values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar, cast, get_args

from pydantic import ValidationError

from sessionsdb.cron import Cron, InvalidCron, zone_of
from sessionsdb.errors import (
    InvalidArgument,
    InvalidSessionId,
    UnknownQuestion,
    UnknownReceipt,
)
from sessionsdb.types import (
    Edit,
    Limits,
    ListOptions,
    Question,
    Receipt,
    Report,
    SearchHit,
    SessionId,
    SessionSummary,
    SpawnRequest,
    StateScope,
)
from sessionsdb.untrusted_values import (
    is_instance,
    is_storable,
    model_field,
    plain_text,
    short_repr,
    type_name,
    with_article,
)

T = TypeVar("T")
C = TypeVar("C", bound=str)

MAX_SESSION_ID_CHARACTERS = 512
MAX_NAMESPACE_CHARACTERS = 64
MAX_NAME_CHARACTERS = 4_096
MAX_KEY_CHARACTERS = 512
MAX_KIND_CHARACTERS = 64
MAX_MESSAGE_KEY_BYTES = 256
"""A key of a message is in one index entry with a namespace, at most 256 bytes, and a session id of
at most 2,048. PostgreSQL limits an entry to 2,704 bytes."""
MAX_SCHEDULE_NAME_CHARACTERS = 64
"""The name of a schedule is in one index entry with a namespace and a session id, like the key of a
message."""
MAX_ZONE_CHARACTERS = 64
MAX_CRON_CHARACTERS = 256
MAX_TAIL = 1_000
MAX_STATE_KEY_CHARACTERS = 256
MAX_SCHEMA_BYTES = 63
"""PostgreSQL cuts a longer name."""
MAX_SYSTEM_CHARACTERS = 1_048_576
MAX_REASON_CHARACTERS = 10_000
MAX_METADATA_BYTES = 262_144
"""The maximum of metadata as JSON in UTF-8."""
MAX_TOOLS = 10_000
MAX_TOOLS_CHARACTERS = 262_144
"""The maximum of all names of a list of tools together."""
MAX_NAMESPACES = 10_000
MAX_METADATA_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MAX_TOKENS = 10**12
"""The maximum of tokens in one reply. A larger number is a mistake, and the reports could not
store sums of such numbers."""
MAX_SECONDS = 1e10
"""About 300 years. Both databases can store the time that is this far from now."""

_POSITION = re.compile(r"[0-9]{1,19}")

# ---- text ----------------------------------------------------------------------------------------


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
    return _bounded_text(name(value, "namespace"), "namespace", MAX_NAMESPACE_CHARACTERS)


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
    given = _bounded_list(value, "namespaces", MAX_NAMESPACES)
    if not given:
        raise InvalidArgument(
            'namespaces is empty, so the worker would do nothing; name at least one, or give "*"'
        )
    return list(dict.fromkeys(namespace(one) for one in given))


def idempotency_key(value: Any) -> str | None:
    """Check an idempotency key: ``None``, or 1 to 512 characters."""
    if value is None:
        return None
    return _bounded_text(name(value, "idempotency_key"), "idempotency_key", MAX_KEY_CHARACTERS)


def state_key(value: Any) -> str:
    """Check a key of a state: 1 to 256 characters."""
    return _bounded_text(name(value, "a state's key"), "a state's key", MAX_STATE_KEY_CHARACTERS)


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
    given = _bounded_list(value, "keys", max(count, 1))
    if len(given) != count:
        raise InvalidArgument(
            f"keys must have one item for each message: {len(given)} keys, {count} messages"
        )
    keys = [None if key is None else message_key(key) for key in given]
    named = [key for key in keys if key is not None]
    if len(set(named)) < len(named):
        raise InvalidArgument("keys must differ: a session has a key at most once")
    return keys


def seqs(value: Any, field: str) -> list[int] | None:
    """Check a list of at most 1,000 ``seq``s, or ``None``."""
    if value is None:
        return None
    return [integer(seq, field) for seq in _bounded_list(value, field, MAX_TAIL, of="numbers")]


def name(value: Any, field: str, *, empty: bool = False) -> str:
    """Check a name: 1 to 4,096 characters, or 0 with ``empty``."""
    text = _text(value, field, "a string")
    if not text and not empty:
        raise InvalidArgument(f"{field} must not be empty")
    return _bounded_text(text, field, MAX_NAME_CHARACTERS)


def kind(value: Any) -> str:
    """Check the kind of a streamed piece of data: 1 to 64 characters."""
    return _bounded_text(name(value, "kind"), "kind", MAX_KIND_CHARACTERS)


def schedule_name(value: Any) -> str | None:
    """Check the name of a schedule: ``None``, or 1 to 64 characters."""
    if value is None:
        return None
    return _bounded_text(name(value, "name"), "name", MAX_SCHEDULE_NAME_CHARACTERS)


def schedule_id(value: Any) -> str:
    """Check the id of a schedule. One that no schedule can have is not refused."""
    return name(value, "schedule_id")


def streamed_text(value: Any) -> str:
    """Check a piece of text to stream: any string, also an empty one."""
    return _text(value, "text", "a string")


def optional_name(value: Any, field: str, *, empty: bool = False) -> str | None:
    return None if value is None else name(value, field, empty=empty)


def model(value: Any) -> str | None:
    """Check the name of a model: ``None``, or at most 4,096 characters."""
    return _optional_text(value, "model", MAX_NAME_CHARACTERS)


def system(value: Any) -> str | None:
    """Check a system prompt: ``None``, or at most 1,048,576 characters."""
    return _optional_text(value, "system", MAX_SYSTEM_CHARACTERS)


def reason(value: Any) -> str | None:
    """Check the reason of an end: ``None``, or at most 10,000 characters."""
    return _optional_text(value, "reason", MAX_REASON_CHARACTERS)


def error_text(value: Any) -> str | None:
    """Check a text to find in errors: ``None``, or at most 4,096 characters."""
    return _optional_text(value, "error", MAX_NAME_CHARACTERS)


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
    names = [name(tool, "a tool's name") for tool in _bounded_list(value, "tools", MAX_TOOLS)]
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
        copy: dict[str, Any] = _json_copy(value, MAX_METADATA_DEPTH)
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


# ---- numbers -------------------------------------------------------------------------------------


def integer(value: Any, field: str, *, minimum: int = 0, maximum: int | None = None) -> int:
    """Check a whole number of at least ``minimum``.

    A number above ``maximum`` is refused. Without ``maximum``, a number that databases can't hold
    becomes the largest that they can.
    """
    if not is_instance(value, int) or type(value) is bool:
        raise InvalidArgument(f"{field} must be a whole number, not {short_repr(value)}")
    number = int.__int__(value)
    if number < minimum:
        raise InvalidArgument(f"{field} must be {minimum} or more, not {short_repr(number)}")
    if maximum is not None and number > maximum:
        raise InvalidArgument(f"{field} must be at most {maximum}, not {short_repr(number)}")
    return min(number, MAX_INTEGER)


def stored_number(value: Any, field: str) -> int:
    """Check the number of a message or a version: 0 or more, and at most what databases hold."""
    return integer(value, field, maximum=MAX_INTEGER)


def version(value: Any, field: str = "expected_version") -> int | None:
    """Check an expected version, which may be ``None``."""
    return None if value is None else stored_number(value, field)


def optional_integer(
    value: Any, field: str, *, minimum: int = 0, maximum: int | None = None
) -> int | None:
    return None if value is None else integer(value, field, minimum=minimum, maximum=maximum)


def cursor(value: Any, field: str) -> int | None:
    """Check a cursor of ``history``: a ``seq``, which may lie outside of the transcript."""
    if value is None:
        return None
    if not is_instance(value, int) or type(value) is bool:
        raise InvalidArgument(
            f"{field} must be a message's seq, a whole number, not {short_repr(value)}"
        )
    return max(-1, min(int.__int__(value), MAX_INTEGER))


def seconds(value: Any, field: str) -> float:
    """Check a duration in seconds, 0 or more. Above ``MAX_SECONDS`` it becomes ``MAX_SECONDS``."""
    number: float | None = None
    if is_instance(value, float):
        number = float.__float__(value)
    elif is_instance(value, int) and type(value) is not bool:
        number = min(int.__int__(value), MAX_SECONDS)
    if number is None or not number >= 0:
        raise InvalidArgument(
            f"{field} must be a number of seconds, 0 or more, not {short_repr(value)}"
        )
    return float(min(number, MAX_SECONDS))


def positive_seconds(value: Any, field: str) -> float:
    """Check a duration in seconds, more than 0 and finite."""
    duration = seconds(value, field)
    if not 0 < duration < MAX_SECONDS:
        raise InvalidArgument(
            f"{field} must be more than 0 seconds, and finite, not {short_repr(value)}"
        )
    return duration


def boolean(value: Any, field: str) -> bool:
    """Check that the value is ``True`` or ``False``. The text "no" would count as true."""
    if type(value) is not bool:
        raise InvalidArgument(f"{field} must be True or False, not {short_repr(value)}")
    return value


def aware_datetime(value: Any, field: str) -> datetime:
    """Check a time with a time zone, and return it in UTC.

    A time without a zone would mean different moments on different hosts.
    """
    if not is_instance(value, datetime):
        raise InvalidArgument(f"{field} must be a datetime, not {type_name(value)}")
    try:
        has_zone = datetime.utcoffset(value) is not None
        utc = datetime.astimezone(value, UTC) if has_zone else None
        if utc is not None:
            time = (utc.hour, utc.minute, utc.second, utc.microsecond)
            return datetime(utc.year, utc.month, utc.day, *time, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{field} is out of range: {datetime.isoformat(value)} has no equal in UTC"
        ) from None
    except Exception as error:
        raise InvalidArgument(f"{field} can't be read: its {type_name(error)}") from error
    raise InvalidArgument(f"{field} must have a time zone: {datetime.isoformat(value)} has none")


def schedule_times(at: Any, cron: Any, tz: Any) -> tuple[datetime | None, Cron | None, str]:
    """Check that exactly one of a moment and a cron expression is given, and check the zone."""
    if (at is None) == (cron is None):
        raise InvalidArgument("give exactly one of at and cron")
    zone = _bounded_text(name(tz, "tz"), "tz", MAX_ZONE_CHARACTERS)
    try:
        if at is not None:
            zone_of(zone)
            return aware_datetime(at, "at"), None, zone
        expression = _bounded_text(name(cron, "cron"), "cron", MAX_CRON_CHARACTERS)
        parsed = Cron.parse(expression, zone)
        parsed.next_after(datetime.now(UTC))
        return None, parsed, zone
    except InvalidCron as error:
        raise InvalidArgument(str(error)) from None


# ---- models and mappings -------------------------------------------------------------------------
#
# Pydantic has checked the fields of a model, but not in model_construct and model_copy.


def receipt(value: Any) -> tuple[SessionId, int]:
    """Check a receipt, and return its session and its position.

    Raises ``UnknownReceipt`` for a position that no message can have.
    """
    given = strict_instance(value, Receipt, "receipt")
    session = session_id(model_field(given, "session_id"))
    position = model_field(given, "position")
    checked = integer(position, "position")
    if int.__int__(position) > MAX_INTEGER:
        raise UnknownReceipt(session, int.__int__(position))
    return session, checked


def inbox_position(value: Any, field: str) -> int:
    """Check a cursor of ``inbox``: a receipt or a position. ``None`` is before all positions."""
    if value is None:
        return 0
    if is_instance(value, Receipt):
        session_id(model_field(value, "session_id"))
        value = model_field(value, "position")
    return integer(value, field)


def search_cursor(value: Any) -> str | None:
    """Return the cursor of a hit, or a cursor. ``operations/search.py`` reads it."""
    if value is None:
        return None
    if is_instance(value, SearchHit):
        value = model_field(value, "cursor")
    return name(value, "after")


def list_options(value: Any) -> tuple[int, int | None]:
    """Check the options of a page, and return its offset and its limit."""
    given = strict_instance(value, ListOptions, "options")
    return (
        integer(model_field(given, "offset", 0), "offset"),
        optional_integer(model_field(given, "limit"), "limit"),
    )


def list_position(value: Any) -> tuple[datetime, SessionId]:
    """Check a summary that is a cursor, and return its place in the order of ``list``."""
    given = strict_instance(value, SessionSummary, "after")
    return (
        aware_datetime(model_field(given, "last_active"), "last_active"),
        session_id(model_field(given, "id")),
    )


def spawn_request(value: Any) -> SpawnRequest:
    """Check the settings and the wait of a spawn. The codec checks the prompt as a message."""
    given = strict_instance(value, SpawnRequest, "request")
    report = one_of(model_field(given, "report", "none"), get_args(Report), "report")
    if report != "none" and model_field(given, "wait_for_first_reply", False) is True:
        raise InvalidArgument(
            f"report={report!r} can't be used with wait_for_first_reply: the reply would come "
            "twice; wait for the reply, or let the child report it"
        )
    return SpawnRequest.model_construct(
        prompt=model_field(given, "prompt"),
        model=model(model_field(given, "model")),
        system=system(model_field(given, "system")),
        tools=tools(model_field(given, "tools")),
        wait_for_first_reply=boolean(
            model_field(given, "wait_for_first_reply", False), "wait_for_first_reply"
        ),
        wait_timeout_secs=seconds(model_field(given, "wait_timeout_secs", 60), "wait_timeout_secs"),
        author=optional_name(model_field(given, "author"), "author"),
        metadata=metadata(model_field(given, "metadata")),
        report=report,
    )


def edit(value: Any) -> Edit:
    """Check an edit, except for its messages, its keys and the changes of its state."""
    given = strict_instance(value, Edit, "edit")
    scopes = model_field(given, "state")
    return Edit.model_construct(
        append=model_field(given, "append", ()),
        keys=model_field(given, "keys"),
        keep_through=optional_integer(model_field(given, "keep_through"), "keep_through"),
        expected_version=version(model_field(given, "expected_version")),
        expected_tail=seqs(model_field(given, "expected_tail"), "expected_tail"),
        state=None if scopes is None else _by_scope(scopes),
        metadata=metadata(model_field(given, "metadata")),
        create=boolean(model_field(given, "create", True), "create"),
    )


def question(value: Any) -> Question:
    """Check a question, except for the size and the JSON of its prompt and data."""
    given = strict_instance(value, Question, "ask")
    prompt = _text(model_field(given, "prompt"), "the prompt of a question", "a string")
    if not prompt:
        raise InvalidArgument("the prompt of a question must not be empty")
    expires_in = model_field(given, "expires_in")
    return Question.model_construct(
        prompt=prompt,
        data=model_field(given, "data"),
        expires_in=None if expires_in is None else positive_seconds(expires_in, "expires_in"),
        accept_message=boolean(model_field(given, "accept_message", False), "accept_message"),
    )


def question_id(value: Any) -> tuple[SessionId, int]:
    """Check the id of a question, and return its session and its position.

    Raises ``UnknownQuestion`` for an id that no question can have.
    """
    given = _text(value, "question_id", "a string")
    session, colon, number = given.rpartition(":")
    if not (colon and _POSITION.fullmatch(number)) or int(number) > MAX_INTEGER:
        raise UnknownQuestion(given)
    try:
        return session_id(session), int(number)
    except InvalidSessionId:
        raise UnknownQuestion(given) from None


def question_position(value: Any) -> tuple[datetime, SessionId, int]:
    """Check the place of a question in the order of ``questions``."""
    session, position = question_id(model_field(value, "id"))
    return aware_datetime(model_field(value, "asked_at"), "asked_at"), session, position


def _by_scope(value: Any) -> dict[StateScope, Any]:
    if not is_instance(value, dict):
        raise InvalidArgument(f"state must be a dict by scope, not {type_name(value)}")
    return {state_scope(scope): changes for scope, changes in dict.items(value)}


def limits(value: Any) -> Limits:
    """Check that every limit is a number in its range."""
    given = strict_instance(value, Limits, "limits")
    try:
        return Limits.model_validate(dict(vars(given)))
    except ValidationError as error:
        reasons = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        raise InvalidArgument(f"limits are wrong: {reasons}") from None
    except Exception as error:
        raise InvalidArgument(f"limits can't be read: {type_name(error)}") from error


def mapping(value: Any, field: str) -> Mapping[Any, Any]:
    """Check that the value is a mapping. Its items are not checked."""
    if not is_instance(value, Mapping):
        raise InvalidArgument(f"{field} must be a mapping, not {type_name(value)}")
    return cast(Mapping[Any, Any], value)


def strict_instance(value: Any, model: type[T], field: str) -> T:
    """Check that the value is an instance of ``model``."""
    if not is_instance(value, model):
        raise InvalidArgument(
            f"{field} must be {with_article(model.__name__)}, not {type_name(value)}"
        )
    return cast(T, value)


# ---- parts of the checks -------------------------------------------------------------------------


def _text(value: Any, field: str, wanted: str) -> str:
    if type(value) is str:
        return value
    if not is_instance(value, str):
        raise InvalidArgument(f"{field} must be {wanted}, not {type_name(value)}")
    return plain_text(value)


def _optional_text(value: Any, field: str, maximum: int) -> str | None:
    return (
        None
        if value is None
        else _bounded_text(_text(value, field, "a string or None"), field, maximum)
    )


def _bounded_list(value: Any, field: str, maximum: int, *, of: str = "names") -> list[Any]:
    if is_instance(value, str, bytes, dict) or not is_instance(value, Iterable):
        raise InvalidArgument(f"{field} must be a list of {of}, not {type_name(value)}")
    try:
        items = list(islice(value, maximum + 1))  # an iterator may never end
    except Exception as error:
        raise InvalidArgument(f"{field} can't be read: its {type_name(error)}") from error
    if len(items) > maximum:
        raise InvalidArgument(f"{field} must have at most {maximum} {of}")
    return items


def _json_copy(value: Any, depth: int) -> Any:
    """Copy a JSON value of at most ``depth`` nested containers."""
    if value is None or type(value) is bool:
        return value
    if is_instance(value, str):
        return plain_text(value)
    if is_instance(value, int):
        return int.__int__(value)
    if is_instance(value, float):
        number = float.__float__(value)
        if not math.isfinite(number):
            raise InvalidArgument(f"metadata is not JSON, which has no number {number}")
        return number
    if is_instance(value, dict, list) and not depth:
        raise InvalidArgument(
            f"metadata nests deeper than {MAX_METADATA_DEPTH} levels, or holds itself"
        )
    if is_instance(value, dict):
        copy = {}
        for key, item in value.items():
            if not is_instance(key, str):
                raise InvalidArgument(
                    f"metadata is not JSON: it has a key of type {type_name(key)}, "
                    "keys must be strings"
                )
            copy[plain_text(key)] = _json_copy(item, depth - 1)
        return copy
    if is_instance(value, list):
        return [_json_copy(item, depth - 1) for item in value]
    raise InvalidArgument(f"metadata is not JSON: it holds {with_article(type_name(value))}")


def _storable_text(value: str, field: str) -> str:
    if not is_storable(value):
        raise InvalidArgument(
            f"{field} holds a NUL or a lone surrogate, which databases can't keep: {value[:40]!r}"
        )
    return value


def _bounded_text(value: str, field: str, maximum: int) -> str:
    if len(value) > maximum:
        raise InvalidArgument(
            f"{field} {value[:40]!r}… has {len(value)} characters, the limit is {maximum}"
        )
    return _storable_text(value, field)
