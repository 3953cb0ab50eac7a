"""The calls of a history, in two forms: for the database and for the contract.

A ``Call`` is one request. Its answer is a plain value, or ``Refused`` with the name of an error. A
lease is named by the call that claimed it, because the contract has no epochs: to the contract no
two leases are equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import text as sql

from sessionsdb import (
    Edit,
    ListOptions,
    Outcome,
    Receipt,
    SessionsDB,
    SessionsDBError,
    SpawnRequest,
)
from sessionsdb.database import open_database_of
from sessionsdb.engine.sqlite.clock import CLOCK_OPTION
from sessionsdb.errors import TranscriptRewritten
from sessionsdb.messages.codec import decode, encode
from sessionsdb.operations import expiry, firing, joining, lease_ends, mailbox, questions
from sessionsdb.operations.inbox_types import Commit, Delivery, Fail, Lease
from sessionsdb.operations.question_rows import Ask
from sessionsdb.operations.turn_commit import commit_with_staged
from sessionsdb.runtime.requests import send_request, spawn_request
from sessionsdb.types import SessionDetails, SessionSummary
from sessionsdb.worker.reply import place_messages
from tests.reliability.contract import Contract, Key, Message, Refused
from tests.reliability.tables import kind_of
from tests.reliability.world import LIMITS


@dataclass(frozen=True)
class Held:
    """A lease that its worker remembers for the whole history."""

    worker: str
    claimed: Lease
    name: tuple[int, Key]
    joined: list[Delivery] = field(default_factory=list, compare=False)
    """The messages that joined the turn, as far as the worker knows."""

    @property
    def key(self) -> Key:
        return self.claimed.key

    @property
    def lease(self) -> Lease:
        return self.claimed._replace(deliveries=self.claimed.deliveries + self.joined)


@dataclass(frozen=True)
class Answer:
    value: Any = None
    refused: str | None = None


@dataclass
class Call:
    told: str
    """The call as text, for a report."""
    real: Callable[[SessionsDB], Awaitable[Any]]
    model: Callable[[Contract, Any], Any]
    """Answer the call. Gets the answer of the database too, and follows it where the contract
    leaves a choice."""
    got: Any = None
    """The leases of the answer, which later calls need."""

    async def ask(self, db: SessionsDB) -> Answer:
        try:
            return Answer(await self.real(db))
        except SessionsDBError as error:
            return Answer(refused=type(error).__name__)

    def foretell(self, contract: Contract, answer: Answer) -> Answer:
        """What the contract answers; raises ``Impossible``."""
        try:
            return Answer(self.model(contract, answer.value))
        except Refused as error:
            return Answer(refused=error.error)


# ---- the store -----------------------------------------------------------------------------------


def save(key: Key, messages: list[Message], expected: int | None) -> Call:
    return Call(
        f"save({key}, {messages}, {expected})",
        lambda db: at(db, key).store.save(key[1], messages, expected_version=expected),
        lambda c, _: c.save(key, messages, expected),
    )


def append(key: Key, messages: list[Message], expected: int | None = None) -> Call:
    return Call(
        f"append({key}, {messages}, {expected})",
        lambda db: at(db, key).store.append(key[1], messages, expected_version=expected),
        lambda c, _: c.append(key, messages, expected),
    )


def edit(
    key: Key,
    messages: list[Message],
    keys: list[str | None],
    keep_through: int | None = None,
    expected: int | None = None,
    tail: list[int] | None = None,
    *,
    create: bool = True,
) -> Call:
    keys = (keys + [None] * len(messages))[: len(messages)]
    change = Edit(
        append=messages,
        keys=keys,
        keep_through=keep_through,
        expected_version=expected,
        expected_tail=tail,
        create=create,
    )

    async def real(db: SessionsDB) -> Any:
        edited = await at(db, key).store.edit(key[1], change)
        return edited.version, edited.appended, edited.removed

    return Call(
        f"edit({key}, {change!r})",
        real,
        lambda c, _: c.edit(key, messages, keys, keep_through, expected, tail, create),
    )


def pop(key: Key, count: int, expected: int | None = None) -> Call:
    return Call(
        f"pop({key}, {count}, {expected})",
        lambda db: at(db, key).store.pop(key[1], count, expected_version=expected),
        lambda c, _: c.pop(key, count, expected),
    )


def replace(key: Key, seq: int, message: Message, expected: int | None = None) -> Call:
    return Call(
        f"replace({key}, {seq}, {message}, {expected})",
        lambda db: at(db, key).store.replace(key[1], seq, message, expected_version=expected),
        lambda c, _: c.replace(key, seq, message, expected),
    )


def delete(key: Key, children: Any) -> Call:
    return Call(
        f"delete({key}, {children})",
        lambda db: at(db, key).store.delete(key[1], children=children),
        lambda c, _: c.delete(key, children),
    )


# ---- the registry --------------------------------------------------------------------------------


def register(key: Key, parent: str | None, tools: list[str] | None, exist_ok: bool) -> Call:
    given: dict[str, Any] = {
        "channel": "cli",
        "peer": "me",
        "model": "m-1",
        "tools": tools,
        "metadata": {"of": key[1]},
    }

    async def real(db: SessionsDB) -> Any:
        made = await at(db, key).broker.register(key[1], parent=parent, exist_ok=exist_ok, **given)
        return plain(made)

    return Call(
        f"register({key}, parent={parent}, tools={tools}, exist_ok={exist_ok})",
        real,
        lambda c, _: c.register(key, exist_ok=exist_ok, parent=parent, **given),
    )


def update(key: Key, changes: dict[str, Any]) -> Call:
    async def real(db: SessionsDB) -> Any:
        return plain(await at(db, key).broker.update(key[1], **changes))

    return Call(f"update({key}, {changes})", real, lambda c, _: c.update(key, **changes))


def end(key: Key, subtree: bool, reason: str | None) -> Call:
    return Call(
        f"end({key}, subtree={subtree}, reason={reason})",
        lambda db: at(db, key).broker.end(key[1], subtree=subtree, reason=reason),
        lambda c, _: c.end(key, subtree=subtree, reason=reason),
    )


def reopen(key: Key) -> Call:
    async def real(db: SessionsDB) -> Any:
        return plain(await at(db, key).broker.reopen(key[1]))

    return Call(f"reopen({key})", real, lambda c, _: c.reopen(key))


# ---- stopping ------------------------------------------------------------------------------------


def cancel(key: Key, position: int, keep_partial: bool) -> Call:
    async def real(db: SessionsDB) -> Any:
        receipt = Receipt(session_id=key[1], position=position)
        return told(await at(db, key).broker.cancel(receipt, keep_partial=keep_partial))

    return Call(
        f"cancel({key}, {position}, keep_partial={keep_partial})",
        real,
        lambda c, _: c.cancel(key, position, keep_partial),
    )


def interrupt(key: Key, subtree: bool, keep_partial: bool) -> Call:
    async def real(db: SessionsDB) -> Any:
        broker = at(db, key).broker
        stopped = await broker.interrupt(key[1], subtree=subtree, keep_partial=keep_partial)
        return [told(one) for one in stopped]

    return Call(
        f"interrupt({key}, subtree={subtree}, keep_partial={keep_partial})",
        real,
        lambda c, _: c.interrupt(key, subtree, keep_partial),
    )


# ---- sending -------------------------------------------------------------------------------------


def send(
    key: Key, text: str, sender: str | None = None, idempotency_key: str | None = None
) -> Call:
    async def real(db: SessionsDB) -> Any:
        receipt = await at(db, key).broker.send(
            key[1], text, sender=sender, idempotency_key=idempotency_key
        )
        return receipt.position, receipt.duplicate

    return Call(
        f"send({key}, {text!r}, sender={sender}, key={idempotency_key})",
        real,
        lambda c, _: c.send(key, text, sender=sender, idempotency_key=idempotency_key),
    )


def send_in_transaction(key: Key, texts: list[str], kept: bool) -> Call:
    """Send on a connection of the caller, which then commits or rolls back."""

    async def real(db: SessionsDB) -> Any:
        async with db.engine.connect() as connection:
            clock = getattr(open_database_of(db).runner, "_clock", None)
            await connection.execution_options(**{CLOCK_OPTION: clock})
            sent: list[Any] = []
            for text in texts:
                try:
                    receipt = await at(db, key).broker.send(key[1], text, connection=connection)
                    sent.append((receipt.position, receipt.duplicate))
                except SessionsDBError as error:
                    sent.append(type(error).__name__)
            if kept:
                await connection.commit()
            else:
                await connection.rollback()
        return sent

    def model(contract: Contract, _: Any) -> Any:
        before = None if kept else deepcopy(contract.sessions)
        sent: list[Any] = []
        for text in texts:
            try:
                sent.append(contract.send(key, text))
            except Refused as error:
                sent.append(error.error)
        if before is not None:
            contract.sessions = before
        return sent

    return Call(f"send_in_transaction({key}, {texts}, kept={kept})", real, model)


def spawn(
    parent: Key,
    prompt: str,
    model: str | None = None,
    tools: list[str] | None = None,
    idempotency_key: str | None = None,
) -> Call:
    request = SpawnRequest(prompt=prompt, model=model, tools=tools)

    async def real(db: SessionsDB) -> Any:
        made = await at(db, parent).broker.spawn(
            parent[1], request, idempotency_key=idempotency_key
        )
        return str(made.id)

    return Call(
        f"spawn({parent}, {prompt!r}, model={model}, tools={tools}, key={idempotency_key})",
        real,
        lambda c, answer: c.spawn(
            parent,
            answer or "refused-0",
            prompt,
            model=model,
            tools=tools,
            idempotency_key=idempotency_key,
        ),
    )


def requeue(key: Key, position: int) -> Call:
    return Call(
        f"requeue({key}, {position})",
        lambda db: at(db, key).broker.requeue(Receipt(session_id=key[1], position=position)),
        lambda c, _: c.requeue(key, position),
    )


# ---- turns ---------------------------------------------------------------------------------------


def claim(
    number: int,
    worker: str,
    namespaces: list[str] | None,
    slots: int,
    batch: int,
    seconds: float,
    *,
    alone: bool = True,
) -> Call:
    call: Call

    async def real(db: SessionsDB) -> Any:
        leases: list[Lease] = await open_database_of(db).runner.write_autocommit(
            partial(
                mailbox.claim,
                worker=worker,
                namespaces=namespaces,
                slots=slots,
                batch=batch,
                lease_seconds=seconds,
            )
        )
        call.got = [Held(worker, lease, (number, lease.key)) for lease in leases]
        deliveries = {
            lease.key: [
                (one.position, said(one.message), one.attempt, one.sender, *one.chain)
                for one in lease.deliveries
            ]
            for lease in leases
        }
        # The session at the moment of the lease. With concurrent writers the contract does not know
        # that moment.
        return deliveries, {one.key: plain(one.session) for one in leases} if alone else {}

    def model(contract: Contract, answer: Any) -> Any:
        got = {key: ((number, key), len(handed)) for key, handed in answer[0].items()}
        deliveries = contract.claim(worker, namespaces, slots, batch, seconds, got, alone=alone)
        return deliveries, {key: contract.details(key) for key in got} if alone else {}

    scope = f"{namespaces}, slots={slots}, batch={batch}, seconds={seconds}"
    call = Call(f"claim #{number} by {worker} ({scope})", real, model)
    return call


def commit(turns: list[tuple[Held, list[Message]]]) -> Call:
    """Turns of one worker, committed in one statement."""
    worker = turns[0][0].worker
    commits = [_commit(*turn) for turn in turns]
    asked = [
        (held.key, held.name, replies, commit.lease.positions)
        for (held, replies), commit in zip(turns, commits, strict=True)
    ]

    async def real(db: SessionsDB) -> Any:
        runner = open_database_of(db).runner
        # As a worker does: a turn over an answer commits in a transaction.
        in_transaction = any(one.lease.is_about_question for one in commits)
        write = runner.write if in_transaction else runner.write_autocommit
        answers = await write(partial(mailbox.commit, worker=worker, turns=commits))
        return [
            None if isinstance(answer, TranscriptRewritten) else answer is True
            for answer in answers
        ]

    return Call(
        f"commit({[(name, replies, known) for _, name, replies, known in asked]})",
        real,
        lambda c, _: [c.commit(*turn) for turn in asked],
    )


def stream(held: Held, text: str) -> Call:
    """A piece of a running turn's reply."""

    def operation(connection: Any) -> bool:
        return add_piece(connection, held.worker, held.lease, text)

    return Call(
        f"stream({held.name}, {text!r})",
        lambda db: open_database_of(db).runner.write(operation),
        lambda c, _: c.stream(held.key, held.name, text),
    )


