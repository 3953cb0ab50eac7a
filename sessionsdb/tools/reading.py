"""The tools that only read: sessions_list, _history, _search and _status."""

from __future__ import annotations

from datetime import UTC, datetime

from sessionsdb.tools.call import Call, CallRefused
from sessionsdb.tools.definitions import HISTORY, LIST
from sessionsdb.tools.inputs import (
    MAX_HISTORY_LIMIT,
    MAX_LIST_LIMIT,
    MAX_SEARCH_LIMIT,
    HistoryInput,
    ListInput,
    ReceiptInput,
    SearchInput,
    StatusInput,
)
from sessionsdb.tools.outputs import (
    FoundMessage,
    HistoryOutput,
    ListOutput,
    SearchOutput,
    ShownMessage,
    ShownOutcome,
    StatusOutput,
)
from sessionsdb.tools.rendering import (
    RESULT_CHARACTERS,
    reply_characters,
    show_message,
    show_outcome,
    shown_characters,
)
from sessionsdb.types import Receipt, SessionId, SessionMessage, SessionSummary

PAGE_MESSAGES = 50
"""The number of messages in one query, because a few long messages can fill a result."""

PAGE_BYTES = 1_000_000
"""The texts of one query, in bytes, unless one message is longer. Only the beginning of a long text
is shown, so a page of many such texts would be read for little."""


NEWEST_FIRST = "-"
"""The first character of a cursor whose pages go from newer to older sessions."""


async def list_sessions(call: Call, given: ListInput) -> ListOutput:
    after, newest_first = None, given.newest_first
    if given.cursor is not None:
        newest_first = given.cursor.startswith(NEWEST_FIRST)
        after = _parse_cursor(given.cursor.removeprefix(NEWEST_FIRST))
    page = await call.scope.page(
        limit=min(given.limit, MAX_LIST_LIMIT),
        after=after,
        include_ended=given.include_ended,
        newest_first=newest_first,
    )
    fitting: list[SessionSummary] = []
    characters_left = RESULT_CHARACTERS
    for session in page.sessions:
        characters_left -= len(session.model_dump_json())
        if fitting and characters_left < 0:
            break
        fitting.append(session)
    more = page.more or len(fitting) < len(page.sessions)
    return ListOutput(
        scope=call.scope.visibility,
        truncated=more,
        sessions=fitting,
        next_cursor=_format_cursor(fitting[-1], newest_first) if more and fitting else None,
    )


def _format_cursor(session: SessionSummary, newest_first: bool) -> str:
    """Return the place of a session in the order of the list, and that order.

    The place holds the time, so it does not move when the session is active again. A cursor with
    the id of a session outside the scope reveals nothing, because its session is not looked up.
    """
    order = NEWEST_FIRST if newest_first else ""
    return f"{order}{session.last_active.astimezone(UTC).isoformat()} {session.id}"


def _parse_cursor(cursor: str) -> SessionSummary:
    time, _, id = cursor.partition(" ")
    try:
        last_active = datetime.fromisoformat(time)
        if last_active.tzinfo is None or not id:
            raise ValueError
        last_active = last_active.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CallRefused(
            f"Invalid {LIST} input: cursor must be the next_cursor of a previous page"
        ) from None
    return SessionSummary(
        id=SessionId(id),
        channel="",
        peer="",
        created_at=last_active,
        last_active=last_active,
        message_count=0,
    )


async def history(call: Call, given: HistoryInput) -> HistoryOutput:
    session = await call.scope.session(given.session_id)
    if given.message is not None:
        return await _read_message(call, session.id, given.message, given.offset)
    if given.before is not None and given.after is not None:
        raise CallRefused(f"Invalid {HISTORY} input: give before or after, not both")
    limit = min(given.limit, MAX_HISTORY_LIMIT)
    if given.after is not None:
        return await _read_newer(call, session.id, limit, given.after)
    return await _read_older(call, session.id, limit, given.before)


