"""Metrics and spans, read through OpenTelemetry's own SDK."""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, NoOpCounter, NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, SpanKind, get_current_span

from devtools.databases import Database
from sessionsdb import (
    InboxFull,
    Limits,
    Question,
    Reply,
    SessionsDB,
    SpawnRequest,
    Turn,
    UnknownSession,
)
from sessionsdb.telemetry import load_gauges, observed, spans
from sessionsdb.telemetry.metrics import INSTRUMENTS, Described
from sessionsdb.telemetry.observed import Telemetry
from tests.support.live import Hanging
from tests.support.waiting import until
from tests.support.work import SOON, expire_leases, running

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


class Seen:
    """The metrics and spans that an application's SDK has received."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self._meters = MeterProvider([self._reader])
        self._tracers = TracerProvider()
        self._tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = Telemetry(
            self._meters.get_meter(spans.SCOPE), self._tracers.get_tracer(spans.SCOPE)
        )

    def collect(self) -> dict[str, list[Any]]:
        """The points of each instrument."""
        read = self._reader.get_metrics_data()
        if read is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in read.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def counts(self, name: str) -> dict[str | None, float]:
        """The counter's values by result."""
        points = self.collect().get(name, [])
        return {(point.attributes or {}).get("result"): point.value for point in points}

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if span.name == name]

    def add_processor(self, processor: SpanProcessor) -> None:
        self._tracers.add_span_processor(processor)

    def close(self) -> None:
        self._meters.shutdown()
        self._tracers.shutdown()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen = Seen()
    monkeypatch.setattr(observed, "telemetry", seen.telemetry)
    yield seen
    seen.close()


@pytest.fixture
async def chat(db: SessionsDB, seen: Seen) -> SessionsDB:
    await db.broker.register("chat", channel="cli", peer="ada")
    return db


async def echo(turn: Turn) -> str:
    return f"re {turn.text}"


# ---- counters and histograms ---------------------------------------------------------------------


async def test_sends_are_counted_by_what_came_of_them(database: Database, seen: Seen) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=2)) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.broker.send("chat", "1", idempotency_key="k")
        await db.broker.send("chat", "1", idempotency_key="k")
        await db.broker.spawn("chat", SpawnRequest(prompt="look it up"))
        await db.broker.send("chat", "2")
        with pytest.raises(InboxFull):
            await db.broker.send("chat", "3")
        with pytest.raises(UnknownSession):
            await db.broker.send("nobody", "4")
    assert seen.counts("sessionsdb.sends") == {"queued": 3, "duplicate": 1, "refused": 2}


async def test_turns_are_counted_and_timed_by_result(chat: SessionsDB, seen: Seen) -> None:
    async def handler(turn: Turn) -> str:
        if turn.text == "fails once" and turn.attempt == 1:
            raise ValueError("not now")
        if turn.text == "dies":
            raise ValueError("never")
        return "yes"

    for text in ("works", "fails once", "dies"):
        await chat.broker.send("chat", text)
    await chat.worker(handler, max_attempts=2, retry=SOON).run_until_idle()
    expected = {"committed": 2, "failed": 2, "dead": 1}
    assert seen.counts("sessionsdb.turns") == expected
    assert seen.counts("sessionsdb.claims") == {None: 5}
    points = seen.collect()
    timed = points["sessionsdb.turn.duration"]
    assert {point.attributes["result"]: point.count for point in timed} == expected
    [waited] = points["sessionsdb.message.wait"]
    assert waited.count == 3, "a message waits once, however often it is tried"
    assert waited.sum >= 0
    assert "sessionsdb.lease.losses" not in points


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


async def test_an_error_that_can_not_be_told_is_counted_and_shown_by_its_type(
    chat: SessionsDB, seen: Seen
) -> None:
    async def handler(turn: Turn) -> str:
        raise Unspeakable

    await chat.broker.send("chat", "hello")
    worker = chat.worker(handler, max_attempts=2, retry=SOON)
    await worker.run_until_idle()
    assert (worker.failed, worker.died) == (2, 1)
    assert seen.counts("sessionsdb.turns") == {"failed": 1, "dead": 1}
    ended = seen.spans("sessionsdb.turn")
    assert [span.status.description for span in ended] == ["Unspeakable"] * 2


class FailingProcessor(SpanProcessor):
    """A part of the application's SDK that fails at the start or at the end of each span."""

    def __init__(self, at: str) -> None:
        self._at = at

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self._at == "start":
            raise RuntimeError("by the exporter")

    def on_end(self, span: ReadableSpan) -> None:
        if self._at == "end":
            raise RuntimeError("by the exporter")


