"""The whole database as one value, read by plain SQL, and the value that the contract requires."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from tests.reliability.contract import ANY, Contract, Key, rendered

Picture = dict[Key, dict[str, Any]]

SESSIONS = text("""
    SELECT s.*, m.session_id AS mailbox, m.tail, m.pending, m.taken, m.ready_at, m.wake_at,
           m.owner, m.lease_until, m.closed, m.last_taken, m.question, m.accepts_message,
           m.answer
    FROM sessions AS s
    LEFT JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
""")
MESSAGES = text("SELECT * FROM messages ORDER BY namespace, session_id, seq")
QUESTIONS = text("SELECT * FROM questions ORDER BY namespace, session_id, position")
LATER = text("SELECT * FROM schedules ORDER BY namespace, session_id, name")
INBOX = text("SELECT * FROM inbox ORDER BY namespace, session_id, position")


def stored(connection: Connection) -> Picture:
    """The content of the tables."""
    picture: Picture = {}
    for row in connection.execute(SESSIONS):
        picture[row.namespace, row.id] = {
            "spawn_key": row.idempotency_key,
            "channel": row.channel,
            "peer": row.peer,
            "parent": row.parent_id,
            "root": row.root_id,
            "depth": row.depth,
            "model": row.model,
            "system": row.system,
            "tools": None if row.tools is None else json.loads(row.tools),
            "metadata": {} if row.metadata is None else json.loads(row.metadata),
            "created_at": moment(row.created_at),
            "updated_at": moment(row.updated_at),
            "last_active": moment(row.last_active),
            "ended_at": moment(row.ended_at),
            "end_reason": row.end_reason,
            "version": row.version,
            "last_seq": row.last_seq,
            "rewrites": row.rewrites,
            "message_count": row.message_count,
            "mailbox": _state(row),
            "owner": row.owner,
            "tail": row.tail,
            "pending": row.pending,
            "taken": row.taken,
            "last_taken": row.last_taken,
            "question": (row.question, bool(row.accepts_message)),
            "answer": row.answer,
            "withdrawn": row.withdrawn,
            "questions": [],
            "later": [],
            "transcript": [],
            "inbox": [],
        }
    for row in connection.execute(MESSAGES):
        picture[row.namespace, row.session_id]["transcript"].append(
            (row.seq, row.role, row.content, moment(row.created_at), row.position, row.extra)
        )
    for row in connection.execute(QUESTIONS):
        picture[row.namespace, row.session_id]["questions"].append(
            (row.position, row.status, bool(row.accept_message), moment(row.expires_at))
        )
    for row in connection.execute(LATER):
        picture[row.namespace, row.session_id]["later"].append(
            (
                row.name,
                row.id,
                row.content,
                moment(row.due_at),
                moment(row.try_at),
                row.refused_at is not None,
            )
        )
    for row in connection.execute(INBOX):
        picture[row.namespace, row.session_id]["inbox"].append(
            {
                "position": row.position,
                "status": row.status,
                "content": row.content,
                "sender": row.sender,
                "hops": row.hops,
                "origin": row.origin,
                "key": row.idempotency_key,
                "attempts": row.attempts,
                "error": kind_of(row.error),
                "enqueued_at": moment(row.enqueued_at),
                "finished_at": moment(row.finished_at),
                "dead_at": moment(row.dead_at),
                "ahead": bool(row.ahead),
                "joined": bool(row.joined),
                "reruns": row.reruns,
                "stopped_by": row.stopped_by,
                "answers": row.answers,
                "asked": bool(row.asked),
                "span": None if row.first_seq is None else (row.first_seq, row.last_seq),
            }
        )
    return picture


def expected(contract: Contract) -> Picture:
    """The content that the contract requires."""
    picture: Picture = {}
    for key, session in contract.sessions.items():
        ancestors = contract.ancestors(key)
        picture[key] = {
            "spawn_key": session.spawned_by and session.spawned_by[0],
            "channel": session.channel,
            "peer": session.peer,
            "parent": session.parent,
            "root": ancestors[-1] if ancestors else None,
            "depth": len(ancestors),
            "model": session.model,
            "system": session.system,
            "tools": session.tools,
            "metadata": session.metadata,
            "created_at": session.created_at,
            "updated_at": session.updated_at,
            "last_active": session.last_active,
            "ended_at": session.ended_at,
            "end_reason": session.end_reason,
            "version": session.version,
            "last_seq": session.last_seq,
            "rewrites": session.rewrites,
            "message_count": len(session.transcript),
            "mailbox": (session.state, session.moment),
            "owner": session.owner,
            "tail": len(session.letters),
            "pending": len(session.line),
            "taken": len(session.running),
            "last_taken": max(
                (one.position for one in session.running if not one.ahead), default=0
            ),
            "question": (
                session.question,
                session.question is not None and session.questions[session.question].accepts,
            ),
            "answer": session.answer,
            "withdrawn": session.withdrawn,
            "questions": [
                (position, one.status, one.accepts, one.expires_at)
                for position, one in sorted(session.questions.items())
            ],
            "later": [
                (one.name, one.id, rendered(one.text), one.due_at, one.try_at, one.refused)
                for one in sorted(session.later, key=lambda one: one.name)
            ],
            "transcript": [
                (
                    entry.seq,
                    entry.role,
                    rendered(entry.message["content"]),
                    entry.at,
                    entry.position,
                    entry.extra,
                )
                for entry in session.transcript
            ],
            "inbox": [
                {
                    "position": letter.position,
                    "status": letter.status,
                    "content": rendered(letter.text),
                    "sender": letter.sender,
                    "hops": letter.hops,
                    "origin": letter.origin,
                    "key": letter.key,
                    "attempts": letter.attempts,
                    "error": letter.error,
                    "enqueued_at": letter.enqueued_at,
                    "finished_at": letter.finished_at,
                    "dead_at": letter.finished_at if letter.status == "dead" else None,
                    "ahead": letter.ahead,
                    "joined": letter.joined,
                    "reruns": letter.reruns,
                    "stopped_by": letter.stopped_by,
                    "answers": letter.answers,
                    "asked": letter.asked,
                    "span": letter.span,
                }
                for letter in session.letters
            ],
        }
    return picture


def differences(stored: Picture, expected: Picture) -> list[str]:
    """The differences, a line each."""
    found = [f"{key} must not be there" for key in stored.keys() - expected.keys()]
    found += [f"{key} is missing" for key in expected.keys() - stored.keys()]
    for key in sorted(stored.keys() & expected.keys()):
        found += [
            f"{key}: {name} is {stored[key][name]!r}, must be {wanted!r}"
            for name, wanted in expected[key].items()
            if wanted != stored[key][name]
        ]
    return found


def taken_over(contract: Contract, picture: Picture) -> None:
    """Replace the open choices of the contract by the choices of the database."""
    for key, session in contract.sessions.items():
        for letter, row in zip(session.letters, picture[key]["inbox"], strict=True):
            if letter.origin is ANY:
                letter.origin = row["origin"]


def kind_of(error: str | None) -> str | None:
    """The prefix of the text of an error. The rest is for people."""
    return None if error is None else error.partition(":")[0]


def moment(stored: datetime | str | None) -> datetime | None:
    if stored is None:
        return None
    if isinstance(stored, str):
        return datetime.fromisoformat(stored).replace(tzinfo=UTC)
    return stored.astimezone(UTC)


def _state(row: Any) -> tuple[str, datetime | None] | None:
    if row.mailbox is None:
        return None
    if row.closed:
        return ("closed", None)
    for state, at in (
        ("ready", row.ready_at),
        ("waiting" if row.question is None else "held", row.wake_at),
        ("leased", row.lease_until),
    ):
        if at is not None:
            return (state, moment(at))
    return ("idle", None)