async def _read_message(call: Call, id: SessionId, seq: int, offset: int) -> HistoryOutput:
    found = await call.broker.history(id, 1, before=seq + 1)
    if not found or found[0].seq != seq:
        raise CallRefused(
            f"{HISTORY} failed: session {id} has no message {seq}; "
            "its transcript may have been rewritten"
        )
    message = show_message(found[0], offset)
    return HistoryOutput(
        scope=call.scope.visibility,
        truncated=message.next_offset is not None,
        session_id=id,
        messages=[message],
    )


async def _read_older(call: Call, id: SessionId, limit: int, before: int | None) -> HistoryOutput:
    """Read the newest ``limit`` messages before ``before``, and keep the newest that fit."""
    found: list[ShownMessage] = []
    more = True
    while more and len(found) < limit:
        wanted = min(PAGE_MESSAGES, limit - len(found))
        page = await call.broker.history(id, wanted, before=before, max_bytes=PAGE_BYTES)
        more = bool(page)
        fits = _take_fitting(page[::-1], found)
        before = found[-1].seq if found else before
        if not fits:
            break
    if more:
        more = bool(await call.broker.history(id, 1, before=before))
    found.reverse()
    return HistoryOutput(
        scope=call.scope.visibility,
        truncated=more or _has_cut_message(found),
        session_id=id,
        messages=found,
        next_before=found[0].seq if more and found else None,
    )


async def _read_newer(call: Call, id: SessionId, limit: int, after: int | None) -> HistoryOutput:
    """Read the oldest ``limit`` messages after ``after``, and keep the oldest that fit."""
    found: list[ShownMessage] = []
    more = True
    while more and len(found) < limit:
        wanted = min(PAGE_MESSAGES, limit - len(found))
        page = await call.broker.history(id, wanted, after=after, max_bytes=PAGE_BYTES)
        more = bool(page)
        fits = _take_fitting(page, found)
        after = found[-1].seq if found else after
        if not fits:
            break
    if more:
        more = bool(await call.broker.history(id, 1, after=after))
    return HistoryOutput(
        scope=call.scope.visibility,
        truncated=more or _has_cut_message(found),
        session_id=id,
        messages=found,
        next_after=found[-1].seq if more and found else None,
    )


def _take_fitting(page: list[SessionMessage], found: list[ShownMessage]) -> bool:
    """Add the messages of a page that fit to ``found``, at least one. Return whether all fit."""
    characters = RESULT_CHARACTERS - sum(shown_characters(message) for message in found)
    for message in page:
        shown = show_message(message)
        characters -= shown_characters(shown)
        if found and characters < 0:
            return False
        found.append(shown)
    return True


def _has_cut_message(messages: list[ShownMessage]) -> bool:
    return any(message.note is not None for message in messages)


async def search(call: Call, given: SearchInput) -> SearchOutput:
    page = await call.scope.search(
        given.query, limit=min(given.limit, MAX_SEARCH_LIMIT), after=given.cursor
    )
    return SearchOutput(
        scope=call.scope.visibility,
        truncated=page.more,
        messages=[
            FoundMessage(
                session_id=hit.session_id,
                seq=hit.seq,
                role=hit.role,
                snippet=hit.snippet,
                created_at=hit.created_at,
            )
            for hit in page.hits
        ],
        next_cursor=page.hits[-1].cursor if page.more and page.hits else None,
    )


async def status(call: Call, given: StatusInput) -> StatusOutput:
    receipts = await receipts_in_scope(call, given.receipts)
    characters = reply_characters(len(receipts))
    outcomes = [
        show_outcome(await call.broker.outcome(receipt), characters) for receipt in receipts
    ]
    return StatusOutput(
        scope=call.scope.visibility, truncated=has_cut_reply(outcomes), outcomes=outcomes
    )


async def receipts_in_scope(call: Call, receipts: list[ReceiptInput]) -> list[Receipt]:
    """Return the receipts. Raises ``UnknownSession`` if a session is outside the scope."""
    for id in dict.fromkeys(receipt.session_id for receipt in receipts):
        await call.scope.session(id)
    return [
        Receipt(session_id=SessionId(receipt.session_id), position=receipt.position)
        for receipt in receipts
    ]


def has_cut_reply(outcomes: list[ShownOutcome]) -> bool:
    return _has_cut_message([outcome.reply for outcome in outcomes if outcome.reply is not None])
