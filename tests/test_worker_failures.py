"""Attempts, backoff, dead letters and requeue, while all other messages go on in order."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import Backoff, InvalidArgument, Reply, Retry, SessionsDB, Turn, reports
from tests.support.refusal import forbid
from tests.support.waiting import until
from tests.support.work import SOON, expire_leases, running, user_and_reply
from tests.support.worker_process import Journal, kill, worker_process


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


async def test_a_failed_turn_is_tried_again_and_says_which_attempt_it_is(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    attempts = []

    async def handler(turn: Turn) -> str:
        attempts.append(turn.attempt)
        if turn.attempt < 3:
            raise ValueError("not yet")
        return "now"

    assert await db.worker(handler, retry=SOON).run_until_idle() == 1
    assert attempts == [1, 2, 3]
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts, outcome.error) == ("done", 3, None)
    assert await db.store.load("chat") == user_and_reply("a", "now")


async def test_the_policy_decides_how_long_a_message_waits(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    class Policy:
        def delay(self, attempt: int) -> float:
            asked.append(attempt)
            return 3_599.123_456

    async def handler(turn: Turn) -> str:
        raise ValueError("boom")

    receipt = await db.broker.send("chat", "a")
    async with running(db, handler, retry=Policy()):
        waiting = await until(
            lambda: database.query("SELECT wake_at FROM mailboxes WHERE wake_at IS NOT NULL")
        )
    assert asked == [1]
    assert "retry_in=3599.123\n" in caplog.text
    assert waiting
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("pending", 1)
    seconds = (
        "SELECT (julianday(wake_at) - julianday('now')) * 86400 FROM mailboxes"
        if database.kind == "sqlite"
        else "SELECT extract(epoch FROM wake_at - clock_timestamp()) FROM mailboxes"
    )
    assert 3_500 < await database.value(seconds) <= 3_600


async def test_after_the_last_attempt_a_message_is_dead_with_its_error_and_the_next_one_goes_on(
    db: SessionsDB,
) -> None:
    receipts = [await db.broker.send("chat", text) for text in ("a", "bad", "c")]

    async def handler(turn: Turn) -> str:
        if turn.text == "bad":
            raise KeyError("the reason")
        return f"re {turn.text}"

    assert await db.worker(handler, max_attempts=3, retry=SOON).run_until_idle() == 2
    outcomes = [await db.broker.outcome(receipt) for receipt in receipts]
    assert [(outcome.status, outcome.attempts) for outcome in outcomes] == [
        ("done", 1),
        ("dead", 3),
        ("done", 1),
    ]
    assert await db.broker.dead_letters() == [outcomes[1]]
    error = str(outcomes[1].error)
    assert error.startswith("KeyError: 'the reason'")
    assert "in handler" in error
    assert "raise KeyError" in error
    assert await db.store.load("chat") == user_and_reply("a", "re a") + user_and_reply("c", "re c")


async def test_a_message_that_waits_for_its_retry_keeps_its_place(db: SessionsDB) -> None:
    for text in ("first", "second", "third"):
        await db.broker.send("chat", text)
    seen = []

    async def handler(turn: Turn) -> None:
        seen.append(turn.text)
        if turn.text == "first" and turn.attempt < 3:
            raise ValueError

    await db.worker(handler, retry=SOON).run_until_idle()
    assert seen == ["first", "first", "first", "second", "third"]


async def test_what_is_kept_of_an_error_is_cut_and_storable(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        raise ValueError("nul \x00 half \ud800 " + "long " * 10_000)

    await db.worker(handler, max_attempts=1).run_until_idle()
    error = str((await db.broker.outcome(receipt)).error)
    assert error.startswith("ValueError: nul \ufffd half \ufffd long")
    assert len(error) < 4_100
    assert "raise ValueError" in error


async def test_a_requeued_message_comes_before_those_that_wait_under_its_old_receipt(
    db: SessionsDB,
) -> None:
    receipts = [await db.broker.send("chat", text) for text in ("bad", "b")]
    healed = False
    seen = []

    async def handler(turn: Turn) -> str:
        if turn.text == "bad" and not healed:
            raise ValueError("boom")
        seen.append((turn.text, turn.attempt))
        return f"re {turn.text}"

    await db.worker(handler, max_attempts=1).run_until_idle()
    healed = True
    receipts.append(await db.broker.send("chat", "c"))
    await db.broker.requeue(receipts[0])
    requeued = await db.broker.outcome(receipts[0])
    assert (requeued.status, requeued.attempts) == ("pending", 0)
    assert (await db.broker.get("chat")).pending == 2
    await db.worker(handler, max_attempts=1).run_until_idle()
    assert seen == [("b", 1), ("bad", 1), ("c", 1)]
    assert {(await db.broker.outcome(receipt)).status for receipt in receipts} == {"done"}
    assert await db.broker.dead_letters() == []
    details = await db.broker.get("chat")
    assert (details.pending, details.running, details.message_count) == (0, False, 6)


async def test_requeued_and_new_messages_share_a_batch_and_all_are_done_once(
    db: SessionsDB,
) -> None:
    for text in ("bad 1", "bad 2", "x"):
        await db.broker.send("chat", text)
    broken = True

    async def handler(turn: Turn) -> str:
        if broken and turn.text.startswith("bad"):
            raise ValueError("boom")
        return "ok"

    await db.worker(handler, max_attempts=1).run_until_idle()
    broken = False
    for outcome in await db.broker.dead_letters():
        await db.broker.requeue(outcome.receipt)
    for text in ("y", "z"):
        await db.broker.send("chat", text)
    await db.worker(handler, batch=3).run_until_idle()
    assert [m.content for m in await db.broker.history("chat")] == [
        *("x", "ok"),
        *("bad 1", "bad 2", "y", "ok"),
        *("z", "ok"),
    ]
    assert (await db.broker.get("chat")).pending == 0


@pytest.mark.parametrize("status", ["done", "pending"])
async def test_only_a_dead_message_can_be_requeued(db: SessionsDB, status: str) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> None:
        return None

    if status == "done":
        await db.worker(handler).run_until_idle()
    with pytest.raises(InvalidArgument, match=f"is {status}; only a dead message"):
        await db.broker.requeue(receipt)


async def test_one_bad_message_does_not_take_its_batch_with_it(db: SessionsDB) -> None:
    receipts = [await db.broker.send("chat", text) for text in ("a", "bad", "c", "d")]
    batches = []

    async def handler(turn: Turn) -> str:
        batches.append([message.content for message in turn.messages])
        if "bad" in batches[-1]:
            raise ValueError("boom")
        return "ok"

    worker = db.worker(handler, batch=4, max_attempts=3, retry=SOON)
    await worker.run_until_idle()
    statuses = [(await db.broker.outcome(receipt)).status for receipt in receipts]
    assert statuses == ["done", "dead", "done", "done"]
    # After the batch had failed, each message was tried alone.
    assert batches[0] == ["a", "bad", "c", "d"]
    assert all(len(batch) == 1 for batch in batches[1:])


async def test_a_turn_that_takes_too_long_fails(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    cancelled = []

    async def handler(turn: Turn) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(turn.attempt)
            raise
        return "never"

    worker = db.worker(handler, turn_timeout=0.05, max_attempts=2, retry=SOON)
    await worker.run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert cancelled == [1, 2]
    assert outcome.status == "dead"
    assert "the turn took longer than its limit of 0.05 s" in str(outcome.error)


async def test_a_timeout_of_the_handlers_own_is_told_apart_from_the_turns(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        raise TimeoutError("the model did not answer")

    await db.worker(handler, turn_timeout=60, max_attempts=1).run_until_idle()
    assert "TimeoutError: the model did not answer" in str((await db.broker.outcome(receipt)).error)


async def test_a_message_that_kills_its_worker_is_dead_after_max_attempts_too(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    poison, after = [await db.broker.send("chat", text) for text in ("hang", "after")]
    journal = Journal(tmp_path / "journal")
    for attempt in (1, 2):
        with worker_process(database.url, journal, lease=3_600, max_attempts=2) as process:
            await until(lambda attempt=attempt: len(journal.read()) == attempt)
            kill(process)
        await expire_leases(database)
    assert (await db.broker.outcome(poison)).attempts == 2

    async def handler(turn: Turn) -> str:
        return "fine"

    await db.worker(handler, max_attempts=2).run_until_idle()
    outcome = await db.broker.outcome(poison)
    assert (outcome.status, outcome.attempts) == ("dead", 2)
    assert "LeaseExpired" in str(outcome.error)
    assert "given up after 2 attempts" in str(outcome.error)
    assert (await db.broker.outcome(after)).status == "done"


async def test_retries_come_when_they_are_due_though_the_poll_is_rare(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        if turn.attempt == 1:
            raise ValueError("boom")
        return "ok"

    async with running(db, handler, poll_interval=3_600, retry=Backoff(first=0.05)):
        outcome = await db.broker.wait(receipt, timeout=20)
    assert outcome.status == "done"


async def test_a_mailbox_made_ready_by_hand_with_nothing_in_it_is_passed_over(
    db: SessionsDB, database: Database
) -> None:
    await database.query("UPDATE mailboxes SET ready_at = '2024-01-01 00:00:00.000000'")
    await db.broker.register("other", channel="test", peer="p")
    receipt = await db.broker.send("other", "hello")

    async def handler(turn: Turn) -> str:
        return "fine"

    async with running(db, handler, poll_interval=0.05):
        outcome = await db.broker.wait(receipt, timeout=20)
    assert outcome.status == "done"
    assert await database.value("SELECT count(*) FROM mailboxes WHERE owner IS NOT NULL") == 0


async def test_no_attempt_begins_before_its_backoff_is_over(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    begun: list[float] = []

    async def handler(turn: Turn) -> str:
        begun.append(time.monotonic())
        if turn.attempt < 3:
            raise ValueError("not yet")
        return "now"

    retry = Backoff(first=0.2, factor=2.0, jitter=0.0)
    async with running(db, handler, poll_interval=0.01, retry=retry):
        await db.broker.wait(receipt, timeout=30)
    assert begun[1] - begun[0] >= 0.2
    assert begun[2] - begun[1] >= 0.4


async def test_what_a_killed_worker_held_is_not_begun_again_before_its_lease_is_over(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    lease = 1.0
    claimed = (
        "SELECT (julianday(claimed_at) - 2460000) * 86400 FROM inbox"
        if database.kind == "sqlite"
        else "SELECT extract(epoch FROM claimed_at)::float8 FROM inbox"
    )
    await db.broker.send("chat", "hang")
    journal = Journal(tmp_path / "journal")
    with worker_process(database.url, journal, lease=lease) as process:
        await until(journal.read)
        kill(process)
    first = await database.value(claimed)
    with worker_process(database.url, journal, lease=lease):
        _, second = await until(lambda: journal.count() == 2 and journal.read())
        again = await database.value(claimed)
    assert second["attempt"] == 2
    assert again - first >= lease - 0.001, "both by the database's own clock"


# ---- handlers and retries that break the rules ---------------------------------------------------


async def test_a_handler_that_raises_a_cancellation_of_its_own_has_failed(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        helper = asyncio.create_task(asyncio.Event().wait())
        if turn.attempt == 1:
            helper.cancel()
            await helper
        helper.cancel()
        return "now"

    async with asyncio.timeout(20):
        assert await db.worker(handler, retry=SOON).run_until_idle() == 1
    assert (await db.broker.outcome(receipt)).attempts == 2
    assert await db.store.load("chat") == user_and_reply("a", "now")


class Unspeakable(Exception):
    """An error whose ``str`` raises."""

    def __str__(self) -> str:
        raise ValueError("no words")


async def test_an_error_that_can_not_be_told_is_recorded_by_its_type(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        raise Unspeakable

    async with asyncio.timeout(20):
        await db.worker(handler, max_attempts=1).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "dead"
    assert outcome.error is not None
    assert "Unspeakable" in outcome.error


class BrokenRetry:
    def delay(self, attempt: int) -> float:
        raise ZeroDivisionError("by the policy")


class EndlessRetry:
    def delay(self, attempt: int) -> float:
        return float("nan")


@pytest.mark.parametrize("retry", [BrokenRetry(), EndlessRetry()])
async def test_where_the_retry_fails_the_default_one_decides(
    db: SessionsDB, retry: Retry, caplog: pytest.LogCaptureFixture, database: Database
) -> None:
    await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        raise ValueError("boom")

    async with running(db, handler, retry=retry):
        await until(
            lambda: database.query("SELECT wake_at FROM mailboxes WHERE wake_at IS NOT NULL")
        )
    assert "the retry failed, the default one decides instead" in caplog.text
    assert "unforeseen" not in caplog.text


async def test_a_handler_may_be_any_object_that_can_be_called(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")

    class Agent:
        async def __call__(self, turn: Turn) -> str:
            return "now"

        def __repr__(self) -> str:
            raise ValueError("no name")

    assert await db.worker(Agent()).run_until_idle() == 1


async def test_a_commit_that_the_database_refuses_is_a_failed_attempt(
    db: SessionsDB, database: Database
) -> None:
    """The commit is not repeated until the lease runs out: it would be refused again."""
    receipt = await db.broker.send("chat", "a")
    await forbid(database, "refused by the database", table="messages")

    async def handler(turn: Turn) -> str:
        return "refused by the database"

    async with asyncio.timeout(20):
        await db.worker(handler, max_attempts=1, lease_seconds=3_600).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("dead", 1)
    assert outcome.error is not None
    assert "not here" in outcome.error


@pytest.mark.parametrize("tokens", [-1, True, "5", 2**63, 10**30, 10**12 + 1, 0.5])
def test_a_count_of_tokens_that_can_not_be_one_is_refused(tokens: object) -> None:
    with pytest.raises(InvalidArgument, match="output_tokens must be"):
        Reply("done", output_tokens=tokens)


async def test_the_largest_counts_of_tokens_can_be_summed_up(db: SessionsDB) -> None:
    async def handler(turn: Turn) -> Reply:
        return Reply("done", input_tokens=10**12, output_tokens=10**12)

    for text in "abc":
        await db.broker.send("chat", text)
    await db.worker(handler).run_until_idle()
    [row] = (await reports.read(db, "sessions")).dicts()
    assert (row["input_tokens"], row["output_tokens"]) == (3 * 10**12, 3 * 10**12)
