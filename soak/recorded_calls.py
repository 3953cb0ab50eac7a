"""The calls of the package that the soak makes, and the fields recorded of each answer."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import text as sql
from sqlalchemy.exc import SQLAlchemyError

from sessionsdb import Edit, Receipt, Schedule, SessionId, SessionsDB, SpawnRequest, StorageError
from soak.caller import Answer, Caller

ROLLED_BACK = "RolledBack"
"""Stands for the name of an error when the caller rolled back its own transaction."""


async def register(db: SessionsDB, caller: Caller, session: str, channel: str) -> Answer:
    async def call() -> dict[str, Any]:
        await db.broker.register(session, channel=channel, peer=caller.name, exist_ok=True)
        return {}

    return await caller.ask("register", call, session=session)


async def send(
    db: SessionsDB,
    caller: Caller,
    session: str,
    text: str,
    *,
    key: str | None = None,
    within: float | None = None,
    when_busy: Literal["queue", "interrupt", "reject"] = "queue",
) -> Answer:
    async def call() -> dict[str, Any]:
        receipt = await db.broker.send(session, text, idempotency_key=key, when_busy=when_busy)
        return {"position": receipt.position, "duplicate": receipt.duplicate}

    return await caller.ask(
        "send", call, session=session, text=text, key=key, within=within, when_busy=when_busy
    )


_ORDER = sql("INSERT INTO orders (token) VALUES (:token)")


async def send_with_order(
    db: SessionsDB, caller: Caller, session: str, text: str, token: str, *, commit: bool
) -> Answer:
    """Send a message in a transaction of the caller, together with a row of the caller."""

    async def call() -> dict[str, Any]:
        try:
            async with db.engine.connect() as connection:
                await connection.execute(_ORDER, {"token": token})
                receipt = await db.broker.send(session, text, connection=connection)
                if not commit:
                    await connection.rollback()
                    return {"error": ROLLED_BACK}
                await connection.commit()
        except (SQLAlchemyError, OSError) as error:  # of the caller's own statements
            raise StorageError(str(error)) from error
        return {"position": receipt.position, "duplicate": receipt.duplicate}

    return await caller.ask("send with order", call, session=session, text=text, order=token)


async def spawn(
    db: SessionsDB,
    caller: Caller,
    session: str,
    text: str,
    *,
    key: str | None = None,
    patience: float | None = None,
    reports: bool = False,
) -> Answer:
    """``patience``: seconds to wait for the first reply, ``None`` for not to wait.

    ``reports``: whether the child reports to its parent.
    """
    request = SpawnRequest(
        prompt=text,
        wait_for_first_reply=patience is not None,
        wait_timeout_secs=patience or 0.0,
        report="each" if reports else "none",
    )

    async def call() -> dict[str, Any]:
        spawned = await db.broker.spawn(session, request, idempotency_key=key)
        reply = spawned.first_reply
        return {"child": spawned.id, "reply": None if reply is None else reply.content}

    return await caller.ask("spawn", call, session=session, text=text, key=key, reports=reports)


async def questions(db: SessionsDB, caller: Caller) -> Answer:
    """The ids of the oldest open questions."""

    async def call() -> dict[str, Any]:
        found = await db.broker.questions(limit=20)
        return {"open": [[one.session_id, one.id] for one in found]}

    return await caller.ask("questions", call)


async def answer(db: SessionsDB, caller: Caller, session: str, asked: str, text: str) -> Answer:
    """Answer a question by its id."""

    async def call() -> dict[str, Any]:
        receipt = await db.broker.answer(asked, text)
        return {"position": receipt.position, "duplicate": receipt.duplicate}

    return await caller.ask("answer", call, session=session, text=text, asked=asked)


async def schedule(
    db: SessionsDB, caller: Caller, session: str, text: str, *, seconds: float
) -> Answer:
    """Send a message after so many seconds."""
    due = datetime.now(UTC) + timedelta(seconds=seconds)

    async def call() -> dict[str, Any]:
        return {"schedule": (await db.broker.schedule(session, text, at=due)).id}

    due_at = f"{due:%Y-%m-%d %H:%M:%S.%f}"
    return await caller.ask("schedule", call, session=session, text=text, due_at=due_at)


async def ring(db: SessionsDB, caller: Caller, session: str, text: str) -> Answer:
    """Send a message each minute, also for the minutes in which no worker ran."""

    async def call() -> dict[str, Any]:
        made = await db.broker.schedule(session, text, cron="* * * * *", catch_up="all")
        return {"schedule": made.id, "created_at": _stored(made.created_at)}

    return await caller.ask("ring", call, session=session, text=text)


async def hush(db: SessionsDB, caller: Caller, session: str, schedule: Schedule) -> Answer:
    """Remove a schedule whose due times until ``due_at`` were sent."""

    async def call() -> dict[str, Any]:
        removed = await db.broker.unschedule(schedule.id)
        return {"removed": removed, "by": _stored(datetime.now(UTC))}

    return await caller.ask("hush", call, session=session, due_at=_stored(schedule.due_at))


async def fork(db: SessionsDB, caller: Caller, session: str, fork: str) -> Answer:
    async def call() -> dict[str, Any]:
        return {"fork": (await db.broker.fork(session, new_id=fork)).id}

    return await caller.ask("fork", call, session=session, fork=fork)


async def update_state(db: SessionsDB, caller: Caller, session: str, token: str) -> Answer:
    async def call() -> dict[str, Any]:
        state = await db.store.update_state(session, {token: "written by a client"})
        return {"version": state.version}

    return await caller.ask("update state", call, session=session, token=token)


async def edit(db: SessionsDB, caller: Caller, session: str, token: str) -> Answer:
    """Append a message, and add its token to the state in the same transaction."""
    change = Edit(
        append=[{"role": "user", "content": token}],
        state={"session": {token: "written by an edit"}},
    )

    async def call() -> dict[str, Any]:
        return {"version": (await db.store.edit(session, change)).version}

    return await caller.ask("edit", call, session=session, tokens=[token])


async def wait(
    db: SessionsDB, caller: Caller, session: str, position: int, *, seconds: float
) -> Answer:
    async def call() -> dict[str, Any]:
        receipt = _receipt(session, position)
        outcome = await db.broker.wait(receipt, timeout=seconds)
        reply = None if outcome.reply is None else outcome.reply.content
        return {"status": outcome.status, "reply": reply}

    return await caller.ask("wait", call, session=session, position=position)


async def outcome(db: SessionsDB, caller: Caller, session: str, position: int) -> Answer:
    async def call() -> dict[str, Any]:
        found = await db.broker.outcome(_receipt(session, position))
        reply = None if found.reply is None else found.reply.content
        return {"status": found.status, "reply": reply}

    return await caller.ask("outcome", call, session=session, position=position)


async def end(db: SessionsDB, caller: Caller, session: str, *, subtree: bool) -> Answer:
    async def call() -> dict[str, Any]:
        return {"ended": await db.broker.end(session, subtree=subtree, reason="soak")}

    return await caller.ask("end", call, session=session, subtree=subtree)


async def cancel(
    db: SessionsDB, caller: Caller, session: str, position: int, *, keep: bool
) -> Answer:
    async def call() -> dict[str, Any]:
        found = await db.broker.cancel(_receipt(session, position), keep_partial=keep)
        reply = None if found.reply is None else found.reply.content
        return {"status": found.status, "reply": reply}

    return await caller.ask("cancel", call, session=session, position=position, keep=keep)


async def interrupt(db: SessionsDB, caller: Caller, session: str, *, keep: bool) -> Answer:
    async def call() -> dict[str, Any]:
        found = await db.broker.interrupt(session, keep_partial=keep)
        return {"stopped": [[one.receipt.position, one.status] for one in found]}

    return await caller.ask("interrupt", call, session=session, keep=keep)


async def reopen(db: SessionsDB, caller: Caller, session: str) -> Answer:
    async def call() -> dict[str, Any]:
        return {"ended": (await db.broker.reopen(session)).ended_at is not None}

    return await caller.ask("reopen", call, session=session)


async def requeue(db: SessionsDB, caller: Caller, session: str, position: int) -> Answer:
    async def call() -> dict[str, Any]:
        await db.broker.requeue(_receipt(session, position))
        return {}

    return await caller.ask("requeue", call, session=session, position=position)


async def dead_letters(db: SessionsDB, caller: Caller) -> Answer:
    async def call() -> dict[str, Any]:
        dead = await db.broker.dead_letters(limit=20)
        return {"dead": [[one.receipt.session_id, one.receipt.position] for one in dead]}

    return await caller.ask("dead letters", call)


async def children(db: SessionsDB, caller: Caller, session: str) -> Answer:
    async def call() -> dict[str, Any]:
        found = await db.broker.list(parent=session, include_ended=True)
        return {"ids": [summary.id for summary in found]}

    return await caller.ask("list", call, session=session)


async def get(db: SessionsDB, caller: Caller, session: str) -> Answer:
    async def call() -> dict[str, Any]:
        details = await db.broker.get(session)
        return {
            "version": details.version,
            "count": details.message_count,
            "ended": details.ended_at is not None,
        }

    return await caller.ask("get", call, session=session)


async def history(db: SessionsDB, caller: Caller, session: str, limit: int) -> Answer:
    """Pairs of ``seq`` and a digest of role and content."""

    async def call() -> dict[str, Any]:
        page = await db.broker.history(session, limit)
        return {"page": [[m.seq, digest(m.role, m.content)] for m in page]}

    return await caller.ask("history", call, session=session)


async def version(db: SessionsDB, caller: Caller, session: str) -> Answer:
    async def call() -> dict[str, Any]:
        return {"version": await db.store.version(session)}

    return await caller.ask("version", call, session=session)


async def load(db: SessionsDB, caller: Caller, session: str) -> Answer:
    async def call() -> dict[str, Any]:
        return {"messages": len(await db.store.load(session) or [])}

    return await caller.ask("load", call, session=session)


async def append(db: SessionsDB, caller: Caller, session: str, tokens: list[str]) -> Answer:
    messages = [{"role": "user", "content": token} for token in tokens]

    async def call() -> dict[str, Any]:
        return {"version": await db.store.append(session, messages)}

    return await caller.ask("append", call, session=session, tokens=tokens)


async def save(
    db: SessionsDB, caller: Caller, session: str, token: str, *, replace: bool
) -> Answer:
    """Add an entry to a ledger, by compare-and-set. ``replace`` overwrites the last one."""
    before = await db.store.version(session)
    entries = await db.store.load(session) or []
    replaced = None
    if replace and entries:
        replaced = json.loads(entries.pop()["content"])["token"]
    # Two fields and a number that text can't carry: the exact JSON is kept beside the rendering.
    content = json.dumps({"token": token})
    entries.append({"role": "user", "content": content, "name": caller.name, "n": 2**70})

    async def call() -> dict[str, Any]:
        return {"version": await db.store.save(session, entries, expected_version=before or 0)}

    return await caller.ask("save", call, session=session, token=token, replaced=replaced)


async def cut(db: SessionsDB, caller: Caller, session: str, *, summary: str | None) -> Answer:
    """Remove the last message of a transcript, or replace the older half by a summary."""
    before = await db.store.version(session)
    entries = await db.store.load(session) or []
    if summary is None:
        kept = entries[:-1]
    else:
        kept = [{"role": "system", "content": summary}, *entries[len(entries) // 2 :]]

    async def call() -> dict[str, Any]:
        return {"version": await db.store.save(session, kept, expected_version=before or 0)}

    return await caller.ask("cut", call, session=session, summary=summary)


async def delete(db: SessionsDB, caller: Caller, session: str) -> Answer:
    async def call() -> dict[str, Any]:
        await db.store.delete(session)
        return {}

    return await caller.ask("delete", call, session=session)


def _stored(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"


def _receipt(session: str, position: int) -> Receipt:
    return Receipt(session_id=SessionId(session), position=position)


def digest(role: str, content: str) -> str:
    return hashlib.blake2b(f"{role}\0{content}".encode(), digest_size=8).hexdigest()
