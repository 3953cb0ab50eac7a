"""Reads, one after the other: nothing goes back, and nothing changes behind a reader."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator

from soak.history import NEVER, History, Question
from soak.payloads import parsed
from soak.tables import Tables
from soak.violation import Violation


def check(history: History, tables: Tables) -> Iterator[Violation]:
    yield from _versions(history, tables)
    yield from _seqs(history, tables)
    yield from _spawned(history, tables)
    yield from _ends(history, tables)
    yield from _replies(history, tables)


def _versions(history: History, tables: Tables) -> Iterator[Violation]:
    """A read that begins after a version was returned returns that version or a later one."""
    told: dict[str, list[tuple[Question, int]]] = defaultdict(list)
    for question in history.of("version", "get", "append", "save"):
        if question.ok and question.answer["version"] is not None:
            told[question.session].append((question, question.answer["version"]))
    final = {row["id"]: row["version"] for row in tables.sessions}
    deleted = history.deleted()
    for session, line in told.items():
        if session in deleted:
            continue
        known, highest = list[tuple[float, int]](), 0
        for question, version in sorted(line, key=lambda pair: pair[0].at):
            while known and known[0][0] < question.at:
                highest = max(highest, heapq.heappop(known)[1])
            if version < highest:
                told_now = f"{question.id} was told version {version}, after {highest}"
                yield Violation("versions", session, told_now)
            heapq.heappush(known, (question.told_at, version))
        highest = max([highest, *(version for _, version in line)])
        if final.get(session, 0) < highest:
            told_now = f"the version is {final.get(session)}, {highest} was told"
            yield Violation("versions", session, told_now)


def _seqs(history: History, tables: Tables) -> Iterator[Violation]:
    """A seq is of one message for ever."""
    known: dict[tuple[str, int], str] = {}
    channels = {row["id"]: row["channel"] for row in tables.sessions}
    for row in tables.messages:
        known[row["session_id"], row["seq"]] = digest(row["role"], row["content"])
    there = set(known)
    for question in history.of("history"):
        if not question.ok:
            continue
        session = question.session
        seqs = [seq for seq, _ in question.answer["page"]]
        if seqs != sorted(set(seqs)):
            yield Violation("seq", session, f"{question.id} was shown {seqs}")
        for seq, seen in question.answer["page"]:
            if known.setdefault((session, seq), seen) != seen:
                yield Violation("seq", session, f"seq {seq} was two different messages")
            if (session, seq) not in there and channels.get(session) not in (
                "ledger",
                "draft",
            ):
                yield Violation("lost", session, f"seq {seq} was shown, and is gone")


def _spawned(history: History, tables: Tables) -> Iterator[Violation]:
    sessions = {row["id"]: row for row in tables.sessions}
    born: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for question in history.of("spawn"):
        if not question.ok:
            continue
        child = question.answer["child"]
        born[question.session].append((question.told_at, child))
        row = sessions.get(child)
        if row is None:
            yield Violation("lost", question.session, f"its child {child} is gone")
        elif row["parent_id"] != question.session:
            text = f"its parent is {row['parent_id']}, not {question.session}"
            yield Violation("tree", child, text)
    for question in history.of("list"):
        if not question.ok:
            continue
        shown = set(question.answer["ids"])
        for told_at, child in born[question.session]:
            if told_at < question.at and child not in shown:
                text = f"{question.id} was not shown its child {child}"
                yield Violation("tree", question.session, text)
    keys: dict[tuple[str, str], int] = defaultdict(int)
    for row in tables.sessions:
        if row["idempotency_key"] is not None:
            keys[row["parent_id"], row["idempotency_key"]] += 1
    for (parent, key), times in keys.items():
        if times > 1:
            yield Violation("doubled", parent, f"{key!r} has {times} children")


def _ends(history: History, tables: Tables) -> Iterator[Violation]:
    """A session whose end was confirmed has ended, and accepts nothing more."""
    ended: dict[str, float] = {}
    reopened = history.reopened()
    for question in history.of("end"):
        if question.ok and question.session not in reopened:
            ended[question.session] = min(ended.get(question.session, NEVER), question.told_at)
    final = {row["id"]: row["ended_at"] is not None for row in tables.sessions}
    for session in ended:
        if not final.get(session):
            yield Violation("ended", session, "it was told to have ended, and has not")
    for message in history.sent_messages().values():
        if message.answers and message.began > ended.get(message.session, NEVER):
            yield Violation("ended", message.session, f"{message.token} was accepted after its end")
    for question in history.of("get"):
        late = question.ok and question.at > ended.get(question.session, NEVER)
        if late and not question.answer["ended"]:
            yield Violation("ended", question.session, f"{question.id} was told it lives")


def _replies(history: History, tables: Tables) -> Iterator[Violation]:
    """A reply that a waiter received is the reply in the transcript."""
    given = {row["content"] for row in tables.messages if row["role"] == "assistant"}
    deleted = history.deleted()
    drafts = {row["id"] for row in tables.sessions if row["channel"] == "draft"}
    for question in history.of("wait", "outcome", "spawn", "cancel"):
        reply = question.answer.get("reply")
        if question.session in drafts:
            continue  # the reply may have been cut
        if reply is not None and reply not in given and question.session not in deleted:
            run = parsed(reply).get("run")
            text = f"{question.id} was told a reply by {run} that is not in the transcript"
            yield Violation("final", question.session, text)


def digest(role: str, content: str) -> str:
    return hashlib.blake2b(f"{role}\0{content}".encode(), digest_size=8).hexdigest()
