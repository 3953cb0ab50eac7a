"""The laws of state, forks and busy sends, over rows before and after a step of the explorer.

Each function returns the broken law, or ``None``. Rows are dictionaries by column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

FORK = "f"
"""The session that a fork makes."""

_OWN_COLUMNS = ("session_id", "position", "write_id")
"""The columns of a message that belong to its session, and that a fork does not copy."""

Table = Sequence[Mapping[str, Any]]
Tables = Mapping[str, Table]
Place = tuple[str, int]


def state_is(tables: Tables, turns: int, edits: int) -> str | None:
    """Session a has one change of its state for each turn and edit that was committed."""
    expected = {name: count for name, count in (("turns", turns), ("edits", edits)) if count}
    if _values(tables, "a") != expected:
        return f"the state is {_values(tables, 'a')}, and {expected} was committed"
    versions = [row["version"] for row in tables["state_scopes"] if row["session_id"] == "a"]
    if sum(versions) != turns + edits:
        return f"the state has version {sum(versions)} after {turns} turns and {edits} edits"
    return None


def fork_is_of(before: Tables, after: Tables) -> str | None:
    """A fork has the transcript and the state that were committed, and nothing of the inbox."""
    for table, rows in before.items():
        others = [row for row in after[table] if _session(table, row) != FORK]
        if others != list(rows):
            return f"a fork has changed {table} of its source"
    if _messages(after, FORK) != _messages(before, "a"):
        return "a fork has other messages than those that were committed"
    if any(row["position"] is not None for row in after["messages"] if row["session_id"] == FORK):
        return "a fork has a position of another inbox"
    if _values(after, FORK) != _values(before, "a"):
        return "a fork has another state than the committed one"
    [source] = [row for row in before["sessions"] if row["id"] == "a"]
    [fork] = [row for row in after["sessions"] if row["id"] == FORK]
    for name in ("last_seq", "message_count"):
        if fork[name] != source[name]:
            return f"a fork has {name} {fork[name]}, its source {source[name]}"
    [box] = [row for row in after["mailboxes"] if row["session_id"] == FORK]
    if box["tail"] or box["pending"] or box["owner"] or box["ready_at"] or box["wake_at"]:
        return "a fork has something in its inbox"
    return None


def fork_stays(before: Tables, after: Tables) -> str | None:
    """What happens to the source changes nothing in its fork."""
    if not any(row["id"] == FORK for row in before["sessions"]):
        return None
    for table in ("messages", "state_values", "state_scopes", "sessions"):
        was = [row for row in before[table] if _session(table, row) == FORK]
        if [row for row in after[table] if _session(table, row) == FORK] != was:
            return f"{table} of a fork have changed with its source"
    return None


def interrupted_by_send(tables: Tables) -> list[Place]:
    """Return the messages of session a that a send must stop: those that run or wait to be tried
    again."""
    [box] = [row for row in tables["mailboxes"] if row["session_id"] == "a"]
    rows = [row for row in tables["inbox"] if row["session_id"] == "a"]
    if box["owner"] is not None:
        return [("a", row["position"]) for row in rows if row["status"] == "running"]
    if box["wake_at"] is None or box["question"] is not None:
        return []
    tried = [row for row in rows if row["status"] == "pending" and row["attempts"]]
    return [("a", row["position"]) for row in tried]


def is_busy(tables: Tables) -> bool:
    """Return whether session a has something unfinished, or is held."""
    held = any(
        row["question"] is not None for row in tables["mailboxes"] if row["session_id"] == "a"
    )
    return held or any(
        row["status"] in ("pending", "running")
        for row in tables["inbox"]
        if row["session_id"] == "a"
    )


def busy_send_was_right(before: Tables, after: Tables, when_busy: str, position: int) -> str | None:
    """A message was sent: nothing was busy, or exactly what ran was stopped for it."""
    if when_busy == "reject" and is_busy(before):
        return "a busy session has accepted a message that it should reject"
    stopped = interrupted_by_send(before) if when_busy == "interrupt" else []
    letters = {(row["session_id"], row["position"]): row for row in after["inbox"]}
    for row in before["inbox"]:
        place = (row["session_id"], row["position"])
        expected = "cancelled" if place in stopped else row["status"]
        if letters[place]["status"] != expected:
            return f"a {row['status']} message is {letters[place]['status']} after a busy send"
    [box] = [row for row in after["mailboxes"] if row["session_id"] == "a"]
    if box["owner"] is not None or box["question"] is not None:
        return "a session that was interrupted by a send is still busy"
    if position != box["tail"] or letters["a", position]["status"] != "pending":
        return "a message that was sent to a busy session does not wait at the tail"
    return None


def _values(tables: Tables, owner: str) -> dict[str, Any]:
    return {
        row["key"]: json.loads(row["value"])
        for row in tables["state_values"]
        if row["owner"] == owner
    }


def _messages(tables: Tables, session: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
        for row in tables["messages"]
        if row["session_id"] == session
    ]


def _session(table: str, row: Mapping[str, Any]) -> Any:
    if table == "sessions":
        return row["id"]
    return row["owner" if table == "state_values" else "session_id"]
