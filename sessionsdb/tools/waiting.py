"""The wait for answers with progress reports, for sessions_wait and sessions_spawn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from sessionsdb.tools.call import Call
from sessionsdb.tools.definitions import WAIT
from sessionsdb.tools.inputs import WaitInput
from sessionsdb.tools.outputs import WaitOutput
from sessionsdb.tools.reading import has_cut_reply, receipts_in_scope
from sessionsdb.tools.rendering import show_outcome
from sessionsdb.types import Outcome, Receipt

PROGRESS_SECONDS = 2.0
"""The interval of progress reports while nothing changes."""


async def wait(call: Call, given: WaitInput) -> WaitOutput:
    receipts = await receipts_in_scope(call, given.receipts)
    seconds = min(given.timeout_secs, call.max_wait_secs)
    outcomes = await wait_for_outcomes(call, receipts, seconds, any_one=given.mode == "any")
    final = [outcome.final for outcome in outcomes]
    complete = any(final) if given.mode == "any" else all(final)
    shown = [show_outcome(outcome) for outcome in outcomes]
    return WaitOutput(
        scope=call.scope.visibility,
        truncated=has_cut_reply(shown),
        outcomes=shown,
        complete=complete,
        note=None if complete else unfinished_note(seconds),
    )


def unfinished_note(seconds: float) -> str:
    return (
        f"not finished after {seconds:g} seconds; the work goes on. Call {WAIT} with the same "
        "receipts to wait again."
    )


async def wait_for_outcomes(
    call: Call,
    receipts: Sequence[Receipt],
    seconds: float,
    *,
    any_one: bool = False,
    progress_prefix: str = "",
) -> list[Outcome]:
    """Return the outcomes when all messages are finished, or any one, or after ``seconds``.

    The outcomes have the order of the receipts. A cancelled wait changes nothing for the messages.
    Raises ``UnknownReceipt``, and ``CircularWait`` if the caller would wait for itself.
    """
    started = time.monotonic()
    distinct = {(receipt.session_id, receipt.position): receipt for receipt in receipts}
    tasks = {
        key: asyncio.create_task(call.broker.wait(receipt, seconds, waiter=call.caller))
        for key, receipt in distinct.items()
    }
    unfinished: set[asyncio.Task[Outcome]] = set(tasks.values())
    outcomes: dict[tuple[str, int], Outcome] = {}
    try:
        while unfinished:
            waited = min(time.monotonic() - started, seconds)
            await _report_progress(call, waited, seconds, tasks.values(), progress_prefix)
            done, unfinished = await asyncio.wait(
                unfinished, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            found = [task.result() for task in done]  # raises the error of a wait
            if any_one and any(outcome.final for outcome in found):
                break
        for key, receipt in distinct.items():
            task = tasks[key]
            outcomes[key] = task.result() if task.done() else await call.broker.outcome(receipt)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return [outcomes[receipt.session_id, receipt.position] for receipt in receipts]


async def _report_progress(
    call: Call, waited: float, seconds: float, tasks: Collection[asyncio.Task[Outcome]], prefix: str
) -> None:
    if call.progress is None:
        return
    ready = sum(task.done() for task in tasks)
    await call.progress(waited, seconds, f"{prefix}{ready} of {len(tasks)} finished")
