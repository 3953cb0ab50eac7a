"""Tools for tests of agents: a clock that a test moves, scripted handlers, ``drain``, and checks of
the protocols ``SessionStore`` and ``SessionBroker``.

Importing this package does not import pytest. The fixtures are in ``sessionsdb.testing.plugin``.
"""

from sessionsdb.testing.clock import ManualClock
from sessionsdb.testing.conformance import (
    BROKER_CHECKS,
    STORE_CHECKS,
    Check,
    RuleBroken,
    Subject,
    subject_of,
)
from sessionsdb.testing.draining import MessageDied, drain, drain_blocking
from sessionsdb.testing.script import ScriptedHandler, ScriptEnded, Step

__all__ = [
    "BROKER_CHECKS",
    "STORE_CHECKS",
    "Check",
    "ManualClock",
    "MessageDied",
    "RuleBroken",
    "ScriptEnded",
    "ScriptedHandler",
    "Step",
    "Subject",
    "drain",
    "drain_blocking",
    "subject_of",
]
