"""The tools that act on other sessions: sessions_send, sessions_spawn, sessions_end."""

from __future__ import annotations

import hashlib
import json

from sessionsdb.errors import SessionsDBError
from sessionsdb.tools.call import Call, Refused
from sessionsdb.tools.definitions import END, LIST, SEND, SPAWN
from sessionsdb.tools.inputs import EndInput, SendInput, SpawnInput
from sessionsdb.tools.outputs import EndOutput, SendOutput, SpawnOutput
from sessionsdb.tools.rendering import outcome_shown, receipt_shown
from sessionsdb.tools.waiting import finished, still_going
from sessionsdb.types import Outcome, Receipt, SessionDetails, SpawnRequest

FIRST_POSITION = 1
"""Where a spawned session's prompt stands in its inbox."""

NO_PARENT = (
    f"{SPAWN} could not tell whose child to make: the caller's session is not known. The host "
    'must set context.metadata["session_id"], or pass current_session_id to SessionsTool.'
)


async def send(call: Call, given: SendInput) -> SendOutput:
    if given.session_id == call.caller:
        raise Refused(
            f"{SEND} refused: {given.session_id} is your own session, and a message to yourself "
            "would start your next turn, which would send the next one: it would recurse. To go "
            f"on here just answer; to hand work over use {SPAWN}, or a session from {LIST}."
        )
    session = await call.scope.session(given.session_id)
    receipt = await call.broker.send(
        session.id,
        given.text,
        sender=call.caller,
        idempotency_key=_own_key(call, given.idempotency_key),
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
        raise Refused(NO_PARENT)
    request = SpawnRequest(
        prompt=given.prompt, model=given.model, system=given.system, tools=given.tools
    )
    child = await call.broker.spawn(
        call.caller, request, idempotency_key=_own_key(call, given.idempotency_key)
    )
    receipt = Receipt(session_id=child.id, position=FIRST_POSITION)
    note = None
    # From here on the child exists: whatever happens, the caller is told its id.
    if given.wait_for_first_reply:
        seconds = min(given.wait_timeout_secs, call.max_wait_secs)
        try:
            [outcome] = await finished(call, [receipt], seconds, what=f"spawned {child.id}; ")
        except SessionsDBError as error:
            outcome, note = await _now(call, receipt), str(error)
        else:
            note = None if outcome.final else still_going(seconds)
    else:
        outcome = await _now(call, receipt)
    found = outcome_shown(outcome)
    return SpawnOutput(
        scope=call.scope.visibility,
        truncated=found.reply is not None and found.reply.next_offset is not None,
        id=child.id,
        receipt=receipt_shown(receipt),
        status=found.status,
        first_reply=found.reply,
        error=found.error,
        note=note,
    )


async def _now(call: Call, receipt: Receipt) -> Outcome:
    return await call.broker.outcome(receipt)


def _own_key(call: Call, key: str | None) -> str | None:
    """The caller's key, apart from the same one of another caller."""
    if key is None:
        return None
    return "tool:" + hashlib.sha256(json.dumps([call.caller, key]).encode()).hexdigest()


async def end(call: Call, given: EndInput) -> EndOutput:
    session = await call.scope.session(given.session_id)
    if await _ends_the_caller(call, session, given.subtree):
        raise Refused(
            f"{END} refused: it would end your own session {call.caller} and cancel the turn that "
            "asks for it. Finish your turn with your answer, and leave the end to those above."
        )
    ended = await call.broker.end(session.id, subtree=given.subtree, reason=given.reason)
    return EndOutput(
        scope=call.scope.visibility,
        truncated=False,
        ok=True,
        session_id=session.id,
        ended=ended,
    )


async def _ends_the_caller(call: Call, session: SessionDetails, subtree: bool) -> bool:
    if session.id == call.caller:
        return True
    above = call.caller if subtree else None
    while above is not None:
        if above == session.id:
            return True
        above = (await call.broker.get(above)).parent
    return False