def join(held: Held, limit: int | None) -> Call:
    """Waiting messages join a running turn."""

    async def real(db: SessionsDB) -> Any:
        joined = await open_database_of(db).runner.write(
            partial(joining.join, worker=held.worker, lease=held.claimed, limit=limit)
        )
        held.joined.extend(joined)
        return [one.position for one in joined]

    return Call(
        f"join({held.name}, {limit})", real, lambda c, _: c.join(held.key, held.name, limit)
    )


def rerun(held: Held) -> Call:
    return Call(
        f"rerun({held.name})",
        lambda db: open_database_of(db).runner.write(
            partial(lease_ends.rerun, worker=held.worker, lease=held.lease)
        ),
        lambda c, _: c.rerun(held.key, held.name),
    )


def commit_staged(held: Held, replies: list[Message], staged: list[tuple[str, str, str]]) -> Call:
    """A turn that stages sends and spawns: ``(verb, id, text)``."""
    made: list[str] = []
    commit = _commit(held, replies)

    def operation(connection: Any) -> list[str]:
        chain = held.lease.chain.next(held.lease.session.id)
        requests = []
        made.clear()
        for verb, id, text in staged:
            if verb == "send":
                sender = held.lease.session.id
                requests.append(send_request(held.key[0], id, text, LIMITS, sender, chain=chain))
                made.append(id)
            else:
                request = SpawnRequest(prompt=text)
                spawned = spawn_request(*held.key, request, LIMITS)
                requests.append(spawned)
                made.append(spawned.session_id)
        commit_with_staged(connection, held.worker, commit, requests, LIMITS)
        return made

    async def real(db: SessionsDB) -> Any:
        return list(await open_database_of(db).runner.write(operation))

    def model(contract: Contract, answer: Any) -> Any:
        # A refused turn has no ids for its children.
        ids = answer or [
            id if verb == "send" else f"refused-{number}"
            for number, (verb, id, _) in enumerate(staged)
        ]
        turns = [(verb, id, text) for (verb, _, text), id in zip(staged, ids, strict=True)]
        known = commit.lease.positions
        contract.commit_staged(held.key, held.name, replies, known, turns)
        return ids

    return Call(f"commit_staged({held.name}, {replies}, {staged})", real, model)


