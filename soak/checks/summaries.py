"""Summaries agree with the rows they count: counts, last positions, times, states, trees."""

from __future__ import annotations

from collections.abc import Iterator

from soak.history import History
from soak.payloads import NOTICE
from soak.tables import Row, Tables
from soak.violation import Violation

UNFINISHED = ("pending", "running")


def check(history: History, tables: Tables) -> Iterator[Violation]:
    messages = tables.by_session("messages")
    inbox = tables.by_session("inbox")
    mailboxes = {row["session_id"]: row for row in tables.mailboxes}
    sessions = {row["id"]: row for row in tables.sessions}
    reopened = history.reopened()
    for line in tables.integrity:
        yield Violation("integrity", "", line)
    for session, row in sessions.items():
        yield from _transcript(
            session,
            row,
            messages.get(session, []),
            inbox.get(session, []),
            reopened=session in reopened,
        )
        if session not in mailboxes:
            yield Violation("summary", session, "it has no mailbox")
            continue
        yield from _mailbox(session, row, mailboxes[session], inbox.get(session, []))
        yield from _tree(session, row, sessions)
    for table in ("messages", "inbox"):
        for session in tables.by_session(table).keys() - sessions.keys():
            yield Violation("deleted", session, f"it is gone, and rows of it are in {table}")
    for session in mailboxes.keys() - sessions.keys():
        yield Violation("deleted", session, "it is gone, and its mailbox is there")
    for question in history.of("delete"):
        if question.ok and question.session in sessions:
            yield Violation("deleted", question.session, "it was deleted, and is there")
    deleted = history.deleted()
    for question in history.of("register"):
        if question.ok and question.session not in sessions and question.session not in deleted:
            yield Violation("lost", question.session, "it was registered")


def _transcript(
    session: str, row: Row, messages: list[Row], inbox: list[Row], *, reopened: bool
) -> Iterator[Violation]:
    if row["message_count"] != len(messages):
        text = f"message_count is {row['message_count']}, there are {len(messages)}"
        yield Violation("summary", session, text)
    last = max((message["seq"] for message in messages), default=0)
    # A save that replaces messages does not reuse their numbers.
    rewritten = row["channel"] in ("ledger", "draft")
    if row["last_seq"] < last or (row["last_seq"] > last and not rewritten):
        yield Violation("summary", session, f"last_seq is {row['last_seq']}, a message has {last}")
    # The notice of an expired question is no activity of the session.
    sent = max((m["enqueued_at"] for m in inbox if m["content"] != NOTICE), default="")
    written = max((message["created_at"] for message in messages), default="")
    if row["updated_at"] < written:
        text = f"updated_at is {row['updated_at']}, a message is of {written}"
        yield Violation("summary", session, text)
    expected = max(row["created_at"], row["updated_at"], sent)
    if row["last_active"] != expected and not (reopened and row["last_active"] > expected):
        text = f"last_active is {row['last_active']}, the last that happened was at {expected}"
        yield Violation("summary", session, text)


def _mailbox(session: str, row: Row, mailbox: Row, inbox: list[Row]) -> Iterator[Violation]:
    unfinished = [message for message in inbox if message["status"] in UNFINISHED]
    running = [message for message in inbox if message["status"] == "running"]
    if mailbox["pending"] != len(unfinished):
        text = f"pending is {mailbox['pending']}, {len(unfinished)} are unfinished"
        yield Violation("summary", session, text)
    if mailbox["taken"] != len(running):
        text = f"taken is {mailbox['taken']}, {len(running)} are running"
        yield Violation("summary", session, text)
    ahead = [m for m in unfinished if m["position"] < mailbox["head"] and not m["ahead"]]
    ghosts = [m for m in inbox if m["ahead"] and m["status"] not in UNFINISHED]
    if ahead or ghosts:
        text = f"head is {mailbox['head']}: {len(ahead)} before it, {len(ghosts)} marked in vain"
        yield Violation("summary", session, text)
    states = [name for name in ("ready_at", "wake_at", "owner") if mailbox[name] is not None]
    if len(states) > 1:
        yield Violation("summary", session, f"it is {states} at once")
    if bool(unfinished) != bool(states):
        text = f"{len(unfinished)} are unfinished, and its mailbox is {states or 'idle'}"
        yield Violation("summary", session, text)
    ended = row["ended_at"] is not None
    if ended != bool(mailbox["closed"]):
        yield Violation("ended", session, f"ended: {ended}, its mailbox is closed: {not ended}")
    if ended and (unfinished or states):
        yield Violation("ended", session, f"it has ended with {len(unfinished)} and {states}")


def _tree(session: str, row: Row, sessions: dict[str, Row]) -> Iterator[Violation]:
    parent = row["parent_id"]
    if parent is None:
        if row["root_id"] is not None or row["depth"] != 0:
            text = f"it has no parent, root {row['root_id']} and depth {row['depth']}"
            yield Violation("tree", session, text)
        return
    above = sessions.get(parent)
    if above is None:
        yield Violation("tree", session, f"its parent {parent} is gone")
        return
    if row["depth"] != above["depth"] + 1 or row["root_id"] != (above["root_id"] or parent):
        text = (
            f"depth {row['depth']} and root {row['root_id']} under {parent}"
            f" with {above['depth']} and {above['root_id']}"
        )
        yield Violation("tree", session, text)
