"""The report views: their columns are public API, and each figure equals the one that Python
computes from the raw rows."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, StorageError, reports
from sessionsdb.reports.catalogue import (
    ACTIVITY,
    INBOX,
    LATENCY,
    SESSIONS,
    TREE,
    TURNS,
    VIEWS,
    View,
)
from tests.support.reporting import fill, raw, viewed

Rows = list[dict[str, Any]]
Key = tuple[str, str]

# Names and order are public API: a change needs a line in the changelog and a migration.
COLUMNS = {
    "report_sessions": "namespace session_id channel peer parent_id root_id depth children model"
    " created_at updated_at last_active ended_at end_reason state message_count pending running"
    " turns dead input_tokens output_tokens last_error forked_from held_at held_seconds schedules"
    " late_seconds",
    "report_turns": "namespace session_id position channel sender status attempts worker model"
    " enqueued_at claimed_at finished_at wait_seconds work_seconds total_seconds input_tokens"
    " output_tokens first_seq last_seq error stopped_by",
    "report_activity": "namespace day channel sessions new_sessions messages turns dead"
    " input_tokens output_tokens",
    "report_latency": "namespace day channel messages wait_p50 wait_p95 wait_p99 total_p50"
    " total_p95 total_p99",
    "report_inbox": "namespace channel sessions pending running ready retrying leased overdue"
    " oldest_at oldest_seconds dead held held_seconds schedules due late_seconds",
    "report_tree": "namespace root_id root_channel session_id parent_id depth path channel turns"
    " input_tokens output_tokens subtree_sessions subtree_turns subtree_input_tokens"
    " subtree_output_tokens subtree_last_active forked_from",
}

TYPES = {
    "text": "text",
    "integer": "bigint",
    "seconds": "double precision",
    "time": "timestamp with time zone",
    "day": "date",
}


KEPT_OF_A_SESSION = (
    "channel peer parent_id depth model created_at updated_at last_active ended_at end_reason"
    " message_count"
)
KEPT_OF_A_MESSAGE = (
    "namespace session_id position sender status attempts worker model enqueued_at claimed_at"
    " finished_at input_tokens output_tokens first_seq last_seq error stopped_by"
)
COUNTS_OF_AN_INBOX = (
    "sessions", "pending", "running", "ready", "retrying", "leased", "overdue", "dead",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, real_transcripts: Path) -> Iterator[Database]:
    """Real conversations, worked through, with messages in every state."""
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        asyncio.run(fill(database, real_transcripts))
        yield database


class Raw:
    """The rows of the tables, with figures computed in Python."""

    def __init__(self, sessions: Rows, messages: Rows, mailboxes: Rows, inbox: Rows) -> None:
        self.sessions = {(row["namespace"], row["id"]): row for row in sessions}
        self.messages = messages
        self.mailboxes = {key(row): row for row in mailboxes}
        self.inbox = inbox
        self.inboxes: dict[Key, Rows] = defaultdict(list)
        for row in inbox:
            self.inboxes[key(row)].append(row)

    def channel(self, row: dict[str, Any]) -> str:
        return str(self.sessions[key(row)]["channel"])

    def turns(self, session: Key) -> int:
        return len({row["first_seq"] for row in self.inboxes[session] if row["status"] == "done"})

    def tokens(self, session: Key, direction: str) -> int:
        return sum(row[f"{direction}_tokens"] or 0 for row in self.inboxes[session])

    def below(self, session: Key) -> list[Key]:
        """The session and all sessions below it."""
        found = [session]
        for namespace, id in found:
            found += [
                (namespace, row["id"])
                for row in self.sessions.values()
                if row["namespace"] == namespace and row["parent_id"] == id
            ]
        return found

    def above(self, session: Key) -> list[str]:
        """The ids from the root down to the session."""
        path = [session[1]]
        while (parent := self.sessions[session]["parent_id"]) is not None:
            session = (session[0], parent)
            path.insert(0, parent)
        return path


@pytest.fixture
async def rows(filled: Database) -> Raw:
    return Raw(
        *[await raw(filled, table) for table in ("sessions", "messages", "mailboxes", "inbox")]
    )


def key(row: dict[str, Any]) -> Key:
    return (row["namespace"], row["session_id"])


def ordered(found: Iterable[dict[str, Any]], *by: str) -> Rows:
    return sorted(found, key=lambda row: [row[name] for name in by])


def was_handled(row: dict[str, Any]) -> bool:
    """Whether a turn has begun over the message and it has come to its end."""
    stopped = row["status"] == "cancelled" and row["claimed_at"] is not None
    return stopped or row["status"] in ("done", "dead")


def seconds(row: dict[str, Any], begin: str, end: str) -> float:
    return (row[end] - row[begin]).total_seconds()


def percentile(values: list[float], p: float) -> float:
    """Interpolated between neighbours, like numpy's default and SQL's percentile_cont."""
    values = sorted(values)
    place = p * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


# ---- the figures -------------------------------------------------------------------------------


async def test_there_is_something_of_everything_to_report(rows: Raw) -> None:
    assert len(rows.sessions) >= 120 + 2 * 12
    assert {row["status"] for row in rows.inbox} == {
        "pending", "running", "done", "dead", "cancelled",
    }  # fmt: skip
    assert any(row["attempts"] == 2 and row["status"] == "done" for row in rows.inbox)
    assert any(row["ahead"] and row["status"] == "pending" for row in rows.inbox)
    assert any(row["wake_at"] for row in rows.mailboxes.values())
    assert any(row["owner"] for row in rows.mailboxes.values())
    assert max(row["depth"] for row in rows.sessions.values()) == 2
    done = [row for row in rows.inbox if row["status"] == "done"]
    assert len({(key(row), row["first_seq"]) for row in done}) < len(done)  # batches
    assert len({row["finished_at"].date() for row in done}) >= 4


async def test_report_sessions(filled: Database, rows: Raw) -> None:
    expected = []
    for (namespace, id), session in rows.sessions.items():
        inbox, mailbox = rows.inboxes[namespace, id], rows.mailboxes[namespace, id]
        failed = [row for row in inbox if row["error"] is not None]
        last = max(failed, key=lambda row: (row["claimed_at"], row["position"]), default=None)
        states = {
            "ended": session["ended_at"],
            "running": mailbox["owner"],
            "retrying": mailbox["wake_at"],
            "ready": mailbox["ready_at"],
        }
        expected.append(
            {
                "namespace": namespace,
                "session_id": id,
                **{name: session[name] for name in KEPT_OF_A_SESSION.split()},
                "root_id": rows.above((namespace, id))[0],
                "children": sum(
                    row["parent_id"] == id and row["namespace"] == namespace
                    for row in rows.sessions.values()
                ),
                "state": next((name for name, set_ in states.items() if set_ is not None), "idle"),
                "pending": sum(row["status"] == "pending" for row in inbox),
                "running": sum(row["status"] == "running" for row in inbox),
                "turns": rows.turns((namespace, id)),
                "dead": sum(row["status"] == "dead" for row in inbox),
                "input_tokens": rows.tokens((namespace, id), "input"),
                "output_tokens": rows.tokens((namespace, id), "output"),
                "last_error": None if last is None else last["error"],
                # test_reports_family has sessions with these.
                "forked_from": None,
                "held_at": None,
                "held_seconds": None,
                "schedules": 0,
                "late_seconds": None,
            }
        )
    found = await viewed(filled, SESSIONS)
    assert ordered(found, "namespace", "session_id") == ordered(expected, "namespace", "session_id")
    assert {row["state"] for row in found} == {"ended", "running", "retrying", "ready", "idle"}


async def test_report_turns(filled: Database, rows: Raw) -> None:
    expected = [
        {name: row[name] for name in KEPT_OF_A_MESSAGE.split()}
        | {
            "channel": rows.channel(row),
            "wait_seconds": seconds(row, "enqueued_at", "claimed_at"),
            "work_seconds": seconds(row, "claimed_at", "finished_at"),
            "total_seconds": seconds(row, "enqueued_at", "finished_at"),
        }
        for row in rows.inbox
        if was_handled(row)
    ]
    by = ("namespace", "session_id", "position")
    # To the last bit: seconds are exact to the microsecond on both databases.
    assert ordered(await viewed(filled, TURNS), *by) == ordered(expected, *by)


async def test_report_activity(filled: Database, rows: Raw) -> None:
    counts: dict[Any, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    active = defaultdict(set)
    turns = defaultdict(set)

    def happened(row: dict[str, Any], session: Key, moment: datetime) -> dict[str, int]:
        cell = (session[0], moment.date(), rows.sessions[session]["channel"])
        active[cell].add(session)
        return counts[cell]

    for session, row in rows.sessions.items():
        happened(row, session, row["created_at"])["new_sessions"] += 1
    for row in rows.messages:
        happened(row, key(row), row["created_at"])["messages"] += 1
    for row in rows.inbox:
        if was_handled(row):
            cell = happened(row, key(row), row["finished_at"])
            cell["dead"] += row["status"] == "dead"
            cell["input_tokens"] += row["input_tokens"] or 0
            cell["output_tokens"] += row["output_tokens"] or 0
        if row["status"] == "done":
            day = row["finished_at"].date()
            turns[row["namespace"], day, rows.channel(row)].add((key(row), row["first_seq"]))
    expected = [
        {
            "namespace": cell[0],
            "day": cell[1],
            "channel": cell[2],
            "sessions": len(active[cell]),
            "turns": len(turns[cell]),
            **{
                name: counts[cell][name]
                for name in ("new_sessions", "messages", "dead", "input_tokens", "output_tokens")
            },
        }
        for cell in active
    ]
    by = ("namespace", "day", "channel")
    assert ordered(await viewed(filled, ACTIVITY), *by) == ordered(expected, *by)


async def test_report_latency(filled: Database, rows: Raw) -> None:
    cells = defaultdict(list)
    for row in rows.inbox:
        if row["status"] == "done":
            cells[row["namespace"], row["finished_at"].date(), rows.channel(row)].append(row)
    found = ordered(await viewed(filled, LATENCY), "namespace", "day", "channel")
    assert [(row["namespace"], row["day"], row["channel"]) for row in found] == sorted(cells)
    for row, (_, done) in zip(found, sorted(cells.items()), strict=True):
        assert row["messages"] == len(done)
        for name, p in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            waits = [seconds(r, "enqueued_at", "claimed_at") for r in done]
            totals = [seconds(r, "enqueued_at", "finished_at") for r in done]
            assert row[f"wait_{name}"] == pytest.approx(percentile(waits, p), rel=1e-9)
            assert row[f"total_{name}"] == pytest.approx(percentile(totals, p), rel=1e-9)
    assert any(row["wait_p50"] < row["wait_p95"] < row["wait_p99"] for row in found)


async def test_report_inbox(filled: Database, rows: Raw) -> None:
    now = datetime.now(UTC)
    expected: dict[Any, dict[str, Any]] = {}
    for session, inbox in rows.inboxes.items():
        mailbox = rows.mailboxes[session]
        of = {
            status: [row for row in inbox if row["status"] == status]
            for status in ("pending", "running", "dead")
        }
        if not any(of.values()):
            continue
        cell = (session[0], rows.sessions[session]["channel"])
        sums = expected.setdefault(cell, defaultdict(int) | {"oldest": []})
        sums["sessions"] += bool(of["pending"] or of["running"])
        for status, messages in of.items():
            sums[status] += len(messages)
        sums["ready"] += mailbox["ready_at"] is not None
        sums["retrying"] += mailbox["wake_at"] is not None
        sums["leased"] += mailbox["owner"] is not None
        sums["overdue"] += mailbox["owner"] is not None and mailbox["lease_until"] < now
        sums["oldest"] += [row["enqueued_at"] for row in of["pending"]]
    found = ordered(await viewed(filled, INBOX), "namespace", "channel")
    assert [(row["namespace"], row["channel"]) for row in found] == sorted(expected)
    for row, (_, sums) in zip(found, sorted(expected.items()), strict=True):
        for name in COUNTS_OF_AN_INBOX:
            assert row[name] == sums[name], (row, name)
        assert row["oldest_at"] == min(sums["oldest"], default=None)
        if sums["oldest"]:
            age = (now - row["oldest_at"]).total_seconds()
            assert age - 0.1 <= row["oldest_seconds"] <= age + 60
        else:
            assert row["oldest_seconds"] is None
    for name in COUNTS_OF_AN_INBOX:
        assert any(row[name] for row in found), name
    assert any(row["overdue"] < row["leased"] for row in found)


async def test_report_tree(filled: Database, rows: Raw) -> None:
    expected = []
    for (namespace, id), session in rows.sessions.items():
        path, below = rows.above((namespace, id)), rows.below((namespace, id))
        expected.append(
            {
                "namespace": namespace,
                "root_id": path[0],
                "root_channel": rows.sessions[namespace, path[0]]["channel"],
                "session_id": id,
                "parent_id": session["parent_id"],
                "depth": len(path) - 1,
                "path": " > ".join(path),
                "channel": session["channel"],
                "turns": rows.turns((namespace, id)),
                "input_tokens": rows.tokens((namespace, id), "input"),
                "output_tokens": rows.tokens((namespace, id), "output"),
                "subtree_sessions": len(below),
                "subtree_turns": sum(rows.turns(session) for session in below),
                "subtree_input_tokens": sum(rows.tokens(session, "input") for session in below),
                "subtree_output_tokens": sum(rows.tokens(session, "output") for session in below),
                "subtree_last_active": max(rows.sessions[s]["last_active"] for s in below),
                "forked_from": None,
            }
        )
    found = await viewed(filled, TREE)
    by = ("namespace", "path")
    assert ordered(found, *by) == ordered(expected, *by)
    assert {row["subtree_sessions"] for row in found} >= {1, 2, 4}


async def test_a_report_is_the_view_of_one_namespace(filled: Database) -> None:
    async with SessionsDB(filled.url) as db:
        for view in VIEWS:
            for namespace in ("default", "acme", "empty"):
                read = await reports.read(db.in_namespace(namespace), view.report)
                assert [column.name for column in read.columns] == COLUMNS[view.name].split()
                everything = await viewed(filled, view)
                own = [row for row in everything if row["namespace"] == namespace]
                age = {"oldest_seconds": None}  # the age grew between the two reads
                assert ordered_by_all(row | age for row in read.dicts()) == ordered_by_all(
                    row | age for row in own
                )
                assert bool(own) == (namespace != "empty")


def ordered_by_all(found: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(repr({name: row[name] for name in row if name != "oldest_seconds"})
                  for row in found)  # fmt: skip


# ---- public API --------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
async def test_the_columns_are_those_that_were_promised(database: Database, view: View) -> None:
    promised = COLUMNS[view.name].split()
    assert promised[0] == "namespace"
    assert [column.name for column in view.columns] == promised
    if database.kind == "sqlite":
        found = await database.query(f"PRAGMA table_info({view.name})")
        assert [row[1] for row in found] == promised
    else:
        found = await database.query(
            "SELECT column_name::text, data_type::text FROM information_schema.columns"
            f" WHERE table_name = '{view.name}' ORDER BY ordinal_position"
        )
        types = {"depth": "integer", "attempts": "integer"}
        assert found == [
            (column.name, types.get(column.name, TYPES[column.kind])) for column in view.columns
        ]
    assert set(view.display) < set(promised)


async def test_there_are_no_other_views(database: Database) -> None:
    catalogue = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'view'",
        "postgresql": "SELECT viewname::text FROM pg_views WHERE schemaname = 'public'",
    }
    found = {name for [name] in await database.query(catalogue[database.kind])}
    assert found == set(COLUMNS)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
async def test_an_empty_database_has_empty_reports(database: Database, view: View) -> None:
    assert await viewed(database, view) == []


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_postgresql_tells_what_views_and_columns_mean(database: Database) -> None:
    for view in VIEWS:
        told = await database.query(
            f"SELECT obj_description('{view.name}'::regclass), a.attname::text,"
            " col_description(a.attrelid, a.attnum) FROM pg_attribute AS a"
            f" WHERE a.attrelid = '{view.name}'::regclass AND a.attnum > 0 ORDER BY a.attnum"
        )
        assert told == [(view.meaning, column.name, column.meaning) for column in view.columns]


async def test_no_drift_between_the_views_and_the_head(database: Database) -> None:
    """The migrations make the views of ``sessionsdb/reports/views``."""
    made = await definitions(database)
    assert set(made) == set(COLUMNS)
    for view in reversed(VIEWS):
        await database.query(f"DROP VIEW {view.name}")
    for view in VIEWS:
        home = Path(reports.__file__).parent / "views" / database.kind / f"{view.name}.sql"
        await database.query(home.read_text())
    assert await definitions(database) == made


async def definitions(database: Database) -> dict[str, str]:
    catalogue = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'view'",
        "postgresql": "SELECT viewname::text, definition FROM pg_views WHERE schemaname = 'public'",
    }
    return dict(await database.query(catalogue[database.kind]))


async def test_a_report_makes_no_file_where_the_database_was_moved_away(tmp_path: Path) -> None:
    """Its empty file stood in the way of the one that was to be put back."""
    file = tmp_path / "sessions.db"
    async with SessionsDB(f"sqlite:///{file}") as db:
        file.rename(tmp_path / "elsewhere.db")
        with pytest.raises(StorageError, match="is gone"):
            await reports.read(db, "sessions")
        assert not file.exists()
