"""The types that a type checker must see for a caller. ``make check`` runs mypy over this file.

The functions are never called. A wrong type is an error of mypy at ``assert_type``.
"""

from __future__ import annotations

from typing import assert_type

from sessionsdb import SessionDetails, SessionsDB, SessionSummary
from sessionsdb import sync as blocking


async def lists_have_the_type_that_details_asks_for(db: SessionsDB, details: bool) -> None:
    assert_type(await db.broker.list(), list[SessionSummary])
    assert_type(await db.broker.list(channel="web", details=False), list[SessionSummary])
    assert_type(await db.broker.list(channel="web", details=True), list[SessionDetails])
    assert_type(await db.broker.list(details=details), list[SessionSummary] | list[SessionDetails])


def blocking_lists_have_the_same_types(db: blocking.SessionsDB, details: bool) -> None:
    assert_type(db.broker.list(), list[SessionSummary])
    assert_type(db.broker.list(channel="web", details=False), list[SessionSummary])
    assert_type(db.broker.list(channel="web", details=True), list[SessionDetails])
    assert_type(db.broker.list(details=details), list[SessionSummary] | list[SessionDetails])
