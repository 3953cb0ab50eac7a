"""The doctor finds faults made by plain SQL, repairs them, and changes no correct value."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import Limits, SessionId, SessionsDB, SpawnDenied, SpawnRequest
from sessionsdb.admin.doctor import examine
from sessionsdb.admin.findings import HealthReport
from sessionsdb.database import open_database_of
from sessionsdb.tools.scope import Scope
from tests.support.command_line import CommandLine
from tests.support.turns import answer_next, bury_next, claim
from tests.support.waiting import until
from tests.support.work import running

TIME = "'2020-01-01 00:00:00.000000'"


@pytest.fixture
async def busy(db: SessionsDB) -> SessionsDB:
    """Sessions in every state, all of them correct."""
    names = ("idle", "ready", "leased", "closed", "requeued", "dead")
    for name in names:
        await db.broker.register(name, channel="cli", peer="ada")
    for name in ("dead", "requeued"):
        await db.broker.send(name, "will die")
        await bury_next(db)
    for name in ("idle", "closed", "requeued"):
        await db.broker.send(name, "1")
        await answer_next(db, "re 1")
    await db.broker.send("closed", "2")
    await db.broker.end("closed")
    await db.broker.send("leased", "1")
    await claim(db)
    for n in range(3):
        await db.broker.send("ready", str(n))
    letters = await db.broker.dead_letters("requeued")
    await db.broker.requeue(letters[0].receipt)
    await db.store.save("idle", [{"role": "user", "content": "shorter"}])
    return db


def kinds(report: HealthReport) -> list[str]:
    return [found.check for found in report.findings]


async def test_a_sound_database_is_healthy_whatever_state_its_sessions_are_in(
    busy: SessionsDB,
) -> None:
    report = await examine(busy)
    assert (report.findings, report.sessions, report.healthy) == ([], 6, True)


async def test_real_transcripts_that_were_worked_on_are_healthy(
    database: Database, real_transcripts: Path
) -> None:
    cli = CommandLine(database.url)
    (await asyncio.to_thread(cli, "import", str(real_transcripts))).ok()
    async with SessionsDB(database.url) as db:
        for record in (await db.store.list())[:20]:
            await db.broker.send(record.id, "and now?")
        await db.worker(lambda turn: asyncio.sleep(0, f"re {turn.text}")).run_until_idle()
        report = await examine(db)
    assert (report.findings, report.sessions) == ([], 120)


BROKEN = {
    "message-count": ("UPDATE sessions SET message_count = 77 WHERE id = 'idle'",),
    "last-seq": ("UPDATE sessions SET last_seq = 0 WHERE id = 'idle'",),
    "no-mailbox": ("DELETE FROM mailboxes WHERE session_id = 'ready'",),
    "pending": ("UPDATE mailboxes SET pending = 9 WHERE session_id = 'ready'",),
    "line": ("UPDATE mailboxes SET head = 3 WHERE session_id = 'ready'",),
    "taken": ("UPDATE mailboxes SET taken = 1 WHERE session_id = 'ready'",),
    "state": ("UPDATE mailboxes SET ready_at = NULL WHERE session_id = 'ready'",),
    "closed": ("UPDATE sessions SET ended_at = NULL WHERE id = 'closed'",),
}


@pytest.mark.parametrize("kind_of_fault", BROKEN)
async def test_a_broken_counter_is_found_and_mended(
    busy: SessionsDB, database: Database, kind_of_fault: str
) -> None:
    for statement in BROKEN[kind_of_fault]:
        await database.query(statement)
    found = await examine(busy)
    assert [one for one in kinds(found) if one != "foreign-keys"] == [kind_of_fault]
    assert not found.healthy
    assert found.findings[0].examples[0].startswith("default/")
    assert await examine(busy) == found, "a check changes nothing"

    mended = await examine(busy, fix=True)
    assert (kinds(mended)[0], mended.findings[0].mended) == (kind_of_fault, 1)
    assert mended.healthy
    assert (await examine(busy)).findings == []


MORE = {
    "an idle one that is ready": (
        ["state"],
        f"UPDATE mailboxes SET ready_at = {TIME} WHERE session_id = 'idle'",
    ),
    "a tail that fell back": (
        ["line"],
        "UPDATE mailboxes SET tail = 0, head = 1 WHERE session_id = 'idle'",
    ),
    "a finished one marked as requeued": (
        ["line"],
        "UPDATE inbox SET ahead = true WHERE session_id = 'idle'",
    ),
    "a requeued one no longer marked": (
        ["line"],
        "UPDATE inbox SET ahead = false WHERE session_id = 'requeued'",
    ),
    "a hole in the line": (
        ["pending"],
        "DELETE FROM inbox WHERE session_id = 'ready' AND position = 2",
    ),
    "running without a lease": (
        ["taken"],
        "UPDATE inbox SET status = 'running' WHERE session_id = 'ready' AND position = 1",
    ),
    "a head behind the end of the line": (
        ["line"],
        "UPDATE mailboxes SET head = tail + 5 WHERE session_id = 'idle'",
    ),
    "an answer that is none": (
        ["question"],
        "UPDATE mailboxes SET answer = 2 WHERE session_id = 'ready'",
    ),
    "left over in an ended session": (
        ["pending", "line", "state"],
        "UPDATE inbox SET status = 'pending' WHERE session_id = 'closed' AND position = 2",
    ),
}


@pytest.mark.parametrize("what", MORE)
async def test_more_that_can_be_broken_is_mended(
    busy: SessionsDB, database: Database, what: str
) -> None:
    expected, statement = MORE[what]
    await database.query(statement)
    assert kinds(await examine(busy)) == expected
    mended = await examine(busy, fix=True)
    assert mended.healthy, mended
    assert (await examine(busy)).findings == []
    # The sessions work again: each waiting message is answered once, and in order.
    await database.query(
        "UPDATE mailboxes SET lease_until = '2000-01-01 00:00:00.000000' WHERE owner IS NOT NULL"
    )
    handled: list[tuple[str, str]] = []

    async def handler(turn: object) -> None:
        handled.append((turn.session.id, turn.text))

    await busy.worker(handler).run_until_idle()
    assert handled == sorted(set(handled)) or len(handled) == len(set(handled))
    ready = [text for session, text in handled if session == "ready"]
    assert ready == (["0", "2"] if what == "a hole in the line" else ["0", "1", "2"])
    assert await database.value("SELECT count(*) FROM inbox WHERE status = 'pending'") == 0
    assert (await examine(busy)).findings == []


async def test_what_contradicts_itself_with_messages_in_it_is_left_to_people(
    busy: SessionsDB, database: Database
) -> None:
    await database.query(f"UPDATE sessions SET ended_at = {TIME} WHERE id = 'ready'")
    report = await examine(busy, fix=True)
    assert kinds(report) == ["closed"]
    assert (report.findings[0].mended, report.healthy) == (0, False)
    assert "sessionsdb end" in report.findings[0].action
    assert await database.value("SELECT pending FROM mailboxes WHERE session_id = 'ready'") == 3
    await busy.broker.end("ready")  # as the finding recommends
    assert (await examine(busy)).findings == []


async def test_a_mailbox_that_was_lost_gives_out_no_position_twice(
    busy: SessionsDB, database: Database
) -> None:
    await database.query("DELETE FROM mailboxes WHERE session_id = 'requeued'")
    assert (await examine(busy, fix=True)).healthy
    last = await database.value("SELECT max(position) FROM messages WHERE session_id = 'requeued'")
    assert (await busy.broker.send("requeued", "again")).position == last + 1


async def test_a_stuck_session_is_served_again(busy: SessionsDB, database: Database) -> None:
    async with running(busy, lambda turn: asyncio.sleep(0, f"re {turn.text}"), poll_interval=60):
        receipt = await busy.broker.send("ready", "last")
        await busy.broker.wait(receipt, 20)
        await database.query(
            "UPDATE inbox SET status = 'pending', finished_at = NULL, first_seq = NULL,"
            " last_seq = NULL WHERE session_id = 'ready' AND position = 4"
        )
        assert not (await examine(busy)).healthy
        assert (await examine(busy, fix=True)).healthy
        assert (await busy.broker.wait(receipt, 20)).status == "done"


async def test_nothing_true_is_mended_while_others_write(
    db: SessionsDB, database: Database
) -> None:
    """All counters change all the time. Only the wrong one is repaired."""
    for n in range(20):
        await db.broker.register(f"s{n}", channel="cli", peer="ada")
    await db.broker.register("wrong", channel="cli", peer="ada")
    await db.store.append("wrong", [{"role": "user", "content": "1"}])
    await database.query("UPDATE sessions SET message_count = 50 WHERE id = 'wrong'")
    writing = True

    async def write(n: int) -> int:
        sent = 0
        while writing:
            await db.broker.send(f"s{n}", f"message {sent}")
            await db.store.append(f"s{n}", [{"role": "user", "content": "appended"}])
            await db.store.append("wrong", [{"role": "user", "content": "more"}])
            sent += 1
        return sent

    async with running(db, lambda turn: asyncio.sleep(0, "yes"), concurrency=4):
        writers = [asyncio.create_task(write(n)) for n in range(20)]
        async with SessionsDB(database.url) as other:
            reports = [await examine(other, fix=True) for _ in range(5)]
        writing = False
        sent = sum(await asyncio.gather(*writers))
    assert kinds(reports[0]) == ["message-count"]
    assert reports[0].findings[0].mended == 1
    assert [kinds(report) for report in reports[1:]] == [[]] * 4
    assert sent > 20
    assert (await examine(db)).findings == []


# ---- faults outside the counters -----------------------------------------------------------------


async def test_overdue_leases_are_told_and_left_to_a_worker(
    busy: SessionsDB, database: Database
) -> None:
    await database.query(f"UPDATE mailboxes SET lease_until = {TIME} WHERE session_id = 'leased'")
    report = await examine(busy, fix=True)
    assert kinds(report) == ["overdue-leases"]
    assert "default/leased: held by test-worker" in report.findings[0].examples[0]
    assert not report.healthy


async def test_waits_that_ran_out_are_a_note_and_go(db: SessionsDB, database: Database) -> None:
    await database.query(
        "INSERT INTO waits (namespace, waiter_id, wait_id, target_id, target_position, until)"
        f" VALUES ('default', 'a', 'w', 'b', 1, {TIME})"
    )
    report = await examine(db)
    assert (kinds(report), report.healthy) == (["expired-waits"], True)
    assert (await examine(db, fix=True)).findings[0].mended == 1
    assert await database.value("SELECT count(*) FROM waits") == 0


@pytest.mark.parametrize(
    ("statement", "check", "named"),
    [
        ("DROP INDEX ix_inbox_dead", "missing-indices", "ix_inbox_dead"),
        ("DROP TABLE waits", "missing-tables", "waits"),
    ],
)
async def test_what_is_missing_of_the_schema_is_named(
    db: SessionsDB, database: Database, statement: str, check: str, named: str
) -> None:
    await database.query(statement)
    report = await examine(db)
    assert kinds(report) == [check]
    assert report.findings[0].examples == [named]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_missing_and_unvalidated_constraints_are_named(
    db: SessionsDB, database: Database
) -> None:
    await database.query("ALTER TABLE mailboxes DROP CONSTRAINT ck_mailboxes_counts")
    await database.query(
        "ALTER TABLE mailboxes ADD CONSTRAINT mine CHECK (pending < 10000) NOT VALID"
    )
    report = await examine(db)
    assert kinds(report) == ["missing-constraints", "unvalidated-constraints"]
    assert [found.examples for found in report.findings] == [["ck_mailboxes_counts"], ["mine"]]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_invalid_indices_and_long_transactions_and_bloat_are_found(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.query(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_inbox_dead'::regclass"
    )
    monkeypatch.setattr("sessionsdb.admin.health.postgresql.LONG_TRANSACTION_SECONDS", 0.0)
    monkeypatch.setattr("sessionsdb.admin.health.postgresql.MIN_DEAD_ROWS", 10)
    await database.query("ALTER TABLE sessions SET (autovacuum_enabled = false)")
    for n in range(20):
        await db.broker.register(f"s{n}", channel="cli", peer="ada")
    await database.query("UPDATE sessions SET peer = 'bob'")
    idle = await database.connect_to_postgres()

    async def bloated() -> HealthReport | None:  # after the server has updated its statistics
        report = await examine(db)
        return report if "bloat" in kinds(report) else None

    try:
        await idle.execute("SET application_name = 'forgetful'; BEGIN; SELECT 1")
        report = await until(bloated)
    finally:
        await idle.close()
    assert {"invalid-indices", "long-transactions"} <= set(kinds(report))
    told = {found.check: found.examples for found in report.findings}
    assert told["invalid-indices"] == ["ix_inbox_dead"]
    assert any("forgetful: idle in transaction" in line for line in told["long-transactions"])
    assert told["bloat"][0].startswith("sessions: ")
    assert {found.level for found in report.findings} == {"problem"}, "autovacuum is off"


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_database_with_another_isolation_level_has_our_limits_all_the_same(
    database: Database,
) -> None:
    """A call that had waited for a lock saw the state before: 24 children where 3 are allowed."""
    name = await database.value("SELECT current_database()")
    await database.query(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    async with SessionsDB(database.url, limits=Limits(children=3)) as db:
        await db.broker.register("parent", channel="cli", peer="ada")
        spawns = [db.broker.spawn("parent", SpawnRequest(prompt=str(n))) for n in range(8)]
        made = await asyncio.gather(*spawns, return_exceptions=True)
        assert len([one for one in made if isinstance(one, SpawnDenied)]) == 5, made
        assert len(await db.broker.list(parent="parent")) == 3
        assert "transaction-isolation" not in kinds(await examine(db))
    async with SessionsDB(database.url, transaction_pooler=True) as db:
        assert "transaction-isolation" in kinds(await examine(db))


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_damaged_file_is_found(db: SessionsDB, database: Database) -> None:
    for n in range(200):
        await db.store.append(f"s{n}", [{"role": "user", "content": "x" * 500}])
    await database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    with database.path.open("r+b") as file:  # the root page of an index
        page = await database.value(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_sessions_live'"
        )
        file.seek((page - 1) * 4096 + 8)
        file.write(b"\xff" * 2_000)
    async with SessionsDB(database.url) as other:
        report = await examine(other)
    assert "quick-check" in kinds(report)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_settings_and_orphans_are_found_on_sqlite(database: Database) -> None:
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
        f" VALUES ('default', 'nobody', 1, 'user', 'x', {TIME})"
    )
    async with SessionsDB(database.url, durability="normal") as db:
        report = await examine(db)
        told = {found.check: found for found in report.findings}
        assert list(told) == ["durability", "foreign-keys"]
        assert told["durability"].level == "note"
        await open_database_of(db).runner.read(
            lambda c: c.exec_driver_sql("PRAGMA busy_timeout = 5") and None
        )
        reports = [await examine(db) for _ in range(4)]
    assert any("pragmas" in kinds(report) for report in reports)


# ---- the command ---------------------------------------------------------------------------------


async def test_the_command_tells_mends_and_exits_for_monitors(
    busy: SessionsDB, database: Database
) -> None:
    cli = CommandLine(database.url)
    answer = await asyncio.to_thread(cli, "doctor")
    assert answer.ok().stdout == "checked: 6 sessions\nhealthy\n"
    await database.query("UPDATE mailboxes SET pending = 9 WHERE session_id = 'ready'")
    told = await asyncio.to_thread(cli, "doctor")
    assert told.code == 1
    assert "problem pending (1)" in told.stdout
    assert "default/ready: pending is 9, 3 are unfinished" in told.stdout
    assert "to do: `sessionsdb doctor --fix`" in told.stdout
    found = await asyncio.to_thread(cli, "doctor", "--json")
    assert (found.code, found.json["healthy"]) == (1, False)
    fixed = await asyncio.to_thread(cli, "doctor", "--fix", "--json")
    assert fixed.ok().json["findings"][0]["mended"] == 1
    assert (await asyncio.to_thread(cli, "doctor", "--json")).ok().json["findings"] == []


def test_a_schema_that_is_out_of_date_is_a_finding(empty_database: Database) -> None:
    cli = CommandLine(empty_database.url)
    if empty_database.kind == "sqlite":
        cli("doctor").failed("no database file")
        assert not empty_database.path.exists(), "a check makes no file"
        empty_database.path.touch()
    answer = cli("doctor", "--json")
    assert answer.code == 1
    [found] = json.loads(answer.stdout)["findings"]
    assert found["check"] == "schema"
    assert "sessionsdb migrate" in found["action"]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_file_that_is_no_database_is_one_line(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "text.db"
    file.write_text("this is no database, and long enough to be seen as something else" * 20)
    CommandLine(f"sqlite:///{file}")("doctor").failed("not a database")


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_statistics_of_a_time_with_few_rows_are_found_when_the_tables_have_many(
    database: Database, db: SessionsDB
) -> None:
    async def register(numbers: range) -> None:
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(db.broker.register(f"s-{number}", channel="cli", peer="ada"))

    await register(range(1))
    await database.query("ANALYZE")
    await register(range(1, 999))
    assert (await examine(db)).findings == []
    await register(range(999, 1000))
    [found] = (await examine(db)).findings
    assert (found.check, found.level) == ("statistics", "problem")
    assert found.examples == [
        "rows of mailboxes: 1 at the last ANALYZE, now 1,000 or more",
        "rows of sessions: 1 at the last ANALYZE, now 1,000 or more",
    ]
    await database.query("UPDATE sqlite_stat1 SET stat = NULL WHERE tbl = 'mailboxes'")
    await database.query("UPDATE sqlite_stat1 SET stat = 'one 1' WHERE tbl = 'sessions'")
    assert (await examine(db)).findings == []
    await database.query("ANALYZE")
    assert (await examine(db)).findings == []


@pytest.fixture
async def circle(db: SessionsDB, database: Database) -> SessionsDB:
    """A circle of three parents, which other code has made, and a session below it."""
    await db.broker.register("a0", channel="cli", peer="ada")
    for id, parent in (("a2", "a0"), ("a1", "a2"), ("leaf", "a1")):
        await db.broker.register(id, channel="cli", peer="ada", parent=parent)
    await database.query("UPDATE sessions SET parent_id = 'a1', depth = 3 WHERE id = 'a0'")
    return db


async def test_a_circle_of_parents_is_found_and_can_be_opened(
    circle: SessionsDB, database: Database
) -> None:
    for fix in (False, True):
        report = await examine(circle, fix=fix)
        [found] = report.findings
        assert (found.check, found.count, found.open) == ("parent-circle", 1, True)
        assert found.examples == ["default/a0 below a1 below a2 below a0"]
    await database.query("UPDATE sessions SET parent_id = NULL WHERE id = 'a2'")
    assert kinds(await examine(circle, fix=True)) == ["tree-place"]
    assert (await examine(circle)).findings == []
    assert {one.id for one in await circle.broker.list(root="a2")} == {"a2", "a1", "a0", "leaf"}


async def test_a_wrong_place_in_a_tree_is_found_and_mended(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("top", channel="cli", peer="ada")
    for id, parent in (("child", "top"), ("leaf", "child")):
        await db.broker.register(id, channel="cli", peer="ada", parent=parent)
    assert (await examine(db)).healthy
    await database.query("UPDATE sessions SET root_id = NULL, depth = 0 WHERE id = 'child'")
    await database.query("UPDATE sessions SET root_id = 'child', depth = 1 WHERE id = 'leaf'")
    [found] = (await examine(db)).findings
    assert (found.check, found.examples) == ("tree-place", ["default/child"])
    assert (await examine(db, fix=True)).healthy
    assert (await examine(db)).findings == []
    assert {one.id for one in await db.broker.list(root="top")} == {"top", "child", "leaf"}


async def test_every_walk_of_a_circle_of_parents_ends(circle: SessionsDB) -> None:
    everyone = {"a0", "a1", "a2", "leaf"}
    async with asyncio.timeout(30):
        assert {one.id for one in await circle.broker.list(root="a1")} == everyone
        scope = await Scope.of_caller(circle.broker, "below", SessionId("leaf"))
        assert not await scope.includes(await circle.broker.get("a1"))
        await circle.store.append("leaf", [{"role": "user", "content": "hello"}])
        await circle.index_search()
        assert [hit.session_id for hit in await circle.broker.search("hello", root="a2")] == [
            "leaf"
        ]
        await circle.broker.interrupt("a2", subtree=True)
        assert await circle.broker.end("a1", subtree=True) == 4
        await circle.store.delete("a2", children="detach")
        assert {one.id for one in await circle.broker.list(root="a1", include_ended=True)} == {
            "a0", "a1", "leaf",
        }  # fmt: skip
