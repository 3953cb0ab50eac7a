"""Waiting for answers, with progress told: sessions_wait, and what sessions_spawn waits by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from sessionsdb.tools.call import Call
from sessionsdb.tools.definitions import WAIT
from sessionsdb.tools.inputs import WaitInput
from sessionsdb.tools.outputs import WaitOutput
from sessionsdb.tools.reading import admitted, any_reply_cut
from sessionsdb.tools.rendering import outcome_shown
from sessionsdb.types import Outcome, Receipt

PROGRESS_SECONDS = 2.0
"""How often progress is told while nothing changes."""


async def wait(call: Call, given: WaitInput) -> WaitOutput:
    receipts = await admitted(call, given.receipts)
    seconds = min(given.timeout_secs, call.max_wait_secs)
    outcomes = await finished(call, receipts, seconds, any_one=given.mode == "any")
    final = [outcome.final for outcome in outcomes]
    complete = any(final) if given.mode == "any" else all(final)
    found = [outcome_shown(outcome) for outcome in outcomes]
    return WaitOutput(
        scope=call.scope.visibility,
        truncated=any_reply_cut(found),
        outcomes=found,
        complete=complete,
        note=None if complete else still_going(seconds),
    )


def still_going(seconds: float) -> str:
    return (
        f"not finished after {seconds:g} seconds; the work goes on, and {WAIT} with the same "
        "receipts waits for it again"
    )


async def finished(
    call: Call,
    receipts: Sequence[Receipt],
    seconds: float,
    *,
    any_one: bool = False,
    what: str = "",
) -> list[Outcome]:
    """The outcomes when all messages are finished, or any one, or the time is over.

    A cancelled wait changes nothing for the messages. Raises ``UnknownReceipt``, and
    ``CircularWait`` if the caller would wait for itself.
    """
    begun = time.monotonic()
    distinct = {(receipt.session_id, receipt.position): receipt for receipt in receipts}
    waits = {
        key: asyncio.create_task(call.broker.wait(receipt, seconds, waiter=call.caller))
        for key, receipt in distinct.items()
    }
    left: set[asyncio.Task[Outcome]] = set(waits.values())
    outcomes: dict[tuple[str, int], Outcome] = {}
    try:
        while left:
            await _tell(call, time.monotonic() - begun, seconds, waits.values(), what)
            done, left = await asyncio.wait(
                left, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            found = [task.result() for task in done]  # raises what a wait raised
            if any_one and any(outcome.final for outcome in found):
                break
        for key, receipt in distinct.items():
            task = waits[key]
            outcomes[key] = task.result() if task.done() else await call.broker.outcome(receipt)
    finally:
        for task in waits.values():
            task.cancel()
        await asyncio.gather(*waits.values(), return_exceptions=True)
    return [outcomes[receipt.session_id, receipt.position] for receipt in receipts]


async def _tell(
    call: Call, waited: float, seconds: float, waits: Collection[asyncio.Task[Outcome]], what: str
) -> None:
    if call.progress is None:
        return
    ready = sum(task.done() for task in waits)
    told = f"{what}{ready} of {len(waits)} finished"
    await call.progress(min(waited, seconds), seconds, told)
