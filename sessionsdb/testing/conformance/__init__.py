"""Checks of the protocols ``SessionStore`` and ``SessionBroker``, for every implementation.

::

    @pytest.mark.parametrize("check", STORE_CHECKS + BROKER_CHECKS, ids=str)
    async def test_a_rule_holds(check: Check) -> None:
        await check(Subject(my_store, my_broker, my_run_turns))

Not checked: durability, several processes, cancellation of running turns, and ``search``.
"""

from sessionsdb.testing.conformance import (
    edits,
    following,
    inbox,
    questions,
    registry,
    schedules,
    spawning,
    state,
    transcripts,
)
from sessionsdb.testing.conformance.checks import Check, Part, RuleBroken, Subject, subject_of

_STORE: list[Part] = [transcripts.PART, edits.PART, state.PART]
_BROKER: list[Part] = [
    registry.PART,
    inbox.PART,
    spawning.PART,
    questions.PART,
    schedules.PART,
    following.PART,
]

STORE_CHECKS: list[Check] = [check for part in _STORE for check in part.checks]
"""The rules of ``SessionStore``. Some make sessions through the broker of the subject."""

BROKER_CHECKS: list[Check] = [check for part in _BROKER for check in part.checks]
"""The rules of ``SessionBroker``."""

__all__ = [
    "BROKER_CHECKS",
    "STORE_CHECKS",
    "Check",
    "RuleBroken",
    "Subject",
    "subject_of",
]
