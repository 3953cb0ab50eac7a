"""The wait for answers with progress reports, for sessions_wait and sessions_spawn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from sessionsdb.tools.call import Call
from sessionsdb.tools.definitions import WAIT
from sessionsdb.tools.inputs import WaitInput
from sessionsdb.tools.outputs import ShownOutcome, WaitOutput
from sessionsdb.tools.partial_replies import PartialReplies
from sessionsdb.tools.reading import has_cut_reply, receipts_in_scope
from sessionsdb.tools.rendering import reply_characters, show_outcome
from sessionsdb.types import FINAL_STATUSES, Receipt

PROGRESS_SECONDS = 2.0
"""The interval of progress reports while nothing changes."""

PIECES_SECONDS = 0.5
"""The shortest interval of progress reports while a reply is streamed."""


async def wait(call: Call, given: WaitInput) -> WaitOutput:
    receipts = await receipts_in_scope(call, given.receipts)
    seconds = min(given.timeout_secs, call.max_wait_secs)
    shown = await wait_for_outcomes(call, receipts, seconds, any_one=given.mode == "any")
    final = [is_final(outcome) for outcome in shown]
    complete = any(final) if given.mode == "any" else all(final)
    return WaitOutput(
        scope=call.scope.visibility,
        truncated=has_cut_reply(shown),
        outcomes=shown,
        complete=complete,
        note=None if complete else unfinished_note(seconds),
    )


def is_final(outcome: ShownOutcome) -> bool:
    return outcome.status in FINAL_STATUSES


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
) -> list[ShownOutcome]:
    """Return the outcomes when all messages are finished, or any one, or after ``seconds``.

    The outcomes have the order of the receipts. A cancelled wait changes nothing for the messages.
    Raises ``UnknownReceipt``, and ``CircularWait`` if the caller would wait for itself.

    A reply can be 1 MB long, and only its beginning is shown. So replies that are there already are
    read one after the other, and every reply is cut as soon as it was read.
    """
    characters = reply_characters(len(receipts))
    distinct = {(receipt.session_id, receipt.position): receipt for receipt in receipts}
    shown = {
        key: show_outcome(await call.broker.outcome(receipt), characters)
        for key, receipt in distinct.items()
    }

    async def wait_for(receipt: Receipt) -> ShownOutcome:
        return show_outcome(
            await call.broker.wait(receipt, seconds, waiter=call.caller), characters
        )

    finished = sum(map(is_final, shown.values()))
    waits = {
        key: asyncio.create_task(wait_for(receipt))
        for key, receipt in distinct.items()
        if not is_final(shown[key]) and not (any_one and finished)
    }
    unfinished: set[asyncio.Task[ShownOutcome]] = set(waits.values())
    progress = _ProgressReports(call, seconds, progress_prefix, len(distinct))
    followed = [distinct[key].session_id for key in waits] if call.progress else []
    try:
        async with PartialReplies(call.broker, followed) as partial_replies:
            while unfinished:
                ready = finished + sum(task.done() for task in waits.values())
                await progress.report(ready, partial_replies.text())
                done, unfinished = await asyncio.wait(
                    unfinished,
                    timeout=PIECES_SECONDS if followed else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                found = [task.result() for task in done]  # raises the error of a wait
                if any_one and any(map(is_final, found)):
                    break
        for key, task in waits.items():
            shown[key] = (
                task.result()
                if task.done()
                else show_outcome(await call.broker.outcome(distinct[key]), characters)
            )
    finally:
        for task in waits.values():
            task.cancel()
        await asyncio.gather(*waits.values(), return_exceptions=True)
    return [shown[receipt.session_id, receipt.position] for receipt in receipts]


class _ProgressReports:
    """Reports the progress of one wait when it changes, and every 2 seconds."""

    def __init__(self, call: Call, seconds: float, prefix: str, count: int) -> None:
        self._call = call
        self._seconds = seconds
        self._prefix = prefix
        self._count = count
        self._started = time.monotonic()
        self._reported = ""
        self._due = 0.0

    async def report(self, ready: int, partial_replies: str) -> None:
        if self._call.progress is None:
            return
        now = time.monotonic()
        text = f"{self._prefix}{ready} of {self._count} finished{partial_replies}"
        if text != self._reported or now >= self._due:
            self._reported, self._due = text, now + PROGRESS_SECONDS
            await self._call.progress(min(now - self._started, self._seconds), self._seconds, text)
