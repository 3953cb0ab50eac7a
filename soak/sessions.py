"""The sessions that a soak begins with."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from sessionsdb import SessionsDB
from soak import recorded_calls
from soak.caller import Caller
from soak.payloads import payload
from soak.plan import Plan

PULSES = 6

BELLS = 3

QUIET_SECONDS = 5.0
"""The schedule of a bell is removed at a moment that is so far from its next due time."""

SCRATCH = "scratch "
"""The prefix of the ids of sessions that clients make and delete during the run."""


def chat(number: int) -> str:
    """A session with an inbox, which workers serve."""
    return f"chat-{number}"


def draft(number: int) -> str:
    """A session with an inbox, whose transcript clients cut while workers serve it."""
    return f"draft-{number}"


def desk(number: int) -> str:
    """A session with an inbox, whose turns ask people, and whose children report to it."""
    return f"desk-{number}"


def bell(number: int) -> str:
    """A session with an inbox that gets a message each minute, and no others."""
    return f"bell-{number}"


def pulse(number: int) -> str:
    """A session with an inbox for messages that never fail."""
    return f"pulse-{number}"


def ledger(number: int) -> str:
    """A transcript that clients rewrite as a whole, by compare-and-set."""
    return f"ledger-{number}"


def notebook(number: int) -> str:
    """A transcript that clients append to."""
    return f"notebook-{number}"


async def register(plan: Plan, db: SessionsDB, caller: Caller) -> None:
    for number in range(plan.chats):
        await recorded_calls.register(db, caller, chat(number), "chat")
    for number in range(plan.drafts):
        await recorded_calls.register(db, caller, draft(number), "draft")
    for number in range(plan.desks):
        await recorded_calls.register(db, caller, desk(number), "desk")
    for number in range(BELLS):
        await recorded_calls.register(db, caller, bell(number), "bell")
        await recorded_calls.ring(db, caller, bell(number), payload(caller.token()))
    for number in range(PULSES):
        await recorded_calls.register(db, caller, pulse(number), "pulse")
    for number in range(plan.ledgers):
        await recorded_calls.register(db, caller, ledger(number), "ledger")
    for number in range(plan.notebooks):
        await recorded_calls.register(db, caller, notebook(number), "notebook")


async def hush(db: SessionsDB, caller: Caller) -> None:
    """Remove the schedules of the bells, after all due times that have passed were sent."""
    for number in range(BELLS):
        for _ in range(600):
            found = await db.broker.schedules(bell(number))
            if not found:  # the answer of the last try was lost
                break
            [one] = found
            is_quiet = one.due_at > datetime.now(UTC) + timedelta(seconds=QUIET_SECONDS)
            if is_quiet and (await recorded_calls.hush(db, caller, bell(number), one)).ok:
                break
            await asyncio.sleep(0.1)
