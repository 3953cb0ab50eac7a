"""Rules of ``spawn``."""

from __future__ import annotations

import asyncio

from sessionsdb.errors import IdempotencyConflict, SessionEnded, SpawnDenied, UnknownSession
from sessionsdb.testing.conformance.checks import Part, Subject, echo, equal, refused, true
from sessionsdb.types import Limits, SpawnRequest

PART = Part("spawning")


async def _parent(subject: Subject, tools: list[str] | None = None) -> None:
    await subject.broker.register(
        "p", channel="cli", peer="ada", model="m", system="be kind", tools=tools
    )


@PART.rule("A child has an id spawn-…, the channel spawned, and its parent as peer.")
async def a_child_knows_its_parent(subject: Subject) -> None:
    await _parent(subject)
    spawned = await subject.broker.spawn("p", SpawnRequest(prompt="task"))
    equal(spawned.first_reply, None, "first_reply without a wait")
    child = await subject.broker.get(spawned.id)
    true(str(child.id).startswith("spawn-"), f"the id is {child.id}")
    equal((child.channel, child.peer), ("spawned", "spawned-by-p"), "the channel and the peer")
    equal((child.parent, child.root), ("p", "p"), "the parent and the root")
    equal([one.id for one in await subject.broker.list(parent="p")], [child.id], "the children")


@PART.rule("Settings that are not given are copied from the parent, at the spawn.")
async def settings_are_copied(subject: Subject) -> None:
    await _parent(subject, tools=["a", "b"])
    spawned = await subject.broker.spawn("p", SpawnRequest(prompt="task", model="m2", tools=["a"]))
    await subject.broker.update("p", system="changed later")
    child = await subject.broker.get(spawned.id)
    equal((child.model, child.system, child.tools), ("m2", "be kind", ["a"]), "the settings")


@PART.rule("The prompt is the first message of the child's inbox.")
async def the_prompt_is_handled(subject: Subject) -> None:
    await _parent(subject)
    spawned = await subject.broker.spawn("p", SpawnRequest(prompt="task"))
    await subject.broker.send(spawned.id, "later")
    await subject.run_turns(echo)
    texts = [one.content for one in await subject.broker.history(spawned.id)]
    equal(texts, ["task", "echo: task", "later", "echo: later"], "the transcript of the child")


@PART.rule("A tool that the parent does not have raises SpawnDenied, and nothing is made.")
async def tools_lie_within_the_parents(subject: Subject) -> None:
    await _parent(subject, tools=["a"])
    call = subject.broker.spawn("p", SpawnRequest(prompt="task", tools=["a", "b"]))
    await refused(SpawnDenied, call, "spawn with another tool")
    equal(await subject.broker.list(parent="p"), [], "the children")


@PART.rule("A tree that would be deeper than Limits.depth raises SpawnDenied.")
async def trees_have_a_depth(subject: Subject) -> None:
    await _parent(subject)
    parent = "p"
    for _ in range(Limits().depth):
        parent = (await subject.broker.spawn(parent, SpawnRequest(prompt="task"))).id
    call = subject.broker.spawn(parent, SpawnRequest(prompt="task"))
    await refused(SpawnDenied, call, "spawn below the deepest session")


@PART.rule("A parent that is unknown or has ended spawns nothing.")
async def only_live_sessions_spawn(subject: Subject) -> None:
    request = SpawnRequest(prompt="task")
    await refused(UnknownSession, subject.broker.spawn("unknown", request), "an unknown parent")
    await _parent(subject)
    await subject.broker.end("p")
    await refused(SessionEnded, subject.broker.spawn("p", request), "an ended parent")
    equal(await subject.broker.list(parent="p", include_ended=True), [], "the children")


@PART.rule("A repeated spawn with an idempotency key returns the first child.")
async def a_key_spawns_once(subject: Subject) -> None:
    await _parent(subject)
    request = SpawnRequest(prompt="task")
    first = await subject.broker.spawn("p", request, idempotency_key="k")
    again = await subject.broker.spawn("p", request, idempotency_key="k")
    equal(again.id, first.id, "the id of the second call")
    equal(len(await subject.broker.list(parent="p")), 1, "the number of children")
    other = subject.broker.spawn("p", SpawnRequest(prompt="other"), idempotency_key="k")
    await refused(IdempotencyConflict, other, "spawn of another prompt")


@PART.rule("With wait_for_first_reply spawn returns the answer to the prompt.")
async def spawn_waits_for_the_reply(subject: Subject) -> None:
    await _parent(subject)
    request = SpawnRequest(prompt="task", wait_for_first_reply=True, wait_timeout_secs=30)
    spawning = asyncio.create_task(subject.broker.spawn("p", request))
    async with asyncio.timeout(30):
        while not spawning.done():
            await subject.run_turns(echo)
            await asyncio.wait({spawning}, timeout=0.01)
    reply = (await spawning).first_reply
    equal(reply and reply.content, "echo: task", "first_reply")


@PART.rule("At the timeout of that wait first_reply is None, and the child goes on.")
async def a_child_outlives_the_wait(subject: Subject) -> None:
    await _parent(subject)
    request = SpawnRequest(prompt="task", wait_for_first_reply=True, wait_timeout_secs=0.01)
    spawned = await subject.broker.spawn("p", request)
    equal(spawned.first_reply, None, "first_reply at the timeout")
    await subject.run_turns(echo)
    texts = [one.content for one in await subject.broker.history(spawned.id)]
    equal(texts, ["task", "echo: task"], "the transcript of the child")


@PART.rule("With report='each' the first reply of the child is sent to its parent, once.")
async def a_child_reports(subject: Subject) -> None:
    await _parent(subject)
    spawned = await subject.broker.spawn("p", SpawnRequest(prompt="task", report="each"))
    await subject.broker.send(spawned.id, "more")
    # The parent has no reply, so that it does not answer its child.
    await subject.run_turns(lambda id, text: None if id == "p" else f"echo: {text}")
    reports = [one for one in await subject.broker.history("p") if one.sender == spawned.id]
    equal(len(reports), 1, "the number of reports")
    true("echo: task" in reports[0].content, f"the report is {reports[0].content}")
