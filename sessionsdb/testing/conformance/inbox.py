"""Rules of inboxes: send, outcome, wait, inbox, cancel, interrupt, dead letters, requeue."""

from __future__ import annotations

import asyncio

from sessionsdb.errors import (
    IdempotencyConflict,
    InboxFull,
    InvalidArgument,
    InvalidMessage,
    SessionBusy,
    UnknownReceipt,
    UnknownSession,
)
from sessionsdb.testing.conformance.checks import Part, Subject, echo, equal, refused, true, user
from sessionsdb.types import Limits, Receipt, SessionId

PART = Part("inbox")


async def _sessions(subject: Subject, *ids: str) -> None:
    for id in ids:
        await subject.broker.register(id, channel="cli", peer="ada")


async def _texts(subject: Subject, id: str = "s") -> list[str]:
    return [one.content for one in await subject.broker.history(id)]


def failing(_id: str, text: str) -> str:
    """Fail for messages that begin with ``bad``, and answer all others."""
    if text.startswith("bad"):
        raise RuntimeError(f"cannot answer {text}")
    return f"echo: {text}"


@PART.rule("send returns a receipt with growing positions. The message waits outside of history.")
async def a_message_waits(subject: Subject) -> None:
    await _sessions(subject, "s")
    first = await subject.broker.send("s", "a")
    second = await subject.broker.send("s", "b")
    equal((first.session_id, first.duplicate), ("s", False), "the receipt")
    true(second.position > first.position >= 1, f"the positions are {first}, {second}")
    outcome = await subject.broker.outcome(first)
    equal((outcome.status, outcome.attempts, outcome.reply), ("pending", 0, None), "the outcome")
    equal(await _texts(subject), [], "history before the turn")
    equal((await subject.broker.get("s")).pending, 2, "pending")


@PART.rule("Messages of a session are handled in the order of their sends, each exactly once.")
async def messages_are_handled_in_order(subject: Subject) -> None:
    await _sessions(subject, "s", "t")
    for text in ("1", "2", "3"):
        await subject.broker.send("s", text)
        await subject.broker.send("t", text)
    await subject.run_turns(echo)
    await subject.run_turns(echo)
    for id in ("s", "t"):
        expected = ["1", "echo: 1", "2", "echo: 2", "3", "echo: 3"]
        equal(await _texts(subject, id), expected, f"the transcript of {id}")
    equal((await subject.broker.get("s")).pending, 0, "pending")


