"""Checks of models, cursors and mappings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar, cast, get_args

from pydantic import ValidationError

from sessionsdb.errors import InvalidArgument, InvalidSessionId, UnknownQuestion, UnknownReceipt
from sessionsdb.types import (
    DEFAULT_LIMITS,
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
from sessionsdb.untrusted_values import is_instance, model_field, type_name, with_article
from sessionsdb.validation.bounds import MAX_INTEGER
from sessionsdb.validation.checks import as_text
from sessionsdb.validation.names import (
    metadata,
    model,
    name,
    one_of,
    optional_name,
    session_id,
    state_scope,
    system,
    tools,
)
from sessionsdb.validation.numbers import (
    aware_datetime,
    boolean,
    integer,
    optional_integer,
    positive_seconds,
    seconds,
    seqs,
    version,
)

T = TypeVar("T")

_POSITION = re.compile(r"[0-9]{1,19}")


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
    prompt = as_text(model_field(given, "prompt"), "the prompt of a question", "a string")
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
    given = as_text(value, "question_id", "a string")
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
    if given is DEFAULT_LIMITS:
        return given
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
