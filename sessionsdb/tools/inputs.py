"""What each tool takes, and how it is read: whatever a model sends is an input or a reason."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sessionsdb.tools.rendering import printable

HISTORY_LIMIT = 50
MAX_HISTORY_LIMIT = 500
"""The most messages ``sessions_history`` returns in a call, whatever it is asked for."""

LIST_LIMIT = 50
MAX_LIST_LIMIT = 200

MAX_RECEIPTS = 50

SHOWN_ERRORS = 3
SHOWN_CHARACTERS = 300


class InvalidInput(Exception):
    """The message is for the model."""


class Input(BaseModel):
    """A tool's arguments. A ``null`` is as good as an argument left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    required_text: ClassVar[tuple[str, ...]] = ()
    """Arguments without which, or with an empty one, the call makes no sense."""


IdField = Annotated[
    str, Field(description="The session's id, from sessions_list or sessions_spawn.")
]
KeyField = Annotated[
    str | None,
    Field(
        description="Any text of yours that names this request. When you repeat a call because "
        "you did not get its answer, pass the same key: it is then done once."
    ),
]


class ReceiptInput(BaseModel):
    """A receipt, as sessions_send and sessions_spawn return it."""

    model_config = ConfigDict(frozen=True)  # what else a receipt says may be passed on too

    session_id: str = Field(description="The session the message was sent to.")
    position: int = Field(description="The message's position in that session's inbox.", ge=1)


Receipts = Annotated[
    list[ReceiptInput],
    Field(
        min_length=1,
        max_length=MAX_RECEIPTS,
        description="Receipts from sessions_send or sessions_spawn.",
    ),
]


class ListInput(Input):
    limit: int = Field(
        default=LIST_LIMIT,
        ge=0,
        description=f"The most sessions to return; never more than {MAX_LIST_LIMIT}.",
    )
    include_ended: bool = Field(default=False, description="Also sessions that have ended.")
    cursor: str | None = Field(
        default=None, description="The next_cursor of the page before, for the page after it."
    )


class HistoryInput(Input):
    required_text = ("session_id",)

    session_id: IdField
    limit: int = Field(
        default=HISTORY_LIMIT,
        ge=0,
        description=f"The most messages to return; never more than {MAX_HISTORY_LIMIT}.",
    )
    before: int | None = Field(
        default=None,
        description="Only messages older than this seq: pass next_before for the page before.",
    )
    after: int | None = Field(
        default=None, description="Only messages newer than this seq, oldest of them first."
    )
    message: int | None = Field(
        default=None, description="Only the message with this seq: to read one that was cut."
    )
    offset: int = Field(
        default=0,
        ge=0,
        description="With message: the character to begin at; pass its next_offset.",
    )


class SendInput(Input):
    required_text = ("session_id", "text")

    session_id: IdField
    text: str = Field(description="The message. The other agent sees that it comes from you.")
    idempotency_key: KeyField = None


class SpawnInput(Input):
    required_text = ("prompt",)

    prompt: str = Field(
        description="The first message of the new session: the whole task, with all it needs to "
        "know. The new session sees nothing of this conversation."
    )
    model: str | None = Field(
        default=None, description="Its model. Leave out for the same as yours."
    )
    system: str | None = Field(
        default=None, description="Its system prompt. Leave out for the same as yours."
    )
    tools: list[str] | None = Field(
        default=None,
        description="The only tools it may use; all of them must be among yours. Leave out for "
        "the same as yours.",
    )
    wait_for_first_reply: bool = Field(
        default=False, description="Wait for its first answer instead of returning at once."
    )
    wait_timeout_secs: float = Field(
        default=60,
        ge=0,
        allow_inf_nan=False,
        description="With wait_for_first_reply: how many seconds to wait at most.",
    )
    idempotency_key: KeyField = None


class StatusInput(Input):
    receipts: Receipts


class WaitInput(Input):
    receipts: Receipts
    mode: Literal["all", "any"] = Field(
        default="all", description="Return when all of them are finished, or when any one is."
    )
    timeout_secs: float = Field(
        default=60, ge=0, allow_inf_nan=False, description="How many seconds to wait at most."
    )


class EndInput(Input):
    required_text = ("session_id",)

    session_id: IdField
    subtree: bool = Field(default=False, description="Also end every session below it.")
    reason: str | None = Field(default=None, description="Why, for people who look at it later.")


I = TypeVar("I", bound=Input)  # noqa: E741


def read(model: type[I], tool: str, given: Any) -> I:
    """``given`` as the input of a tool. Raises ``InvalidInput``."""
    if not isinstance(given, dict):
        raise InvalidInput(
            f"Invalid {tool} input: it must be a JSON object, not {type(given).__name__}"
        )
    try:
        return _read(model, tool, given)
    except InvalidInput:
        raise
    except Exception as error:  # of the methods of what is in it: a host need not parse JSON
        raise InvalidInput(
            f"Invalid {tool} input: it can't be read: {type(error).__name__}"
        ) from error


def _read(model: type[I], tool: str, given: dict[str, Any]) -> I:
    stated = {name: value for name, value in given.items() if value is not None}
    for name in model.required_text:
        if stated.get(name, "") == "":
            raise InvalidInput(f"{tool} requires a non-empty `{name}`")
    try:
        return model.model_validate(stated)
    except ValidationError as error:
        raise InvalidInput(f"Invalid {tool} input: {_reasons(error)}") from None


def _reasons(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    reasons = [
        f"{'.'.join(str(part) for part in one['loc']) or 'input'}: {one['msg']}"[:SHOWN_CHARACTERS]
        for one in found[:SHOWN_ERRORS]
    ]
    if len(found) > SHOWN_ERRORS:
        reasons.append(f"and {len(found) - SHOWN_ERRORS} more")
    return printable("; ".join(reasons))