@pytest.mark.parametrize("at", ["start", "end"])
async def test_a_turn_is_committed_and_counted_by_its_worker_though_telemetry_fails(
    chat: SessionsDB, seen: Seen, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    receipt = await chat.broker.send("chat", "hello")
    seen.add_processor(FailingProcessor(at))
    assert await chat.worker(echo, lease_seconds=3_600).run_until_idle() == 1
    assert (await chat.broker.outcome(receipt)).status == "done"
    assert "a turn could not be observed" in caplog.text


class FailingCounter(NoOpCounter):
    def add(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("by the exporter")


class FailingMeter(NoOpMeter):
    """A meter of the application whose counters fail."""

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        return FailingCounter(name, unit, description)


async def send_and_wait(db: SessionsDB) -> None:
    """Send each kind of message once, have them answered, and wait for one of them."""

    async def ask(turn: Turn) -> Reply | str:
        if turn.text != "ask":
            return f"re {turn.text}"
        turn.send("chat", "staged")
        return Reply("asked", ask=Question(prompt="may I?"))

    receipt = await db.broker.send("chat", "ask")
    await db.broker.spawn("chat", SpawnRequest(prompt="go"))
    worker = db.worker(ask, lease_seconds=3_600)
    assert await worker.run_until_idle() == 2
    assert (await db.broker.wait(receipt)).status == "done"
    [question] = await db.broker.questions("chat")
    await db.broker.answer(question.id, "yes")
    assert await worker.run_until_idle() == 2
    assert await db.broker.inbox("chat") == []
    assert worker.failed == 0


@pytest.mark.parametrize("at", ["start", "end"])
async def test_messages_are_sent_once_though_their_spans_fail(
    chat: SessionsDB, seen: Seen, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen.add_processor(FailingProcessor(at))
    await send_and_wait(chat)
    assert seen.counts("sessionsdb.sends") == {"queued": 4}
    assert "a send could not be observed" in caplog.text
    with pytest.raises(UnknownSession):
        await chat.broker.send("nobody", "hello")


async def test_messages_are_sent_once_though_counters_fail(
    chat: SessionsDB, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = NoOpTracer()
    monkeypatch.setattr(observed, "telemetry", Telemetry(FailingMeter("failing"), tracer))
    await send_and_wait(chat)
    assert "queued could not be counted" in caplog.text
    assert "answered could not be counted" in caplog.text


async def test_lost_leases_are_counted_by_how_they_were_lost(
    chat: SessionsDB, database: Database, seen: Seen
) -> None:
    begun = asyncio.Event()

    async def hang(turn: Turn) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with running(chat, hang, lease_seconds=0.6):
        await chat.broker.send("chat", "is taken away")
        await begun.wait()
        await database.query("UPDATE mailboxes SET epoch = epoch + 1, owner = 'another'")
        await until(lambda: seen.counts("sessionsdb.lease.losses").get("given_up"))
    assert seen.counts("sessionsdb.turns") == {"given_up": 1}

    await chat.broker.end("chat")
    await chat.broker.register("other", channel="cli", peer="ada")

    async def robbed(turn: Turn) -> str:
        if turn.attempt == 1:
            # As if the hint that its lease was taken were lost: it would cancel the turn.
            worker._loop._leases._look_for_stops = lambda _: asyncio.sleep(0)
            await expire_leases(database)
            await chat.worker(echo).run_until_idle()  # takes it back, and commits
        return "too late"

    await chat.broker.send("other", "is taken")
    # Its only slot is taken, so it can't take the message back itself.
    worker = chat.worker(robbed, lease_seconds=600, concurrency=1)
    await worker.run_until_idle()
    losses = {"given_up": 1, "expired": 1, "lost": 1}
    assert seen.counts("sessionsdb.lease.losses") == losses
    assert seen.counts("sessionsdb.turns") == {"given_up": 1, "lost": 1, "committed": 1}


async def test_a_turn_that_a_caller_stops_is_counted_and_is_no_lost_lease(
    chat: SessionsDB, seen: Seen
) -> None:
    hanging = Hanging()
    async with running(chat, hanging):
        await chat.broker.send("chat", "hello")
        await hanging.begun()
        await chat.broker.interrupt("chat")
        await until(lambda: seen.counts("sessionsdb.turns").get("stopped") == 1)
        await chat.broker.send("chat", "hello")
        await hanging.begun(2)
        await chat.broker.end("chat")
        await until(lambda: seen.counts("sessionsdb.turns").get("stopped") == 2)
    assert seen.counts("sessionsdb.turns") == {"stopped": 2}
    assert seen.counts("sessionsdb.lease.losses") == {}


async def test_a_turn_over_a_rewritten_transcript_is_counted_as_a_rerun(
    chat: SessionsDB, seen: Seen
) -> None:
    other = chat.in_namespace("default")

    async def rewritten_once(turn: Turn) -> str:
        if seen.counts("sessionsdb.turns") == {}:
            rewriting = contextvars.Context().run(asyncio.create_task, other.store.save("chat", []))
            await rewriting
        return "yes"

    await chat.store.save("chat", [{"role": "user", "content": "old"}])
    await chat.broker.send("chat", "hello")
    await chat.worker(rewritten_once).run_until_idle()
    assert seen.counts("sessionsdb.turns") == {"rerun": 1, "committed": 1}


async def test_a_turn_that_a_stopping_worker_gives_back_is_released(
    chat: SessionsDB, seen: Seen
) -> None:
    begun = asyncio.Event()

    async def hang(turn: Turn) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with running(chat, hang):
        await chat.broker.send("chat", "x")
        await begun.wait()
    assert seen.counts("sessionsdb.turns") == {"released": 1}
    assert seen.counts("sessionsdb.lease.losses") == {}


async def test_waits_are_counted(chat: SessionsDB, seen: Seen) -> None:
    receipt = await chat.broker.send("chat", "x")
    await chat.broker.wait(receipt, 0)
    waiting = asyncio.create_task(chat.broker.wait(receipt, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await chat.worker(echo).run_until_idle()
    await chat.broker.wait(receipt, 20)
    with pytest.raises(Exception, match="unknown receipt"):
        await chat.broker.wait(receipt.model_copy(update={"position": 9}), 1)
    assert seen.counts("sessionsdb.waits") == {
        "timeout": 1,
        "cancelled": 1,
        "answered": 1,
        "failed": 1,
    }


# ---- gauges --------------------------------------------------------------------------------------


async def test_the_depth_of_the_inboxes_is_read_when_somebody_collects(
    chat: SessionsDB, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_gauges, "CACHE_SECONDS", 0.0)
    begun = asyncio.Event()

    async def hang(turn: Turn) -> None:
        begun.set()
        await asyncio.Event().wait()

    assert "sessionsdb.inbox.pending" not in await asyncio.to_thread(seen.collect)
    async with running(chat, hang, concurrency=1):
        await chat.broker.send("chat", "runs")
        await begun.wait()
        await chat.broker.register("waits", channel="cli", peer="ada")
        for n in range(3):
            await chat.broker.send("waits", str(n))
        points = await asyncio.to_thread(seen.collect)
        values = {name: points[f"sessionsdb.inbox.{name}"][0].value for name in
                  ("pending", "running", "lag")}  # fmt: skip
        assert (values["pending"], values["running"]) == (3, 1)
        assert 0 < values["lag"] < 60
        [point] = points["sessionsdb.inbox.pending"]
        assert point.attributes["db.system.name"] == chat.engine.dialect.name
        assert "/" not in point.attributes["db.namespace"]
        # A reader on the event loop itself gets no new value, but the next one does.
        await chat.broker.send("waits", "3")
        await until(lambda: seen.collect()["sessionsdb.inbox.pending"][0].value == 4)
    assert "sessionsdb.inbox.pending" not in await asyncio.to_thread(seen.collect)


async def test_one_question_serves_several_readers_for_a_while(
    chat: SessionsDB, seen: Seen
) -> None:
    async with running(chat, echo):
        first = await asyncio.to_thread(seen.collect)
        await chat.broker.register("other", channel="cli", peer="ada")
        again = await asyncio.gather(*(asyncio.to_thread(seen.collect) for _ in range(4)))
    assert first["sessionsdb.inbox.pending"][0].value == 0
    assert all(points["sessionsdb.inbox.pending"][0].value == 0 for points in again)


async def test_a_loop_that_is_blocked_costs_a_reader_its_patience_and_no_more(
    chat: SessionsDB, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_gauges, "MAX_WAIT_SECONDS", 0.05)
    async with running(chat, echo):
        collected: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: collected.append(seen.collect()))
        reader.start()
        reader.join(20)  # the loop is blocked here
        assert not reader.is_alive()
        assert "sessionsdb.inbox.pending" not in collected[0]


# ---- spans ---------------------------------------------------------------------------------------


async def test_a_turn_links_to_the_send_of_its_message(
    chat: SessionsDB, database: Database, seen: Seen
) -> None:
    inside: list[Any] = []

    async def handler(turn: Turn) -> str:
        inside.append(get_current_span().get_span_context())
        return "yes"

    await chat.broker.send("chat", "hello")
    await chat.worker(handler).run_until_idle()
    [send], [turn] = seen.spans("sessionsdb.send"), seen.spans("sessionsdb.turn")
    assert (send.kind, turn.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    [link] = turn.links
    assert (link.context.trace_id, link.context.span_id) == (
        send.context.trace_id,
        send.context.span_id,
    )
    assert turn.context.trace_id != send.context.trace_id
    assert inside[0].span_id == turn.context.span_id, "what the handler does is below the turn"
    assert dict(turn.attributes or {}) == {
        "messaging.system": "sessionsdb",
        "sessionsdb.namespace": "default",
        "sessionsdb.session": "chat",
        "messaging.batch.message_count": 1,
        "sessionsdb.attempt": 1,
        "sessionsdb.result": "committed",
    }
    stored = await database.value("SELECT trace FROM inbox")
    assert stored.startswith(f"00-{send.context.trace_id:032x}-{send.context.span_id:016x}-")


async def test_what_a_turn_stages_links_back_to_it(chat: SessionsDB, seen: Seen) -> None:
    async def handler(turn: Turn) -> None:
        if turn.text == "go":
            turn.send("other", "staged")
            turn.spawn(SpawnRequest(prompt="spawned"))

    await chat.broker.register("other", channel="cli", peer="ada")
    await chat.broker.send("chat", "go")
    await chat.worker(handler, concurrency=1).run_until_idle()
    spans = seen.spans("sessionsdb.turn")
    assert len(spans) == 3
    first, *rest = spans
    for span in rest:
        assert [link.context.span_id for link in span.links] == [first.context.span_id]
    assert seen.counts("sessionsdb.sends") == {"queued": 3}


async def test_a_batch_links_to_each_of_its_sends_and_a_spawn_is_one(
    chat: SessionsDB, seen: Seen
) -> None:
    for n in range(3):
        await chat.broker.send("chat", str(n))
    await chat.worker(echo, batch=3).run_until_idle()
    [turn] = seen.spans("sessionsdb.turn")
    sends = [span.context.span_id for span in seen.spans("sessionsdb.send")]
    assert [link.context.span_id for link in turn.links] == sends
    await chat.broker.spawn("chat", SpawnRequest(prompt="go"))
    await chat.worker(echo).run_until_idle()
    assert [link.context.span_id for link in seen.spans("sessionsdb.turn")[1].links] == [
        seen.spans("sessionsdb.send")[3].context.span_id
    ]


async def test_errors_stand_on_the_spans(chat: SessionsDB, seen: Seen) -> None:
    async def fail(turn: Turn) -> None:
        raise ValueError("can't do it")

    with pytest.raises(UnknownSession):
        await chat.broker.send("nobody", "x")
    await chat.broker.send("chat", "x")
    await chat.worker(fail, max_attempts=1).run_until_idle()
    refused, _ = seen.spans("sessionsdb.send")
    [turn] = seen.spans("sessionsdb.turn")
    assert refused.status.description == "UnknownSession: unknown session: nobody"
    assert turn.status.description == "ValueError: can't do it"
    assert [event.name for event in turn.events] == ["exception"]


async def test_a_trace_that_makes_no_sense_is_no_link(
    chat: SessionsDB, database: Database, seen: Seen
) -> None:
    await chat.broker.send("chat", "x")
    await database.query("UPDATE inbox SET trace = 'nonsense'")
    assert await chat.worker(echo).run_until_idle() == 1
    assert seen.spans("sessionsdb.turn")[0].links == ()


async def test_nothing_is_stored_where_nothing_is_recorded(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "x")
    assert await db.worker(echo).run_until_idle() == 1
    assert await database.query("SELECT trace FROM inbox") == [(None,)]


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_has_every_instrument_as_it_is() -> None:
    rows = re.findall(r"^\| `(sessionsdb\.[\w.]+)` \| (counter|histogram|gauge) .*$",
                      PAGE.read_text(), re.MULTILINE)  # fmt: skip
    assert [name for name, _ in rows] == [one.name for one in INSTRUMENTS]
    for one in INSTRUMENTS:
        assert row_of(one) in PAGE.read_text(), row_of(one)


def row_of(one: Described) -> str:
    results = ", ".join(f"`{value}`" for value in one.values)
    return f"| `{one.name}` | {one.kind} | `{one.unit}` | {one.description} | {results} |"
