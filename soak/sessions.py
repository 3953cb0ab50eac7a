"""The sessions that a soak begins with."""

from __future__ import annotations

from sessionsdb import SessionsDB
from soak import verbs
from soak.caller import Caller
from soak.plan import Plan

SCRATCH = "scratch "
"""How the ids of those begin that are made and deleted on the way."""


def chat(number: int) -> str:
    """Has an inbox, and is worked on."""
    return f"chat-{number}"


def ledger(number: int) -> str:
    """Is rewritten as a whole, by compare-and-set."""
    return f"ledger-{number}"


def notebook(number: int) -> str:
    """Is appended to."""
    return f"notebook-{number}"


async def register(plan: Plan, db: SessionsDB, caller: Caller) -> None:
    for number in range(plan.chats):
        await verbs.register(db, caller, chat(number), "chat")
    for number in range(plan.ledgers):
        await verbs.register(db, caller, ledger(number), "ledger")
    for number in range(plan.notebooks):
        await verbs.register(db, caller, notebook(number), "notebook")