def ask(held: Held, replies: list[Message], expires_in: float | None, accepts: bool) -> Call:
    """A turn that asks a question to a person."""
    commit = _commit(held, replies)
    question = Ask("Well?", None, accepts, expires_in)
    return Call(
        f"ask({held.name}, {replies}, {expires_in}, accepts={accepts})",
        lambda db: open_database_of(db).runner.write(
            partial(
                commit_with_staged,
                worker=held.worker,
                commit=commit,
                staged=[question],
                limits=LIMITS,
            )
        ),
        lambda c, _: c.ask(
            held.key, held.name, replies, commit.lease.positions, expires_in, accepts
        ),
    )


def answer(key: Key, position: int, text: str) -> Call:
    async def real(db: SessionsDB) -> Any:
        receipt = await at(db, key).broker.answer(f"{key[1]}:{position}", text)
        return receipt.position, receipt.duplicate

    return Call(
        f"answer({key}, {position}, {text!r})", real, lambda c, _: c.answer(key, position, text)
    )


def fail(leases: list[Held], error: str, retry_in: float | None) -> Call:
    """Failed turns of one worker, recorded together."""
    failures = [Fail(held.lease, error, retry_in) for held in leases]
    return Call(
        f"fail({[held.name for held in leases]}, {error}, retry_in={retry_in})",
        lambda db: open_database_of(db).runner.write(
            partial(lease_ends.fail, worker=leases[0].worker, failures=failures)
        ),
        lambda c, _: [c.fail(held.key, held.name, error, retry_in) for held in leases],
    )


