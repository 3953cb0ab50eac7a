"""The tools that act on other sessions: send, spawn, cancel, end."""

from __future__ import annotations

import hashlib
import json

from sessionsdb.errors import SessionsDBError
from sessionsdb.tools.call import Call, CallRefused
from sessionsdb.tools.definitions import CANCEL, END, LIST, SEND, SPAWN
from sessionsdb.tools.inputs import (
    MAX_RECEIPTS,
    CancelInput,
    EndInput,
    SendInput,
    SpawnInput,
)
from sessionsdb.tools.outputs import CancelOutput, EndOutput, SendOutput, SpawnOutput
from sessionsdb.tools.reading import has_cut_reply
from sessionsdb.tools.rendering import reply_characters, show_outcome, show_receipt
from sessionsdb.tools.waiting import is_final, unfinished_note, wait_for_outcomes
from sessionsdb.types import Receipt, SessionDetails, SpawnRequest

FIRST_POSITION = 1
"""The position of the prompt in the inbox of a spawned session."""

REPORTED = (
    "The first answer of the new session comes to you as a message. You can finish your turn "
    "without a wait."
)

NO_PARENT = (
    f"{SPAWN} failed: the session of the caller is not known, so the new session would have no "
    'parent. The host must set context.metadata["session_id"], or pass current_session_id to '
    "SessionsTool."
)


async def send(call: Call, given: SendInput) -> SendOutput:
    if given.session_id == call.caller:
        raise CallRefused(
            f"{SEND} refused: {given.session_id} is your own session. A message to yourself would "
            "start your next turn, which would send the next message: it would recurse. To go on "
            f"here, just answer. To hand work over, use {SPAWN}, or a session from {LIST}."
        )
    session = await call.scope.session(given.session_id)
    receipt = await call.broker.send(
        session.id,
        given.text,
        sender=call.caller,
        idempotency_key=_caller_key(call, given.idempotency_key),
    )
    return SendOutput(
        scope=call.scope.visibility,
        truncated=False,
        ok=True,
        session_id=receipt.session_id,
        position=receipt.position,
        duplicate=receipt.duplicate,
    )


async def spawn(call: Call, given: SpawnInput) -> SpawnOutput:
    if call.caller is None:
        raise CallRefused(NO_PARENT)
    wanted = call.report_spawns if given.report is None else given.report
    request = SpawnRequest(
        prompt=given.prompt,
        model=given.model,
        system=given.system,
        tools=given.tools,
        # The caller gets an awaited reply as the result of this call.
        report="each" if wanted and not given.wait_for_first_reply else "none",
    )
    child = await call.broker.spawn(
        call.caller, request, idempotency_key=_caller_key(call, given.idempotency_key)
    )
    receipt = Receipt(session_id=child.id, position=FIRST_POSITION)
    note = None
    # The child exists now. An error of the wait must not hide its id from the model.
    if given.wait_for_first_reply:
        seconds = min(given.wait_timeout_secs, call.max_wait_secs)
        try:
            [shown] = await wait_for_outcomes(
                call, [receipt], seconds, progress_prefix=f"spawned {child.id}; "
            )
        except SessionsDBError as error:
            shown, note = show_outcome(await call.broker.outcome(receipt)), str(error)
        else:
            note = None if is_final(shown) else unfinished_note(seconds)
    else:
        shown = show_outcome(await call.broker.outcome(receipt))
        note = REPORTED if wanted else None
    return SpawnOutput(
        scope=call.scope.visibility,
        truncated=shown.reply is not None and shown.reply.next_offset is not None,
        id=child.id,
        receipt=show_receipt(receipt),
        status=shown.status,
        first_reply=shown.reply,
        error=shown.error,
        note=note,
    )


def _caller_key(call: Call, key: str | None) -> str | None:
    """Make the key of the model unique to its caller, so that two callers can use equal keys."""
    if key is None:
        return None
    return "tool:" + hashlib.sha256(json.dumps([call.caller, key]).encode()).hexdigest()


async def cancel(call: Call, given: CancelInput) -> CancelOutput:
    session = await call.scope.session(given.session_id)
    if not await is_below_caller(call, session):
        raise CallRefused(
            f"{CANCEL} refused: {session.id} is not below your own session {call.caller}. You can "
            "cancel messages of sessions that you spawned and of sessions below them."
        )
    if given.position is None:
        stopped = await call.broker.interrupt(session.id)
    else:
        receipt = Receipt(session_id=session.id, position=given.position)
        stopped = [await call.broker.cancel(receipt)]
    first = stopped[:MAX_RECEIPTS]
    shown = [show_outcome(outcome, reply_characters(len(first))) for outcome in first]
    left_out = len(shown) < len(stopped)
    note = f"{len(stopped)} messages were cancelled; the first {len(shown)} are shown"
    return CancelOutput(
        scope=call.scope.visibility,
        truncated=left_out or has_cut_reply(shown),
        session_id=session.id,
        outcomes=shown,
        note=note if left_out else None,
    )


async def is_below_caller(call: Call, session: SessionDetails) -> bool:
    """Return whether the caller may stop this session. A host without a caller may stop all."""
    return call.caller is None or await call.scope.is_below(session, call.caller)


async def end(call: Call, given: EndInput) -> EndOutput:
    session = await call.scope.session(given.session_id)
    if not await is_below_caller(call, session):
        raise CallRefused(
            f"{END} refused: {session.id} is not below your own session {call.caller}. You can end "
            "sessions that you spawned and sessions below them. The end of your own would cancel "
            "the turn that makes this call: finish your turn with your answer instead."
        )
    ended = await call.broker.end(session.id, subtree=given.subtree, reason=given.reason)
    return EndOutput(
        scope=call.scope.visibility,
        truncated=False,
        ok=True,
        session_id=session.id,
        ended=ended,
    )
