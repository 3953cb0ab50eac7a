"""The agent of the demo: an architect who delegates, and two colleagues who answer.

It stands for a real one. Where a real one would call a model it knows its lines; and one of the
colleagues is so slow on the first attempt that there is time to kill its worker.
"""

from __future__ import annotations

import asyncio

from sessionsdb import Reply, SpawnRequest, Turn

SLOW = "hotels"
FINDINGS = {"flights": "Friday 18:05, 89 EUR", "hotels": "a room near the Pantheon"}


async def agent(turn: Turn) -> Reply:
    """Run one turn of whichever session it is."""
    if turn.session.parent is not None:
        return await _colleague(turn)
    if turn.senders[0] is None:
        for topic in FINDINGS:
            turn.spawn(SpawnRequest(prompt=topic))
        return Reply("I have asked two colleagues.", input_tokens=40, output_tokens=7)
    told = [message.content for message in await turn.history() if ": " in message.content]
    if len(told) + 1 < len(FINDINGS):
        return Reply("One answer is here, I wait for the other.", input_tokens=60, output_tokens=10)
    plan = "; ".join(sorted([*told, turn.text]))
    return Reply(f"Your weekend: {plan}.", input_tokens=90, output_tokens=25)


async def _colleague(turn: Turn) -> Reply:
    topic = turn.text
    if topic == SLOW and turn.attempt == 1:
        await asyncio.Event().wait()  # a model that does not answer
    assert turn.session.parent is not None
    turn.send(turn.session.parent, f"{topic}: {FINDINGS[topic]}")
    return Reply(f"I found {FINDINGS[topic]}.", input_tokens=20, output_tokens=9)