def release(leases: list[Held]) -> Call:
    """Leases of one worker that stops."""

    def model(contract: Contract, _: Any) -> None:
        for held in leases:
            contract.release(held.key, held.name)

    return Call(
        f"release({[held.name for held in leases]})",
        lambda db: open_database_of(db).runner.write(
            partial(
                lease_ends.release,
                worker=leases[0].worker,
                leases=[held.lease for held in leases],
            )
        ),
        model,
    )


def release_unknown(worker: str, known: Sequence[Held]) -> Call:
    fences = [one.lease.fence for one in known]
    return Call(
        f"release_unknown({worker}, {[one.name for one in known]})",
        lambda db: open_database_of(db).runner.write(
            partial(lease_ends.release_unknown, worker=worker, known=fences)
        ),
        lambda c, _: c.release_unknown(worker, [(one.key, one.name) for one in known]),
    )


def heartbeat(leases: list[Held], seconds: float) -> Call:
    """Leases of one worker, renewed in one statement."""
    fences = [(one.lease.key, one.lease.epoch) for one in leases]
    return Call(
        f"heartbeat({[one.name for one in leases]}, {seconds})",
        lambda db: open_database_of(db).runner.write_autocommit(
            partial(
                mailbox.heartbeat, worker=leases[0].worker, fences=fences, lease_seconds=seconds
            )
        ),
        lambda c, _: c.heartbeat([(one.key, one.name) for one in leases], seconds),
    )


