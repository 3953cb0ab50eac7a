"""The agent of the demo: it delegates a question to two colleagues and collects their answers.

Its texts are fixed, where a real agent would call a model. One colleague never answers at the first
attempt, so that the demo can kill its worker.
"""

from __future__ import annotations

import asyncio

from sessionsdb import Reply, SpawnRequest, Turn

SLOW = "hotels"
FINDINGS = {"flights": "Friday 18:05, 89 EUR", "hotels": "a room near the Pantheon"}


async def agent(turn: Turn) -> Reply:
    """Run one turn of the user's session or of a colleague's."""
    if turn.session.parent is not None:
        return await _answer_as_colleague(turn)
    if turn.senders[0] is None:
        for topic in FINDINGS:
            turn.spawn(SpawnRequest(prompt=topic))
        return Reply("I have asked two colleagues.", input_tokens=40, output_tokens=7)
    answers = [message.content for message in await turn.history() if ": " in message.content]
    if len(answers) + 1 < len(FINDINGS):
        return Reply("One answer is here, I wait for the other.", input_tokens=60, output_tokens=10)
    plan = "; ".join(sorted([*answers, turn.text]))
    return Reply(f"Your weekend: {plan}.", input_tokens=90, output_tokens=25)


async def _answer_as_colleague(turn: Turn) -> Reply:
    topic = turn.text
    if topic == SLOW and turn.attempt == 1:
        await asyncio.Event().wait()  # a model that does not answer
    assert turn.session.parent is not None
    turn.send(turn.session.parent, f"{topic}: {FINDINGS[topic]}")
    return Reply(f"I found {FINDINGS[topic]}.", input_tokens=20, output_tokens=9)
