"""Each question is closed once: by one answer, its expiry, a withdrawal or the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from soak.history import History, Question
from soak.payloads import NOTICE, parsed
from soak.tables import Row, Tables
from soak.violation import Violation


def check(history: History, tables: Tables) -> Iterator[Violation]:
    inbox = tables.by_session("inbox")
    for session, asked in tables.by_session("questions").items():
        yield from _asked(session, asked, inbox.get(session, []))
        for row in asked:
            answers = [one for one in inbox[session] if one["answers"] == row["position"]]
            yield from _closed(history, tables, row, answers)
    for session, rows in inbox.items():
        yield from _held(session, rows, tables.by_session("questions").get(session, []))
    yield from _told(history, tables)
    for box in tables.mailboxes:
        if box["question"] is not None:
            yield Violation("drained", box["session_id"], f"held by question {box['question']}")


def _asked(session: str, asked: list[Row], inbox: list[Row]) -> Iterator[Violation]:
    """A question was asked by a turn that committed."""
    turns = _turns(inbox)
    for row in asked:
        turn = next((turn for turn in turns if row["position"] in _positions(turn)), [])
        if not any(_asks(message) for message in turn):
            text = f"question {row['position']} is there, and no turn asked it"
            yield Violation("atomic", session, text)


def _held(session: str, inbox: list[Row], asked: list[Row]) -> Iterator[Violation]:
    """A turn that asked and committed has one question."""
    for turn in _turns(inbox):
        if any(_asks(message) for message in turn):
            positions = _positions(turn)
            found = [row["position"] for row in asked if row["position"] in positions]
            if len(found) != 1:
                rule = "doubled" if found else "lost"
                text = f"messages {positions} asked, and have {len(found)} questions"
                yield Violation(rule, session, text)


def _closed(history: History, tables: Tables, row: Row, answers: list[Row]) -> Iterator[Violation]:
    session, position, status = row["session_id"], row["position"], row["status"]
    told = f"question {position} is {status}"
    if len(answers) > 1:
        yield Violation("doubled", session, f"{told}, and has {len(answers)} answers")
        return
    if status == "open":
        yield Violation("drained", session, told)
    if [one["position"] for one in answers] != [at for at in (row["answer_position"],) if at]:
        text = f"{told}, its answer is at {row['answer_position']}, {answers} are there"
        yield Violation("receipt", session, text)
        return
    if status in ("answered", "expired"):
        if not answers:
            yield Violation("lost", session, f"{told}, without an answer")
        elif (answers[0]["content"] == NOTICE) != (status == "expired"):
            yield Violation("faithful", session, f"{told}, by {answers[0]['content'][:80]}")
    if status == "withdrawn":
        stopped = history.stops_in(session)
        if not stopped or any(one["status"] != "cancelled" for one in answers):
            yield Violation("lost", session, f"{told}, and nobody stopped it")
    if status == "ended":
        ended = any(one["id"] == session and one["ended_at"] for one in tables.sessions)
        if answers or not (ended or session in history.reopened()):
            yield Violation("lost", session, f"{told}, and its session is not")


def _told(history: History, tables: Tables) -> Iterator[Violation]:
    """An answer that was accepted is the answer of its question, and the only one."""
    rows = {f"{row['session_id']}:{row['position']}": row for row in tables.questions}
    accepted: dict[str, list[Question]] = defaultdict(list)
    for question in history.of("answer"):
        if question.ok and question.session not in history.deleted():
            accepted[question.asked["asked"]].append(question)
    for id, questions in accepted.items():
        session = questions[0].session
        positions = {question.answer["position"] for question in questions}
        if len(positions) > 1:
            yield Violation("doubled", session, f"{id} was answered at {sorted(positions)}")
        row = rows.get(id)
        if row is None or row["status"] not in ("answered", "withdrawn"):
            text = f"{id} was answered, and is {row and row['status']}"
            yield Violation("lost", session, text)
        elif row["answer_position"] not in positions:
            text = f"{id} was answered at {sorted(positions)}, not at {row['answer_position']}"
            yield Violation("receipt", session, text)


def _turns(inbox: list[Row]) -> list[list[Row]]:
    """The messages of each turn that committed."""
    turns: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in inbox:
        if row["status"] == "done":
            turns[row["first_seq"], row["last_seq"]].append(row)
    return [*turns.values()]


def _positions(turn: list[Row]) -> list[int]:
    return [message["position"] for message in turn]


def _asks(message: Row) -> bool:
    return parsed(message["content"]).get("verb") == "ask"
