"""Load during a failover: clients that remember their answers, and the check of these answers.

Every text is written once. A call that returned is an acknowledgement. A call that raised may have
been made or not. The check reads the tables through the bare driver.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from sessionsdb import Outcome, Receipt, SessionsDB, StorageError, Turn
from tests.support.waiting import until

SESSIONS = [f"s{n}" for n in range(8)]
SINK = "sink"
RELAYS = [f"relay-{n}" for n in range(4)]


@dataclass
class Answers:
    """The answers that the clients of one load got."""

    sent: dict[str, tuple[str, Receipt]] = field(default_factory=dict)
    """By text: the session and the receipt."""
    perhaps: set[str] = field(default_factory=set)
    """Texts of sends that raised."""
    appended: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    perhaps_appended: set[str] = field(default_factory=set)
    registered: list[str] = field(default_factory=list)
    relayed: dict[str, Receipt] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    """The results of waits."""
    times: list[float] = field(default_factory=list)
    """The times of acknowledged sends, by the monotonic clock."""
    errors: Counter[str] = field(default_factory=Counter)

    def first_after(self, moment: float) -> float | None:
        """Seconds from ``moment`` to the first acknowledged send after it."""
        later = [at for at in self.times if at > moment]
        return min(later) - moment if later else None


class Load:
    """Senders, waiters, appenders, callers who register, and a worker that stages."""

    def __init__(self, url: str) -> None:
        self.answers = Answers()
        self._url = url
        self._over = asyncio.Event()
        self._waits: set[asyncio.Task[Outcome]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Answers]:
        """Run the load during the block. At its end all calls have answers, and all messages are
        done."""
        async with SessionsDB(self._url) as db, SessionsDB(self._url) as other:
            for id in SESSIONS:
                await db.broker.register(id, channel="test", peer="p")
            relay = other.in_namespace("relay")
            for id in (SINK, *RELAYS):
                await relay.broker.register(id, channel="test", peer="p")
            worker = relay.worker(_hand_on, poll_interval=1.0)
            working = asyncio.create_task(worker.run())
            async with asyncio.TaskGroup() as clients:
                for name in ("a", "b", "c"):
                    clients.create_task(self._send(db, name, keyed=False))
                    clients.create_task(self._send(other, f"{name}-keyed", keyed=True))
                clients.create_task(self._append(db, "log"))
                clients.create_task(self._register(other))
                clients.create_task(self._relay(relay))
                try:
                    yield self.answers
                finally:
                    self._over.set()
            self.answers.outcomes += await asyncio.gather(*self._waits)
            for receipt in self.answers.relayed.values():
                self.answers.outcomes.append(await relay.broker.wait(receipt, timeout=60))
            await until(lambda: _all_is_done(db), within=60)
            await worker.stop(grace=10)
            await working

    def _numbers(self) -> Iterator[int]:
        number = 0
        while not self._over.is_set():
            number += 1
            yield number

    async def _send(self, db: SessionsDB, name: str, *, keyed: bool) -> None:
        for number in self._numbers():
            text = f"{name} {number}"
            to = random.choice(SESSIONS)
            key = text if keyed else None
            while True:
                try:
                    receipt = await db.broker.send(to, text, idempotency_key=key)
                except StorageError as error:
                    self.answers.errors[_kind(error)] += 1
                    await asyncio.sleep(0.05)
                    if not keyed:
                        self.answers.perhaps.add(text)
                        break
                else:
                    self.answers.sent[text] = (to, receipt)
                    self.answers.times.append(time.monotonic())
                    if number % 5 == 0:
                        wait = asyncio.create_task(self._wait(db, receipt))
                        self._waits.add(wait)
                    break
            await asyncio.sleep(0.005)

    async def _wait(self, db: SessionsDB, receipt: Receipt) -> Outcome:
        while True:
            try:
                return await db.broker.wait(receipt, timeout=90)
            except StorageError as error:  # the server was down when the wait began
                self.answers.errors[_kind(error)] += 1
                await asyncio.sleep(0.05)

    async def _append(self, db: SessionsDB, id: str) -> None:
        for number in self._numbers():
            text = f"line {number}"
            try:
                await db.store.append(id, [{"role": "user", "content": text}])
            except StorageError as error:
                self.answers.errors[_kind(error)] += 1
                self.answers.perhaps_appended.add(text)
                await asyncio.sleep(0.05)
            else:
                self.answers.appended[id].append(text)
            await asyncio.sleep(0.005)

    async def _register(self, db: SessionsDB) -> None:
        for number in self._numbers():
            id = f"registered-{number}"
            try:
                await db.broker.register(id, channel="test", peer="p")
            except StorageError as error:
                self.answers.errors[_kind(error)] += 1
                await asyncio.sleep(0.05)
            else:
                self.answers.registered.append(id)
            await asyncio.sleep(0.01)

    async def _relay(self, db: SessionsDB) -> None:
        for number in self._numbers():
            text = f"relay {number}"
            while text not in self.answers.relayed:
                try:
                    self.answers.relayed[text] = await db.broker.send(
                        random.choice(RELAYS), text, idempotency_key=text
                    )
                except StorageError as error:
                    self.answers.errors[_kind(error)] += 1
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)


async def _all_is_done(db: SessionsDB) -> bool:
    async with db.engine.connect() as connection:
        left = "SELECT count(*) FROM inbox WHERE finished_at IS NULL"
        return (await connection.exec_driver_sql(left)).scalar() == 0


async def _hand_on(turn: Turn) -> None:
    if turn.session.id != SINK:
        turn.send(SINK, turn.text)


def _kind(error: StorageError) -> str:
    for word in ("unknown", "can't be reached", "lost", "read-only"):
        if word in str(error):
            return word
    return str(error)


async def assert_answers_hold(answers: Answers, url: str) -> None:
    """Assert that exactly the acknowledged messages are there, once, in order and answered."""
    connection = await asyncpg.connect(url)
    try:
        inbox = await connection.fetch("SELECT * FROM inbox")
        messages = await connection.fetch("SELECT * FROM messages ORDER BY session_id, seq")
        sessions = {row["id"] for row in await connection.fetch("SELECT id FROM sessions")}
    finally:
        await connection.close()

    assert {row["status"] for row in inbox} == {"done"}
    kept = {(row["session_id"], row["position"]): row["content"] for row in inbox}
    for text, (to, receipt) in answers.sent.items():
        assert kept[(to, receipt.position)] == text, "the receipt leads to the sent message"
    handled: dict[str, list[str]] = defaultdict(list)
    replies: dict[str, list[str]] = defaultdict(list)
    for row in messages:
        of = handled if row["role"] == "user" else replies
        of[row["session_id"]].append(row["content"])

    for id in SESSIONS:
        assert replies[id] == [f"echo: {text}" for text in handled[id]]
        by_sender: dict[str, list[int]] = defaultdict(list)
        for text in handled[id]:
            name, number = text.split()
            by_sender[name].append(int(number))
        for numbers in by_sender.values():
            assert numbers == sorted(numbers), "each sender's order"
    there = Counter(text for id in SESSIONS for text in handled[id])
    assert max(there.values()) == 1, "nothing is doubled"
    assert not set(answers.sent) - set(there), "nothing acknowledged is lost"
    assert set(there) <= set(answers.sent) | answers.perhaps, "every message was sent"

    for id, lines in answers.appended.items():
        assert max(Counter(handled[id]).values()) == 1
        sure = [line for line in handled[id] if line not in answers.perhaps_appended]
        assert sure == lines
    assert set(answers.registered) <= sessions

    handed_on, relayed = Counter(handled[SINK]), Counter(list(answers.relayed))
    assert handed_on - relayed == Counter(), "staged messages were sent once"
    assert relayed - handed_on == Counter(), "staged messages were sent"

    assert answers.outcomes
    assert {outcome.status for outcome in answers.outcomes} == {"done"}, "all were answered"
