"""Rules of ``follow``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from sessionsdb.errors import UnknownSession
from sessionsdb.events import DeletedEvent, Event, MessageEvent
from sessionsdb.testing.conformance.checks import Part, Subject, echo, equal, refused, true, user

PART = Part("following")

EVENT_SECONDS = 30.0
"""The time in which an event has to come."""


async def _until(
    events: AsyncGenerator[Event, None], is_last: Callable[[Event], bool]
) -> list[Event]:
    """Return the events up to the first one that is the last."""
    seen: list[Event] = []
    try:
        async with asyncio.timeout(EVENT_SECONDS):
            async for event in events:
                seen.append(event)
                if is_last(event):
                    return seen
    except TimeoutError:
        kinds = [event.type for event in seen]
        raise AssertionError(f"after {EVENT_SECONDS:g} s there are only the events {kinds}") from (
            None
        )
    raise AssertionError(f"the iterator ended after {[event.type for event in seen]}")


def _texts(events: list[Event]) -> list[str]:
    return [event.message.content for event in events if isinstance(event, MessageEvent)]


def _is(text: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, MessageEvent) and event.message.content == text


@PART.rule("From 'start' all messages come once each and in order, also later ones.")
async def messages_come_in_order(subject: Subject) -> None:
    await subject.store.append("s", [user("a"), user("b")])
    async with aclosing(subject.broker.follow("s", after="start")) as events:
        equal(_texts(await _until(events, _is("b"))), ["a", "b"], "the stored messages")
        await subject.broker.send("s", "c")
        await subject.run_turns(echo)
        equal(_texts(await _until(events, _is("echo: c"))), ["c", "echo: c"], "the new messages")


@PART.rule("From a seq only the messages behind it come, so history and follow lose nothing.")
async def a_seq_is_a_cursor(subject: Subject) -> None:
    await subject.store.append("s", [user("a"), user("b")])
    seq = (await subject.broker.history("s"))[0].seq
    async with aclosing(subject.broker.follow("s", after=seq)) as events:
        equal(_texts(await _until(events, _is("b"))), ["b"], "the messages behind the first")


@PART.rule("The cursor of an event goes on behind that event.")
async def a_cursor_goes_on(subject: Subject) -> None:
    await subject.store.append("s", [user("a"), user("b"), user("c")])
    async with aclosing(subject.broker.follow("s", after="start")) as events:
        cursor = (await _until(events, _is("b")))[-1].cursor
    async with aclosing(subject.broker.follow("s", after=cursor)) as events:
        equal(_texts(await _until(events, _is("c"))), ["c"], "the messages behind the cursor")


@PART.rule("Without a cursor the first event is idle where no turn runs. Old messages do not come.")
async def following_begins_now(subject: Subject) -> None:
    await subject.store.append("s", [user("old")])
    async with aclosing(subject.broker.follow("s")) as events:
        first = await _until(events, lambda _: True)
        equal([event.type for event in first], ["idle"], "the first event")
        await subject.store.append("s", [user("new")])
        equal(_texts(await _until(events, _is("new"))), ["new"], "the messages")


@PART.rule("The last event is deleted, when the session is.")
async def deletion_is_the_last_event(subject: Subject) -> None:
    await subject.store.append("s", [user("a")])
    async with aclosing(subject.broker.follow("s", after="start")) as events:
        await _until(events, _is("a"))
        await subject.store.delete("s")
        await _until(events, lambda event: isinstance(event, DeletedEvent))
        async with asyncio.timeout(EVENT_SECONDS):
            true(not [event async for event in events], "an event comes after deleted")


@PART.rule("The first step of follow of an unknown id raises UnknownSession.")
async def an_unknown_session_is_not_followed(subject: Subject) -> None:
    async with aclosing(subject.broker.follow("unknown")) as events:
        await refused(UnknownSession, anext(events), "the first step")
