"""Random histories against the contract as a plain program, on both databases.

Each step makes the same call on the database and on the contract, and compares the answers and the
content of all tables. A step of several concurrent calls is right if one of their orders is: the
database must behave as if they had come one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from datetime import timedelta
from functools import partial
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from devtools.databases import Database
from sessionsdb.database import open_database_of
from sessionsdb.operations import firing
from tests.reliability import calls, tables
from tests.reliability.calls import Answer, Call, Held
from tests.reliability.contract import Contract, Impossible, Key, Message, Session
from tests.reliability.world import LIMITS, START, World
from tests.support.scale import SCALE

# A failure is shrunk before it is reported, which takes long.
pytestmark = pytest.mark.timeout(600 * SCALE)

NAMESPACES = ["acme", "zeta"]
IDS = ["a", "b", "c"]
WORKERS = ["w1", "w2"]
TEXTS = ["hello", "go on", "odd \x00 and \ud800"]
MESSAGES: list[Message] = [
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "answer"},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    },
    {"role": "user", "content": "nul \x00"},
]

LEASE = 10.0
DRAIN_STEPS = 60

namespaces = st.sampled_from(["acme", "acme", "acme", "zeta"])
scopes = st.sampled_from([["acme"], None, ["acme", "zeta"], ["zeta"]])
numbers = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8])
texts = st.sampled_from(TEXTS)
workers = st.sampled_from(WORKERS)
idempotency_keys = st.sampled_from([None, None, "k1", "k2"])
transcripts = st.lists(st.sampled_from(MESSAGES), max_size=4)
message = st.sampled_from(MESSAGES)
message_keys: st.SearchStrategy[list[str | None]] = st.sampled_from(
    [[], ["k"], ["k", "l"], ["l", None], [None, "k"]]
)
keep_throughs = st.sampled_from([None, None, 0, 1, 2, 3, 4, 6])
replies = st.sampled_from([[], [MESSAGES[1]], [MESSAGES[0], MESSAGES[2]]])
toolsets = st.sampled_from([None, ["read"], ["read", "write"]])
seconds = st.sampled_from([LEASE, 1.0])

OF_ANYBODY = ["send", "send", "append", "save", "register", "end", "delete", "spawn"]
OF_ANYBODY += ["claim", "claim", "reap", "wake", "requeue", "cancel", "interrupt", "reopen"]
OF_ANYBODY += ["edit", "pop", "answer", "schedule", "unschedule", "fire"]
OF_LEASES = ["commit", "commit", "commit_staged", "fail", "release", "heartbeat"]
OF_LEASES += ["join", "rerun", "stream", "ask"]

# The call of one of several concurrent callers. All calls are drawn beforehand: the answers of
# concurrent calls may differ from run to run, the calls must not.
meetings = st.fixed_dictionaries(
    {
        "verb": st.sampled_from(OF_ANYBODY + OF_LEASES),
        "session": st.sampled_from([0, 0, 0, 1, 6]),
        "lease": st.integers(0, 2),
        "text": texts,
        "sender": st.sampled_from([None, None, "a", "b"]),
        "key": idempotency_keys,
        "messages": transcripts,
        "expect": numbers,
        "parent": st.sampled_from([None, "b"]),
        "children": st.sampled_from(["detach", "cascade", "refuse"]),
        "flag": st.booleans(),
        "worker": workers,
        "few": st.integers(1, 3),
        "said": replies,
        "stage": st.sampled_from(["send", "spawn"]),
        "to": st.sampled_from(IDS),
        "retry_in": st.sampled_from([None, 0.0]),
    }
)


class History(RuleBasedStateMachine):
    """One history: the calls, and the answers of the contract."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        limits = LIMITS
        self.world.run(self._begin())
        self.contract = Contract(
            self.world.now,
            pending=limits.pending,
            depth=limits.depth,
            children=limits.children,
            hops=limits.hops,
        )
        self.held: list[Held] = []
        self.claims = 0
        self.asking = False

    async def _begin(self) -> None:
        await self.world.clear()
        self.world.now = START
        await self.world.advance(0)

    # ---- subjects of steps -----------------------------------------------------------------------

    def key(self, namespace: str, number: int) -> Key:
        """A session by number: the existing ones, oldest first. From 6 on a session that may not
        exist."""
        there = [key for key in self.contract.sessions if key[0] == namespace]
        if number < 6 and there:
            return there[number % len(there)]
        return namespace, IDS[number % len(IDS)]

    def lease(self, number: int) -> Held | None:
        """A lease by number, newest first. Most of the old ones are lost."""
        return self.held[-1 - number % len(self.held)] if self.held else None

    def work(self) -> None:
        """Get a lease if there is none yet."""
        self.step(self.claimed("w2", None, 2, 1, LEASE))

    def of_one_worker(self, picked: list[int]) -> list[Held]:
        """Some leases of one worker, no two alike."""
        leases = [held for number in picked if (held := self.lease(number))]
        return [
            one
            for place, one in enumerate(leases)
            if one.worker == leases[0].worker and one not in leases[:place]
        ]

    def versions(self, key: Key, number: int) -> int | None:
        """The expected version of a caller: none, the present one, an old one, 0."""
        present = self.contract.version(key) or 0
        return {1: present, 2: max(0, present - 1), 3: 0}.get(number)

    def tails(self, key: Key, number: int) -> list[int] | None:
        """The expected end of a transcript: none, the present one, another one."""
        session = self.contract.sessions.get(key)
        seqs = [] if session is None else [entry.seq for entry in session.transcript]
        return {1: seqs[-2:], 2: seqs[:1], 3: seqs[-1:]}.get(number)

    # ---- one step --------------------------------------------------------------------------------

    def step(self, *asked: Call, handle: int = 0, apart: bool = True) -> list[Answer]:
        """Make the calls on the database at the same time, through one handle or through both in
        turn (``apart``), and compare with the contract."""
        self.asking = True
        answers, picture, broken = self.world.run(self._asked(asked, handle, apart))
        self.contract.now = self.world.now
        assert not broken, broken
        complaints = []
        for order, passed_over in self._explanations(asked):
            tried = deepcopy(self.contract) if len(asked) > 1 else self.contract
            wrong = self._wrong(tried, asked, answers, order, passed_over)
            if not wrong:
                wrong = tables.differences(picture, tables.expected(tried))
            if not wrong:
                tables.taken_over(tried, picture)
                self.contract = tried
                break
            if not passed_over:
                complaints.append((order, wrong))
        else:
            pytest.fail(self._report(asked, answers, complaints))
        order = {key: number for number, key in enumerate(self.contract.sessions)}
        for call in asked:
            self.held += sorted(call.got or [], key=lambda held: order.get(held.key, -1))
        self.asking = False
        return answers

    def _explanations(
        self, asked: tuple[Call, ...]
    ) -> Iterator[tuple[tuple[int, ...], frozenset[tuple[int, Key]]]]:
        """The possible orders of the calls, and the sessions that one of them may have skipped
        because another call was using them, with the index of the call."""
        orders = list(permutations(range(len(asked))))
        yield from ((order, frozenset()) for order in orders)
        if len(asked) == 1:
            return
        skipped = [
            (place, key)
            for place, call in enumerate(asked)
            for key, session in self.contract.sessions.items()
            if self._may_skip(call, session)
        ]
        for many in range(1, min(len(skipped), 4) + 1):
            for passed_over in combinations(skipped, many):
                yield from ((order, frozenset(passed_over)) for order in orders)

    def _may_skip(self, call: Call, session: Session) -> bool:
        """Whether a call skips this session while another call is using it."""
        match call.told.partition("(")[0]:
            case "reap":
                return session.state == "leased"
            case "wake":
                return session.state in ("leased", "waiting", "held")
            case "fire":
                return any(one.try_at <= self.world.now for one in session.later)
        return False

    def read(self, asked: Call) -> None:
        """Make a call that changes nothing."""
        answer = self.world.run(asked.ask(self.world.handles[1]))
        wanted = asked.foretell(self.contract, answer)
        assert answer == wanted, f"{asked.told}: answered {answer}, must be {wanted}"

    async def _asked(
        self, asked: tuple[Call, ...], handle: int, apart: bool
    ) -> tuple[list[Answer], tables.Picture, list[str]]:
        await self.world.advance(0.001)
        handles = self.world.handles
        answers = await asyncio.gather(
            *(call.ask(handles[(handle + n * apart) % 2]) for n, call in enumerate(asked))
        )
        return answers, *await self.world.look()

    def _wrong(
        self,
        tried: Contract,
        asked: tuple[Call, ...],
        answers: list[Answer],
        order: tuple[int, ...],
        passed_over: frozenset[tuple[int, Key]],
    ) -> list[str]:
        for place in order:
            tried.passed_over = frozenset(key for at, key in passed_over if at == place)
            try:
                wanted = asked[place].foretell(tried, answers[place])
            except Impossible as error:
                return [f"{asked[place].told}: {error}"]
            if wanted != answers[place]:
                return [f"{asked[place].told}: answered {answers[place]}, must be {wanted}"]
        return []

    def _report(self, asked: tuple[Call, ...], answers: list[Answer], complaints: list[Any]) -> str:
        lines = [f"{call.told} -> {answer}" for call, answer in zip(asked, answers, strict=True)]
        for order, wrong in complaints:
            lines += [f"in the order {order}:", *(f"    {line}" for line in wrong)]
        return "\n".join(lines)

    @initialize(held=st.booleans(), spawned=st.booleans())
    def begin(self, held: bool, spawned: bool) -> None:
        """Begin with some sessions: most calls on an empty database are refused."""
        for key in (("acme", "a"), ("acme", "b"), ("zeta", "a")):
            self.step(calls.register(key, None, None, False))
        self.step(calls.send(("acme", "a"), "hello"), calls.send(("acme", "a"), "go on"))
        if spawned:
            self.step(calls.spawn(("acme", "a"), "hello"))
        if held:
            self.step(self.claimed("w1", ["acme"], 3, 1, LEASE))

    # ---- the store -------------------------------------------------------------------------------

    @rule(ns=namespaces, number=numbers, messages=transcripts, expect=numbers)
    def save(self, ns: str, number: int, messages: list[Message], expect: int) -> None:
        key = self.key(ns, number)
        self.step(calls.save(key, messages, self.versions(key, expect)))

    @rule(ns=namespaces, number=numbers, messages=transcripts, expect=numbers)
    def append(self, ns: str, number: int, messages: list[Message], expect: int) -> None:
        key = self.key(ns, number)
        self.step(calls.append(key, messages, self.versions(key, expect)))

    @rule(
        ns=namespaces,
        number=numbers,
        messages=transcripts,
        keys=message_keys,
        keep_through=keep_throughs,
        expect=numbers,
        tail=numbers,
        create=st.booleans(),
    )
    def edit(
        self,
        ns: str,
        number: int,
        messages: list[Message],
        keys: list[str | None],
        keep_through: int | None,
        expect: int,
        tail: int,
        create: bool,
    ) -> None:
        key = self.key(ns, number)
        expected, ends = self.versions(key, expect), self.tails(key, tail)
        self.step(calls.edit(key, messages, keys, keep_through, expected, ends, create=create))

    @rule(ns=namespaces, number=numbers, count=st.integers(0, 3), expect=numbers)
    def pop(self, ns: str, number: int, count: int, expect: int) -> None:
        key = self.key(ns, number)
        self.step(calls.pop(key, count, self.versions(key, expect)))

    @rule(ns=namespaces, number=numbers, seq=st.integers(1, 4), message=message)
    def replace(self, ns: str, number: int, seq: int, message: Message) -> None:
        self.step(calls.replace(self.key(ns, number), seq, message))

    @rule(
        ns=namespaces,
        number=numbers,
        children=st.sampled_from(["detach", "cascade", "refuse"]),
        again=st.booleans(),
    )
    def delete(self, ns: str, number: int, children: str, again: bool) -> None:
        """Delete a session and create it again under the same id, while workers hold old leases."""
        key = self.key(ns, number)
        self.step(calls.delete(key, children))
        if again:
            self.step(calls.register(key, None, None, True))
            self.step(calls.send(key, "hello"))

    # ---- the registry ----------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        number=numbers,
        parent=st.one_of(st.none(), numbers),
        tools=toolsets,
        exist_ok=st.booleans(),
    )
    def register(
        self, ns: str, number: int, parent: int | None, tools: list[str] | None, exist_ok: bool
    ) -> None:
        above = None if parent is None else self.key(ns, parent)[1]
        self.step(calls.register(self.key(ns, number), above, tools, exist_ok))

    @rule(
        ns=namespaces,
        number=numbers,
        changes=st.fixed_dictionaries(
            {},
            optional={
                "channel": st.just("web"),
                "model": st.sampled_from([None, "m-2"]),
                "tools": toolsets,
                "metadata": st.sampled_from([None, {"x": 1}]),
            },
        ),
    )
    def update(self, ns: str, number: int, changes: dict[str, Any]) -> None:
        self.step(calls.update(self.key(ns, number), changes))

    @rule(ns=namespaces, number=numbers, subtree=st.booleans())
    def end(self, ns: str, number: int, subtree: bool) -> None:
        self.step(calls.end(self.key(ns, number), subtree, "enough" if subtree else None))

    # ---- sending ---------------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        number=numbers,
        text=texts,
        sender=st.one_of(st.none(), numbers),
        key=idempotency_keys,
    )
    def send(self, ns: str, number: int, text: str, sender: int | None, key: str | None) -> None:
        by = None if sender is None else self.key(ns, sender)[1]
        self.step(calls.send(self.key(ns, number), text, by, key))

    @rule(
        ns=namespaces,
        number=numbers,
        sent=st.lists(texts, min_size=1, max_size=3),
        kept=st.booleans(),
    )
    def send_in_transaction(self, ns: str, number: int, sent: list[str], kept: bool) -> None:
        self.step(calls.send_in_transaction(self.key(ns, number), sent, kept))

    @rule(
        ns=namespaces,
        number=numbers,
        prompt=texts,
        model=st.sampled_from([None, "m-3"]),
        tools=toolsets,
        key=idempotency_keys,
    )
    def spawn(
        self,
        ns: str,
        number: int,
        prompt: str,
        model: str | None,
        tools: list[str] | None,
        key: str | None,
    ) -> None:
        self.step(calls.spawn(self.key(ns, number), prompt, model, tools, key))

    @rule(ns=namespaces, number=numbers, again=st.booleans())
    def reopen_session(self, ns: str, number: int, again: bool) -> None:
        key = self.key(ns, number)
        if again and key in self.contract.sessions:
            self.step(calls.end(key, False, None))
        self.step(calls.reopen(key))

    # ---- stopping --------------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        number=numbers,
        position=st.integers(1, 6),
        unfinished=st.booleans(),
        keep=st.booleans(),
    )
    def cancel(self, ns: str, number: int, position: int, unfinished: bool, keep: bool) -> None:
        key = self.key(ns, number)
        session = self.contract.sessions.get(key)
        if unfinished and session is not None and session.line:
            position = session.line[position % len(session.line)].position
        self.step(calls.cancel(key, position, keep))

    @rule(ns=namespaces, number=numbers, subtree=st.booleans(), keep=st.booleans())
    def interrupt(self, ns: str, number: int, subtree: bool, keep: bool) -> None:
        self.step(calls.interrupt(self.key(ns, number), subtree, keep))

    @rule(ns=namespaces, number=numbers, position=st.integers(1, 5), dead=st.booleans())
    def requeue(self, ns: str, number: int, position: int, dead: bool) -> None:
        letters = self.dead()
        if dead and letters:
            self.step(calls.requeue(*letters[position % len(letters)]))
        else:
            self.step(calls.requeue(self.key(ns, number), position))

    def dead(self) -> list[tuple[Key, int]]:
        return [
            (key, letter.position)
            for key, session in self.contract.sessions.items()
            for letter in session.letters
            if letter.status == "dead"
        ]

    # ---- questions -------------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        pick=numbers,
        said=replies,
        expires_in=st.sampled_from([None, 3.0]),
        accepts=st.booleans(),
        more=st.booleans(),
    )
    def ask(
        self,
        ns: str,
        pick: int,
        said: list[Message],
        expires_in: float | None,
        accepts: bool,
        more: bool,
    ) -> None:
        """Most leases of a history are lost, so new ones are got for the question."""
        self.step(calls.send(self.key(ns, pick), "hello"))
        self.time_passes(LEASE + 1, then="claim", max_attempts=3)
        if held := self.lease(pick % 3):
            self.step(calls.ask(held, said, expires_in, accepts))
            if more and self.is_held(held.key):
                self.step(calls.send(held.key, "hello", held.key[1]))

    @rule(ns=namespaces, number=numbers, text=texts, again=st.booleans())
    def answer(self, ns: str, number: int, text: str, again: bool) -> None:
        asking = [key for key in self.contract.sessions if self.is_held(key)]
        key = asking[number % len(asking)] if asking else self.key(ns, number)
        position = self.question_of(key, 1 + number % 3)
        for _ in range(1 + again):
            self.step(calls.answer(key, position, text))

    def is_held(self, key: Key) -> bool:
        return key in self.contract.sessions and self.contract.sessions[key].state == "held"

    def question_of(self, key: Key, otherwise: int) -> int:
        session = self.contract.sessions.get(key)
        return (session.question if session is not None else None) or otherwise

    # ---- turns -----------------------------------------------------------------------------------

    def claimed(self, worker: str, scope: Any, slots: int, batch: int, lasting: float) -> Call:
        self.claims += 1
        return calls.claim(self.claims, worker, scope, slots, batch, lasting)

    @rule(worker=workers, scope=scopes, slots=st.integers(1, 3), batch=st.integers(1, 3), s=seconds)
    def claim(self, worker: str, scope: Any, slots: int, batch: int, s: float) -> None:
        self.step(self.claimed(worker, scope, slots, batch, s))

    @rule(picked=st.lists(numbers, min_size=1, max_size=3), said=replies)
    def commit(self, picked: list[int], said: list[Message]) -> None:
        if turns := [(held, said) for held in self.of_one_worker(picked)]:
            self.step(calls.commit(turns))
        else:
            self.work()

    @rule(
        pick=numbers,
        said=replies,
        staged=st.lists(
            st.tuples(st.sampled_from(["send", "spawn"]), numbers, texts), min_size=1, max_size=2
        ),
    )
    def commit_staged(
        self, pick: int, said: list[Message], staged: list[tuple[str, int, str]]
    ) -> None:
        if held := self.lease(pick):
            requests = [(verb, self.key(held.key[0], n)[1], text) for verb, n, text in staged]
            self.step(calls.commit_staged(held, said, requests))
        else:
            self.work()

    @rule(
        picked=st.lists(numbers, min_size=1, max_size=3),
        retry_in=st.sampled_from([None, 0.0, 3.0]),
    )
    def fail(self, picked: list[int], retry_in: float | None) -> None:
        if held := self.of_one_worker(picked):
            self.step(calls.fail(held, "Boom", retry_in))
        else:
            self.work()

    @rule(pick=numbers, limit=st.sampled_from([None, 1, 2]), more=texts)
    def join(self, pick: int, limit: int | None, more: str) -> None:
        """A message arrives, and the turn takes it."""
        if held := self.lease(pick):
            self.step(calls.send(held.key, more))
            self.step(calls.join(held, limit))
        else:
            self.work()

    @rule(pick=numbers, piece=st.sampled_from(["Once ", "upon a time"]))
    def stream(self, pick: int, piece: str) -> None:
        if held := self.lease(pick):
            self.step(calls.stream(held, piece))
        else:
            self.work()

    @rule(pick=numbers, said=replies, again=st.booleans())
    def rewrite(self, pick: int, said: list[Message], again: bool) -> None:
        """The transcript is rewritten under a turn, which then does not commit."""
        if held := self.lease(pick):
            self.step(calls.save(held.key, [MESSAGES[0]], None))
            self.step(calls.save(held.key, [MESSAGES[1]], None))
            self.step(calls.commit([(held, said)]))
            if again:
                self.step(calls.rerun(held))
        else:
            self.work()

    @rule(picked=st.lists(numbers, min_size=1, max_size=3))
    def release(self, picked: list[int]) -> None:
        if held := self.of_one_worker(picked):
            self.step(calls.release(held))
        else:
            self.work()

    @rule(worker=workers, picked=st.lists(numbers, max_size=2))
    def release_unknown(self, worker: str, picked: list[int]) -> None:
        known = [held for number in picked if (held := self.lease(number))]
        self.step(calls.release_unknown(worker, known))

    @rule(picked=st.lists(numbers, min_size=1, max_size=4), s=seconds)
    def heartbeat(self, picked: list[int], s: float) -> None:
        if held := self.of_one_worker(picked):
            self.step(calls.heartbeat(held, s))
        else:
            self.work()

    @rule(scope=scopes, max_attempts=st.integers(1, 3))
    def reap(self, scope: Any, max_attempts: int) -> None:
        self.step(calls.reap(scope, max_attempts))

    @rule(scope=scopes)
    def wake(self, scope: Any) -> None:
        self.step(calls.wake(scope))

    @rule(
        s=st.sampled_from([0.5, 3.0, LEASE + 1]),
        then=st.sampled_from(["", "", "reap", "wake", "claim"]),
        max_attempts=st.integers(1, 3),
    )
    def time_passes(self, s: float, then: str, max_attempts: int) -> None:
        self.world.run(self.world.advance(s))
        if then in ("reap", "claim"):
            self.step(calls.reap(None, max_attempts))
        if then in ("wake", "claim"):
            self.step(calls.wake(None))
        if then == "claim":
            self.step(self.claimed("w1", None, 3, 1, LEASE))

    # ---- schedules -------------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        number=numbers,
        text=texts,
        after=st.sampled_from([None, None, -5.0, 0.5, 20.0]),
        catch_up=st.sampled_from(["one", "all"]),
        fired=st.sampled_from([0.0, 0.0, 1.0, 70.0, 200.0]),
    )
    def schedule(
        self, ns: str, number: int, text: str, after: float | None, catch_up: str, fired: float
    ) -> None:
        """Schedule a message once, or each minute, and let time pass until it is fired."""
        self.step(self._scheduled(self.key(ns, number), text, after, catch_up))
        if fired:
            self.world.run(self.world.advance(fired))
            self.step(calls.fire(None))

    def _scheduled(self, key: Key, text: str, after: float | None, catch_up: str) -> Call:
        moment = None if after is None else self.world.now + timedelta(seconds=after)
        name = "often" if after is None else "once"
        return calls.schedule(key, text, name, moment, catch_up)

    @rule(ns=namespaces, number=numbers, name=st.sampled_from(["once", "often"]))
    def unschedule(self, ns: str, number: int, name: str) -> None:
        self.step(self._unscheduled(self.key(ns, number), name))

    def _unscheduled(self, key: Key, name: str) -> Call:
        session = self.contract.sessions.get(key)
        later = [] if session is None else session.later
        return calls.unschedule(key, name, next((one.id for one in later if one.name == name), "-"))

    @rule(scope=scopes, s=st.sampled_from([0.5, 2.0, 70.0]))
    def fire(self, scope: Any, s: float) -> None:
        self.world.run(self.world.advance(s))
        self.step(calls.fire(scope))

    @rule(number=st.integers(0, 1))
    def reopen(self, number: int) -> None:
        self.world.run(self.world.reopen(number))
        self.step()

    # ---- reading ---------------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        number=numbers,
        limit=st.sampled_from([None, 0, 1, 2]),
        before=st.sampled_from([None, None, 2, 4]),
        after=st.sampled_from([None, None, 0, 1]),
    )
    def look_at(
        self, ns: str, number: int, limit: int | None, before: int | None, after: int | None
    ) -> None:
        self.read(calls.look_at(self.key(ns, number), limit, before, after))

    @rule(
        ns=namespaces,
        wanted=st.fixed_dictionaries(
            {"include_ended": st.booleans()},
            optional={
                "channel": st.sampled_from(["cli", "spawned"]),
                "parent": numbers,
                "root": numbers,
                "after": numbers,
                "limit": st.integers(1, 3),
                "newest_first": st.booleans(),
            },
        ),
    )
    def list_sessions(self, ns: str, wanted: dict[str, Any]) -> None:
        for name in ("parent", "root", "after"):
            if name in wanted:
                wanted = wanted | {name: self.key(ns, wanted[name])[1]}
        self.read(calls.list_sessions(ns, **wanted))

    @rule(ns=namespaces, number=numbers, offset=st.integers(0, 2), limit=st.integers(1, 3))
    def list_others(self, ns: str, number: int, offset: int, limit: int) -> None:
        self.read(calls.list_records(ns, offset, limit))
        self.read(calls.dead_letters(ns, None, limit))
        self.read(calls.dead_letters(ns, self.key(ns, number)[1], 100))
        self.read(calls.outcome(self.key(ns, number), limit))

    # ---- several at once -------------------------------------------------------------------------

    @rule(
        ns=namespaces,
        wanted=st.lists(meetings, min_size=2, max_size=4),
        handle=st.integers(0, 1),
        apart=st.booleans(),
    )
    def at_once(self, ns: str, wanted: list[dict[str, Any]], handle: int, apart: bool) -> None:
        """Concurrent calls on few sessions, from one process or from two."""
        self.step(*(self._call(ns, **one) for one in wanted), handle=handle, apart=apart)

    def _call(self, ns: str, verb: str, session: int, lease: int, **given: Any) -> Call:
        key, held = self.key(ns, session), self.lease(lease)
        expected = self.versions(key, given["expect"])
        if verb in OF_LEASES and held is None:
            verb = "send"
        match verb:
            case "send":
                return calls.send(key, given["text"], given["sender"], given["key"])
            case "append":
                return calls.append(key, given["messages"], expected)
            case "edit":
                tail = self.tails(key, given["few"] if given["flag"] else 0)
                through = given["few"] if given["flag"] else None
                return calls.edit(key, given["messages"], ["k", "l"], through, expected, tail)
            case "pop":
                return calls.pop(key, given["few"], expected)
            case "save":
                return calls.save(key, given["messages"], expected)
            case "register":
                return calls.register(key, given["parent"], None, given["flag"])
            case "end":
                return calls.end(key, given["flag"], None)
            case "delete":
                return calls.delete(key, given["children"])
            case "spawn":
                return calls.spawn(key, given["text"], idempotency_key=given["key"])
            case "claim":
                self.claims += 1
                worker, slots, batch = given["worker"], given["few"], given["few"]
                return calls.claim(self.claims, worker, [ns], slots, batch, LEASE, alone=False)
            case "reap":
                return calls.reap([ns], given["few"])
            case "wake":
                return calls.wake([ns])
            case "requeue":
                return calls.requeue(key, given["few"])
            case "cancel":
                return calls.cancel(key, given["few"], given["flag"])
            case "interrupt":
                return calls.interrupt(key, False, given["flag"])
            case "reopen":
                return calls.reopen(key)
            case "schedule":
                after = {1: None, 2: -5.0, 3: 0.0}[given["few"]]
                return self._scheduled(key, given["text"], after, "all" if given["flag"] else "one")
            case "unschedule":
                return self._unscheduled(key, "often" if given["few"] == 1 else "once")
            case "fire":
                return calls.fire([ns] if given["flag"] else None)
            case "answer":
                return calls.answer(key, self.question_of(key, given["few"]), given["text"])
        assert held is not None
        match verb:
            case "commit":
                return calls.commit([(held, given["said"])])
            case "commit_staged":
                staged = [(given["stage"], given["to"], "go")]
                return calls.commit_staged(held, given["said"], staged)
            case "ask":
                return calls.ask(held, given["said"], given["retry_in"], given["flag"])
            case "fail":
                return calls.fail([held], "Boom", given["retry_in"])
            case "release":
                return calls.release([held])
            case "join":
                return calls.join(held, None)
            case "rerun":
                return calls.rerun(held)
            case "stream":
                return calls.stream(held, given["text"].replace("\x00", "").replace("\ud800", ""))
        return calls.heartbeat([held], LEASE)

    # ---- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Every accepted message is finished once workers run without faults."""
        if self.asking:
            return  # a step failed, and says why
        for _ in range(DRAIN_STEPS):
            if not any(session.line for session in self.contract.sessions.values()):
                break
            for key in list(self.contract.sessions):
                if self.is_held(key):
                    self.step(calls.interrupt(key, False, False))
            before = len(self.held)
            self.time_passes(LEASE + 1, then="claim", max_attempts=3)
            if self.held[before:]:
                self.step(calls.commit([(held, [MESSAGES[1]]) for held in self.held[before:]]))
        for key, session in self.contract.sessions.items():
            assert not session.line, f"{key} has unfinished messages, and no worker finds them"
            self.read(calls.look_at(key, None, None, None))
            for letter in session.letters:
                self.read(calls.outcome(key, letter.position))
        for namespace in NAMESPACES:
            self.read(calls.list_sessions(namespace, include_ended=True))
            self.read(calls.list_records(namespace, 0, None))
            self.read(calls.dead_letters(namespace, None, 100))


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with World(database) as world:
        yield world