def reap(namespaces: list[str] | None, max_attempts: int) -> Call:
    async def real(db: SessionsDB) -> Any:
        reaped = await open_database_of(db).runner.write(
            partial(expiry.reap, namespaces=namespaces, max_attempts=max_attempts)
        )
        return reaped.leases, reaped.dead

    return Call(
        f"reap({namespaces}, max_attempts={max_attempts})",
        real,
        lambda c, _: c.reap(namespaces, max_attempts),
    )


def wake(namespaces: list[str] | None) -> Call:
    return Call(
        f"wake({namespaces})",
        lambda db: open_database_of(db).runner.write(partial(expiry.wake, namespaces=namespaces)),
        lambda c, _: c.wake(namespaces),
    )


# ---- schedules -----------------------------------------------------------------------------------


def schedule(key: Key, text: str, name: str, moment: datetime | None, catch_up: Any) -> Call:
    """Schedule a message for a moment, or without one for each minute."""

    async def real(db: SessionsDB) -> Any:
        cron = "* * * * *" if moment is None else None
        made = await at(db, key).broker.schedule(
            key[1], text, at=moment, cron=cron, name=name, catch_up=catch_up
        )
        return made.id, made.due_at

    return Call(
        f"schedule({key}, {text!r}, {name}, {moment}, {catch_up})",
        real,
        lambda c, made: c.schedule(key, text, name, moment, catch_up, made and made[0]),
    )


def unschedule(key: Key, name: str, id: str) -> Call:
    """Remove the schedule with this id. Name and session are those that it had before the step."""
    return Call(
        f"unschedule({key}, {name})",
        lambda db: at(db, key).broker.unschedule(id),
        lambda c, _: c.unschedule(key[0], id),
    )


def fire(namespaces: list[str] | None) -> Call:
    async def real(db: SessionsDB) -> Any:
        work = partial(firing.fire, namespaces=namespaces, limits=LIMITS)
        return tuple(await open_database_of(db).runner.write(work))

    return Call(f"fire({namespaces})", real, lambda c, _: c.fire(namespaces))


# ---- reading -------------------------------------------------------------------------------------


def look_at(key: Key, limit: int | None, before: int | None, after: int | None) -> Call:
    """Everything that a reader can ask about one session."""

    async def real(db: SessionsDB) -> Any:
        here = at(db, key)
        loaded = await here.store.load(key[1]), await here.store.version(key[1])
        history = await here.broker.history(key[1], limit, before=before, after=after)
        details = await here.broker.get(key[1])
        return loaded, [dict(message) for message in history], plain(details)

    def model(contract: Contract, _: Any) -> Any:
        loaded = contract.load(key), contract.version(key)
        return loaded, contract.history(key, limit, before, after), contract.details(key)

    return Call(f"look_at({key}, {limit}, before={before}, after={after})", real, model)


