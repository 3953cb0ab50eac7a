"""The checker finds every broken promise.

Each test tampers with a good soak, in its tables or its journals. The checker must name the
violation.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from soak.plan import Plan
from soak.run import soak
from soak.storage_sqlite import SqliteStorage
from tests.support.finished_soak import Entry, FinishedSoak

# No faults, so every violation comes from the test. 150 calls hold each kind of entry several
# times.
HEALTHY = Plan(calls=150, seed=3, clients=5, chats=6, max_attempts=6, children=10, later=0.5)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> FinishedSoak:
    """A run with every kind of entry. Whether a stop meets a turn that streams is chance, and on a
    busy machine a run may have none."""
    for number in range(10):
        folder = tmp_path_factory.mktemp("soak")
        plan = replace(HEALTHY, seed=HEALTHY.seed + number)
        figures = asyncio.run(soak(plan, SqliteStorage(folder), folder))
        assert figures.violations == []
        run = FinishedSoak(folder)
        if kept_messages(run):
            return run
    raise AssertionError("no run has stopped a turn that streamed")


@pytest.fixture
def run(healthy: FinishedSoak, tmp_path: Path) -> FinishedSoak:
    return healthy.copied(tmp_path)


def assert_named(run: FinishedSoak, rule: str, session: str | None = None) -> None:
    found = run.verdict().violations
    named = [v for v in found if v.rule == rule and (session is None or v.session == session)]
    assert named, f"no {rule!r} of {session!r} among {found}"


def test_a_healthy_run_has_no_violations(run: FinishedSoak) -> None:
    assert run.verdict().violations == []


# ---- lost, doubled, in order ---------------------------------------------------------------------

PLAIN = "status = 'done' AND session_id LIKE 'chat-%' AND content LIKE '%\"verb\": \"echo\"%'"


def a_done_message(run: FinishedSoak) -> tuple[str, int]:
    """A done message without staged messages, alone in its turn, between others.

    Its sender was told that it was accepted.
    """
    answered = {e["told"] for e in run.entries() if "position" in e and "told" in e}
    accepted = {e["text"] for e in run.entries() if e.get("ask") in answered and "text" in e}
    rows = run.rows(
        f"SELECT session_id, position, content FROM inbox WHERE {PLAIN} AND content NOT LIKE '%>%'"
        " AND last_seq = first_seq + 1 AND position > 2 ORDER BY position, session_id"
    )
    session, position, _ = next(row for row in rows if row[2] in accepted)
    return session, position


def test_an_accepted_message_that_is_gone_is_lost(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change("DELETE FROM inbox WHERE session_id = ? AND position = ?", session, position)
    assert_named(run, "lost", session)
    assert_named(run, "positions", session)


def test_a_message_that_is_queued_twice_is_doubled(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change(
        "INSERT INTO inbox (namespace, session_id, position, status, content, attempts, ahead,"
        " enqueued_at, finished_at)"
        " SELECT namespace, session_id, 1000, 'cancelled', content, 0, 0, enqueued_at, finished_at"
        " FROM inbox WHERE session_id = ? AND position = ?",
        session,
        position,
    )
    assert_named(run, "doubled", session)


def test_a_done_message_that_is_not_in_the_transcript_is_lost(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change(
        "DELETE FROM messages WHERE session_id = ? AND position = ? AND role = 'user'",
        session,
        position,
    )
    assert_named(run, "lost", session)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_row_that_is_in_the_transcript_twice_is_doubled(run: FinishedSoak, role: str) -> None:
    session, position = a_done_message(run)
    [[seq]] = run.rows(
        "SELECT last_seq FROM inbox WHERE session_id = ? AND position = ?", session, position
    )
    # Make room after the turn, and copy the row there.
    run.change("UPDATE messages SET seq = -seq WHERE session_id = ? AND seq > ?", session, seq)
    run.change("UPDATE messages SET seq = 1 - seq WHERE session_id = ? AND seq < 0", session)
    for column in ("first_seq", "last_seq"):
        run.change(
            f"UPDATE inbox SET {column} = {column} + 1 WHERE session_id = ? AND {column} > ?",
            session,
            seq,
        )
    run.change(
        "UPDATE inbox SET last_seq = last_seq + 1 WHERE session_id = ? AND last_seq = ?",
        session,
        seq,
    )
    run.change(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
        " SELECT namespace, session_id, ?, role, content, created_at, position FROM messages"
        " WHERE session_id = ? AND position = ? AND role = ? LIMIT 1",
        seq + 1,
        session,
        position,
        role,
    )
    assert_named(run, "doubled", session)


def test_a_reply_that_is_gone_is_lost(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change(
        "DELETE FROM messages WHERE session_id = ? AND position = ? AND role = 'assistant'",
        session,
        position,
    )
    assert_named(run, "lost", session)


def test_a_reply_of_a_run_that_never_was_is_unsent(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change(
        "UPDATE messages SET content = replace(content, 'worker-', 'nobody-')"
        " WHERE session_id = ? AND position = ? AND role = 'assistant'",
        session,
        position,
    )
    assert_named(run, "unsent", session)


def test_messages_that_change_places_in_the_transcript_are_out_of_order(
    run: FinishedSoak,
) -> None:
    session = "chat-0"
    requeued = {e["position"] for e in run.entries() if e.get("op") == "requeue"}
    line = [
        row
        for row in run.rows(
            "SELECT seq, position FROM messages WHERE session_id = ? AND role = 'user'"
            " ORDER BY seq",
            session,
        )
        if row[1] not in requeued
    ]
    (one, first), (other, second) = line[2], line[-2]
    for seq, position in ((one, second), (other, first)):
        run.change(
            "UPDATE messages SET position = ? WHERE session_id = ? AND seq = ?",
            position,
            session,
            seq,
        )
    assert_named(run, "order", session)


def test_messages_that_change_places_in_the_inbox_are_out_of_order(run: FinishedSoak) -> None:
    session = "chat-1"
    rows = run.rows(
        "SELECT position, content FROM inbox WHERE session_id = ? ORDER BY position", session
    )
    (first, one), (second, other) = rows[1], rows[-2]
    for position, content in ((first, other), (second, one)):
        run.change(
            "UPDATE inbox SET content = ? WHERE session_id = ? AND position = ?",
            content,
            session,
            position,
        )
    assert_named(run, "order", session)
    assert_named(run, "receipt", session)


def test_sends_of_one_moment_that_change_places_are_out_of_order(run: FinishedSoak) -> None:
    [(session, burst)] = run.rows(
        "SELECT session_id, json_extract(content, '$.burst') AS burst FROM inbox"
        " WHERE json_valid(content) AND burst IS NOT NULL"
        " GROUP BY 1, 2 HAVING count(*) > 1 ORDER BY 1, 2 LIMIT 1"
    )
    first, second, *_ = run.rows(
        "SELECT position, content FROM inbox"
        " WHERE json_valid(content) AND json_extract(content, '$.burst') = ? ORDER BY position",
        burst,
    )
    for position, content in ((first[0], second[1]), (second[0], first[1])):
        run.change(
            "UPDATE inbox SET content = ? WHERE session_id = ? AND position = ?",
            content,
            session,
            position,
        )
    found = run.verdict().violations
    assert any(v.rule == "order" and burst in v.text for v in found), found


@pytest.mark.parametrize("table", ["inbox", "messages"])
def test_a_text_that_is_another_now_is_not_faithful(run: FinishedSoak, table: str) -> None:
    session, position = a_done_message(run)
    run.change(
        f"UPDATE {table} SET content = replace(content, 'echo', 'ECHO')"
        " WHERE session_id = ? AND position = ? AND content LIKE '%echo%'",
        session,
        position,
    )
    assert_named(run, "faithful", session)


def test_a_message_without_a_sender_is_unsent(run: FinishedSoak) -> None:
    run.change(
        "INSERT INTO inbox (namespace, session_id, position, status, content, attempts, ahead,"
        " enqueued_at, finished_at)"
        " SELECT namespace, session_id, 1000, 'dead', 'who wrote this?', 1, 0, enqueued_at,"
        " enqueued_at FROM inbox WHERE session_id = 'chat-0' AND position = 1"
    )
    assert_named(run, "unsent", "chat-0")


# ---- states --------------------------------------------------------------------------------------


def test_a_pending_message_at_the_end_was_not_drained(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change(
        "UPDATE inbox SET status = 'pending', finished_at = NULL"
        " WHERE session_id = ? AND position = ?",
        session,
        position,
    )
    assert_named(run, "drained", session)
    assert_named(run, "summary", session)


def test_a_message_that_was_cancelled_in_a_living_session_is_lost(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    run.change(
        "UPDATE inbox SET status = 'cancelled' WHERE session_id = ? AND position = ?",
        session,
        position,
    )
    assert_named(run, "lost", session)


def test_a_dead_message_without_its_error_is_named(run: FinishedSoak) -> None:
    run.change("UPDATE inbox SET error = NULL WHERE status = 'dead'")
    assert_named(run, "dead")


def test_done_is_final(run: FinishedSoak) -> None:
    told = run.find(lambda e: e.get("status") == "done")
    asked = run.find(lambda e: e.get("ask") == told["told"])
    run.change(
        "UPDATE inbox SET status = 'dead', error = 'x', dead_at = finished_at"
        " WHERE session_id = ? AND position = ?",
        asked["session"],
        asked["position"],
    )
    assert_named(run, "final", asked["session"])


def test_a_reply_that_was_told_must_be_in_the_transcript(run: FinishedSoak) -> None:
    # A reply whose session was deleted since is not there to be removed.
    there = {content for (content,) in run.rows("SELECT content FROM messages")}
    told = run.find(lambda e: "status" in e and e.get("reply") in there)
    run.change("DELETE FROM messages WHERE content = ?", told["reply"])
    assert_named(run, "final", asked(run, told)["session"])


# ---- staged messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("staged", [">relay", ">child"])
def test_a_staged_message_is_there_if_its_turn_committed(run: FinishedSoak, staged: str) -> None:
    run.change(f"DELETE FROM inbox WHERE content LIKE '%{staged}%'")
    assert_named(run, "atomic")


def test_a_staged_message_is_not_there_if_its_turn_did_not_commit(run: FinishedSoak) -> None:
    run.change(
        "UPDATE inbox SET status = 'dead', error = 'x', dead_at = finished_at"
        " WHERE status = 'done' AND content LIKE '%\"verb\": \"relay\"%'"
    )
    assert_named(run, "atomic")


def test_a_message_without_the_row_of_its_transaction_is_not_atomic(run: FinishedSoak) -> None:
    run.change("DELETE FROM orders WHERE token = (SELECT min(token) FROM orders)")
    assert_named(run, "atomic")


def test_a_message_of_a_transaction_that_was_rolled_back_is_named(run: FinishedSoak) -> None:
    told = run.find(lambda e: e.get("error") == "RolledBack")
    question = asked(run, told)
    run.change(
        "INSERT INTO inbox (namespace, session_id, position, status, content, attempts, ahead,"
        " enqueued_at, finished_at, error, dead_at)"
        " SELECT namespace, session_id, 1000, 'dead', ?, 1, 0, enqueued_at, enqueued_at, 'x',"
        " enqueued_at FROM inbox WHERE session_id = 'chat-0' AND position = 1",
        question["text"],
    )
    assert_named(run, "refused", question["session"])
    assert_named(run, "atomic", question["session"])


# ---- stopped messages ----------------------------------------------------------------------------


def kept_messages(run: FinishedSoak) -> list[tuple[Any, ...]]:
    """Messages that a caller stopped, in the transcript with the streamed part of the reply."""
    return run.rows(
        "SELECT i.session_id, i.position, m.seq FROM inbox AS i"
        " JOIN messages AS m ON m.session_id = i.session_id AND m.position = i.position"
        " AND m.role = 'assistant'"
        " WHERE i.stopped_by = 'cancel' AND i.first_seq IS NOT NULL AND i.session_id LIKE 'chat-%'"
        " ORDER BY i.session_id, i.position"
    )


def a_kept_message(run: FinishedSoak) -> tuple[str, int, int]:
    key = kept_messages(run)
    session, position, seq = key[0]
    return str(session), int(position), int(seq)


def test_a_message_that_was_kept_without_a_wish_is_unsent(run: FinishedSoak) -> None:
    session, _position, _seq = a_kept_message(run)

    def unwished(entry: Entry) -> Entry:
        if entry.get("op") in ("cancel", "interrupt") and entry["session"] == session:
            entry["keep"] = False
        if entry.get("when_busy") == "interrupt" and entry["session"] == session:
            entry["when_busy"] = "queue"
        return entry

    run.rewrite(unwished)
    assert_named(run, "unsent", session)


def test_a_message_that_nobody_stopped_is_lost(run: FinishedSoak) -> None:
    session, _position, _seq = a_kept_message(run)

    def elsewhere(entry: Entry) -> Entry:
        if entry.get("op") in ("cancel", "interrupt") and entry["session"] == session:
            entry["session"] = "chat-none"
        return entry

    run.rewrite(elsewhere)
    assert_named(run, "lost", session)


def test_a_partial_reply_of_no_run_is_unsent(run: FinishedSoak) -> None:
    session, _position, seq = a_kept_message(run)
    run.change(
        "UPDATE messages SET content = 'partial reply of w9' WHERE session_id = ? AND seq = ?",
        session,
        seq,
    )
    assert_named(run, "unsent", session)


def test_a_partial_reply_without_its_mark_is_not_a_whole_one(run: FinishedSoak) -> None:
    session, _position, seq = a_kept_message(run)
    run.change("UPDATE messages SET extra = NULL WHERE session_id = ? AND seq = ?", session, seq)
    assert_named(run, "atomic", session)


def test_a_stopped_message_that_is_done_after_all_is_not_final(run: FinishedSoak) -> None:
    session, position, _seq = a_kept_message(run)
    run.change(
        "UPDATE inbox SET status = 'done', stopped_by = NULL WHERE session_id = ? AND position = ?",
        session,
        position,
    )
    assert_named(run, "final", session)


def test_a_message_that_is_twice_in_a_transcript_that_was_cut_is_doubled(
    run: FinishedSoak,
) -> None:
    run.change(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
        " SELECT namespace, session_id, 10000, role, content, created_at, position FROM messages"
        " WHERE session_id LIKE 'draft-%' AND role = 'user' LIMIT 1"
    )
    assert_named(run, "doubled")


# ---- summaries and trees -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sessions SET message_count = message_count + 1",
        "UPDATE sessions SET last_seq = last_seq - 1",
        "UPDATE sessions SET last_seq = last_seq + 1",
        "UPDATE sessions SET last_active = '2030-01-01 00:00:00.000000'",
        "UPDATE sessions SET last_active = created_at",
        "UPDATE sessions SET updated_at = '2020-01-01 00:00:00.000000'",
        "UPDATE mailboxes SET pending = pending + 1",
        "UPDATE mailboxes SET taken = 1, pending = 1",
        "UPDATE mailboxes SET ready_at = '2030-01-01 00:00:00.000000'",
    ],
)
def test_a_summary_that_disagrees_with_its_rows_is_named(run: FinishedSoak, change: str) -> None:
    key = "id" if " sessions " in change else "session_id"
    run.change(f"{change} WHERE {key} = 'chat-2'")
    assert_named(run, "summary", "chat-2")


A_CHILD = (
    "(SELECT min(id) FROM sessions WHERE parent_id IN ('chat-0', 'chat-2', 'chat-3', 'chat-4'))"
)


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE sessions SET root_id = 'chat-5' WHERE id = {A_CHILD}",
        f"UPDATE sessions SET depth = depth + 1 WHERE id = {A_CHILD}",
        f"UPDATE sessions SET parent_id = 'nobody' WHERE id = {A_CHILD}",
        f"UPDATE sessions SET parent_id = 'chat-1' WHERE id = {A_CHILD}",
        f"UPDATE sessions SET parent_id = NULL WHERE id = {A_CHILD}",
    ],
)
def test_a_tree_that_is_not_whole(run: FinishedSoak, change: str) -> None:
    run.change(change)
    assert_named(run, "tree")


def test_a_child_that_is_gone_is_lost(run: FinishedSoak) -> None:
    child = run.find(lambda e: e.get("child"))["child"]
    run.change("DELETE FROM sessions WHERE id = ?", child)
    assert_named(run, "lost")
    assert_named(run, "deleted", child)
    assert_named(run, "integrity")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mailboxes SET closed = 0 WHERE session_id = ?",
        "UPDATE mailboxes SET ready_at = '2030-01-01 00:00:00.000000' WHERE session_id = ?",
        "UPDATE inbox SET status = 'pending' WHERE session_id = ?",
        "UPDATE sessions SET ended_at = NULL WHERE id = ?",
    ],
)
def test_an_ended_session_has_ended_for_good(run: FinishedSoak, change: str) -> None:
    [(session,)] = run.rows(
        "SELECT id FROM sessions AS s WHERE ended_at IS NOT NULL AND EXISTS"
        " (SELECT 1 FROM inbox AS i WHERE i.session_id = s.id) LIMIT 1"
    )
    run.change(change, session)
    assert_named(run, "ended", session)


def test_a_deleted_session_that_is_there_is_named(run: FinishedSoak) -> None:
    asked = run.find(lambda e: e.get("op") == "delete")
    run.change(
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active)"
        " SELECT namespace, ?, channel, peer, created_at, updated_at, last_active"
        " FROM sessions WHERE id = 'chat-0'",
        asked["session"],
    )
    assert_named(run, "deleted", asked["session"])


# ---- transcripts of clients ----------------------------------------------------------------------


def test_an_append_that_is_gone_is_lost(run: FinishedSoak) -> None:
    run.change("DELETE FROM messages WHERE session_id = 'notebook-0' AND seq = 3")
    found = {v.rule for v in run.verdict().violations if v.session == "notebook-0"}
    assert found & {"lost", "atomic"}


def test_an_append_that_is_there_twice_is_doubled(run: FinishedSoak) -> None:
    run.change(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
        " SELECT namespace, session_id, seq + 1000, role, content, created_at FROM messages"
        " WHERE session_id = 'notebook-0' AND seq = 3"
    )
    assert_named(run, "doubled", "notebook-0")


def test_appends_that_change_places_are_out_of_order(run: FinishedSoak) -> None:
    [[last]] = run.rows("SELECT max(seq) FROM messages WHERE session_id = 'notebook-1'")
    for seq, to in ((1, 5000), (last, 1), (5000, last)):
        run.change(
            "UPDATE messages SET seq = ? WHERE session_id = 'notebook-1' AND seq = ?", to, seq
        )
    assert_named(run, "order", "notebook-1")


def test_an_entry_of_a_ledger_that_is_gone_is_lost(run: FinishedSoak) -> None:
    run.change(
        "DELETE FROM messages WHERE session_id = 'ledger-0'"
        " AND seq = (SELECT min(seq) FROM messages WHERE session_id = 'ledger-0')"
    )
    assert_named(run, "lost", "ledger-0")


def test_a_version_that_is_told_twice_is_named(run: FinishedSoak) -> None:
    saves = [e["ask"] for e in run.entries() if e.get("op") == "save"]
    session = {e["ask"]: e["session"] for e in run.entries() if e.get("op") == "save"}
    told = [e for e in run.entries() if e.get("told") in saves and "version" in e]
    one = told[0]
    other = next(e for e in told[1:] if session[e["told"]] == session[one["told"]])

    def same_version(entry: Entry) -> Entry:
        if entry.get("told") == other["told"]:
            entry["version"] = one["version"]
        return entry

    run.rewrite(same_version)
    assert_named(run, "versions", session[one["told"]])


# ---- readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chat", "notebook", "ledger"])
def test_a_version_that_goes_back_is_named(run: FinishedSoak, kind: str) -> None:
    asked_of = {e["ask"]: e["session"] for e in run.entries() if e.get("op") in VERSIONED}
    told = run.find(
        lambda e: e.get("version") and asked_of.get(e.get("told"), "").startswith(f"{kind}-")
    )
    session = asked_of[told["told"]]
    run.change("UPDATE sessions SET version = 0 WHERE id = ?", session)
    assert_named(run, "versions", session)


VERSIONED = ("version", "get", "append", "save")


def test_a_seq_that_is_used_again_is_named(run: FinishedSoak) -> None:
    page = run.find(lambda e: e.get("page") and asked(run, e)["session"].startswith("notebook"))
    session = asked(run, page)["session"]
    seq = page["page"][-1][0]
    run.change(
        "UPDATE messages SET content = 'another' WHERE session_id = ? AND seq = ?", session, seq
    )
    assert_named(run, "seq", session)


def asked(run: FinishedSoak, told: Entry) -> Entry:
    return run.find(lambda entry: entry.get("ask") == told["told"])


# ---- answers and journals ------------------------------------------------------------------------


def test_a_key_with_two_receipts_is_doubled(run: FinishedSoak) -> None:
    repeated = run.find(lambda e: e.get("duplicate") is True)

    def elsewhere(entry: Entry) -> Entry:
        if entry.get("told") == repeated["told"]:
            entry["position"] += 1
        return entry

    run.rewrite(elsewhere)
    assert_named(run, "doubled", asked(run, repeated)["session"])


def test_a_refused_message_that_was_written_is_named(run: FinishedSoak) -> None:
    session, position = a_done_message(run)
    [[content]] = run.rows(
        "SELECT content FROM inbox WHERE session_id = ? AND position = ?", session, position
    )
    questions = {e["ask"] for e in run.entries() if e.get("text") == content}

    def refused(entry: Entry) -> Entry:
        if entry.get("told") in questions:
            return {"at": entry["at"], "told": entry["told"], "error": "InboxFull"}
        return entry

    run.rewrite(refused)
    assert_named(run, "refused", session)


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        ({"error": "OperationalError", "why": "locked", "foreign": True}, "typed errors"),
        ({"error": "UnknownSession", "why": "unknown session"}, "unknown"),
    ],
)
def test_an_undocumented_answer_is_named(
    run: FinishedSoak, error: dict[str, Any], rule: str
) -> None:
    read = run.find(lambda e: e.get("op") == "get")

    def failed(entry: Entry) -> Entry:
        if entry.get("told") == read["ask"]:
            return {"at": entry["at"], "told": entry["told"], **error}
        return entry

    run.rewrite(failed)
    assert_named(run, rule, read["session"])


def test_a_process_that_ends_by_itself_is_named(run: FinishedSoak) -> None:
    crash = json.dumps({"at": 1.0, "crash": "worker-0", "code": 1})
    (run.folder / "supervisor.jsonl").write_text(f"{crash}\n")
    assert_named(run, "alive")


def test_a_run_that_never_drained_is_named(run: FinishedSoak) -> None:
    run.rewrite(lambda entry: None if "drained" in entry else entry)
    assert_named(run, "drained", "")


# ---- leases --------------------------------------------------------------------------------------


def two_runs(run: FinishedSoak) -> tuple[Entry, Entry]:
    """Two runs of one session in a row, both with a reply in the transcript.

    A run without a reply (its handler failed or was stopped) may not stand between the two. The
    checker compares a lease with the lease that was given next, and allows an overlap where a
    caller may have stopped a turn. So the session is one that no caller stopped.
    """
    stops = ("cancel", "interrupt", "end", "reopen", "delete")
    stopped = {e["session"] for e in run.entries() if e.get("op") in stops}
    runs: dict[str, list[Entry]] = {}
    replies = " ".join(content for (content,) in run.rows("SELECT content FROM messages"))
    for entry in run.entries():
        if "begin" in entry and entry.get("epoch") and entry["session"] not in stopped:
            runs.setdefault(entry["session"], []).append(entry)
    for line in runs.values():
        for first, second in pairwise(sorted(line, key=lambda run: run["epoch"])):
            replied = all(f'"{one["begin"]}"' in replies for one in (first, second))
            if replied and second["claimed_at"] < first["lease_until"]:
                return first, second
    raise AssertionError("no session had two turns within a lease")


def test_two_runs_under_one_epoch_are_named(run: FinishedSoak) -> None:
    first, second = two_runs(run)

    def same_epoch(entry: Entry) -> Entry:
        if entry.get("begin") == second["begin"]:
            entry["epoch"] = first["epoch"]
        return entry

    run.rewrite(same_epoch)
    assert_named(run, "leases", first["session"])


def test_a_commit_after_a_later_lease_was_given_is_named(run: FinishedSoak) -> None:
    first, second = two_runs(run)

    def late(entry: Entry) -> Entry:
        if entry.get("end") == first["begin"]:
            entry["at"] = second["at"] + 0.001
        return entry

    run.rewrite(late)
    found = run.verdict().violations
    assert any(v.rule == "leases" and first["begin"] in v.text for v in found), found


def test_a_lease_that_is_given_while_another_is_valid_is_named(run: FinishedSoak) -> None:
    """A first handler that was killed, and a second that began within its lease."""
    first, second = two_runs(run)
    run.rewrite(lambda entry: None if entry.get("end") == first["begin"] else entry)
    found = run.verdict().violations
    assert any(
        v.rule == "leases" and first["begin"] in v.text and second["begin"] in v.text for v in found
    ), found


def test_an_epoch_beyond_the_mailboxs_own_is_named(run: FinishedSoak) -> None:
    run.change("UPDATE mailboxes SET epoch = 1 WHERE session_id = 'chat-4'")
    assert_named(run, "leases", "chat-4")


# ---- questions -----------------------------------------------------------------------------------


def a_question(run: FinishedSoak, status: str) -> tuple[str, int, int]:
    """Return session, position and place of the answer of a question that was closed so."""
    return run.rows(
        "SELECT q.session_id, q.position, q.answer_position FROM questions AS q"
        " JOIN sessions AS s ON s.id = q.session_id"
        " WHERE q.status = ? AND s.channel = 'desk' ORDER BY 1, 2 LIMIT 1",
        status,
    )[0]


def set_question(run: FinishedSoak, session: str, position: int, values: str) -> None:
    run.change(
        f"UPDATE questions SET {values} WHERE session_id = ? AND position = ?", session, position
    )


def test_a_turn_that_asked_nothing_is_lost(run: FinishedSoak) -> None:
    session, position, _ = a_question(run, "answered")
    run.change("DELETE FROM questions WHERE session_id = ? AND position = ?", session, position)
    assert_named(run, "lost", session)


def test_a_question_of_no_turn_is_named(run: FinishedSoak) -> None:
    session, position, _ = a_question(run, "answered")
    run.change(
        'UPDATE inbox SET content = replace(content, \'"verb": "ask"\', \'"verb": "echo"\')'
        " WHERE session_id = ? AND first_seq = (SELECT first_seq FROM inbox"
        " WHERE session_id = ? AND position = ?)",
        session,
        session,
        position,
    )
    assert_named(run, "atomic", session)


@pytest.mark.parametrize(
    ("was", "values", "rule"),
    [
        ("answered", "status = 'open'", "drained"),
        ("answered", "status = 'expired'", "faithful"),
        ("expired", "status = 'answered'", "faithful"),
        ("answered", "status = 'withdrawn'", "lost"),
        ("answered", "status = 'ended'", "lost"),
        ("answered", "answer_position = answer_position + 1", "receipt"),
    ],
)
def test_a_question_that_was_closed_in_another_way_is_named(
    run: FinishedSoak, was: str, values: str, rule: str
) -> None:
    session, position, _ = a_question(run, was)
    set_question(run, session, position, values)
    assert_named(run, rule, session)


def test_a_question_with_two_answers_is_doubled(run: FinishedSoak) -> None:
    session, position, _ = a_question(run, "answered")
    run.change(
        "UPDATE inbox SET answers = ? WHERE session_id = ? AND position = ?",
        position,
        session,
        position,
    )
    assert_named(run, "doubled", session)


def test_an_answer_that_is_gone_is_named(run: FinishedSoak) -> None:
    session, _, answer = a_question(run, "answered")
    run.change("DELETE FROM inbox WHERE session_id = ? AND position = ?", session, answer)
    assert_named(run, "receipt", session)


def test_an_expiry_that_never_came_is_named(run: FinishedSoak) -> None:
    session, position, notice = a_question(run, "expired")
    run.change("DELETE FROM inbox WHERE session_id = ? AND position = ?", session, notice)
    set_question(run, session, position, "answer_position = NULL")
    assert_named(run, "lost", session)


def test_a_second_accepted_answer_is_doubled(run: FinishedSoak) -> None:
    session, position, answer = a_question(run, "answered")
    call = {"op": "answer", "session": session, "asked": f"{session}:{position}"}
    lines = []
    for number in (1, 2):
        text = json.dumps({"token": f"other {number}"})
        told = {"position": answer + number, "duplicate": False}
        lines += [
            json.dumps({"at": 1.0, "ask": f"x?{number}", **call, "text": text}),
            json.dumps({"at": 2.0, "told": f"x?{number}", **told}),
        ]
    (run.folder / "other.jsonl").write_text("\n".join(lines) + "\n")
    assert_named(run, "doubled", session)
    assert_named(run, "lost", session)


def test_a_session_that_is_held_at_the_end_is_named(run: FinishedSoak) -> None:
    run.change("UPDATE mailboxes SET question = 1 WHERE session_id = 'desk-0'")
    assert_named(run, "drained", "desk-0")


# ---- schedules -----------------------------------------------------------------------------------


def a_scheduled_message(run: FinishedSoak) -> tuple[str, str]:
    """Return session and text of a scheduled message that was handled."""
    told = run.find(lambda e: "told" in e and "schedule" in e)
    call = asked(run, told)
    return call["session"], call["text"]


def test_a_due_time_that_passed_without_its_message_is_lost(run: FinishedSoak) -> None:
    session, text = a_scheduled_message(run)
    run.change("DELETE FROM inbox WHERE session_id = ? AND content = ?", session, text)
    assert_named(run, "lost", session)


def test_a_due_time_with_two_messages_is_doubled(run: FinishedSoak) -> None:
    session, text = a_scheduled_message(run)
    run.change(
        "INSERT INTO inbox (namespace, session_id, position, status, content, attempts, ahead,"
        " enqueued_at, finished_at)"
        " SELECT namespace, session_id, 1000, 'cancelled', content, 0, 0, enqueued_at, finished_at"
        " FROM inbox WHERE session_id = ? AND content = ?",
        session,
        text,
    )
    assert_named(run, "doubled", session)


def test_a_message_before_its_due_time_is_early(run: FinishedSoak) -> None:
    session, text = a_scheduled_message(run)
    run.change(
        "UPDATE inbox SET enqueued_at = '2020-01-01 00:00:00.000000'"
        " WHERE session_id = ? AND content = ?",
        session,
        text,
    )
    assert_named(run, "early", session)


def test_a_schedule_that_is_left_is_named(run: FinishedSoak) -> None:
    moment = "'2020-01-01 00:00:00.000000'"
    run.change(
        "INSERT INTO schedules (namespace, id, session_id, content, at, tz, catch_up, created_at,"
        f" due_at, try_at) VALUES ('default', 'x', 'desk-0', 'x', {moment}, 'UTC', 'one', {moment},"
        f" {moment}, {moment})"
    )
    assert_named(run, "drained", "desk-0")


# ---- reports of children -------------------------------------------------------------------------


def a_report(run: FinishedSoak) -> tuple[str, str, int]:
    """Return child and parent of a report, and its position in the inbox of the parent."""
    return run.rows(
        "SELECT sender, session_id, position FROM inbox"
        ' WHERE extra LIKE \'%"report":"reply"%\' ORDER BY 1 LIMIT 1'
    )[0]


def test_a_report_that_is_gone_is_lost(run: FinishedSoak) -> None:
    child, parent, position = a_report(run)
    run.change("DELETE FROM inbox WHERE session_id = ? AND position = ?", parent, position)
    assert_named(run, "lost", child)


def test_a_second_report_is_doubled(run: FinishedSoak) -> None:
    child, parent, position = a_report(run)
    run.change(
        "INSERT INTO inbox (namespace, session_id, position, status, content, attempts, ahead,"
        " enqueued_at, finished_at, sender, extra)"
        " SELECT namespace, session_id, 1000, 'cancelled', content, 0, 0, enqueued_at, finished_at,"
        " sender, extra FROM inbox WHERE session_id = ? AND position = ?",
        parent,
        position,
    )
    assert_named(run, "doubled", child)


@pytest.mark.parametrize(
    ("state", "rule"), [("'each'", "atomic"), ("'dropped'", "atomic"), ("NULL", "lost")]
)
def test_a_report_that_the_child_does_not_know_is_named(
    run: FinishedSoak, state: str, rule: str
) -> None:
    child, _, _ = a_report(run)
    run.change(f"UPDATE sessions SET report = {state} WHERE id = ?", child)
    assert_named(run, rule, child)


def test_a_report_that_was_dropped_for_an_open_parent_is_lost(run: FinishedSoak) -> None:
    child, parent, position = a_report(run)
    run.change("DELETE FROM inbox WHERE session_id = ? AND position = ?", parent, position)
    run.change("UPDATE sessions SET report = 'dropped' WHERE id = ?", child)
    assert_named(run, "lost", child)


def test_a_child_that_replied_and_never_reported_is_lost(run: FinishedSoak) -> None:
    child, parent, position = a_report(run)
    run.change("DELETE FROM inbox WHERE session_id = ? AND position = ?", parent, position)
    run.change("UPDATE sessions SET report = 'each' WHERE id = ?", child)
    assert_named(run, "lost", child)


def test_a_report_with_other_words_is_named(run: FinishedSoak) -> None:
    child, parent, position = a_report(run)
    run.change(
        "UPDATE inbox SET content = replace(content, '\"n\": ', '\"n\": 7')"
        " WHERE session_id = ? AND position = ?",
        parent,
        position,
    )
    assert_named(run, "faithful", child)


# ---- schedules by cron -------------------------------------------------------------------------


def a_minute_later(moment: str) -> str:
    return f"{datetime.fromisoformat(moment) + timedelta(minutes=1):%Y-%m-%d %H:%M:%S.%f}"


def test_a_minute_without_its_message_is_lost(run: FinishedSoak) -> None:
    def changed(entry: Entry) -> Entry:
        if entry.get("op") == "hush" and entry["session"] == "bell-0":
            entry["due_at"] = a_minute_later(entry["due_at"])
        return entry

    run.rewrite(changed)
    assert_named(run, "lost", "bell-0")


def test_a_minute_with_two_messages_is_doubled(run: FinishedSoak) -> None:
    """The minute of the run may have passed: so two messages are added."""
    [ring] = [e for e in run.entries() if e.get("op") == "ring" and e["session"] == "bell-1"]
    for position in (1_000, 1_001, 1_002):
        run.change(
            "INSERT INTO inbox (namespace, session_id, position, status, content, attempts, ahead,"
            " enqueued_at, finished_at) VALUES ('default', 'bell-1', ?, 'cancelled', ?, 0, 0,"
            " '2090-01-01 00:00:00.000000', '2090-01-01 00:00:00.000000')",
            position,
            ring["text"],
        )
    assert_named(run, "doubled", "bell-1")


# ---- state ---------------------------------------------------------------------------------------

OWN_STATE = "scope = 'session' AND owner NOT LIKE 'fork %'"


def a_counted_token(run: FinishedSoak) -> tuple[str, str]:
    """Return session and token of a turn that counted itself in the state."""
    [row] = run.rows(
        "SELECT owner, key FROM state_values"
        f" WHERE {OWN_STATE} AND value LIKE '\"worker-%' ORDER BY owner, key LIMIT 1"
    )
    return row


def test_a_committed_turn_without_its_state_is_lost(run: FinishedSoak) -> None:
    session, token = a_counted_token(run)
    run.change("DELETE FROM state_values WHERE owner = ? AND key = ?", session, token)
    assert_named(run, "lost", session)


def test_the_state_of_a_turn_that_did_not_commit_is_named(run: FinishedSoak) -> None:
    session, _ = a_counted_token(run)
    other = run.find(lambda e: "begin" in e and e["session"] != session)
    run.change(
        "INSERT INTO state_values (namespace, scope, owner, key, value)"
        " VALUES ('default', 'session', ?, 'staged', ?)",
        session,
        json.dumps(other["begin"]),
    )
    assert_named(run, "atomic", session)


def test_a_turn_that_counted_from_an_old_state_is_named(run: FinishedSoak) -> None:
    session, _ = a_counted_token(run)
    run.change("UPDATE state_values SET value = '1000' WHERE owner = ? AND key = 'count'", session)
    assert_named(run, "atomic", session)


@pytest.mark.parametrize("op", ["update state", "edit"])
def test_a_value_that_was_written_and_is_gone_is_named(run: FinishedSoak, op: str) -> None:
    call = run.find(lambda e: e.get("op") == op)
    token = call["token"] if op == "update state" else call["tokens"][0]
    run.change("DELETE FROM state_values WHERE owner = ? AND key = ?", call["session"], token)
    assert_named(run, "lost" if op == "update state" else "atomic", call["session"])


def test_a_value_that_nobody_wrote_is_unsent(run: FinishedSoak) -> None:
    session, _ = a_counted_token(run)
    run.change(
        "INSERT INTO state_values (namespace, scope, owner, key, value)"
        " VALUES ('default', 'session', ?, 'strange', '1')",
        session,
    )
    assert_named(run, "unsent", session)


def test_state_without_its_session_is_named(run: FinishedSoak) -> None:
    run.change(
        "INSERT INTO state_scopes (namespace, scope, owner, session_id, version, bytes, updated_at)"
        " VALUES ('default', 'session', 'gone', 'gone', 1, 0, '2030-01-01 00:00:00.000000')"
    )
    assert_named(run, "deleted", "gone")


# ---- forks ---------------------------------------------------------------------------------------


def a_fork(run: FinishedSoak, source: str = "%") -> str:
    """Return a fork with messages, of a source whose id is like this."""
    [[fork]] = run.rows(
        "SELECT s.id FROM sessions AS s JOIN messages AS m"
        " ON m.session_id = s.id AND m.seq = s.forked_seq"
        " WHERE m.role = iif(s.channel = 'chat', 'assistant', 'user') AND forked_from LIKE ?"
        " ORDER BY forked_seq DESC, id LIMIT 1",
        source,
    )
    return str(fork)


def test_a_fork_without_one_of_its_messages_is_not_faithful(run: FinishedSoak) -> None:
    fork = a_fork(run)
    run.change("DELETE FROM messages WHERE session_id = ? AND seq = 1", fork)
    assert_named(run, "faithful", fork)


def test_a_fork_with_half_of_a_turn_is_named(run: FinishedSoak) -> None:
    fork = a_fork(run, "chat-%")
    run.change("UPDATE sessions SET forked_seq = forked_seq - 1 WHERE id = ?", fork)
    run.change(
        "DELETE FROM messages WHERE session_id = ?"
        " AND seq > (SELECT forked_seq FROM sessions WHERE id = session_id)",
        fork,
    )
    assert_named(run, "atomic", fork)


def test_a_fork_without_what_was_appended_before_is_named(run: FinishedSoak) -> None:
    fork = a_fork(run, "notebook-%")
    run.change("UPDATE sessions SET forked_seq = 0 WHERE id = ?", fork)
    run.change("DELETE FROM messages WHERE session_id = ?", fork)
    assert_named(run, "lost", fork)


def test_a_fork_with_the_state_of_another_moment_is_named(run: FinishedSoak) -> None:
    [[fork, token]] = run.rows(
        "SELECT owner, key FROM state_values WHERE owner LIKE 'fork %'"
        " AND value IN ('\"written by an edit\"') ORDER BY owner, key LIMIT 1"
    )
    run.change("DELETE FROM state_values WHERE owner = ? AND key = ?", fork, token)
    assert_named(run, "atomic", fork)


def test_a_fork_that_is_gone_is_lost(run: FinishedSoak) -> None:
    fork = a_fork(run)
    run.change("DELETE FROM sessions WHERE id = ?", fork)
    assert_named(run, "lost", fork)


def test_a_fork_with_an_inbox_is_named(run: FinishedSoak) -> None:
    fork, (session, position) = a_fork(run), a_done_message(run)
    run.change(
        "UPDATE inbox SET session_id = ? WHERE session_id = ? AND position = ?",
        fork,
        session,
        position,
    )
    assert_named(run, "atomic", fork)


# ---- busy sends and taken messages ---------------------------------------------------------------


def a_busy_send(run: FinishedSoak, when_busy: str) -> tuple[str, int]:
    """Return session and position of such a send, behind a message that is done."""
    for call in run.entries():
        if call.get("when_busy") != when_busy:
            continue
        rows = run.rows(
            "SELECT i.session_id, i.position FROM inbox AS i WHERE i.content = ? AND EXISTS ("
            " SELECT 1 FROM inbox AS o WHERE o.session_id = i.session_id AND o.status = 'done'"
            " AND o.position = i.position - 1)",
            call["text"],
        )
        if rows:
            return rows[0]
    raise AssertionError(f"no send with {when_busy}")


@pytest.mark.parametrize("when_busy", ["reject", "interrupt"])
def test_a_busy_send_beside_a_running_turn_is_named(run: FinishedSoak, when_busy: str) -> None:
    session, position = a_busy_send(run, when_busy)
    run.change(
        "UPDATE inbox SET claimed_at = '2020-01-01 00:00:00.000000',"
        " finished_at = '2090-01-01 00:00:00.000000' WHERE session_id = ? AND position = ?",
        session,
        position - 1,
    )
    assert_named(run, "busy", session)


def test_a_session_that_was_busy_without_need_is_unknown(run: FinishedSoak) -> None:
    """Only a send that asks for it is rejected by a busy session."""
    call = run.find(lambda e: e.get("op") == "send" and e.get("when_busy") == "queue")

    def changed(entry: Entry) -> Entry:
        if entry.get("told") == call["ask"]:
            entry["error"] = "SessionBusy"
        return entry

    run.rewrite(changed)
    assert_named(run, "unknown", call["session"])


def a_taken_message(run: FinishedSoak) -> tuple[str, int]:
    """Return session and position of a taken message that is done by the turn that took it."""
    sessions = {e["begin"]: e["session"] for e in run.entries() if "begin" in e}
    for entry in run.entries():
        for position in entry.get("positions", ()) if "took" in entry else ():
            session = sessions[entry["took"]]
            is_done = run.rows(
                "SELECT 1 FROM inbox WHERE session_id = ? AND position = ? AND status = 'done'"
                " AND session_id NOT LIKE 'draft-%' AND EXISTS (SELECT 1 FROM messages AS m"
                " WHERE m.session_id = inbox.session_id AND m.role = 'assistant'"
                " AND m.seq BETWEEN first_seq AND last_seq AND instr(m.content, ?))",
                session,
                position,
                json.dumps(entry["took"]),
            )
            if is_done:
                return session, position
    raise AssertionError("no message was taken")


def test_a_taken_message_that_is_in_no_committed_turn_is_lost(run: FinishedSoak) -> None:
    session, position = a_taken_message(run)
    run.change(
        "DELETE FROM messages WHERE session_id = ? AND position = ? AND role = 'user'",
        session,
        position,
    )
    assert_named(run, "lost", session)


def test_a_taken_message_that_bears_the_attempt_of_the_turn_is_named(run: FinishedSoak) -> None:
    session, position = a_taken_message(run)
    run.change(
        "UPDATE inbox SET attempts = 1 WHERE session_id = ? AND position = ?", session, position
    )
    assert_named(run, "atomic", session)


def test_a_turn_that_answers_without_a_message_that_it_took_is_named(run: FinishedSoak) -> None:
    session, position = a_taken_message(run)
    run.rewrite(
        lambda e: {**e, "positions": []} if "took" in e and position in e["positions"] else e
    )
    assert_named(run, "unsent", session)
