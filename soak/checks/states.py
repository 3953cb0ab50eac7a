"""State is written with the commit of its turn or edit, and never without it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from soak.history import History
from soak.payloads import parsed
from soak.tables import Row, Tables
from soak.violation import Violation


def check(history: History, tables: Tables) -> Iterator[Violation]:
    sessions = {row["id"]: row for row in tables.sessions}
    values = by_session(tables)
    inbox = tables.by_session("inbox")
    messages = tables.by_session("messages")
    for session in values.keys() - sessions.keys():
        yield Violation("deleted", session, "it is gone, and its state is there")
    for session, row in sessions.items():
        found = values.get(session, {})
        if row["forked_from"] is None:
            yield from _turns(history, row, found, inbox.get(session, []), messages)
            yield from _clients(history, session, found, messages.get(session, []))
        yield from _counted(history, session, found)


def by_session(tables: Tables) -> dict[str, dict[str, Any]]:
    """The values of the sessions' own state."""
    found: dict[str, dict[str, Any]] = {
        row["session_id"]: {} for row in tables.state_scopes if row["scope"] == "session"
    }
    owners = {row["owner"]: row["session_id"] for row in tables.state_scopes}
    for row in tables.state_values:
        if row["scope"] == "session":
            found[owners[row["owner"]]][row["key"]] = json.loads(row["value"])
    return found


def counting(inbox: Collection[Row]) -> dict[str, Row]:
    """The messages that are done and have added their tokens to the state, by token."""
    tokens = {}
    for row in inbox:
        payload = parsed(row["content"])
        if payload.get("verb") == "count" and row["status"] == "done":
            tokens[str(payload["token"])] = row
    return tokens


def _turns(
    history: History,
    session: Row,
    found: dict[str, Any],
    inbox: list[Row],
    messages: dict[str, list[Row]],
) -> Iterator[Violation]:
    """A token of a turn is in the state if its message is done, with the run that committed."""
    id, done = session["id"], counting(inbox)
    replies = (parsed(row["content"]) for row in messages.get(id, []) if row["role"] != "user")
    committed = {reply.get("run") for reply in replies}
    for token in done.keys() - found.keys():
        yield Violation("lost", id, f"{token} is done, and not in the state")
    for token, run in found.items():
        if run not in history.runs:
            continue  # of a client
        if token not in done:
            yield Violation("atomic", id, f"{token} is in the state, and not done")
        elif done[token]["position"] not in history.runs[run].positions or (
            run not in committed and session["channel"] != "draft"
        ):
            yield Violation("atomic", id, f"{token} is in the state by {run}, another committed")


def _clients(
    history: History, session: str, found: dict[str, Any], messages: list[Row]
) -> Iterator[Violation]:
    contents = {row["content"] for row in messages}
    asked: set[str] = set()
    for question in history.of("update state"):
        if question.session != session:
            continue
        token = question.asked["token"]
        asked.add(token)
        if question.ok and token not in found:
            yield Violation("lost", session, f"{token} was written to the state")
        if question.refused and token in found:
            yield Violation("refused", session, f"{token} is there, after {question.error}")
    for question in history.of("edit"):
        if question.session == session:
            [token] = question.asked["tokens"]
            asked.add(token)
            if (token in found) != (token in contents):
                text = f"of {token} and its state, written by one edit, one is there"
                yield Violation("atomic", session, text)
    for token, value in found.items():
        if token != "count" and value not in history.runs and token not in asked:
            yield Violation("unsent", session, f"nobody wrote {token} to the state")


def _counted(history: History, session: str, found: dict[str, Any]) -> Iterator[Violation]:
    """Each turn that committed has counted itself once, from the state that was committed."""
    runs = {run for token, run in found.items() if token != "count" and run in history.runs}
    if found.get("count", 0) != len(runs):
        text = f"the state counts {found.get('count')} turns, {len(runs)} have written to it"
        yield Violation("atomic", session, text)