def list_records(namespace: str, offset: int, limit: int | None) -> Call:
    async def real(db: SessionsDB) -> Any:
        store = db.in_namespace(namespace).store
        page = await store.list_paginated(ListOptions(offset=offset, limit=limit))
        return [dict(record) for record in await store.list()], [dict(record) for record in page]

    return Call(
        f"list_records({namespace}, {offset}, {limit})",
        real,
        lambda c, _: (c.records(namespace), c.records(namespace, offset, limit)),
    )


def list_sessions(namespace: str, **wanted: Any) -> Call:
    async def real(db: SessionsDB) -> Any:
        return [plain(one) for one in await db.in_namespace(namespace).broker.list(**wanted)]

    return Call(
        f"list_sessions({namespace}, {wanted})", real, lambda c, _: c.page(namespace, **wanted)
    )


def outcome(key: Key, position: int) -> Call:
    async def real(db: SessionsDB) -> Any:
        receipt = Receipt(session_id=key[1], position=position)
        return told(await at(db, key).broker.outcome(receipt))

    return Call(f"outcome({key}, {position})", real, lambda c, _: c.outcome(key, position))


def dead_letters(namespace: str, id: str | None, limit: int) -> Call:
    async def real(db: SessionsDB) -> Any:
        dead = await db.in_namespace(namespace).broker.dead_letters(id, limit=limit)
        return [told(one) for one in dead]

    return Call(
        f"dead_letters({namespace}, {id}, {limit})",
        real,
        lambda c, _: c.dead_letters(namespace, id, limit),
    )


# ---- parts ---------------------------------------------------------------------------------------


def at(db: SessionsDB, key: Key) -> SessionsDB:
    return db.in_namespace(key[0])


def plain(value: SessionSummary | SessionDetails) -> dict[str, Any]:
    fields = dict(value)
    if (held := fields.get("held")) is not None:
        fields["held"] = held.id
    return fields


def told(outcome: Outcome) -> dict[str, Any]:
    """The fields of an outcome. The message as it was sent is for inboxes only."""
    receipt = outcome.receipt
    fields = {name: value for name, value in outcome if name != "message"}
    return fields | {
        "receipt": (receipt.session_id, receipt.position, receipt.duplicate),
        "reply": None if outcome.reply is None else outcome.reply.content,
        "question": None if outcome.question is None else outcome.question.id,
        "error": kind_of(outcome.error),
    }


def said(message: Any) -> str:
    """The text of a delivered message, as it was sent."""
    return str(decode(*message)["content"])


def add_piece(connection: Any, worker: str, lease: Lease, text: str) -> bool:
    """Add a piece to the text that a turn has streamed, if its lease is still held."""
    given = {
        "namespace": lease.namespace,
        "session_id": lease.session.id,
        "worker": worker,
        "epoch": lease.epoch,
        "piece": text,
    }
    return bool(connection.execute(_ADD_PIECE, given).rowcount)


_ADD_PIECE = sql("""
    INSERT INTO pieces (namespace, session_id, epoch, generation, number, start, text, written_at)
    SELECT m.namespace, m.session_id, m.epoch, 0,
           (SELECT count(*) FROM pieces AS p WHERE p.namespace = m.namespace
            AND p.session_id = m.session_id AND p.epoch = m.epoch),
           (SELECT coalesce(sum(length(p.text)), 0) FROM pieces AS p WHERE p.namespace = m.namespace
            AND p.session_id = m.session_id AND p.epoch = m.epoch),
           :piece, CURRENT_TIMESTAMP
    FROM mailboxes AS m
    WHERE m.namespace = :namespace AND m.session_id = :session_id
      AND m.owner = :worker AND m.epoch = :epoch
""")


def _commit(held: Held, replies: list[Message]) -> Commit:
    answers = [encode(reply, max_bytes=100_000) for reply in replies]
    first = held.lease.deliveries[0]
    is_notice = first.answers is not None and said(first.message) == questions.EXPIRY_TEXT
    notice = first.position if is_notice else None
    messages, beside = place_messages(held.lease.deliveries, answers, notice)
    return Commit(held.lease, messages, beside=beside)
