"""Clients: several in a process. Each makes one call after the other until it is stopped."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from sessionsdb import SessionsDB, SessionsDBError
from soak import journal, recorded_calls
from soak.caller import FAILED, Answer, Caller
from soak.database import opened
from soak.journal import Journal
from soak.payloads import payload
from soak.plan import Plan
from soak.sessions import chat, desk, draft, ledger, notebook

REPEATS = (0.1, 0.2, 0.4, 0.8, 1.6, *(2.0,) * 5)
"""The pauses, in seconds, between the repetitions of a call with a key. After the last, the call is
left to the next incarnation or to the end of the run."""

MOST_FORKS = 10
"""The most forks of a client: each copies a transcript."""

UNDECIDED_ERRORS = FAILED | {"InboxFull", "SpawnDenied"}
"""Errors after which a call is repeated, as after no answer at all."""


class Client:
    """One client. Its next call is random, by weights."""

    def __init__(self, plan: Plan, db: SessionsDB, caller: Caller, chance: random.Random) -> None:
        self._plan = plan
        self._db = db
        self._caller = caller
        self._chance = chance
        self._receipts: deque[tuple[str, int]] = deque(maxlen=200)
        self._children: deque[str] = deque(maxlen=50)
        self._ended: deque[str] = deque(maxlen=20)
        self._scratches = 0
        self._forks = 0
        self._weighted: dict[Callable[[], Awaitable[None]], int] = {
            self._send: 30,
            self._send_with_key: 12,
            self._send_several_to_one: 4,
            self._send_to_several: 6,
            self._send_impatiently: 3,
            self._send_with_order: 4,
            self._wait_for_answer: 4,
            self._spawn: 5,
            self._spawn_and_wait: 1,
            self._end_a_child: 4,
            self._reopen_a_child: 3,
            self._cancel: 8,
            self._send_and_cancel: 6,
            self._interrupt: 3,
            self._cut: 4,
            self._append: 10,
            self._save: 8,
            self._read: 10,
            self._look_at_an_outcome: 6,
            self._look_at_children: 2,
            self._make_and_delete: 2,
            self._requeue_the_dead: 2,
            self._send_a_question: 4,
            self._answer_a_question: 8,
            self._schedule: 5,
            self._spawn_reporting: 3,
            self._send_if_free: 4,
            self._send_and_interrupt: 4,
            self._update_state: 3,
            self._edit: 4,
            self._fork: 3,
        }

    async def step(self) -> None:
        [act] = self._chance.choices([*self._weighted], [*self._weighted.values()])
        try:
            await act()
        except SessionsDBError:
            await asyncio.sleep(0.1)  # from a read that prepares a call: nothing was called yet

    # ---- sending -----------------------------------------------------------------------------

    def _payload(self) -> str:
        token = self._caller.token()
        chance = self._chance
        verb = chance.choices(
            ["echo", "two", "none", "relay", "child", "fail", "slow", "spin", "large", "count"],
            [50, 8, 5, 14, 3, 5, 8, 2, 3, 10],
        )[0]
        more: dict[str, Any] = {}
        if verb == "relay":
            more["to"] = chat(chance.randrange(self._plan.chats))
        elif verb == "fail":
            # With 1.0 the message is sure to die. Clients requeue some of the dead.
            more["odds"] = chance.choice([0.5, 0.8, 1.0])
        elif verb == "slow":
            more["seconds"] = chance.uniform(0.1, 1.3 * self._plan.lease)
        elif verb == "spin":
            more["seconds"] = chance.uniform(0.02, 0.3)
        elif verb == "large":
            more["size"] = chance.randrange(5_000, 100_000)
        return payload(token, verb, **more)

    def _chat(self) -> str:
        dice = self._chance.random()
        if dice < 0.15:
            return draft(self._chance.randrange(self._plan.drafts))
        if dice < 0.25:
            return self._desk()
        return chat(self._chance.randrange(self._plan.chats))

    def _desk(self) -> str:
        return desk(self._chance.randrange(self._plan.desks))

    async def _sent(self, session: str, *, text: str | None = None, **options: Any) -> int | None:
        text = text or self._payload()
        answer = await recorded_calls.send(self._db, self._caller, session, text, **options)
        if answer.error == "InboxFull":
            await asyncio.sleep(self._chance.uniform(0.0, 0.4))  # back-pressure
        if not answer.ok:
            return None
        position = int(answer.fields["position"])
        self._receipts.append((session, position))
        return position

    async def _send(self) -> None:
        child = self._children and self._chance.random() < 0.15
        await self._sent(self._chance.choice(self._children) if child else self._chat())

    async def _send_with_key(self) -> None:
        """Send until there is an answer, and sometimes once more after it."""
        session, text = self._chat(), self._payload()
        key = f"key of {self._caller.token()}"
        for _ in range(5):
            answer = await recorded_calls.send(self._db, self._caller, session, text, key=key)
            if answer.ok and self._chance.random() < 0.7:
                break
            await asyncio.sleep(self._chance.uniform(0, 0.2))

    async def _send_several_to_one(self) -> None:
        """Send without awaiting the first: they commit in the order of the calls."""
        session, burst = self._chat(), self._caller.token()
        await asyncio.gather(
            *(self._sent_in(burst, number, session) for number in range(self._chance.randint(2, 5)))
        )

    async def _sent_in(self, burst: str, number: int, session: str) -> None:
        text = payload(self._caller.token(), "echo", burst=burst, number=number)
        await recorded_calls.send(self._db, self._caller, session, text)

    async def _send_to_several(self) -> None:
        several = {self._chat() for _ in range(4)}
        await asyncio.gather(*(self._sent(session) for session in sorted(several)))

    async def _send_impatiently(self) -> None:
        await self._sent(self._chat(), within=self._chance.uniform(0.0, 0.01))

    async def _send_with_order(self) -> None:
        """Send in a transaction of the caller, which rolls back one in five."""
        await recorded_calls.send_with_order(
            self._db,
            self._caller,
            self._chat(),
            self._payload(),
            self._caller.token(),
            commit=self._chance.random() < 0.8,
        )

    async def _send_if_free(self) -> None:
        """Send a message that a busy session rejects."""
        await self._sent_with_key("reject")

    async def _send_and_interrupt(self) -> None:
        """Send a message that stops what runs."""
        await self._sent_with_key("interrupt")

    async def _sent_with_key(self, when_busy: Literal["interrupt", "reject"]) -> None:
        session, text = self._chat(), self._payload()
        key = f"key of {self._caller.token()}"
        for _ in range(self._chance.choice([1, 1, 2])):
            answer = await recorded_calls.send(
                self._db, self._caller, session, text, key=key, when_busy=when_busy
            )
            if answer.error == "SessionBusy":
                break

    async def _wait_for_answer(self) -> None:
        session = self._chat()
        position = await self._sent(session)
        if position is not None:
            patience = self._chance.uniform(0.1, 1.0)
            await recorded_calls.wait(self._db, self._caller, session, position, seconds=patience)

    # ---- children ----------------------------------------------------------------------------

    async def _spawn(self, patience: float | None = None) -> None:
        parent = self._chat()
        if self._children and self._chance.random() < 0.3:
            parent = self._chance.choice(self._children)
        text = payload(self._caller.token())
        key = f"key of {self._caller.token()}" if self._chance.random() < 0.5 else None
        for _ in range(self._chance.choice([1, 1, 2]) if key else 1):
            answer = await recorded_calls.spawn(
                self._db, self._caller, parent, text, key=key, patience=patience
            )
            if answer.ok and answer.fields["child"] not in self._children:
                self._children.append(answer.fields["child"])

    async def _spawn_and_wait(self) -> None:
        await self._spawn(patience=self._chance.uniform(0.1, 2.0))

    async def _end_a_child(self) -> None:
        if self._children:
            child = self._chance.choice(self._children)
            subtree = self._chance.random() < 0.5
            answer = await recorded_calls.end(self._db, self._caller, child, subtree=subtree)
            if answer.ok:
                self._children.remove(child)
                self._ended.append(child)
                # A message that comes too late must be refused.
                await self._sent(child)

    async def _reopen_a_child(self) -> None:
        if self._ended:
            child = self._ended.popleft()
            if (await recorded_calls.reopen(self._db, self._caller, child)).ok:
                self._children.append(child)
                await self._sent(child)

    async def _spawn_reporting(self) -> None:
        """Spawn a child that replies, fails or dies, and tells its parent."""
        verb = self._chance.choice(["echo", "echo", "none", "fail"])
        more = {"odds": self._chance.choice([0.5, 1.0])} if verb == "fail" else {}
        text = payload(self._caller.token(), verb, **more)
        answer = await recorded_calls.spawn(
            self._db, self._caller, self._desk(), text, reports=True
        )
        if answer.ok:
            self._children.append(answer.fields["child"])

    # ---- questions and schedules -------------------------------------------------------------

    async def _send_a_question(self) -> None:
        """Let a turn ask, and send a message that waits behind the question."""
        session = self._desk()
        expires = self._chance.choice([0.05, self._plan.expiry])
        text = payload(self._caller.token(), "ask", expires=expires)
        if await self._sent(session, text=text) is not None:
            await self._sent(session)

    async def _answer_a_question(self) -> None:
        """Answer a question, sometimes twice with the same words, sometimes with others."""
        found = await recorded_calls.questions(self._db, self._caller)
        if not found.fields.get("open"):
            return
        session, asked = self._chance.choice(found.fields["open"])
        text = payload(self._caller.token())
        for _ in range(self._chance.choice([1, 1, 2, 3])):
            answer = await recorded_calls.answer(self._db, self._caller, session, asked, text)
            if answer.ok and self._chance.random() < 0.3:
                text = payload(self._caller.token())

    async def _schedule(self) -> None:
        seconds = self._chance.uniform(-1.0, self._plan.later)
        await recorded_calls.schedule(
            self._db, self._caller, self._desk(), payload(self._caller.token()), seconds=seconds
        )

    # ---- stops -------------------------------------------------------------------------------

    async def _cancel(self) -> None:
        """Cancel one of the last messages. Most are final already."""
        if self._receipts:
            place = self._chance.choice([*self._receipts][-20:])
            keep = self._chance.random() < 0.5
            await recorded_calls.cancel(self._db, self._caller, *place, keep=keep)

    async def _send_and_cancel(self) -> None:
        """Cancel a message whose turn takes a while."""
        session = self._chat()
        seconds = self._chance.uniform(0.2, 1.0)
        text = payload(self._caller.token(), "slow", seconds=seconds)
        position = await self._sent(session, text=text)
        if position is not None:
            await asyncio.sleep(self._chance.uniform(0.0, seconds))
            keep = self._chance.random() < 0.7
            await recorded_calls.cancel(self._db, self._caller, session, position, keep=keep)

    async def _interrupt(self) -> None:
        keep = self._chance.random() < 0.5
        await recorded_calls.interrupt(self._db, self._caller, self._chat(), keep=keep)

    # ---- transcripts -------------------------------------------------------------------------

    async def _append(self) -> None:
        session = notebook(self._chance.randrange(self._plan.notebooks))
        tokens = [self._caller.token() for _ in range(self._chance.randint(1, 3))]
        await recorded_calls.append(self._db, self._caller, session, tokens)

    async def _save(self) -> None:
        session = ledger(self._chance.randrange(self._plan.ledgers))
        replace = self._chance.random() < 0.4
        await recorded_calls.save(
            self._db, self._caller, session, self._caller.token(), replace=replace
        )

    async def _cut(self) -> None:
        session = draft(self._chance.randrange(self._plan.drafts))
        summary = f"summary {self._caller.token()}" if self._chance.random() < 0.5 else None
        await recorded_calls.cut(self._db, self._caller, session, summary=summary)

    async def _edit(self) -> None:
        session = notebook(self._chance.randrange(self._plan.notebooks))
        await recorded_calls.edit(self._db, self._caller, session, self._caller.token())

    async def _update_state(self) -> None:
        session = chat(self._chance.randrange(self._plan.chats))
        await recorded_calls.update_state(self._db, self._caller, session, self._caller.token())

    async def _fork(self) -> None:
        """Fork a transcript that only grows, so its rows tell later what the fork must have."""
        if self._forks == MOST_FORKS:
            return
        self._forks += 1
        session = self._chance.choice(
            [
                chat(self._chance.randrange(self._plan.chats)),
                notebook(self._chance.randrange(self._plan.notebooks)),
            ]
        )
        await recorded_calls.fork(self._db, self._caller, session, f"fork {self._caller.token()}")

    # ---- reading -----------------------------------------------------------------------------

    async def _read(self) -> None:
        session = self._chance.choice(
            [
                self._chat(),
                ledger(self._chance.randrange(self._plan.ledgers)),
                notebook(self._chance.randrange(self._plan.notebooks)),
            ]
        )
        which = self._chance.randrange(4)
        if which == 0:
            await recorded_calls.history(
                self._db, self._caller, session, self._chance.randint(1, 20)
            )
        elif which == 1:
            await recorded_calls.version(self._db, self._caller, session)
        elif which == 2:
            await recorded_calls.get(self._db, self._caller, session)
        else:
            await recorded_calls.load(self._db, self._caller, session)

    async def _look_at_an_outcome(self) -> None:
        if self._receipts:
            await recorded_calls.outcome(
                self._db, self._caller, *self._chance.choice(self._receipts)
            )

    async def _look_at_children(self) -> None:
        await recorded_calls.children(self._db, self._caller, self._chat())

    # ---- ends --------------------------------------------------------------------------------

    async def _make_and_delete(self) -> None:
        self._scratches += 1
        session = f"scratch {self._caller.name} {self._scratches}"
        if (await recorded_calls.register(self._db, self._caller, session, "scratch")).ok:
            await self._sent(session)
            await asyncio.sleep(self._chance.uniform(0, 0.1))
            await recorded_calls.delete(self._db, self._caller, session)

    async def _requeue_the_dead(self) -> None:
        answer = await recorded_calls.dead_letters(self._db, self._caller)
        for session, position in answer.fields.get("dead", [])[-2:]:
            await recorded_calls.requeue(self._db, self._caller, session, position)


class ClientProcess:
    """The clients of one process, in one of its incarnations."""

    def __init__(self, plan: Plan, name: str, incarnation: int, folder: Path) -> None:
        self._plan = plan
        self._process = name
        self._name = f"{name}.{incarnation}"
        self._folder = folder
        self._journal = Journal(folder, self._name)
        self._stopping = asyncio.Event()

    async def run(self, url: str) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopping.set)
        async with opened(url, self._plan) as db:
            left = unanswered(self._folder, self._process)
            await asyncio.gather(
                self._ask_again(db, "before", left),
                *(self._client(db, number) for number in range(self._plan.clients)),
            )
            # The faults are over: repeat calls with a key until they are certain.
            self._stopping.clear()
            await self._ask_again(db, "after", unanswered(self._folder, self._process))

    async def _client(self, db: SessionsDB, number: int) -> None:
        name = f"{self._name}.{number}"
        chance = random.Random(f"{self._plan.seed} {name}")
        client = Client(self._plan, db, Caller(name, self._journal), chance)
        calls = 0
        while not self._stopping.is_set() and (
            self._plan.calls is None or calls < self._plan.calls
        ):
            await client.step()
            calls += 1
            await asyncio.sleep(chance.uniform(0, 2 * self._plan.pace))

    async def _ask_again(self, db: SessionsDB, when: str, questions: list[dict[str, Any]]) -> None:
        """Repeat, with the same keys, the calls without an answer, also those of an incarnation
        that died."""
        await asyncio.gather(
            *(
                self._repeat(db, Caller(f"{self._name}.{when}.{number}", self._journal), asked)
                for number, asked in enumerate(questions)
            )
        )

    async def _repeat(self, db: SessionsDB, caller: Caller, asked: dict[str, Any]) -> None:
        for pause in REPEATS:
            answer = await self._repeated(db, caller, asked)
            if answer.ok or answer.error not in UNDECIDED_ERRORS or self._stopping.is_set():
                break
            await asyncio.sleep(pause)

    async def _repeated(self, db: SessionsDB, caller: Caller, asked: dict[str, Any]) -> Answer:
        session, text, key = asked["session"], asked["text"], asked["key"]
        if asked["op"] == "spawn":
            return await recorded_calls.spawn(db, caller, session, text, key=key)
        return await recorded_calls.send(
            db, caller, session, text, key=key, when_busy=asked["when_busy"]
        )


def unanswered(folder: Path, process: str) -> list[dict[str, Any]]:
    """The first questions with each key of which this process has never had a good answer."""
    first: dict[str, dict[str, Any]] = {}
    keys: dict[str, str] = {}
    settled: set[str] = set()
    for entry in journal.read(folder, f"{process}.*"):
        if entry.get("key"):
            keys[entry["ask"]] = entry["key"]
            first.setdefault(entry["key"], entry)
        elif entry.get("told") in keys and entry.get("error") not in UNDECIDED_ERRORS:
            settled.add(keys[entry["told"]])
    return [asked for key, asked in first.items() if key not in settled]
