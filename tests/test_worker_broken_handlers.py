"""Handlers that break the rules: cancelled from elsewhere, errors of any type, not async at all."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest

from devtools.databases import Database
from sessionsdb import (
    Backoff,
    InvalidArgument,
    RetryAfter,
    SessionsDB,
    Turn,
)
from tests.support.waiting import until
from tests.support.work import SOON, running, user_and_reply


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


# ---- cancelled from elsewhere --------------------------------------------------------------------


async def cancel_oneself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


LEFT_OPEN: list[anyio.CancelScope] = []


async def leave_a_cancelled_scope_open() -> None:
    LEFT_OPEN.append(anyio.CancelScope())
    LEFT_OPEN[-1].__enter__()
    LEFT_OPEN[-1].cancel()
    await asyncio.sleep(1)


async def cancel_twice() -> None:
    task = asyncio.current_task()
    assert task is not None
    try:
        task.cancel()
        await asyncio.sleep(1)
    finally:
        task.cancel()
        await asyncio.sleep(1)


async def cancel_every_task_of_a_turn() -> None:
    for task in asyncio.all_tasks():
        if task.get_name().startswith("handler "):
            task.cancel()
    await asyncio.sleep(1)


@pytest.fixture
def scopes_are_closed() -> Any:
    yield
    for scope in LEFT_OPEN:
        scope._tasks.clear()
    LEFT_OPEN.clear()


@pytest.mark.parametrize("turn_timeout", [None, 60])
@pytest.mark.parametrize(
    "break_off",
    [cancel_oneself, leave_a_cancelled_scope_open, cancel_twice, cancel_every_task_of_a_turn],
)
@pytest.mark.usefixtures("scopes_are_closed")
async def test_a_turn_that_is_cancelled_from_elsewhere_is_a_failed_attempt(
    db: SessionsDB, break_off: Any, turn_timeout: float | None
) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        if turn.attempt == 1:
            await break_off()
        return "now"

    worker = db.worker(handler, retry=SOON, concurrency=1, turn_timeout=turn_timeout)
    async with asyncio.timeout(20):
        assert await worker.run_until_idle() == 1
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)
    assert await db.store.load("chat") == user_and_reply("a", "now")


async def test_the_error_of_a_turn_that_is_cancelled_from_elsewhere_says_so(
    db: SessionsDB,
) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> None:
        await cancel_oneself()

    await db.worker(handler, max_attempts=1).run_until_idle()
    error = str((await db.broker.outcome(receipt)).error)
    assert error.startswith("CancelledError: the turn was cancelled from inside the handler")
    assert "in cancel_oneself" in error


@pytest.mark.usefixtures("scopes_are_closed")
async def test_a_scope_that_is_left_open_and_ends_later_does_not_keep_a_turn_from_its_commit(
    db: SessionsDB,
) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        LEFT_OPEN.append(anyio.CancelScope())
        LEFT_OPEN[-1].__enter__()
        asyncio.get_running_loop().call_soon(LEFT_OPEN[-1].cancel)
        return "now"

    async with asyncio.timeout(20):
        assert await db.worker(handler, retry=SOON).run_until_idle() == 1
    assert (await db.broker.outcome(receipt)).attempts == 1
    assert await db.store.load("chat") == user_and_reply("a", "now")


async def test_after_a_turn_that_is_cancelled_from_elsewhere_a_stop_waits_for_nothing(
    db: SessionsDB,
) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> None:
        await cancel_oneself()

    async with running(db, handler, retry=Backoff(first=3_600)) as worker:
        await until(lambda: failed_once(db, receipt))
        begun, used = time.monotonic(), time.process_time()
        await worker.stop(grace=30)
        assert time.monotonic() - begun < 10
        assert time.process_time() - used < 1


async def failed_once(db: SessionsDB, receipt: Any) -> bool:
    outcome = await db.broker.outcome(receipt)
    return outcome.status == "pending" and outcome.attempts == 1


async def test_a_cancelled_worker_still_gives_its_turns_back_without_an_attempt(
    db: SessionsDB,
) -> None:
    """As at the end of ``asyncio.run``: all tasks are cancelled at the same moment."""
    receipt = await db.broker.send("chat", "a")
    begun = asyncio.Event()

    async def handler(turn: Turn) -> None:
        begun.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(db.worker(handler).run())
    await begun.wait()
    for task in asyncio.all_tasks():
        if task is run or task.get_name().startswith("handler "):
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("pending", 0)


# ---- errors of any type --------------------------------------------------------------------------


class Panic(BaseException):
    """As PyO3 raises for a panic in Rust."""


@pytest.mark.parametrize(
    "error",
    [Panic("index out of range"), GeneratorExit("by hand"), BaseExceptionGroup("all", [Panic()])],
    ids=["panic", "GeneratorExit", "group"],
)
async def test_a_base_exception_is_a_failed_attempt_at_once(
    db: SessionsDB, error: BaseException
) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        if turn.attempt == 1:
            raise error
        return "now"

    async with asyncio.timeout(20):
        assert await db.worker(handler, retry=SOON, lease_seconds=3_600).run_until_idle() == 1
    assert (await db.broker.outcome(receipt)).attempts == 2


async def test_a_base_exception_is_recorded_by_its_name(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> None:
        raise Panic("index out of range")

    async with asyncio.timeout(20):
        await db.worker(handler, max_attempts=1, lease_seconds=3_600).run_until_idle()
    assert "Panic: index out of range" in str((await db.broker.outcome(receipt)).error)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_an_exit_of_the_handler_ends_the_worker_when_its_attempt_is_recorded(
    db: SessionsDB, error: BaseException
) -> None:
    receipt = await db.broker.send("chat", "a")
    await db.broker.register("other", channel="test", peer="somebody")
    others = await db.broker.send("other", "b")
    both = asyncio.Barrier(2)

    async def handler(turn: Turn) -> None:
        await both.wait()
        if turn.session.id == "chat":
            raise error
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        with pytest.raises(type(error)):
            await db.worker(handler, retry=Backoff(first=3_600)).run()
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("pending", 1)
    assert type(error).__name__ in str(outcome.error)
    other = await db.broker.outcome(others)
    assert (other.status, other.attempts) == ("pending", 0), "given back without an attempt"


# ---- not async, or without a parameter -----------------------------------------------------------


def not_async(turn: Turn) -> Any:
    return "hello"


def no_parameter_and_not_async() -> None: ...


async def no_parameter() -> str:
    return "hello"


async def two_parameters(turn: Turn, db: SessionsDB) -> str:
    return "hello"


async def a_generator(turn: Turn) -> AsyncIterator[str]:
    yield "hello"


class Agent:
    def __call__(self, turn: Turn) -> str:
        return "hello"

    def run(self, turn: Turn) -> str:
        return "hello"

    async def go(self) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        not_async,
        no_parameter_and_not_async,
        no_parameter,
        two_parameters,
        a_generator,
        Agent(),
        Agent().run,
        Agent().go,
        Agent,
        functools.partial(not_async),
        functools.partial(no_parameter),
    ],
)
async def test_a_handler_that_can_never_answer_is_refused_when_the_worker_is_made(
    db: SessionsDB, handler: Any
) -> None:
    with pytest.raises(InvalidArgument, match=r"async|argument"):
        db.worker(handler)


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


async def answer(turn: Turn, more: str = "") -> str:
    return "hello"


def annotated(turn: Turn) -> Awaitable[str]:
    return answer(turn)


class Answering:
    async def __call__(self, turn: Turn) -> str:
        return "hello"

    async def answer(self, turn: Turn) -> str:
        return "hello"


@pytest.mark.parametrize(
    "handler",
    [
        answer,
        annotated,
        wrapped(answer),
        lambda turn: answer(turn, "x"),
        functools.partial(answer, more="x"),
        Answering(),
        Answering().answer,
        functools.partial(Answering()),
        AsyncMock(return_value="hello"),
    ],
)
async def test_whatever_returns_an_awaitable_is_a_handler(db: SessionsDB, handler: Any) -> None:
    await db.broker.send("chat", "a")
    assert await db.worker(handler).run_until_idle() == 1


async def test_a_handler_that_shows_only_at_work_not_to_be_async_costs_no_message_an_attempt(
    db: SessionsDB,
) -> None:
    receipts = [await db.broker.send("chat", "a")]
    for number in range(4):
        await db.broker.register(f"chat-{number}", channel="test", peer="somebody")
        receipts.append(await db.broker.send(f"chat-{number}", "a"))
    async with asyncio.timeout(20):
        with pytest.raises(InvalidArgument, match="must be async: it returned str"):
            await db.worker(lambda turn: "hello").run()
    outcomes = [await db.broker.outcome(receipt) for receipt in receipts]
    assert {(outcome.status, outcome.attempts) for outcome in outcomes} == {("pending", 0)}


# ---- retries that see the error ------------------------------------------------------------------


class RateLimited(Exception):
    retry_after = 60


def caused() -> Exception:
    error = RuntimeError("the agent failed")
    error.__cause__ = RateLimited()
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(RetryAfter(60), 60), (RateLimited(), 60), (caused(), 60), (RetryAfter(10**9), 86_400)],
)
async def test_an_error_says_when_to_try_again(
    db: SessionsDB, database: Database, error: Exception, seconds: float
) -> None:
    await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        raise error

    async with running(db, handler):
        await until(
            lambda: database.query("SELECT wake_at FROM mailboxes WHERE wake_at IS NOT NULL")
        )
    left = await database.value(
        "SELECT (julianday(wake_at) - julianday('now')) * 86400 FROM mailboxes"
        if database.kind == "sqlite"
        else "SELECT extract(epoch FROM wake_at - clock_timestamp())::float8 FROM mailboxes"
    )
    assert seconds - 20 < left <= seconds + 0.01


@pytest.mark.parametrize("asked", ["soon", None, -1, True, float("nan")])
def test_an_attribute_that_is_no_time_changes_nothing(asked: object) -> None:
    error = ValueError("x")
    error.retry_after = asked
    assert Backoff(jitter=0).delay(1, error) == 1.0


class Headerless(Exception):
    """An error that reads the time from a header of its answer, which has none."""

    @property
    def retry_after(self) -> float:
        headers: dict[str, str] = {}
        return float(headers["retry-after"])


async def test_an_error_whose_retry_after_can_not_be_read_is_a_failed_attempt(
    db: SessionsDB, caplog: pytest.LogCaptureFixture
) -> None:
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        if turn.attempt == 1:
            raise Headerless("429")
        return "now"

    async with asyncio.timeout(20):
        await db.worker(handler, lease_seconds=3_600).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)
    assert "unforeseen" not in caplog.text


async def test_a_retry_is_given_the_error(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")
    given: list[tuple[int, BaseException | None]] = []

    class Policy:
        def delay(self, attempt: int, error: BaseException | None = None) -> float:
            given.append((attempt, error))
            return 0.0

    failure = ValueError("boom")

    async def handler(turn: Turn) -> None:
        if turn.attempt == 1:
            raise failure

    await db.worker(handler, retry=Policy()).run_until_idle()
    assert given == [(1, failure)]


def test_a_retry_whose_method_takes_something_else_is_refused(tmp_path: Any) -> None:
    class Policy:
        def delay(self) -> float:
            return 0.0

    db = SessionsDB(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(InvalidArgument, match="the attempt and the error"):
        db.worker(answer, retry=Policy())


TYPES_OF_A_CHECKER = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from sessionsdb import Turn

async def handler(turn: Turn) -> str:
    return "hello"

def returning(turn: Turn) -> Awaitable[str]:
    return handler(turn)

def not_async(turn: Turn) -> str:
    return "hello"

class Policy:
    def delay(self, attempt: int, error: Error) -> float:
        return 0.0
"""
"""Python 3.14 computes an annotation when it is read. Older ones do when the function is made."""


async def test_annotations_may_name_what_only_a_type_checker_imports(db: SessionsDB) -> None:
    later = "" if sys.version_info >= (3, 14) else "from __future__ import annotations"
    module: dict[str, Any] = {}
    exec(compile(later + TYPES_OF_A_CHECKER, "agent.py", "exec", dont_inherit=True), module)
    for name in ("handler", "returning"):
        receipt = await db.broker.send("chat", name)
        await db.worker(module[name], retry=module["Policy"]()).run_until_idle()
        assert (await db.broker.outcome(receipt)).status == "done"
    with pytest.raises(InvalidArgument, match="not_async is not async"):
        db.worker(module["not_async"])


async def test_an_async_generator_is_refused_by_its_name(db: SessionsDB) -> None:
    with pytest.raises(InvalidArgument, match="a_generator is an async generator: replace `yield`"):
        db.worker(a_generator)
