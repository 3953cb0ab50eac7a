"""The messages behind outcomes: the verbs for outcomes give no texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sessionsdb.database import SessionsDB
from sessionsdb.errors import UnknownSession
from sessionsdb.types import Outcome

_IN_INBOX = ("pending", "running", "dead")


async def with_messages(db: SessionsDB, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes in their order, each with its message if that waits, runs or died."""
    return list(await asyncio.gather(*(_with_message(db, outcome) for outcome in outcomes)))


async def _with_message(db: SessionsDB, outcome: Outcome) -> Outcome:
    if outcome.status not in _IN_INBOX:
        return outcome
    receipt = outcome.receipt
    try:
        found = await db.broker.inbox(receipt.session_id, limit=1, after=receipt.position - 1)
    except UnknownSession:
        return outcome
    return found[0] if found and found[0].receipt.position == receipt.position else outcome
