"""The tools that look: sessions_list, sessions_history, sessions_status."""

from __future__ import annotations

from datetime import UTC, datetime

from sessionsdb.tools.call import Call, Refused
from sessionsdb.tools.definitions import HISTORY, LIST
from sessionsdb.tools.inputs import (
    MAX_HISTORY_LIMIT,
    MAX_LIST_LIMIT,
    HistoryInput,
    ListInput,
    ReceiptInput,
    StatusInput,
)
from sessionsdb.tools.outputs import (
    HistoryOutput,
    ListOutput,
    ShownMessage,
    ShownOutcome,
    StatusOutput,
)
from sessionsdb.tools.rendering import RESULT_CHARACTERS, outcome_shown, shown
from sessionsdb.types import Receipt, SessionId, SessionMessage, SessionSummary

PAGE = 50
"""Messages are fetched in pages of this many, since a few long ones may fill a result."""


async def list_sessions(call: Call, given: ListInput) -> ListOutput:
    page = await call.scope.page(
        limit=min(given.limit, MAX_LIST_LIMIT),
        after=None if given.cursor is None else _place(given.cursor),
        include_ended=given.include_ended,
    )
    fitting: list[SessionSummary] = []
    room = RESULT_CHARACTERS
    for session in page.sessions:
        room -= len(session.model_dump_json())
        if fitting and room < 0:
            break
        fitting.append(session)
    more = page.more or len(fitting) < len(page.sessions)
    return ListOutput(
        scope=call.scope.visibility,
        truncated=more,
        sessions=fitting,
        next_cursor=_cursor(fitting[-1]) if more and fitting else None,
    )


def _cursor(session: SessionSummary) -> str:
    """A place in the order, by itself: it holds although the session is active meanwhile, and it
    tells nothing of a session that somebody may name in it."""
    return f"{session.last_active.astimezone(UTC).isoformat()} {session.id}"


def _place(cursor: str) -> SessionSummary:
    moment, _, id = cursor.partition(" ")
    try:
        active = datetime.fromisoformat(moment)
        if active.tzinfo is None or not id:
            raise ValueError
        active = active.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused(
            f"Invalid {LIST} input: cursor must be the next_cursor of a page before"
        ) from None
    return SessionSummary(
        id=SessionId(id), channel="", peer="", created_at=active, last_active=active,
        message_count=0,
    )  # fmt: skip


async def history(call: Call, given: HistoryInput) -> HistoryOutput:
    session = await call.scope.session(given.session_id)
    if given.message is not None:
        return await _one_message(call, session.id, given.message, given.offset)
    if given.before is not None and given.after is not None:
        raise Refused(f"Invalid {HISTORY} input: give before or after, not both")
    limit = min(given.limit, MAX_HISTORY_LIMIT)
    if given.after is not None:
        return await _newer(call, session.id, limit, given.after)
    return await _older(call, session.id, limit, given.before)


async def _one_message(call: Call, id: SessionId, seq: int, offset: int) -> HistoryOutput:
    found = await call.broker.history(id, 1, before=seq + 1)
    if not found or found[0].seq != seq:
        raise Refused(f"{HISTORY} failed: session {id} has no message {seq}; it may be rewritten")
    message = shown(found[0], offset)
    return HistoryOutput(
        scope=call.scope.visibility,
        truncated=message.next_offset is not None,
        session_id=id,
        messages=[message],
    )


async def _older(call: Call, id: SessionId, limit: int, before: int | None) -> HistoryOutput:
    """The last ``limit`` messages before ``before``: as many of them as fit, from the end."""
    found: list[ShownMessage] = []
    room, more = RESULT_CHARACTERS, True
    while more and len(found) < limit and room > 0:
        wanted = min(PAGE, limit - len(found))
        page = await call.broker.history(id, wanted + 1, before=before)
        more = len(page) > wanted
        fitting = _fitting(page[-wanted:][::-1], room, at_least=0 if found else 1)
        more = more or len(fitting) < min(len(page), wanted)
        room = room - _size(fitting) if len(fitting) == min(len(page), wanted) else 0
        found += fitting
        before = found[-1].seq if found else before
    if limit == 0:
        more = bool(await call.broker.history(id, 1, before=before))
    found.reverse()
    return HistoryOutput(
        scope=call.scope.visibility,
        truncated=more or _any_cut(found),
        session_id=id,
        messages=found,
        next_before=found[0].seq if more and found else None,
    )


async def _newer(call: Call, id: SessionId, limit: int, after: int) -> HistoryOutput:
    """The first ``limit`` messages behind ``after``: as many of them as fit."""
    page = await call.broker.history(id, limit + 1, after=after)
    found = _fitting(page[:limit], RESULT_CHARACTERS, at_least=1)
    more = len(found) < len(page)
    return HistoryOutput(
        scope=call.scope.visibility,
        truncated=more or _any_cut(found),
        session_id=id,
        messages=found,
        next_after=found[-1].seq if more and found else None,
    )


def _fitting(messages: list[SessionMessage], room: int, *, at_least: int) -> list[ShownMessage]:
    fitting: list[ShownMessage] = []
    for message in messages:
        one = shown(message)
        room -= len(one.content)
        if len(fitting) >= at_least and room < 0:
            break
        fitting.append(one)
    return fitting


def _size(messages: list[ShownMessage]) -> int:
    return sum(len(message.content) for message in messages)


def _any_cut(messages: list[ShownMessage]) -> bool:
    return any(message.next_offset is not None for message in messages)


async def status(call: Call, given: StatusInput) -> StatusOutput:
    receipts = await admitted(call, given.receipts)
    outcomes = [outcome_shown(await call.broker.outcome(receipt)) for receipt in receipts]
    return StatusOutput(
        scope=call.scope.visibility, truncated=any_reply_cut(outcomes), outcomes=outcomes
    )


async def admitted(call: Call, receipts: list[ReceiptInput]) -> list[Receipt]:
    """The receipts, all of sessions in scope. Raises ``UnknownSession``."""
    for id in dict.fromkeys(receipt.session_id for receipt in receipts):
        await call.scope.session(id)
    return [
        Receipt(session_id=SessionId(receipt.session_id), position=receipt.position)
        for receipt in receipts
    ]


def any_reply_cut(outcomes: list[ShownOutcome]) -> bool:
    return _any_cut([outcome.reply for outcome in outcomes if outcome.reply is not None])