@PART.rule("The outcome of a handled message is done, with the reply.")
async def an_outcome_has_the_reply(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipt = await subject.broker.send("s", "hi")
    await subject.run_turns(echo)
    outcome = await subject.broker.outcome(receipt)
    equal((outcome.status, outcome.attempts, outcome.final), ("done", 1, True), "the outcome")
    reply = outcome.reply
    equal(reply and (reply.role, reply.content), ("assistant", "echo: hi"), "the reply")
    true(outcome.finished_at is not None, "a final outcome has no finished_at")


@PART.rule("A turn without a reply is done, and its message enters the transcript.")
async def no_reply_is_done(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipt = await subject.broker.send("s", "hi")
    await subject.run_turns(lambda _id, _text: None)
    outcome = await subject.broker.outcome(receipt)
    equal((outcome.status, outcome.reply), ("done", None), "the outcome")
    equal(await subject.store.load("s"), [user("hi")], "the transcript")


@PART.rule("A whole JSON message enters the transcript as it was sent.")
async def a_whole_message_is_sent(subject: Subject) -> None:
    await _sessions(subject, "s")
    message = {"role": "user", "content": [{"type": "text", "text": "look"}], "x": [1, None]}
    await subject.broker.send("s", message)
    await subject.run_turns(lambda _id, _text: "seen")
    equal((await subject.store.load("s") or [{}])[0], message, "the message")


@PART.rule("A repeated send with an idempotency key queues nothing. Other arguments conflict.")
async def a_key_is_sent_once(subject: Subject) -> None:
    await _sessions(subject, "s")
    first = await subject.broker.send("s", "a", idempotency_key="k")
    again = await subject.broker.send("s", "a", idempotency_key="k")
    equal((again.position, again.duplicate), (first.position, True), "the second receipt")
    other = subject.broker.send("s", "b", idempotency_key="k")
    await refused(IdempotencyConflict, other, "send of another text")
    await subject.run_turns(echo)
    await subject.broker.send("s", "a", idempotency_key="k")
    await subject.run_turns(echo)
    equal(await _texts(subject), ["a", "echo: a"], "the transcript")


@PART.rule("A text that is empty raises InvalidMessage, and nothing is queued.")
async def an_empty_text_is_refused(subject: Subject) -> None:
    await _sessions(subject, "s")
    await refused(InvalidMessage, subject.broker.send("s", ""), "send of an empty text")
    equal(await subject.broker.inbox("s"), [], "the inbox")


@PART.rule("A full inbox raises InboxFull, and nothing is queued. It takes messages again later.")
async def a_full_inbox_refuses(subject: Subject) -> None:
    await _sessions(subject, "s")
    pending = Limits().pending
    await asyncio.gather(*(subject.broker.send("s", str(n)) for n in range(pending)))
    await refused(InboxFull, subject.broker.send("s", "one more"), "send to a full inbox")
    equal((await subject.broker.get("s")).pending, pending, "pending")
    [first] = await subject.broker.inbox("s", limit=1)
    await subject.broker.cancel(first.receipt)
    await subject.broker.send("s", "one more")


@PART.rule("The sender, the author and the metadata of a message stand beside it in history.")
async def a_message_has_a_sender(subject: Subject) -> None:
    await _sessions(subject, "s", "other")
    await subject.broker.send("s", "a", sender="other")
    await subject.broker.send("s", "b", author="alice", metadata={"n": 1})
    await subject.run_turns(lambda _id, _text: None)
    a, b = await subject.broker.history("s")
    equal((a.sender, a.author, a.metadata), ("other", None, None), "the first message")
    equal((b.sender, b.author, b.metadata), (None, "alice", {"n": 1}), "the second message")
    unknown = subject.broker.send("s", "c", sender="unknown")
    await refused(UnknownSession, unknown, "an unknown sender")


@PART.rule("send(when_busy='reject') raises SessionBusy while a message waits.")
async def a_busy_session_rejects(subject: Subject) -> None:
    await _sessions(subject, "s")
    await subject.broker.send("s", "a", when_busy="reject")
    busy = subject.broker.send("s", "b", when_busy="reject")
    await refused(SessionBusy, busy, "send to a busy session")
    await subject.run_turns(echo)
    await subject.broker.send("s", "c", when_busy="reject")
    equal([one.message and one.message.content for one in await subject.broker.inbox("s")], ["c"],
          "the inbox")  # fmt: skip


@PART.rule("inbox returns the unfinished messages by position, with limit and after.")
async def inbox_lists_what_waits(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipts = [await subject.broker.send("s", text) for text in "abc"]
    found = await subject.broker.inbox("s")
    equal([one.receipt.position for one in found], [one.position for one in receipts], "positions")
    equal([one.message and one.message.content for one in found], ["a", "b", "c"], "the texts")
    [second] = await subject.broker.inbox("s", limit=1, after=receipts[0])
    equal(second.receipt.position, receipts[1].position, "the first behind a receipt")
    await subject.run_turns(echo)
    equal(await subject.broker.inbox("s"), [], "the inbox after the turns")


@PART.rule("A message whose attempts all failed is dead with its error. The next one is handled.")
async def a_failing_message_dies(subject: Subject) -> None:
    await _sessions(subject, "s")
    bad = await subject.broker.send("s", "bad")
    await subject.broker.send("s", "good")
    await subject.run_turns(failing)
    outcome = await subject.broker.outcome(bad)
    equal((outcome.status, outcome.reply), ("dead", None), "the outcome")
    true(outcome.attempts >= 1, "a dead message has no attempts")
    true("cannot answer bad" in (outcome.error or ""), f"the error is {outcome.error}")
    equal(await _texts(subject), ["good", "echo: good"], "the transcript")


@PART.rule("dead_letters returns the newest dead messages of a session or of all, newest last.")
async def dead_letters_are_listed(subject: Subject) -> None:
    await _sessions(subject, "s", "t")
    for id, text in (("s", "bad 1"), ("t", "bad 2"), ("s", "bad 3"), ("s", "good")):
        await subject.broker.send(id, text)
        await subject.run_turns(failing)

    async def errors(id: str | None = None, limit: int = 100) -> list[str]:
        found = await subject.broker.dead_letters(id, limit=limit)
        return [(one.error or "").partition("cannot answer ")[2][:5] for one in found]

    equal(await errors(), ["bad 1", "bad 2", "bad 3"], "all dead letters")
    equal(await errors(limit=2), ["bad 2", "bad 3"], "the newest two")
    equal(await errors("t"), ["bad 2"], "those of a session")


@PART.rule("requeue makes a dead message pending, before the messages that wait.")
async def a_dead_message_is_requeued(subject: Subject) -> None:
    await _sessions(subject, "s")
    bad = await subject.broker.send("s", "bad")
    await subject.run_turns(failing)
    await subject.broker.send("s", "waits")
    await subject.broker.requeue(bad)
    outcome = await subject.broker.outcome(bad)
    equal((outcome.status, outcome.attempts), ("pending", 0), "the outcome after requeue")
    await subject.run_turns(echo)
    expected = ["bad", "echo: bad", "waits", "echo: waits"]
    equal(await _texts(subject), expected, "the transcript")
    equal(await subject.broker.dead_letters(), [], "the dead letters")
    await refused(InvalidArgument, subject.broker.requeue(bad), "requeue of a done message")


@PART.rule("requeue_all requeues the dead messages that match, and counts them.")
async def all_dead_messages_are_requeued(subject: Subject) -> None:
    await _sessions(subject, "s", "t")
    for id, text in (("s", "bad 1"), ("s", "bad 2"), ("t", "bad 3")):
        await subject.broker.send(id, text)
    await subject.run_turns(failing)
    equal(await subject.broker.requeue_all("t", error="no such text"), 0, "without a match")
    equal(await subject.broker.requeue_all(error="bad 2"), 1, "by the text of the error")
    equal(await subject.broker.requeue_all("s"), 1, "of a session")
    equal(await subject.broker.requeue_all(), 1, "of all")
    equal(await subject.broker.dead_letters(), [], "the dead letters")


@PART.rule("cancel ends a message that waits: it is not handled, and the others are.")
async def a_waiting_message_is_cancelled(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipts = [await subject.broker.send("s", text) for text in "abc"]
    for receipt in receipts[:2]:
        equal((await subject.broker.cancel(receipt)).status, "cancelled", "the outcome")
    equal((await subject.broker.get("s")).pending, 1, "pending")
    await subject.run_turns(echo)
    equal(await _texts(subject), ["c", "echo: c"], "the transcript")
    final = await subject.broker.cancel(receipts[2])
    equal(final.status, "done", "cancel of a message that is done")


@PART.rule("interrupt of a session without a running turn stops nothing, and returns no outcomes.")
async def interrupt_stops_only_running_turns(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipt = await subject.broker.send("s", "a")
    equal(await subject.broker.interrupt("s"), [], "the answer")
    equal((await subject.broker.outcome(receipt)).status, "pending", "the waiting message")


@PART.rule("A receipt that was never given raises UnknownReceipt.")
async def unknown_receipts_are_refused(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipt = Receipt(session_id=SessionId("s"), position=99)
    for verb in (subject.broker.outcome, subject.broker.cancel, subject.broker.requeue):
        await refused(UnknownReceipt, verb(receipt), f"{verb.__name__} of an unknown receipt")
    await refused(UnknownReceipt, subject.broker.wait(receipt, 0.01), "wait for an unknown receipt")


@PART.rule("wait returns the pending outcome at its timeout, and changes nothing.")
async def a_timeout_changes_nothing(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipt = await subject.broker.send("s", "a")
    equal((await subject.broker.wait(receipt, timeout=0.01)).status, "pending", "the outcome")
    await subject.run_turns(echo)
    equal(await _texts(subject), ["a", "echo: a"], "the transcript")


@PART.rule("wait returns the outcome when the message is final.")
async def wait_returns_the_reply(subject: Subject) -> None:
    await _sessions(subject, "s")
    receipt = await subject.broker.send("s", "a")
    waiting = asyncio.create_task(subject.broker.wait(receipt, timeout=30))
    await subject.run_turns(echo)
    outcome = await asyncio.wait_for(waiting, 30)
    equal((outcome.status, outcome.reply and outcome.reply.content), ("done", "echo: a"), "wait")
