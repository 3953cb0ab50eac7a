"""The end of requests when a server stops."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sessionsdb.http import running
from sessionsdb.http.running import Requests

STREAM = {"type": "http", "method": "GET", "path": "/stream"}
CALL = {"type": "http", "method": "POST", "path": "/call"}


class Request:
    """One request to an application that waits for ever behind ``said``."""

    def __init__(self, *said: Message) -> None:
        self.said = said
        self.sent: list[Message] = []
        self.waits = asyncio.Event()
        self.requests = Requests(self.answer, is_listener=lambda s: s["path"] == "/stream")

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self.said:
            await send(message)
        self.waits.set()
        await asyncio.Event().wait()

    def begin(self, scope: dict[str, Any]) -> asyncio.Task[None]:
        return asyncio.create_task(self.requests(scope, self.receive, self.send))

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


BEGIN = {"type": "http.response.start", "status": 200, "headers": []}
PART = {"type": "http.response.body", "body": b"part", "more_body": True}
END = {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "FINISH_SECONDS", 0.01)


async def test_a_stream_of_events_ends_whole() -> None:
    request = Request(BEGIN, PART)
    task = request.begin(STREAM)
    await request.waits.wait()
    request.requests.stop()
    await asyncio.wait_for(task, 10)
    assert request.sent == [BEGIN, PART, END]


async def test_an_answer_that_is_not_finished_stays_incomplete(at_once: None) -> None:
    """Otherwise the client of an export would take the half for the whole."""
    request = Request(BEGIN, PART)
    task = request.begin(CALL)
    await request.waits.wait()
    request.requests.stop()
    await asyncio.wait_for(task, 10)
    assert request.sent == [BEGIN, PART]


@pytest.mark.parametrize(
    ("scope", "advice"), [(STREAM, "try again"), (CALL, "read before you repeat it")]
)
async def test_a_request_without_an_answer_yet_is_refused(
    at_once: None, scope: dict[str, Any], advice: str
) -> None:
    request = Request()
    task = request.begin(scope)
    await request.waits.wait()
    request.requests.stop()
    await asyncio.wait_for(task, 10)
    assert [message.get("status") for message in request.sent] == [503, None]
    assert advice in json.loads(request.sent[1]["body"])["detail"]


async def test_a_call_may_finish_while_the_server_stops() -> None:
    request = Request()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        request.waits.set()
        await stopped.wait()
        await send(BEGIN)
        await send(END)

    stopped = asyncio.Event()
    requests = Requests(slow, is_listener=lambda _: False)
    task = asyncio.create_task(requests(CALL, request.receive, request.send))
    await request.waits.wait()
    requests.stop()
    stopped.set()
    await asyncio.wait_for(task, 10)
    assert request.sent == [BEGIN, END]


async def test_a_stream_that_comes_after_the_stop_is_refused() -> None:
    request = Request(BEGIN, PART)
    request.requests.stop()
    await asyncio.wait_for(request.begin(STREAM), 10)
    assert [message.get("status") for message in request.sent] == [503, None]


async def test_another_cancellation_passes() -> None:
    """It belongs to a host that runs the application."""
    request = Request(BEGIN)
    task = request.begin(CALL)
    await request.waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert request.sent == [BEGIN]
