"""The bodies of requests. The verbs check the values, so the types here are for the document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from sessionsdb.types import CatchUp, StateScope, WhenBusy
from sessionsdb.web.api.parameters import Moment

Json = dict[Any, Any]
"""A JSON object. Its keys are not checked: a message may have any text as a key."""

MAX_MESSAGES = 10_000
"""The messages of one request. A longer transcript is appended in parts, or imported."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Registration(Body):
    id: str
    channel: str
    peer: str
    parent: str | None = None
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    metadata: Json | None = None
    exist_ok: StrictBool = Field(
        default=False, description="Return a session that exists unchanged."
    )


class Update(Body):
    """Fields that are left out keep their values. `null` clears one."""

    channel: str | None = None
    peer: str | None = None
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    metadata: Json | None = None

    def given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}


class End(Body):
    subtree: StrictBool = False
    reason: str | None = None


class Fork(Body):
    at: StrictInt | None = Field(default=None, description="The last `seq` to copy. Default: all.")
    new_id: str | None = None


class Interrupt(Body):
    subtree: StrictBool = False
    keep_partial: StrictBool = True


class Messages(Body):
    messages: list[Json] = Field(max_length=MAX_MESSAGES)


class Append(Messages):
    keys: list[str | None] | None = Field(
        default=None, description="A key or `null` for each message. Known ones are left out."
    )
    create: StrictBool = Field(default=True, description="Create a session that does not exist.")


class EditBody(Body):
    """One transaction: remove what is behind `keep_through`, then append."""

    append: list[Json] = Field(default=[], max_length=MAX_MESSAGES)
    keys: list[str | None] | None = None
    keep_through: StrictInt | None = None
    expected_tail: list[StrictInt] | None = None
    state: dict[StateScope, Json] | None = None
    metadata: Json | None = None
    create: StrictBool = True


class Pop(Body):
    count: StrictInt = 1


class StateChanges(Body):
    changes: Json = Field(description="Values by key. `null` removes a key.")


class SendBody(Body):
    message: str | Json = Field(description="A text, or one JSON message of any form.")
    sender: str | None = Field(default=None, description="The session whose agent speaks.")
    author: str | None = None
    metadata: Json | None = None
    when_busy: WhenBusy = "queue"


class SpawnBody(Body):
    prompt: str | Json
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    wait_for_first_reply: StrictBool = False
    wait_timeout_secs: StrictFloat = Field(default=60, ge=0, le=60)
    author: str | None = None
    metadata: Json | None = None
    report: Literal["none", "each"] = "none"


class AnswerBody(Body):
    message: str | Json
    author: str | None = None


class ScheduleBody(Body):
    """Exactly one of `at` and `cron`."""

    message: str | Json
    at: Moment | None = Field(default=None, description="With a time zone.")
    cron: str | None = Field(default=None, description="Five fields, as in `0 9 * * 1-5`.")
    tz: str = Field(default="UTC", description="The zone of `cron`, as in `Europe/Berlin`.")
    name: str | None = None
    sender: str | None = None
    author: str | None = None
    metadata: Json | None = None
    catch_up: CatchUp = "one"


class RequeueAll(Body):
    session: str | None = None
    since: Moment | None = None
    error: str | None = Field(default=None, description="Only errors with this text in them.")