def histories(world: World) -> type[History]:
    return type("History", (History,), {"world": world})


def test_a_random_history_is_as_the_contract_tells_it(world: World) -> None:
    run_state_machine_as_test(
        histories(world),
        settings=settings(
            max_examples=30 * SCALE,
            stateful_step_count=40,
            deadline=None,
            derandomize=SCALE == 1,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- regressions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["answer", "message", "late", "expire", "interrupt", "end", "cancel"]
)
def test_a_question_is_closed_once_and_its_session_goes_on(world: World, how: str) -> None:
    history = histories(world)()
    key, text = ("acme", "a"), "hello"
    history.step(calls.register(key, None, None, False))
    history.step(calls.send(key, text), calls.send(key, "go on"))
    history.step(history.claimed("w1", None, 1, 1, LEASE))
    history.step(calls.ask(history.held[-1], [MESSAGES[1]], 3.0, how == "message"))
    assert history.is_held(key)
    match how:
        case "message":
            history.step(calls.send(key, text, "a"), calls.send(key, "yes"), calls.send(key, "no"))
        case "late":
            history.time_passes(4.0, "", 3)
            history.step(calls.answer(key, 1, text))
        case "expire":
            history.time_passes(4.0, "wake", 3)
        case "interrupt":
            history.step(calls.interrupt(key, False, True), calls.answer(key, 1, text))
        case "end":
            history.step(calls.end(key, False, None), calls.answer(key, 1, text))
        case _:
            history.step(calls.answer(key, 1, text), calls.answer(key, 1, "no"))
            history.step(calls.answer(key, 1, text))
    if how in ("cancel", "expire"):
        history.step(history.claimed("w1", None, 1, 3, LEASE))
        history.step(calls.stream(history.held[-1], "Well"))
        history.step(calls.cancel(key, 3, True))
    history.step(calls.answer(key, 1, text))
    history.step(history.claimed("w1", None, 1, 3, LEASE))
    if how != "end":
        history.step(calls.commit_staged(history.held[-1], [], []))
    history.teardown()


def test_a_turn_of_a_deleted_session_can_not_commit_into_the_one_that_came_after(
    world: World,
) -> None:
    """The id and the worker are the same. Only the lease is another one."""
    history = histories(world)()
    key = ("acme", "a")
    for _ in range(2):
        history.step(calls.register(key, None, None, False))
        history.step(calls.send(key, "hello"))
        history.step(history.claimed("w1", None, 1, 1, LEASE))
        if len(history.held) == 1:
            history.step(calls.delete(key, "detach"))
    old, new = history.held
    history.step(calls.heartbeat([old], LEASE))
    history.step(calls.release([old]))
    history.step(calls.fail([old], "Boom", None))
    history.step(calls.commit([(old, [MESSAGES[1]])]))
    history.step(calls.commit([(new, [MESSAGES[1]])]))
    history.teardown()


def test_a_send_is_not_refused_for_the_way_that_another_send_with_its_key_has_come(
    world: World,
) -> None:
    """Two sends of one key in one batch. The first is over the limit of hops, the second is not."""
    history = histories(world)()
    senders = [None, "a", "b", "c"]
    for sender, id in zip(senders, "abcd", strict=True):
        history.step(calls.register(("acme", id), None, None, False))
        history.step(calls.send(("acme", id), "go on", sender))
        history.step(history.claimed("w1", None, 3, 1, LEASE))
    history.step(calls.register(("acme", "e"), None, None, False))
    # While the first is in flight the others gather, and go together.
    history.step(
        calls.send(("acme", "e"), "first"),
        calls.send(("acme", "e"), "hello", "d", "k1"),
        calls.send(("acme", "e"), "hello", None, "k1"),
        apart=False,
    )
    history.teardown()


@pytest.mark.parametrize("verb", ["release", "fail", "fail for good"])
def test_a_lost_lease_does_not_count_beside_the_one_that_came_after_it(
    world: World, verb: str
) -> None:
    """A worker lost a lease, claimed the session again, and releases both leases together."""
    history = histories(world)()
    key = ("acme", "a")
    history.step(calls.register(key, None, None, False))
    history.step(calls.send(key, "hello"))
    history.step(history.claimed("w1", None, 1, 1, LEASE))
    history.time_passes(LEASE + 1, then="claim", max_attempts=3)
    assert len(history.held) == 2
    if verb == "release":
        history.step(calls.release(history.held))
    else:
        history.step(calls.fail(history.held, "Boom", None if "good" in verb else 3.0))
    history.teardown()


def begun(world: World, messages: int = 2, batch: int = 1) -> tuple[History, Key]:
    """A session with a transcript and messages, and a worker on the first of them."""
    history = histories(world)()
    key = ("acme", "a")
    history.step(calls.register(key, None, None, False))
    history.step(calls.append(key, [MESSAGES[0]]))
    for _ in range(messages):
        history.step(calls.send(key, "hello"))
    history.step(history.claimed("w1", None, 1, batch, LEASE))
    return history, key


@pytest.mark.parametrize("keep", [True, False])
def test_a_stopped_turn_leaves_what_was_asked_and_streamed(world: World, keep: bool) -> None:
    history, key = begun(world)
    [turn] = history.held
    history.step(calls.stream(turn, "Once "))
    history.step(calls.stream(turn, "upon"))
    history.step(calls.cancel(key, 1, keep))
    history.step(calls.commit([(turn, [MESSAGES[1]])]))
    history.step(calls.cancel(key, 1, not keep))
    history.teardown()


def test_a_saved_message_that_came_through_the_inbox_stands_behind_its_turn(world: World) -> None:
    """The save removes the message and its reply, and appends both in another order."""
    history, key = begun(world)
    [turn] = history.held
    history.step(calls.commit([(turn, [MESSAGES[1]])]))
    history.step(calls.save(key, [MESSAGES[1], {"role": "user", "content": "hello"}], None))
    history.teardown()


def test_a_turn_that_is_rewritten_four_times_has_failed_once(world: World) -> None:
    history, key = begun(world)
    for number in range(4):
        turn = history.held[-1]
        history.step(calls.save(key, [MESSAGES[number % 2 + 1]], None))
        history.step(calls.commit([(turn, [MESSAGES[1]])]))
        if number < 3:
            history.step(calls.rerun(turn))
            history.step(history.claimed("w1", None, 1, 1, LEASE))
    history.step(calls.rerun(turn))
    history.step(calls.fail([turn], "TranscriptRewritten", 3.0))
    history.teardown()


@pytest.mark.parametrize("ending", ["commit", "fail", "die", "release", "rerun", "cancel", "reap"])
def test_messages_that_joined_a_turn_have_no_part_in_its_attempt(world: World, ending: str) -> None:
    history, key = begun(world, messages=3)
    [turn] = history.held
    history.step(calls.join(turn, 1))
    history.step(calls.join(turn, None))
    match ending:
        case "commit":
            history.step(calls.commit([(turn, [MESSAGES[1]])]))
        case "fail" | "die":
            history.step(calls.fail([turn], "Boom", 3.0 if ending == "fail" else None))
        case "release":
            history.step(calls.release([turn]))
        case "rerun":
            history.step(calls.rerun(turn))
        case "cancel":
            history.step(calls.cancel(key, 2, True))
        case "reap":
            history.time_passes(LEASE + 1, then="reap", max_attempts=1)
    history.teardown()


def test_a_turn_does_not_commit_without_a_message_that_joined_it(world: World) -> None:
    """The answer to the join was lost."""
    history, _key = begun(world)
    [turn] = history.held
    history.step(calls.join(turn, None))
    turn.joined.clear()
    history.step(calls.commit([(turn, [MESSAGES[1]])]))
    history.step(calls.rerun(turn))
    history.teardown()


# ---- broken variants of schedules ----------------------------------------------------------------


def scheduled(world: World, text: str = "hello") -> tuple[History, Key]:
    """A session with a message that is sent each minute."""
    history = histories(world)()
    key = ("acme", "a")
    history.step(calls.register(key, None, None, False))
    history.step(calls.schedule(key, text, "often", None, "all"))
    return history, key


def read_due(world: World) -> list[Any]:
    """The schedules that a worker reads as due now."""
    runner = open_database_of(world.handles[0]).runner
    read = partial(firing._lock_due, namespaces=None, present=world.now, limit=100)
    return list(world.run(runner.write(read)))


def test_a_variant_that_moves_the_due_time_in_another_transaction_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies between both transactions. So the message is sent twice."""
    history, key = scheduled(world)
    world.run(world.advance(70))
    history.step(calls.fire(None))
    history.step(calls.fire(None))
    world.run(world.advance(70))
    monkeypatch.setattr(firing, "_advance", lambda *_: None)
    with pytest.raises(pytest.fail.Exception, match="later is"):
        history.step(calls.fire(["acme"]))
    with pytest.raises(pytest.fail.Exception, match=r"answered .*\(1, 0\)"):
        history.step(calls.fire(["acme"]))
    assert len(world.run(world.look())[0][key]["inbox"]) == 3


@pytest.mark.parametrize("other", ["fire", "unschedule", "schedule"])
def test_a_variant_that_does_not_read_again_behind_its_lock_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Another call came between the reading and the lock. So what it changed is sent all the
    same: a second time, in spite of its removal, or with the text before."""
    history, key = scheduled(world)
    world.run(world.advance(70))
    due = read_due(world)
    match other:
        case "fire":
            history.step(calls.fire(None))
        case "unschedule":
            history.step(history._unscheduled(key, "often"))
        case _:
            history.step(calls.schedule(key, "go on", "often", None, "all"))
    monkeypatch.setattr(firing, "_lock_due", lambda *_: due)
    with pytest.raises(pytest.fail.Exception, match=r"answered .*\(1, 0\)|inbox is .*'hello'"):
        history.step(calls.fire(["acme"]))


def test_a_variant_that_forgets_the_due_time_of_a_full_inbox_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, key = scheduled(world)
    for _ in range(LIMITS.pending):
        history.step(calls.send(key, "hello"))
    world.run(world.advance(70))
    history.step(calls.fire(None))
    advance = firing._advance
    monkeypatch.setattr(
        firing,
        "_advance",
        lambda connection, row, accepted, _error, present: advance(
            connection, row, accepted, None, present
        ),
    )
    world.run(world.advance(2))
    with pytest.raises(pytest.fail.Exception, match=r"later is|answered"):
        history.step(calls.fire(None))
