"""One call of a tool by a model."""

from __future__ import annotations

from typing import NamedTuple

from sessionsdb.protocols import SessionBroker
from sessionsdb.tools.scope import Scope
from sessionsdb.tools.values import Progress
from sessionsdb.types import SessionId


class CallRefused(Exception):
    """The tool can't serve the call. The message tells the model the reason and the next step."""


class Call(NamedTuple):
    """The surroundings of a call, apart from its arguments."""

    broker: SessionBroker
    scope: Scope
    caller: SessionId | None
    max_wait_secs: float
    progress: Progress | None
    report_spawns: bool = True
    """Whether spawned sessions report to the caller unless the model says otherwise."""
