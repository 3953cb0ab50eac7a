"""Questions to people: a turn asks, the session is held, and a person answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    Answer,
    Edit,
    IdempotencyConflict,
    InvalidArgument,
    InvalidMessage,
    Limits,
    OpenQuestion,
    Question,
    QuestionAnswered,
    QuestionClosed,
    Receipt,
    Reply,
    SessionBusy,
    SessionsDB,
    Turn,
    UnknownQuestion,
    UnknownSession,
)
from sessionsdb.admin.database_copy import copy_database
from sessionsdb.admin.doctor import examine
from sessionsdb.admin.purge import purge
from sessionsdb.operations.retention import RetentionRules
from tests.support.turns import bury_next, claim, commit, waits_under_way
from tests.support.waiting import until
from tests.support.work import SOON, running

DELETE = Question(prompt="Delete it?", data={"path": "/tmp/a"}, expires_in=3600)


class Asking:
    """A handler that asks at ``ask …``, and repeats all other messages."""

    def __init__(self, question: Question = DELETE) -> None:
        self.question = question
        self.seen: list[tuple[str, Answer | None]] = []

    async def __call__(self, turn: Turn) -> Any:
        self.seen.append((turn.text, turn.answer))
        if turn.text.startswith("fail"):
            raise RuntimeError("as the message says")
        if turn.text.startswith("ask"):
            return Reply("I have to ask.", ask=self.question)
        return f"heard {turn.text}"


async def work(db: SessionsDB, handler: Asking, **options: Any) -> None:
    await db.worker(handler, retry=SOON, **options).run_until_idle()


async def held(db: SessionsDB, question: Question = DELETE) -> tuple[OpenQuestion, Asking]:
    """Return the question that the session ``chat`` is held by, and the handler that asked it."""
    await db.broker.register("chat", channel="cli", peer="ada", exist_ok=True)
    handler = Asking(question)
    await db.broker.send("chat", "ask me")
    await work(db, handler)
    [asked] = await db.broker.questions("chat")
    return asked, handler


async def said(db: SessionsDB) -> list[str]:
    return [one.content for one in await db.broker.history("chat")]


async def expire(database: Database) -> None:
    """Let the open question expire."""
    past = "'2024-01-01 00:00:00.000000'"
    await database.query(f"UPDATE questions SET expires_at = {past} WHERE closed_at IS NULL")
    await database.query(f"UPDATE mailboxes SET wake_at = {past} WHERE question IS NOT NULL")


# ---- hold ----------------------------------------------------------------------------------------


async def test_a_turn_that_asks_holds_its_session(db: SessionsDB) -> None:
    asked, handler = await held(db)
    assert asked.id == "chat:1"
    assert (asked.prompt, asked.data, asked.session_id) == (
        "Delete it?",
        {"path": "/tmp/a"},
        "chat",
    )
    assert asked.receipt == Receipt(session_id="chat", position=1)
    assert asked.expires_at == asked.asked_at + timedelta(hours=1)
    outcome = await db.broker.outcome(asked.receipt)
    assert (outcome.status, outcome.question) == ("done", asked)
    details = await db.broker.get("chat")
    assert (details.held, details.pending, details.running) == (asked, 0, False)
    [listed] = await db.broker.list(details=True)
    assert listed == details
    await db.broker.send("chat", "later")
    await work(db, handler)  # returns although the message waits
    assert (await db.broker.get("chat")).pending == 1
    assert await said(db) == ["ask me", "I have to ask."]
    with pytest.raises(SessionBusy, match="its question is open"):
        await db.broker.send("chat", "now", when_busy="reject")


@pytest.mark.parametrize("moment", ["before the turn", "behind the turn", "at once"])
async def test_each_of_many_waits_gets_data_of_its_own(db: SessionsDB, moment: str) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    receipt = await db.broker.send("chat", "ask me")
    if moment != "before the turn":
        await work(db, Asking())
    timeout = 0 if moment == "at once" else 60
    waits = [asyncio.ensure_future(db.broker.wait(receipt, timeout=timeout)) for _ in range(2)]
    if moment == "before the turn":
        await until(lambda: waits_under_way(db) == 2)
        await work(db, Asking())
    questions = [outcome.question for outcome in await asyncio.gather(*waits)]
    assert questions[0] is not None
    assert questions[0] == questions[1]
    questions[0].data.clear()
    assert questions[1] is not None
    assert questions[1].data == {"path": "/tmp/a"}


async def test_the_answer_comes_before_all_messages_and_alone(db: SessionsDB) -> None:
    asked, handler = await held(db)
    await db.broker.send("chat", "later")
    receipt = await db.broker.answer(asked.id, "yes", author="ada")
    assert receipt.position == 3
    assert await db.broker.questions() == []
    assert (await db.broker.get("chat")).held is None
    assert (await db.broker.outcome(asked.receipt)).question is None
    await work(db, handler, batch=10)
    assert await said(db) == [
        "ask me", "I have to ask.", "yes", "heard yes", "later", "heard later",
    ]  # fmt: skip
    [(_, first), (text, answer), (_, last)] = handler.seen
    assert (text, first, last) == ("yes", None, None)
    assert answer is not None
    assert (answer.status, answer.question, answer.author) == ("answered", DELETE, "ada")
    assert answer.message is not None
    assert answer.message.content == "yes"
    outcome = await db.broker.outcome(receipt)
    assert outcome.reply is not None
    assert outcome.reply.content == "heard yes"


async def test_a_requeued_message_does_not_come_before_the_answer(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    dead = await db.broker.send("chat", "fail")
    await bury_next(db)
    asked, handler = await held(db)
    await db.broker.requeue(dead)
    await db.broker.answer(asked.id, "yes")
    await work(db, handler, batch=10, max_attempts=1)
    assert [text for text, _ in handler.seen] == ["ask me", "yes", "fail"]


async def test_an_answer_passes_the_limit_of_the_inbox(db: SessionsDB, database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=1)) as small:
        asked, handler = await held(small)
        await small.broker.send("chat", "later")
        await small.broker.answer(asked.id, "yes")
        await work(small, handler)
    assert [text for text, _ in handler.seen] == ["ask me", "yes", "later"]


async def test_a_turn_that_failed_asks_nothing(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "ask")
    asked = 0

    async def handler(turn: Turn) -> Reply:
        nonlocal asked
        asked += 1
        if asked == 1:
            turn.send("nobody", "this fails the commit")
        return Reply("Well?", ask=DELETE)

    await db.worker(handler, retry=SOON).run_until_idle()
    assert asked == 2
    assert len(await db.broker.questions()) == 1
    assert await said(db) == ["ask", "Well?"]


@pytest.mark.parametrize(
    "data", [{"a": float("nan")}, "x" * 2_000_000], ids=["no JSON", "too large"]
)
async def test_data_that_cannot_be_stored_fails_the_turn(db: SessionsDB, data: Any) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    receipt = await db.broker.send("chat", "ask")
    handler = Asking(Question(prompt="Well?", data=data))
    await work(db, handler, max_attempts=1)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "dead"
    assert outcome.error is not None
    assert outcome.error.startswith("sessionsdb.errors.InvalidMessage: the question can't be asked")
    assert await db.broker.questions() == []


async def test_prompt_and_data_come_back_to_the_last_character(db: SessionsDB) -> None:
    question = Question(prompt="a\0b", data=["\0", 10**40, None], accept_message=True)
    asked, handler = await held(db, question)
    assert (asked.prompt, asked.data, asked.expires_at) == (question.prompt, question.data, None)
    await db.broker.answer(asked.id, "x")
    await work(db, handler)
    answer = handler.seen[-1][1]
    assert answer is not None
    assert answer.question == question


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ""},
        {"prompt": 1},
        {"prompt": "a", "expires_in": 0},
        {"prompt": "a", "data": object()},
    ],
)
def test_a_question_checks_its_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Question(**wrong)
    with pytest.raises(InvalidArgument, match="ask must be a Question"):
        Reply("a", ask=wrong)


# ---- answer --------------------------------------------------------------------------------------


async def test_the_same_answer_again_returns_the_first_receipt(db: SessionsDB) -> None:
    asked, handler = await held(db)
    first = await db.broker.answer(asked.id, "yes", author="ada")
    for _ in range(2):
        again = await db.broker.answer(asked.id, "yes", author="ada")
        assert again == first.model_copy(update={"duplicate": True})
        await work(db, handler)
    for other in ({"message": "no", "author": "ada"}, {"message": "yes", "author": "bob"}):
        with pytest.raises(QuestionAnswered, match="question chat:1 is answered already"):
            await db.broker.answer(asked.id, **other)
    assert len(handler.seen) == 2


async def test_the_order_of_the_keys_of_an_object_makes_no_other_answer(db: SessionsDB) -> None:
    asked, _ = await held(db)
    first = await db.broker.answer(asked.id, {"role": "user", "content": [{"type": "x", "a": 1}]})
    again = await db.broker.answer(asked.id, {"content": [{"a": 1, "type": "x"}], "role": "user"})
    assert again == first.model_copy(update={"duplicate": True})
    with pytest.raises(QuestionAnswered):
        await db.broker.answer(asked.id, {"role": "user", "content": [{"type": "x", "a": 2}]})


async def test_an_answer_may_have_an_idempotency_key(db: SessionsDB) -> None:
    asked, handler = await held(db)
    first = await db.broker.answer(asked.id, "yes", idempotency_key="k")
    again = await db.broker.answer(asked.id, "yes", idempotency_key="k")
    assert again == first.model_copy(update={"duplicate": True})
    with pytest.raises(IdempotencyConflict):
        await db.broker.answer(asked.id, "no", idempotency_key="k")
    await work(db, handler)
    second, handler = await held(db)
    with pytest.raises(IdempotencyConflict):  # a key names one answer to one question
        await db.broker.answer(second.id, "yes", idempotency_key="k")
    assert await db.broker.questions() == [second]


@pytest.mark.parametrize("id", ["chat:1", "chat:2", "chat", "", ":", "chat:x", "other:1", "a\0:1"])
async def test_unknown_questions_are_refused(db: SessionsDB, id: str) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "a")
    with pytest.raises(UnknownQuestion, match="call questions"):
        await db.broker.answer(id, "yes")


async def test_of_many_answers_at_once_one_counts(db: SessionsDB) -> None:
    asked, handler = await held(db)
    answers = [db.broker.answer(asked.id, f"answer {n}") for n in range(10)]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert len([one for one in results if isinstance(one, Receipt)]) == 1
    assert len([one for one in results if isinstance(one, QuestionAnswered)]) == 9
    await work(db, handler)
    assert len(handler.seen) == 2


async def test_an_answer_may_be_any_message(db: SessionsDB) -> None:
    asked, _ = await held(db)
    blocks = {"role": "user", "content": [{"type": "text", "text": "yes"}]}
    await db.broker.answer(asked.id, blocks)
    inputs: list[Any] = []

    async def handler(turn: Turn) -> None:
        inputs.extend(turn.inputs)

    await db.worker(handler).run_until_idle()
    assert inputs == [blocks]
    with pytest.raises(InvalidMessage):
        await db.broker.answer(asked.id, "")


async def test_an_edit_puts_messages_before_the_answer(db: SessionsDB) -> None:
    asked, _ = await held(db)
    await db.broker.answer(asked.id, "yes", author="ada")

    async def handler(turn: Turn) -> str:
        turn.edit(Edit(append=[{"role": "tool", "content": "deleted"}]))
        return "done"

    await db.worker(handler).run_until_idle()
    shown = [(one.role, one.content, one.author) for one in await db.broker.history("chat", 3)]
    assert shown == [("tool", "deleted", None), ("user", "yes", "ada"), ("assistant", "done", None)]


# ---- accept_message ------------------------------------------------------------------------------

FREE = Question(prompt="Which one?", accept_message=True)


async def test_the_next_message_without_a_sender_may_be_the_answer(db: SessionsDB) -> None:
    asked, handler = await held(db, FREE)
    await db.broker.register("agent", channel="cli", peer="bot")
    await db.broker.send("chat", "from an agent", sender="agent")
    assert (await db.broker.get("chat")).held == asked
    receipt = await db.broker.send("chat", "the red one", author="ada")
    await db.broker.send("chat", "a second one")
    await work(db, handler)
    assert [text for text, _ in handler.seen] == [
        "ask me", "the red one", "from an agent", "a second one",
    ]  # fmt: skip
    answer = handler.seen[1][1]
    assert answer is not None
    assert (answer.status, answer.author) == ("answered", "ada")
    assert [answer for _, answer in handler.seen[2:]] == [None, None]
    again = await db.broker.answer(asked.id, "the red one", author="ada")
    assert again == receipt.model_copy(update={"duplicate": True})


async def test_one_of_many_messages_at_once_is_the_answer(db: SessionsDB) -> None:
    _, handler = await held(db, FREE)
    texts = [f"message {n}" for n in range(20)]
    receipts = await asyncio.gather(*(db.broker.send("chat", text) for text in texts))
    assert sorted(one.position for one in receipts) == list(range(2, 22))
    await work(db, handler)
    assert sorted(text for text, _ in handler.seen[1:]) == sorted(texts)
    assert [answer is not None for _, answer in handler.seen] == [False, True] + [False] * 19


async def test_a_known_key_answers_nothing(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    first = await db.broker.send("chat", "hello", idempotency_key="k")
    asked, handler = await held(db, FREE)
    again = await db.broker.send("chat", "hello", idempotency_key="k")
    assert again == first.model_copy(update={"duplicate": True})
    assert await db.broker.questions() == [asked]
    new, repeated = await asyncio.gather(
        *(db.broker.send("chat", "yes", idempotency_key="l") for _ in range(2))
    )
    assert new.position == repeated.position == 3
    await work(db, handler)
    assert [text for text, _ in handler.seen] == ["hello", "ask me", "yes"]


async def test_a_message_in_a_transaction_of_the_caller_may_be_the_answer(
    db: SessionsDB,
) -> None:
    asked, handler = await held(db, FREE)
    async with db.engine.connect() as connection:
        await db.broker.send("chat", "never", connection=connection)
        await connection.rollback()
    assert await db.broker.questions() == [asked]
    async with db.engine.begin() as connection:
        await db.broker.send("chat", "yes", connection=connection)
    assert await db.broker.questions() == []
    await work(db, handler)
    assert [text for text, _ in handler.seen] == ["ask me", "yes"]


# ---- expiry --------------------------------------------------------------------------------------


async def test_an_expired_question_makes_one_turn(db: SessionsDB, database: Database) -> None:
    asked, handler = await held(db)
    await db.broker.send("chat", "later")
    await expire(database)
    assert await db.broker.questions() == []
    with pytest.raises(QuestionClosed, match="its time is over"):
        await db.broker.answer(asked.id, "yes")  # also before a worker has looked
    await work(db, handler)
    assert [text for text, _ in handler.seen] == [
        "ask me", "The question has expired without an answer.", "later",
    ]  # fmt: skip
    answer = handler.seen[1][1]
    assert answer is not None
    assert (answer.status, answer.message, answer.author) == ("expired", None, None)
    # The notice has no row of its own in the transcript.
    assert await said(db) == [
        "ask me", "I have to ask.", "heard The question has expired without an answer.",
        "later", "heard later",
    ]  # fmt: skip
    with pytest.raises(QuestionClosed):
        await db.broker.answer(asked.id, "yes")


async def test_a_turn_of_an_expiry_may_say_nothing(db: SessionsDB, database: Database) -> None:
    await held(db)
    await expire(database)

    async def silent(turn: Turn) -> None:
        assert turn.messages[0].author == "sessionsdb"

    assert await db.worker(silent).run_until_idle() == 1
    assert await said(db) == ["ask me", "I have to ask."]
    outcome = await db.broker.outcome(Receipt(session_id="chat", position=2))
    assert (outcome.status, outcome.reply) == ("done", None)


async def test_a_waiting_worker_sees_the_expiry(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    handler = Asking(Question(prompt="Quick?", expires_in=0.05))
    async with running(db, handler):
        await db.broker.send("chat", "ask")
        await until(lambda: len(handler.seen) == 2)
    assert [answer and answer.status for _, answer in handler.seen] == [None, "expired"]


# ---- withdrawal, end, cancel ---------------------------------------------------------------------


async def test_an_interrupt_withdraws_and_the_next_turn_sees_it(db: SessionsDB) -> None:
    asked, handler = await held(db)
    assert await db.broker.interrupt("chat") == []
    assert await db.broker.questions() == []
    assert (await db.broker.get("chat")).held is None
    with pytest.raises(QuestionClosed, match="it was withdrawn"):
        await db.broker.answer(asked.id, "yes")
    await db.broker.send("chat", "fail")
    await work(db, handler, max_attempts=2)
    await db.broker.send("chat", "go on")
    await work(db, handler)
    await db.broker.send("chat", "and now")
    await work(db, handler)
    # The turns that failed have seen it too. The first commit ends it.
    seen = [(text, answer and answer.status) for text, answer in handler.seen]
    assert seen == [
        ("ask me", None), ("fail", "withdrawn"), ("fail", "withdrawn"), ("go on", "withdrawn"),
        ("and now", None),
    ]  # fmt: skip


async def test_the_turn_of_another_answer_leaves_a_withdrawal_to_the_next_one(
    db: SessionsDB,
) -> None:
    """Its commit told that the withdrawal was seen. No turn has seen it."""
    asked, handler = await held(db)
    dead = await db.broker.answer(asked.id, "yes")
    await bury_next(db)
    await db.broker.send("chat", "ask me again")
    await work(db, handler)
    await db.broker.requeue(dead)
    await db.broker.interrupt("chat")
    handler.seen.clear()
    await work(db, handler)
    await db.broker.send("chat", "go on")
    await work(db, handler)
    assert [answer and answer.status for _, answer in handler.seen] == ["answered", "withdrawn"]


async def test_a_send_that_interrupts_withdraws(db: SessionsDB) -> None:
    _, handler = await held(db)
    await db.broker.send("chat", "waits")
    await db.broker.send("chat", "no, stop", when_busy="interrupt")
    await work(db, handler)
    seen = [(text, answer and answer.status) for text, answer in handler.seen]
    assert seen == [("ask me", None), ("waits", "withdrawn"), ("no, stop", None)]


async def test_the_end_closes_the_question(db: SessionsDB) -> None:
    asked, handler = await held(db)
    await db.broker.end("chat")
    with pytest.raises(QuestionClosed, match="its session has ended"):
        await db.broker.answer(asked.id, "yes")
    assert await db.broker.questions() == []
    await db.broker.reopen("chat")
    assert (await db.broker.get("chat")).held is None
    await db.broker.send("chat", "again")
    await work(db, handler)
    assert handler.seen[-1] == ("again", None)


@pytest.mark.parametrize("how", ["cancel", "interrupt"])
async def test_an_answer_that_is_cancelled_withdraws_the_question(db: SessionsDB, how: str) -> None:
    asked, handler = await held(db)
    receipt = await db.broker.answer(asked.id, "yes")
    if how == "interrupt":
        [lease] = await claim(db)
        assert lease.positions == [2]
        assert len(await db.broker.interrupt("chat", keep_partial=False)) == 1
    else:
        await db.broker.cancel(receipt)
    with pytest.raises(QuestionClosed):
        await db.broker.answer(asked.id, "yes")
    await db.broker.send("chat", "go on")
    await work(db, handler)
    text, answer = handler.seen[-1]
    assert (text, answer and answer.status) == ("go on", "withdrawn")


async def test_a_cancelled_message_behind_a_question_leaves_it_open(db: SessionsDB) -> None:
    asked, handler = await held(db)
    await db.broker.cancel(await db.broker.send("chat", "later"))
    assert await db.broker.questions() == [asked]
    await db.broker.answer(asked.id, "yes")
    await work(db, handler)
    assert [text for text, _ in handler.seen] == ["ask me", "yes"]


async def test_a_dead_answer_does_not_stop_the_session(db: SessionsDB) -> None:
    asked, handler = await held(db)
    receipt = await db.broker.answer(asked.id, "fail: yes")
    await db.broker.send("chat", "go on")
    await work(db, handler, max_attempts=2)
    assert (await db.broker.outcome(receipt)).status == "dead"
    assert [text for text, _ in handler.seen] == ["ask me", *["fail: yes"] * 2, "go on"]
    await db.broker.requeue(receipt)
    await work(db, handler, max_attempts=1)
    text, answer = handler.seen[-1]
    assert (text, answer and answer.status) == ("fail: yes", "answered")
    await db.broker.send("chat", "still here")
    await work(db, handler)
    assert (await said(db))[-1] == "heard still here"


async def dead_answer(db: SessionsDB) -> tuple[OpenQuestion, Receipt]:
    """Return a question of the session ``chat``, and the receipt of its answer, which is dead."""
    asked, _ = await held(db)
    receipt = await db.broker.answer(asked.id, "yes")
    await bury_next(db)
    return asked, receipt


class Noting:
    """A handler that notes the messages and the answer of each turn."""

    def __init__(self, during: Callable[[Turn], Awaitable[object]] | None = None) -> None:
        self.during = during
        """What happens during each turn."""
        self.seen: list[tuple[list[str], str | None]] = []

    async def __call__(self, turn: Turn) -> str:
        texts = [message.content for message in turn.messages]
        self.seen.append((texts, turn.answer and turn.answer.status))
        if self.during is not None:
            await self.during(turn)
        return "heard"


@pytest.mark.parametrize("end", ["commits", "dies", "is interrupted"])
async def test_an_answer_that_is_requeued_during_a_turn_comes_first_and_alone(
    db: SessionsDB, end: str
) -> None:
    """However that turn ends, and whatever was requeued before."""
    await db.broker.register("chat", channel="cli", peer="ada")
    earlier = await db.broker.send("chat", "earlier")
    await bury_next(db)
    _, answer = await dead_answer(db)

    async def during(turn: Turn) -> None:
        if turn.text == "first":
            await db.broker.requeue(earlier)
            await db.broker.requeue(answer)
            await db.broker.send("chat", "later")
            if end == "dies":
                raise RuntimeError("as the test says")
            if end == "is interrupted":
                await db.broker.interrupt("chat")

    await db.broker.send("chat", "first")
    handler = Noting(during)
    await db.worker(handler, batch=10, max_attempts=1).run_until_idle()
    assert handler.seen == [
        (["first"], None),
        (["yes"], "answered"),
        (["earlier", "later"], None),
    ]
    assert (await db.broker.outcome(answer)).status == "done"


@pytest.mark.parametrize("at_once", [True, False])
async def test_each_of_several_requeued_answers_comes_first_and_alone(
    db: SessionsDB, at_once: bool
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    earlier = await db.broker.send("chat", "earlier")
    await bury_next(db)
    answers = [await dead_answer(db), await dead_answer(db)]
    await db.broker.send("chat", "later")
    if at_once:
        assert await db.broker.requeue_all() == 3
    else:
        for one in (earlier, *(receipt for _, receipt in reversed(answers))):
            await db.broker.requeue(one)
    handler = Noting()
    await db.worker(handler, batch=10).run_until_idle()
    assert handler.seen == [*[(["yes"], "answered")] * 2, (["earlier", "later"], None)]


async def test_a_requeued_answer_comes_first_behind_the_answer_to_an_open_question(
    db: SessionsDB,
) -> None:
    _, dead = await dead_answer(db)
    asked, _ = await held(db)
    await db.broker.send("chat", "later")
    await db.broker.requeue(dead)
    await db.broker.answer(asked.id, "no")
    handler = Noting()
    await db.worker(handler, batch=10).run_until_idle()
    assert handler.seen == [(["no"], "answered"), (["yes"], "answered"), (["later"], None)]


async def test_no_message_joins_a_turn_before_a_requeued_answer(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    earlier = await db.broker.send("chat", "earlier")
    await bury_next(db)
    _, answer = await dead_answer(db)

    async def during(turn: Turn) -> None:
        if turn.text == "first":
            await db.broker.send("chat", "later")
            await db.broker.requeue(earlier)
            await db.broker.requeue(answer)
            assert await turn.take_incoming() == []

    await db.broker.send("chat", "first")
    handler = Noting(during)
    await db.worker(handler, batch=10).run_until_idle()
    assert [texts for texts, _ in handler.seen] == [["first"], ["yes"], ["earlier", "later"]]


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_each_requeued_answer_that_is_cancelled_withdraws_its_question(
    db: SessionsDB, cancelled: int
) -> None:
    answers = [await dead_answer(db), await dead_answer(db)]
    await db.broker.send("chat", "first")
    [lease] = await claim(db)
    for _, receipt in answers:
        await db.broker.requeue(receipt)
    await commit(db, lease, "heard")
    asked, receipt = answers[cancelled]
    await db.broker.cancel(receipt)
    with pytest.raises(QuestionClosed, match="withdrawn"):
        await db.broker.answer(asked.id, "yes")
    handler = Noting()
    await db.worker(handler, batch=10).run_until_idle()
    assert handler.seen == [(["yes"], "answered")]


async def test_deleted_sessions_have_no_questions(db: SessionsDB) -> None:
    asked, _ = await held(db)
    await db.store.delete("chat")
    assert await db.broker.questions() == []
    with pytest.raises(UnknownQuestion):
        await db.broker.answer(asked.id, "yes")


async def test_a_question_is_not_forked(db: SessionsDB) -> None:
    await held(db)
    fork = await db.broker.fork("chat")
    assert (await db.broker.get(fork.id)).held is None
    assert len(await db.broker.questions()) == 1


# ---- list and namespaces -------------------------------------------------------------------------


async def test_open_questions_are_listed_the_oldest_first(db: SessionsDB) -> None:
    handler = Asking()
    for id in ("c", "a", "b"):
        await db.broker.register(id, channel="cli", peer="ada")
        await db.broker.send(id, "ask")
        await work(db, handler)
    questions = await db.broker.questions()
    assert [one.session_id for one in questions] == ["c", "a", "b"]
    assert await db.broker.questions(limit=2) == questions[:2]
    assert await db.broker.questions(after=questions[0]) == questions[1:]
    assert await db.broker.questions(after="a:1", limit=1) == questions[2:]
    await db.broker.answer("a:1", "yes")
    assert await db.broker.questions(after="a:1") == questions[2:]
    assert await db.broker.questions("b") == questions[2:]
    with pytest.raises(UnknownSession):
        await db.broker.questions("d")
    with pytest.raises(UnknownQuestion):
        await db.broker.questions(after="d:1")


async def test_another_namespace_sees_no_questions(db: SessionsDB) -> None:
    asked, _ = await held(db)
    other = db.in_namespace("other")
    assert await other.broker.questions() == []
    with pytest.raises(UnknownQuestion):
        await other.broker.answer(asked.id, "yes")
    assert await db.broker.questions() == [asked]


# ---- follow --------------------------------------------------------------------------------------


async def test_followers_see_the_question(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    handler = Asking()
    told: list[Any] = []

    async def follow(after: str | None) -> None:
        async for event in db.broker.follow("chat", after=after):
            told.append(event)

    watching = asyncio.create_task(follow("start"))
    # The follower has looked once when it says that the session is idle.
    await until(lambda: [one.type for one in told] == ["idle"])
    await db.broker.send("chat", "ask me")
    await work(db, handler)
    await until(lambda: any(one.type == "turn" and one.status == "held" for one in told))
    statuses = [one.status for one in told if one.type == "turn"]
    assert statuses[-2:] == ["done", "held"]
    kinds = [one.type for one in told]
    assert "idle" not in kinds[kinds.index("queued") :]
    asked = told[-1]
    assert asked.question == (await db.broker.questions())[0]
    assert (asked.attempt, asked.receipts) == (1, [asked.question.receipt])
    # One who comes now sees it first.
    events = db.broker.follow("chat")
    first = await anext(events)
    assert (first.type, first.status, first.question) == ("turn", "held", asked.question)
    await events.aclose()
    count = len(told)
    await db.broker.answer(asked.question.id, "yes")
    await work(db, handler)
    await until(lambda: told[-1].type == "idle")
    kinds = [getattr(one, "status", one.type) for one in told[count:]]
    assert [kind for kind in kinds if kind != "started"] == [
        "queued", "message", "message", "done", "idle",
    ]  # fmt: skip
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_followers_see_a_withdrawal(db: SessionsDB) -> None:
    await held(db)
    events = db.broker.follow("chat")
    assert (await anext(events)).type == "turn"
    await db.broker.interrupt("chat")
    assert (await asyncio.wait_for(anext(events), 5)).type == "idle"
    await events.aclose()


# ---- copies, purges, repairs ---------------------------------------------------------------------


async def test_a_copy_of_the_database_carries_the_question(db: SessionsDB, tmp_path: Path) -> None:
    asked, _ = await held(db)
    async with SessionsDB(f"sqlite:///{tmp_path}/copy.db") as copy:
        await copy_database(db, copy)
        assert await copy.broker.questions() == [asked]
        await copy.broker.answer(asked.id, "yes")
        handler = Asking()
        await work(copy, handler)
        assert handler.seen[0][0] == "yes"


async def test_a_purge_takes_closed_questions_with_their_answers(
    db: SessionsDB, database: Database
) -> None:
    first, handler = await held(db)
    await db.broker.answer(first.id, "yes")
    await work(db, handler)
    second, handler = await held(db)
    soon = datetime.now(UTC) + timedelta(days=1)
    await purge(db, RetentionRules(finished_before=soon))
    assert await database.query("SELECT position FROM questions") == [(second.receipt.position,)]
    with pytest.raises(UnknownQuestion):
        await db.broker.answer(first.id, "no")
    await db.broker.answer(second.id, "yes")
    await work(db, handler)


@pytest.mark.parametrize(
    "broken",
    [
        "UPDATE mailboxes SET question = NULL, wake_at = NULL",
        "UPDATE mailboxes SET question = 7",
        "DELETE FROM questions",
        "UPDATE mailboxes SET answer = 1",
    ],
)
async def test_the_doctor_repairs_a_session_that_waits_for_no_question(
    db: SessionsDB, database: Database, broken: str
) -> None:
    _, handler = await held(db)
    await db.broker.send("chat", "later")
    before = (await examine(db)).findings
    await database.query(broken)
    assert (await examine(db)).findings != before
    await examine(db, fix=True)
    assert (await examine(db)).findings == before
    await db.broker.interrupt("chat")
    await work(db, handler)
    assert handler.seen[-1][0] == "later"


@pytest.mark.parametrize("to", ["NULL", "1"])
async def test_the_doctor_puts_an_answer_first_again(
    db: SessionsDB, database: Database, to: str
) -> None:
    asked, _ = await held(db)
    await db.broker.send("chat", "later")
    await db.broker.answer(asked.id, "yes")
    before = (await examine(db)).findings
    await database.query(f"UPDATE mailboxes SET answer = {to}")
    assert (await examine(db)).findings != before
    await examine(db, fix=True)
    assert (await examine(db)).findings == before
    handler = Noting()
    await db.worker(handler, batch=10).run_until_idle()
    assert handler.seen == [(["yes"], "answered"), (["later"], None)]
