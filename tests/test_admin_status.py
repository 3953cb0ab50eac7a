"""top shows the real state of workers, inboxes and rates."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Backoff, Question, Reply, SessionsDB, Turn
from sessionsdb.admin.status import read_status
from tests.support.command_line import PROGRAM, CommandLine, environment
from tests.support.turns import answer_next, bury_next
from tests.support.waiting import until
from tests.support.work import running


async def test_an_empty_database_has_nothing_to_show(db: SessionsDB) -> None:
    seen = await read_status(db)
    assert (seen.pending, seen.running, seen.dead, seen.oldest_seconds) == (0, 0, 0, None)
    assert (seen.workers, seen.turns) == ([], [])


async def test_a_live_worker_its_turns_what_waits_and_the_rates(
    db: SessionsDB, database: Database
) -> None:
    for id in ("a", "b", "c"):
        await db.broker.register(id, channel="cli", peer="ada")
    await db.broker.send("a", "dies")
    await bury_next(db)
    for text in ("one", "two"):
        await db.broker.send("a", text)
        await answer_next(db, "re")
    working = asyncio.Event()

    async def hang(turn: Any) -> None:
        if turn.session.id == "c":
            raise ValueError("not now")
        await working.wait()

    # On a loaded machine a backoff of a second would be over before the status is read.
    options: dict[str, Any] = {
        "concurrency": 2,
        "name": "tester",
        "lease_seconds": 60,
        "retry": Backoff(first=100.0),
    }
    async with running(db, hang, **options) as worker:
        await db.broker.send("c", "comes back later")
        await until(
            lambda: database.value("SELECT count(*) FROM mailboxes WHERE wake_at IS NOT NULL")
        )
        for id, texts in (("a", ("x", "y", "z")), ("b", ("x",))):
            for text in texts:
                await db.broker.send(id, text)
        await until(
            lambda: database.value("SELECT count(*) = 2 FROM mailboxes WHERE owner IS NOT NULL")
        )
        seen = await read_status(db)
        assert (seen.pending, seen.running, seen.dead) == (3, 2, 1)
        assert (seen.ready, seen.retrying, seen.leased, seen.overdue) == (0, 1, 2, 0)
        assert seen.oldest_seconds is not None
        assert 0 <= seen.oldest_seconds < 60
        assert [(w.worker, w.turns) for w in seen.workers] == [(worker.id, 2)]
        assert {turn.session_id for turn in seen.turns} == {"a", "b"}
        for turn in seen.turns:
            assert (turn.worker, turn.attempt, turn.messages) == (worker.id, 1, 1)
            assert 0 <= turn.seconds < 60
            assert 0 < turn.lease_seconds <= 60
        assert (seen.sends_per_minute, seen.turns_per_minute, seen.dead_per_minute) == (8, 2, 1)
        assert (await read_status(db.in_namespace("acme"))).pending == 0
        assert (await read_status(db.in_namespace("acme"), all_namespaces=True)).pending == 3
        assert len((await read_status(db, limit=1)).turns) == 1

        cli = CommandLine(database.url)
        once = await asyncio.to_thread(cli, "top", "--once")
        assert "inbox    3 waiting" in once.ok().stdout
        assert f"1 busy: {worker.id} (2)" in once.stdout
        told = (await asyncio.to_thread(cli, "top", "--once", "--json")).ok().json
        assert (told["running"], len(told["turns"])) == (2, 2)
        working.set()


async def test_what_is_older_than_a_minute_is_no_rate(db: SessionsDB, database: Database) -> None:
    await db.broker.register("a", channel="cli", peer="ada")
    for _ in range(3):
        await db.broker.send("a", "x")
        await answer_next(db, "re")
    await database.query(
        "UPDATE inbox SET enqueued_at = '2020-01-01 00:00:00.000000',"
        " finished_at = '2020-01-01 00:00:00.000000' WHERE position < 3"
    )
    seen = await read_status(db)
    assert (seen.sends_per_minute, seen.turns_per_minute) == (1, 1)


async def test_a_lease_that_ran_out_is_shown_as_such(db: SessionsDB, database: Database) -> None:
    await db.broker.register("a", channel="cli", peer="ada")
    await db.broker.send("a", "x")
    async with running(db, lambda _: asyncio.Event().wait(), lease_seconds=600):
        await until(
            lambda: database.value("SELECT count(*) FROM mailboxes WHERE owner IS NOT NULL")
        )
        await database.query("UPDATE mailboxes SET lease_until = '2020-01-01 00:00:00.000000'")
        seen = await read_status(db)
        assert (seen.overdue, seen.turns[0].lease_seconds < 0) == (1, True)


async def test_json_goes_on_until_it_is_stopped(db: SessionsDB, database: Database) -> None:
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "--url", database.url, "top", "--json", "--interval", "0.1"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    looks = [json.loads(await process.stdout.readline()) for _ in range(3)]
    assert [seen["namespace"] for seen in looks] == ["default"] * 3
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("way", ["q", "ctrl-c"])
async def test_the_live_screen_refreshes_and_gives_the_terminal_back(
    db: SessionsDB, database: Database, way: str
) -> None:
    await db.broker.register("a", channel="cli", peer="ada")
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "--url", database.url, "top", "--interval", "0.1"),
        env=environment({"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(theirs)
    screen = bytearray()
    loop = asyncio.get_running_loop()

    def drawn() -> None:
        try:
            screen.extend(os.read(ours, 65_536))
        except OSError:  # the other end is closed
            loop.remove_reader(ours)

    loop.add_reader(ours, drawn)
    try:
        await until(lambda: b"0 waiting" in screen)
        for n in range(3):
            await db.broker.send("a", str(n))
        await until(lambda: b"3 waiting" in screen)
        if way == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    finally:
        loop.remove_reader(ours)
        os.close(ours)
    assert (process.returncode, errors) == (0, b"")
    assert b"\x1b[?1049h" in screen, "it has a screen of its own"
    assert b"\x1b[?1049l" in screen, "and leaves it"


async def test_sessions_that_a_question_holds_and_late_schedules_are_counted(
    db: SessionsDB, database: Database
) -> None:
    async def asks(_turn: Turn) -> Reply:
        return Reply("?", ask=Question(prompt="Go on?"))

    await db.broker.register("asks", channel="cli", peer="ada")
    await db.broker.send("asks", "go")
    await db.worker(asks).run_until_idle()
    await db.broker.schedule("asks", "late", at=datetime.now(UTC) - timedelta(hours=1))
    seen = await read_status(db)
    assert (seen.held, seen.due, seen.retrying, seen.pending) == (1, 1, 0, 0)
    once = await asyncio.to_thread(CommandLine(database.url), "top", "--once")
    shown = once.ok().stdout
    assert "1 held by questions" in shown
    assert "1 scheduled and due" in shown
