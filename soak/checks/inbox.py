"""Nothing accepted is lost, nothing is there twice, and the order is that of the commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from soak.history import History, SentMessage
from soak.payloads import CHILD, NOTICE, RELAYED, is_report, parsed
from soak.tables import Row, Tables
from soak.violation import Violation

FINAL = ("done", "dead", "cancelled")


def check(history: History, tables: Tables) -> Iterator[Violation]:
    sent = history.sent_messages()
    rows: dict[str, list[Row]] = defaultdict(list)
    rung = {question.asked["text"] for question in history.of("ring")}
    for row in tables.inbox:
        if is_report(row["extra"]) or row["content"] == NOTICE or row["content"] in rung:
            continue  # see reports.py, questions.py and schedules.py
        rows[str(parsed(row["content"]).get("token", row["content"]))].append(row)
    deleted = history.deleted()
    yield from _accepted(sent, rows, deleted)
    yield from _orders(history, tables, rows)
    yield from _keys(sent)
    yield from _origins(sent, rows)
    yield from _staged(tables, rows)
    yield from _states(history, tables)
    yield from _told(history, tables)
    yield from _positions(tables)
    yield from _order(sent, rows)
    yield from _bursts(sent, rows)


def _accepted(
    sent: dict[str, SentMessage], rows: dict[str, list[Row]], deleted: set[str]
) -> Iterator[Violation]:
    for message in sent.values():
        found = rows.get(message.token, [])
        spawned = {q.answer["child"] for q in message.answers if q.op == "spawn"}
        sessions = spawned or {message.session}
        if len(found) > 1:
            yield Violation("doubled", message.session, f"{message.token} is {len(found)} messages")
        if message.refused and found:
            errors = {question.error for question in message.questions}
            yield Violation("refused", message.session, f"{message.token} is there, after {errors}")
        if not message.answers or message.session in deleted:
            continue
        if not found:
            yield Violation("lost", message.session, f"{message.token} was accepted")
        for row in found:
            if row["content"] != message.text or row["session_id"] not in sessions:
                yield Violation("faithful", row["session_id"], f"{message.token} is another text")
            for question in message.answers:
                if question.op == "schedule":
                    continue  # the position is assigned at the due time
                position = question.answer.get("position", 1)
                if position != row["position"]:
                    text = f"{message.token} is at {row['position']}, {position} was told"
                    yield Violation("receipt", row["session_id"], text)


def _orders(history: History, tables: Tables, rows: dict[str, list[Row]]) -> Iterator[Violation]:
    """A row of the caller and the message of the same transaction are both there, or neither."""
    orders = {row["token"] for row in tables.orders}
    for question in history.of("send with order"):
        token = parsed(question.asked["text"])["token"]
        if (question.asked["order"] in orders) != (token in rows):
            text = f"of {token} and the row written in one transaction with it one is there"
            yield Violation("atomic", question.session, text)


def _keys(sent: dict[str, SentMessage]) -> Iterator[Violation]:
    for message in sent.values():
        if message.key is None:
            continue
        receipts = {(q.answer.get("position"), q.answer.get("child")) for q in message.answers}
        if len(receipts) > 1:
            yield Violation(
                "doubled", message.session, f"{message.key!r} has receipts {sorted(receipts)}"
            )


def _origins(sent: dict[str, SentMessage], rows: dict[str, list[Row]]) -> Iterator[Violation]:
    """Every message has a sender in the journals."""
    for token, found in rows.items():
        origin = token.removesuffix(RELAYED).removesuffix(CHILD)
        if origin not in sent:
            yield Violation("unsent", found[0]["session_id"], f"nobody sent {token}")


def _staged(tables: Tables, rows: dict[str, list[Row]]) -> Iterator[Violation]:
    """A staged message is there once if its turn committed, and otherwise not."""
    parents = {row["id"]: row["parent_id"] for row in tables.sessions}
    for row in tables.inbox:
        payload = parsed(row["content"])
        verb, token = payload.get("verb"), payload.get("token")
        if verb not in ("relay", "child"):
            continue
        staged = rows.get(f"{token}{RELAYED if verb == 'relay' else CHILD}", [])
        expected = 1 if row["status"] == "done" else 0
        if len(staged) != expected:
            text = f"{token} is {row['status']}, and what it staged is there {len(staged)} times"
            yield Violation("atomic", row["session_id"], text)
        for one in staged:
            place = one["session_id"] if verb == "relay" else parents.get(one["session_id"])
            if place != (payload["to"] if verb == "relay" else row["session_id"]):
                yield Violation("atomic", row["session_id"], f"{token} staged to {place}")
            if one["sender"] != row["session_id"]:
                yield Violation("atomic", row["session_id"], f"{token} staged by {one['sender']}")


def _states(history: History, tables: Tables) -> Iterator[Violation]:
    ended = {row["id"]: row["ended_at"] is not None for row in tables.sessions}
    reopened = history.reopened()
    for row in tables.inbox:
        session, position, status = row["session_id"], row["position"], row["status"]
        if status not in FINAL:
            yield Violation("drained", session, f"message {position} is {status}")
        if status == "cancelled" and not _may_be_cancelled(
            history, row, ended.get(session) or session in reopened
        ):
            text = f"message {position} was cancelled by {row['stopped_by']}, nobody asked for it"
            yield Violation("lost", session, text)
        if status == "dead" and not row["error"]:
            yield Violation("dead", session, f"message {position} is dead without an error")
        if (status == "dead") != (row["dead_at"] is not None) or (
            (status in FINAL) != (row["finished_at"] is not None)
        ):
            yield Violation("summary", session, f"message {position} is {status}, its times differ")


def _told(history: History, tables: Tables) -> Iterator[Violation]:
    """A final status that a caller was told stays, and a call that stops leaves nothing open."""
    requeued = {(q.session, q.asked["position"]) for q in history.of("requeue")}
    states = {(row["session_id"], row["position"]): row["status"] for row in tables.inbox}
    deleted = history.deleted()
    for question in history.of("wait", "outcome", "cancel"):
        key = (question.session, question.asked["position"])
        if not question.ok or key[0] in deleted:
            continue
        was, final = question.answer["status"], states.get(key)
        if was in ("done", "cancelled") and final != was:
            yield Violation("final", key[0], f"message {key[1]} was told {was}, and is {final}")
        if was == "dead" and final != "dead" and key not in requeued:
            yield Violation("final", key[0], f"message {key[1]} was told dead, and is {final}")
        if question.op == "cancel" and was not in FINAL:
            yield Violation("final", key[0], f"message {key[1]} was {was} after {question.id}")
    for question in history.of("interrupt"):
        for position, was in question.answer.get("stopped", ()):
            final = states.get((question.session, position))
            if not was == final == "cancelled" and question.session not in deleted:
                text = f"message {position} was stopped by {question.id}, and is {final}"
                yield Violation("final", question.session, text)


def _may_be_cancelled(history: History, row: Row, ended: bool) -> bool:
    if row["stopped_by"] == "end":
        return ended
    stops = history.stops(row["session_id"], row["position"])
    return any(question.stops == row["stopped_by"] for question in stops)


def _positions(tables: Tables) -> Iterator[Violation]:
    """Given out one by one, none left out and none given twice."""
    inbox = tables.by_session("inbox")
    for mailbox in tables.mailboxes:
        positions = [row["position"] for row in inbox.get(mailbox["session_id"], [])]
        if positions != list(range(1, mailbox["tail"] + 1)):
            text = f"{len(positions)} positions, and the last given out is {mailbox['tail']}"
            yield Violation("positions", mailbox["session_id"], text)


def _order(sent: dict[str, SentMessage], rows: dict[str, list[Row]]) -> Iterator[Violation]:
    """A send that was accepted before another began is before it, across all clients."""
    placed: dict[str, list[tuple[int, SentMessage]]] = defaultdict(list)
    for message in sent.values():
        if any(question.op == "schedule" for question in message.questions):
            continue  # sent when it is due
        for row in rows.get(message.token, ()):
            placed[row["session_id"]].append((row["position"], message))
    for session, line in placed.items():
        latest: SentMessage | None = None
        for _, message in sorted(line, key=lambda place: place[0]):
            if latest is not None and message.accepted < latest.began:
                text = (
                    f"{message.token} was accepted before {latest.token} was sent, and is behind it"
                )
                yield Violation("order", session, text)
            if latest is None or message.began > latest.began:
                latest = message


def _bursts(sent: dict[str, SentMessage], rows: dict[str, list[Row]]) -> Iterator[Violation]:
    """Sends of one caller that didn't await one another stand in the order of the calls."""
    bursts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for message in sent.values():
        fields = parsed(message.text)
        if "burst" in fields:
            for row in rows.get(message.token, ()):
                bursts[fields["burst"]].append((fields["number"], row["position"], message.session))
    for burst, line in bursts.items():
        positions = [position for _, position, _ in sorted(line)]
        if positions != sorted(positions):
            yield Violation("order", line[0][2], f"the sends of {burst} stand at {positions}")
