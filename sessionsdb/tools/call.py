"""One call of a tool: who makes it, and what it works with."""

from __future__ import annotations

from typing import NamedTuple

from sessionsdb.protocols import SessionBroker
from sessionsdb.tools.scope import Scope
from sessionsdb.tools.values import Progress
from sessionsdb.types import SessionId


class Refused(Exception):
    """The call can't be served; the message is for the model, and says what to do."""


class Call(NamedTuple):
    broker: SessionBroker
    scope: Scope
    caller: SessionId | None
    max_wait_secs: float
    progress: Progress | None
