"""Each message that is done is in the transcript once, with the reply of one run of the handler."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from soak.history import History
from soak.payloads import NOTICE, PARTIAL, is_report, parsed, understood
from soak.tables import Row, Tables
from soak.violation import Violation


def check(history: History, tables: Tables) -> Iterator[Violation]:
    inbox = tables.by_session("inbox")
    # See forks.py for the others.
    channels = {row["id"]: row["channel"] for row in tables.sessions if row["forked_from"] is None}
    messages = tables.by_session("messages")
    for session, channel in channels.items():
        rows = messages.get(session, [])
        if channel == "notebook":
            yield from _appended(history, session, rows)
        elif channel == "ledger":
            yield from _saved(history, session, rows)
        elif channel == "draft":
            yield from _cut(history, session, inbox.get(session, []), rows)
        else:
            yield from _worked(history, session, inbox.get(session, []), rows)


# ---- rows of workers ---------------------------------------------------------------------------


def _worked(
    history: History, session: str, inbox: list[Row], rows: list[Row]
) -> Iterator[Violation]:
    users: dict[int | None, list[Row]] = defaultdict(list)
    for row in rows:
        if row["role"] == "user":
            users[row["position"]].append(row)
    done = {row["position"]: row for row in inbox if row["status"] == "done"}
    kept = _kept(inbox)
    entered = {at: row for at, row in (done | kept).items() if row["content"] != NOTICE}
    ahead = {row["position"] for row in inbox if row["answers"] is not None}
    for position, found in users.items():
        if position not in entered:
            text = f"seq {found[0]['seq']} is of message {position}, which is not done"
            yield Violation("atomic", session, text)
    for position, message in entered.items():
        found = users.get(position, [])
        if len(found) != 1:
            rule = "doubled" if found else "lost"
            text = (
                f"message {position} is {message['status']},"
                f" and in the transcript {len(found)} times"
            )
            yield Violation(rule, session, text)
        elif found[0]["content"] != message["content"]:
            yield Violation("faithful", session, f"message {position} is another text there")
        elif not message["first_seq"] <= found[0]["seq"] <= message["last_seq"]:
            yield Violation("atomic", session, f"message {position} is not in its turn's rows")
    yield from _handled_in_order(history, session, users, kept.keys() | ahead)
    plain = [row for row in rows if row["extra"] is None or is_report(row["extra"])]
    partial = [row for row in rows if row["extra"] is not None and not is_report(row["extra"])]
    yield from _answered(history, session, done, plain)
    yield from _stopped(history, session, kept, partial)


def _kept(inbox: list[Row]) -> dict[int, Row]:
    """The stopped messages that a caller had kept in the transcript."""
    return {
        row["position"]: row
        for row in inbox
        if row["status"] == "cancelled" and row["first_seq"] is not None
    }


def _stopped(
    history: History, session: str, kept: dict[int, Row], partial: list[Row]
) -> Iterator[Violation]:
    """A partial reply was wanted by a caller, and is the beginning of what a run streamed."""
    for position in kept:
        if not history.stops(session, position, kept=True):
            text = f"message {position} was kept in the transcript, nobody asked for it"
            yield Violation("unsent", session, text)
    for row in partial:
        message = kept.get(row["position"])
        if row["role"] != "assistant" or message is None or message["last_seq"] != row["seq"]:
            yield Violation(
                "atomic", session, f"seq {row['seq']} is the reply of no stopped message"
            )
            continue
        run = history.runs.get(row["content"].removeprefix(PARTIAL).split("\n")[0])
        # A run that was stopped while it took messages may not have recorded them.
        is_of_run = run is not None and (row["position"] in run.positions or run.is_taking)
        if run is None or run.session != session or not is_of_run:
            text = f"message {row['position']} has a partial reply that none of its runs streamed"
            yield Violation("unsent", session, text)


def _cut(history: History, session: str, inbox: list[Row], rows: list[Row]) -> Iterator[Violation]:
    """Of a transcript that clients cut, what is there is there once."""
    entered = {row["position"] for row in inbox if row["status"] == "done"} | _kept(inbox).keys()
    summaries = {question.asked["summary"] for question in history.of("cut")}
    times = Counter(row["content"] for row in rows)
    for row in rows:
        content = row["content"]
        if times[content] > 1 and row["extra"] is None:
            yield Violation("doubled", session, f"seq {row['seq']} is there {times[content]} times")
        if row["role"] == "user" and row["position"] not in entered:
            text = f"seq {row['seq']} is of message {row['position']}, which is not done"
            yield Violation("atomic", session, text)
        if row["role"] == "system" and content not in summaries:
            yield Violation("unsent", session, f"nobody saved {content[:80]}")


def _handled_in_order(
    history: History,
    session: str,
    users: dict[int | None, list[Row]],
    ahead: Collection[int],
) -> Iterator[Violation]:
    """Messages are handled by position, except dead messages that were requeued, and ``ahead``.

    A message of a batch that is stopped and kept goes before the others, which go back. The answer
    to a question goes before all others.
    """
    requeued = {q.asked["position"] for q in history.of("requeue") if q.session == session}
    line = sorted(
        (row["seq"], position)
        for position, found in users.items()
        for row in found
        if position is not None and position not in requeued and position not in ahead
    )
    latest = 0
    for seq, position in line:
        if position < latest:
            text = f"message {position} was handled after {latest}, at seq {seq}"
            yield Violation("order", session, text)
        latest = max(latest, position)


def _answered(
    history: History, session: str, done: dict[int, Row], rows: list[Row]
) -> Iterator[Violation]:
    """The rows of a turn are its messages, then the replies of one run to exactly these."""
    turns: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for message in done.values():
        turns[message["first_seq"], message["last_seq"]].append(message)
    replies: dict[tuple[int, int], list[Row]] = {turn: [] for turn in turns}
    of_seq = {seq: turn for turn in turns for seq in range(turn[0], turn[1] + 1)}
    for row in rows:
        if row["role"] == "user":
            continue
        turn = of_seq.get(row["seq"])
        if turn is None:
            yield Violation("atomic", session, f"seq {row['seq']} answers no message that is done")
        else:
            replies[turn].append(row)
    for turn, messages in turns.items():
        payloads = [understood(message["content"]) for message in messages]
        verbs = {payload.get("verb") for payload in payloads}
        expected = 0 if verbs == {"none"} else 2 if "two" in verbs else 1
        given = [parsed(row["content"]) for row in replies[turn]]
        positions = [message["position"] for message in messages]
        if len(given) != expected:
            rule = "lost" if len(given) < expected else "doubled"
            text = f"messages {positions} have {len(given)} replies, {expected} were given"
            yield Violation(rule, session, text)
        runs = {reply.get("run") for reply in given}
        if len(runs) > 1:
            yield Violation("doubled", session, f"messages {positions} were answered by {runs}")
        yield from _answered_by(history, session, messages, payloads, given)


def _answered_by(
    history: History,
    session: str,
    messages: list[Row],
    payloads: list[dict[str, Any]],
    given: list[dict[str, Any]],
) -> Iterator[Violation]:
    """The run of these replies handled exactly these messages."""
    positions = [message["position"] for message in messages]
    tokens = {
        message["position"]: payload["token"]
        for message, payload in zip(messages, payloads, strict=True)
    }
    for reply in given:
        run = history.runs.get(reply.get("run", ""))
        told = positions if run is None else run.positions
        if reply.get("re") != [tokens.get(position) for position in told]:
            text = f"messages {positions} have a reply to {reply.get('re')}"
            yield Violation("atomic", session, text)
        if run is None or run.session != session or sorted(run.positions) != positions:
            text = f"messages {positions} were answered by {reply.get('run')}, which didn't run"
            yield Violation("unsent", session, text)
        elif any(message["attempts"] for message in messages if message["position"] in run.taken):
            text = f"{run.id} took a message of {positions}, and it has an attempt"
            yield Violation("atomic", session, text)
        elif run.how not in ("returned", None):
            text = f"messages {positions} were answered by {run.id}, which was {run.how}"
            yield Violation("atomic", session, text)


# ---- rows of clients ---------------------------------------------------------------------------


def _appended(history: History, session: str, rows: list[Row]) -> Iterator[Violation]:
    seqs: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        seqs[row["content"]].append(row["seq"])
    asked: set[str] = set()
    for question in history.of("append", "edit"):
        if question.session != session:
            continue
        tokens = question.asked["tokens"]
        asked.update(tokens)
        found = [seq for token in tokens for seq in seqs.get(token, [])]
        if len(found) not in (0, len(tokens)):
            rule = "doubled" if len(found) > len(tokens) else "atomic"
            yield Violation(rule, session, f"{tokens} were appended at {found}")
        elif found and found != list(range(found[0], found[0] + len(found))):
            yield Violation("order", session, f"{tokens} were appended at {found}")
        elif question.ok and not found:
            yield Violation("lost", session, f"{tokens} were appended")
        elif question.refused and found:
            yield Violation("refused", session, f"{tokens} are there, after {question.error}")
    for token in seqs.keys() - asked:
        yield Violation("unsent", session, f"nobody appended {token[:80]}")
    yield from _appended_in_order(history, session, seqs)


def _appended_in_order(
    history: History, session: str, seqs: dict[str, list[int]]
) -> Iterator[Violation]:
    """An append that was answered before another began is before it, across all clients."""
    line = (
        (found[0], question)
        for question in history.of("append", "edit")
        if question.session == session and (found := seqs.get(question.asked["tokens"][0]))
    )
    latest = 0.0
    for seq, question in sorted(line, key=lambda pair: pair[0]):
        if question.ok and question.told_at < latest:
            text = f"seq {seq} was appended before what stands before it was asked for"
            yield Violation("order", session, text)
        latest = max(latest, question.at)


def _saved(history: History, session: str, rows: list[Row]) -> Iterator[Violation]:
    """A set by compare-and-set: every acknowledged entry is there once, unless a client replaced
    it. No version is returned twice."""
    there = Counter(json.loads(row["content"])["token"] for row in rows)
    saves = [question for question in history.of("save") if question.session == session]
    replaced = {question.asked["replaced"] for question in saves if not question.refused}
    versions: Counter[int] = Counter()
    for question in saves:
        token = question.asked["token"]
        if question.ok:
            versions[question.answer["version"]] += 1
            if not there[token] and token not in replaced:
                yield Violation("lost", session, f"{token} was saved")
        if question.refused and there[token]:
            yield Violation("refused", session, f"{token} is there, after {question.error}")
        if question.ok and there[question.asked["replaced"]]:
            yield Violation("lost", session, f"{question.asked['replaced']} was replaced")
    for token, times in there.items():
        if times > 1:
            yield Violation("doubled", session, f"{token} is there {times} times")
    for token in there.keys() - {question.asked["token"] for question in saves}:
        yield Violation("unsent", session, f"nobody saved {token[:80]}")
    for version, times in versions.items():
        if times > 1:
            yield Violation("versions", session, f"version {version} was told to {times} savers")
