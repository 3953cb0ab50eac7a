"""A fork is the beginning of its source as it was committed at one moment, with its state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from soak.checks.states import by_session, counting
from soak.history import History, Question
from soak.tables import Row, Tables
from soak.violation import Violation

COPIED = ("seq", "role", "content", "payload", "extra")


def check(history: History, tables: Tables) -> Iterator[Violation]:
    sessions = {row["id"]: row for row in tables.sessions}
    messages = tables.by_session("messages")
    inbox = tables.by_session("inbox")
    forks = {question.asked["fork"]: question for question in history.of("fork")}
    for fork, question in forks.items():
        if question.ok and fork not in sessions:
            yield Violation("lost", fork, "it was forked")
        if question.refused and fork in sessions:
            yield Violation("refused", fork, f"it is there, after {question.error}")
    appends: dict[str, list[Question]] = defaultdict(list)
    for question in history.of("append", "edit"):
        appends[question.session].append(question)
    states = by_session(tables)
    for fork, row in sessions.items():
        source, last = row["forked_from"], row["forked_seq"]
        if source is None:
            continue
        if fork not in forks or forks[fork].session != source:
            yield Violation("unsent", fork, f"nobody forked it from {source}")
            continue
        if inbox.get(fork) or row["parent_id"] is not None:
            yield Violation("atomic", fork, "it has an inbox or a parent of its source")
        beginning = [one for one in messages.get(source, []) if one["seq"] <= last]
        copied = messages.get(fork, [])
        if [_copied(one) for one in copied] != [_copied(one) for one in beginning]:
            text = f"its {len(copied)} messages are not the {len(beginning)} of {source} to {last}"
            yield Violation("faithful", fork, text)
        yield from _whole_turns(fork, last, inbox.get(source, []))
        yield from _appends(forks[fork], last, appends[source], messages.get(source, []))
        yield from _state(
            fork, last, states.get(fork, {}), inbox.get(source, []), appends[source], copied
        )


def _copied(row: Row) -> list[object]:
    return [row[name] for name in COPIED]


def _whole_turns(fork: str, last: int, inbox: list[Row]) -> Iterator[Violation]:
    for message in inbox:
        first = message["first_seq"]
        if first is not None and first <= last < message["last_seq"]:
            text = f"it ends at {last}, within the turn of message {message['position']}"
            yield Violation("atomic", fork, text)


def _appends(
    forked: Question, last: int, appends: list[Question], rows: list[Row]
) -> Iterator[Violation]:
    """An append is in the fork if it was answered before, and is not if it was asked after."""
    seqs = {row["content"]: row["seq"] for row in rows}
    for question in appends:
        found = [seqs[token] for token in question.asked["tokens"] if token in seqs]
        if question.ok and question.told_at < forked.at and any(seq > last for seq in found):
            text = f"{found} were appended before the fork, which ends at {last}"
            yield Violation("lost", forked.asked["fork"], text)
        if question.at > forked.told_at and any(seq <= last for seq in found):
            text = f"{found} were appended after the fork, which ends at {last}"
            yield Violation("atomic", forked.asked["fork"], text)


def _state(
    fork: str,
    last: int,
    found: dict[str, object],
    inbox: list[Row],
    appends: list[Question],
    copied: list[Row],
) -> Iterator[Violation]:
    """The state of a fork is as old as its messages."""
    counted = counting(inbox)
    expected = {token for token, row in counted.items() if row["last_seq"] <= last}
    contents = {row["content"] for row in copied}
    edited = {q.asked["tokens"][0] for q in appends if q.op == "edit"}
    expected |= edited & contents
    mine = found.keys() & (counted.keys() | edited)
    if mine != expected:
        text = f"its state has {len(mine)} tokens, {len(expected)} belong to its messages"
        yield Violation("atomic", fork, text)
