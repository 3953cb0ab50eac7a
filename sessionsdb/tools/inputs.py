"""The arguments of each tool. A model reads the descriptions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

HISTORY_LIMIT = 50
MAX_HISTORY_LIMIT = 500
"""The maximum number of messages in one result of ``sessions_history``."""

LIST_LIMIT = 50
MAX_LIST_LIMIT = 200

SEARCH_LIMIT = 20
MAX_SEARCH_LIMIT = 100

MAX_RECEIPTS = 50
"""The maximum number of receipts of a call, and of outcomes in a result."""


class Input(BaseModel):
    """The arguments of a tool. An argument that is ``null`` counts as not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    required_text: ClassVar[tuple[str, ...]] = ()
    """The arguments that must be given and must not be empty."""


IdField = Annotated[
    str, Field(description="The session's id, from sessions_list or sessions_spawn.")
]
KeyField = Annotated[
    str | None,
    Field(
        description="A text of your choice that names this request. If you repeat a call because "
        "you did not get its answer, pass the same key: then the request is carried out once."
    ),
]


class ReceiptInput(BaseModel):
    """A receipt from sessions_send or sessions_spawn."""

    model_config = ConfigDict(frozen=True)  # the other fields of a receipt may be passed too

    session_id: str = Field(description="The session that the message was sent to.")
    position: int = Field(
        description="The position of the message in the inbox of that session.", ge=1
    )


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
        description=f"The maximum number of sessions, at most {MAX_LIST_LIMIT}.",
    )
    include_ended: bool = Field(default=False, description="Also list sessions that have ended.")
    newest_first: bool = Field(
        default=False,
        description="Begin with the session that was active last. Default: end with it.",
    )
    cursor: str | None = Field(
        default=None,
        description="The next_cursor of the previous page. The page has the same order.",
    )


class HistoryInput(Input):
    required_text = ("session_id",)

    session_id: IdField
    limit: int = Field(
        default=HISTORY_LIMIT,
        ge=0,
        description=f"The maximum number of messages, at most {MAX_HISTORY_LIMIT}.",
    )
    before: int | None = Field(
        default=None,
        description="Only messages older than this seq. Pass next_before to read older messages.",
    )
    after: int | None = Field(
        default=None,
        description="Only messages newer than this seq, beginning with the oldest of them.",
    )
    message: int | None = Field(
        default=None, description="Only the message with this seq, to read a message that was cut."
    )
    offset: int = Field(
        default=0,
        ge=0,
        description="With message: the first character to return. Pass the next_offset of "
        "the message.",
    )


class SearchInput(Input):
    required_text = ("query",)

    query: str = Field(
        description='Words that must all be in a message. "two words" in double quotes is a '
        "phrase, -word leaves messages with the word out, word* finds words that begin so."
    )
    limit: int = Field(
        default=SEARCH_LIMIT,
        ge=0,
        description=f"The maximum number of messages, at most {MAX_SEARCH_LIMIT}.",
    )
    cursor: str | None = Field(
        default=None, description="The next_cursor of the previous page of the same query."
    )


class SendInput(Input):
    required_text = ("session_id", "text")

    session_id: IdField
    text: str = Field(description="The text of the message. The other agent sees that you sent it.")
    idempotency_key: KeyField = None


class SpawnInput(Input):
    required_text = ("prompt",)

    prompt: str = Field(
        description="The first message of the new session: the whole task, with all facts it "
        "needs. The new session sees nothing of this conversation."
    )
    model: str | None = Field(
        default=None, description="The model of the new session. Default: your model."
    )
    system: str | None = Field(
        default=None, description="The system prompt of the new session. Default: yours."
    )
    tools: list[str] | None = Field(
        default=None,
        description="The only tools that the new session may use. You must have all of them. "
        "Default: your tools.",
    )
    wait_for_first_reply: bool = Field(
        default=False, description="Wait for the first answer of the new session."
    )
    wait_timeout_secs: float = Field(
        default=60,
        ge=0,
        allow_inf_nan=False,
        description="With wait_for_first_reply: the maximum wait in seconds.",
    )
    report: bool | None = Field(
        default=None,
        description="Get the first answer of the new session as a message of its own, which "
        "starts a turn of yours, or the news that it failed or was ended. Not used with "
        "wait_for_first_reply. Default: true, unless your host says otherwise.",
    )
    idempotency_key: KeyField = None


class StatusInput(Input):
    receipts: Receipts


class WaitInput(Input):
    receipts: Receipts
    mode: Literal["all", "any"] = Field(
        default="all", description="Return when all messages are finished, or when any one is."
    )
    timeout_secs: float = Field(
        default=60, ge=0, allow_inf_nan=False, description="The maximum wait in seconds."
    )


OwnIdField = Annotated[
    str | None, Field(description="The session's id. Default: your own session.")
]


class ScheduleInput(Input):
    required_text = ("text",)

    text: str = Field(description="The text of the message: all that the session must know then.")
    session_id: OwnIdField = None
    at: str | None = Field(
        default=None,
        description="The time in ISO 8601, like 2027-01-04T09:00, later than now. A time without "
        "an offset is read in tz. Give either at or cron.",
    )
    cron: str | None = Field(
        default=None,
        description="Five fields: minute, hour, day of the month, month, day of the week, like "
        "0 9 * * MON-FRI.",
    )
    tz: str = Field(default="UTC", description="The time zone of at and cron, like Europe/Berlin.")
    name: str | None = Field(
        default=None,
        description="A name for the schedule. A second call with the name replaces it.",
    )


class UnscheduleInput(Input):
    required_text = ("schedule_id",)

    schedule_id: str = Field(description="The id of the schedule, from sessions_schedule.")
    session_id: OwnIdField = None


class CancelInput(Input):
    required_text = ("session_id",)

    session_id: IdField
    position: int | None = Field(
        default=None,
        ge=1,
        description="The position of one message, from its receipt. Default: all messages that the "
        "session is working on now.",
    )


class EndInput(Input):
    required_text = ("session_id",)

    session_id: IdField
    subtree: bool = Field(default=False, description="Also end all sessions below it.")
    reason: str | None = Field(
        default=None, description="The reason, for people who read it later."
    )
