"""Faults of the storage under a running service on SQLite.

The error is typed and names a remedy. Nothing is half done. The service continues without being
opened again.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from devtools.databases import Database
from sessionsdb import Outcome, SessionsDB, SpawnRequest, StorageError, Turn
from sessionsdb.database import open_database_of
from sessionsdb.engine.sqlite.engine import WAL_SIZE_LIMIT_BYTES
from tests.support import soundness, storage
from tests.support.storage import Fault
from tests.support.turns import waits_under_way
from tests.support.waiting import until
from tests.support.work import running

BIG = "x" * 200_000
"""More bytes than a full disk may have left."""

HELLO = [{"role": "user", "content": "hello"}]

LOCK_SECONDS = 0.1


@pytest.fixture
def kind() -> str:
    return "sqlite"


class Service:
    """A store, a broker, a worker and waiters on one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}?timeout={LOCK_SECONDS}"
        self.db = SessionsDB(self.url)
        self.may_answer = asyncio.Event()
        self.running = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def on(cls, path: Path) -> AsyncIterator[Service]:
        service = cls(path)
        # It has to be woken: there is no poll that could hide a dead watcher.
        async with service.db, running(service.db, service.handle, poll_interval=3_600):
            yield service

    async def handle(self, turn: Turn) -> str:
        if turn.text == "slow":
            self.running.set()
            await self.may_answer.wait()
            return BIG
        return f"echo: {turn.text}"

    async def works(self, name: str) -> None:
        """Everything works: writes, reads, turns, waiters, and notifications of other processes."""
        assert await self.db.store.save(name, [{"role": "user", "content": BIG}])
        await self.db.broker.register(f"{name}-chat", channel="test", peer="ada")
        assert (await self.answered(self.db, f"{name}-chat")).reply is not None
        async with SessionsDB(self.url) as neighbour:
            assert (await self.answered(neighbour, f"{name}-chat")).reply is not None
        assert await self.db.store.load(name) == [{"role": "user", "content": BIG}]

    async def answered(self, sender: SessionsDB, id: str) -> Outcome:
        receipt = await sender.broker.send(id, "hello")
        outcome = await self.db.broker.wait(receipt, timeout=20)
        assert outcome.status == "done"
        return outcome


Call = Callable[[], Awaitable[object]]


def writes(db: SessionsDB, name: str) -> dict[str, Call]:
    """Make every kind of write, each to its own session."""
    big = [{"role": "user", "content": f"{name} {BIG}"}]
    return {
        f"{name}-save": partial(db.store.save, f"{name}-save", big * 5),
        f"{name}-append": partial(db.store.append, f"{name}-append", big * 5),
        f"{name}-register": partial(
            db.broker.register, f"{name}-register", channel="c", peer="p", system=BIG
        ),
        f"{name}-spawn": partial(db.broker.spawn, "inbox", SpawnRequest(prompt=BIG)),
        "inbox": partial(db.broker.send, "inbox", f"{name} {BIG}"),
    }


async def refusals(calls: dict[str, Call]) -> list[str]:
    """The error of each write. Asserts that each is refused with the right error."""
    answers = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, StorageError), answer
        assert answer.__cause__ is None or isinstance(answer.__cause__, sqlite3.Error)
    return [str(answer) for answer in answers]


FAULTS = [
    Fault("locked", storage.write_lock, "database is locked.*another process held the lock"),
    Fault("size-limit", storage.file_size_limit, "disk I/O error.*limit on the size of files"),
    Fault("damaged", storage.damaged, "malformed.*restore a backup"),
    Fault("truncated", storage.truncated, "malformed.*restore a backup"),
    Fault("moved", storage.moved, "is gone: it was moved or deleted.*put it back"),
    Fault("deleted", storage.deleted, "is gone: it was moved or deleted.*put it back"),
    Fault("replaced", storage.replaced, "was replaced while it was open.*remove them"),
    Fault("full-disk", storage.full_disk, "disk is full.*free some space"),
]


@contextmanager
def a_folder_for(fault: Fault) -> Iterator[Path]:
    if fault.on is not storage.full_disk:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    try:
        with storage.small_disk(megabytes=16) as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(f"no small disk can be mounted here, a limit on files stands for it: {error}")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_is_told_leaves_nothing_half_done_and_is_outlived(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    with a_folder_for(fault) as folder:
        async with Service.on(folder / "sessions.db") as service:
            db = service.db
            await db.broker.register("inbox", channel="test", peer="ada")
            await service.works("before")
            receipt = await db.broker.send("inbox", "slow")
            await service.running.wait()
            waiting = asyncio.create_task(db.broker.wait(receipt, timeout=60))
            await until(lambda: waits_under_way(db))
            before = soundness.transcripts(service.path)

            with fault.on(service.path):
                told = []
                for id, call in writes(db, "alone").items():
                    told += await refusals({id: call})
                for answers in await asyncio.gather(
                    *(refusals(writes(db, f"many{n}")) for n in range(3))
                ):
                    told += answers
                for words in told:
                    assert re.search(fault.says, words), words
                service.may_answer.set()  # a turn's commit meets the fault too
                await until(lambda: "can't commit a turn, trying again" in caplog.text)
                assert not waiting.done()

            outcome = await waiting
            assert (outcome.status, outcome.attempts) == ("done", 1)
            assert soundness.transcripts(service.path)["inbox"] == ["slow", BIG]
            await service.works("after")
            assert set(soundness.transcripts(service.path)) == set(before) | {"after", "after-chat"}
            assert soundness.inbox(service.path)[("inbox", 1)] == ("slow", "done")
            assert ("inbox", 2) not in soundness.inbox(service.path)
        assert soundness.faults(service.path) == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# ---- single faults -------------------------------------------------------------------------------


async def test_a_file_that_may_not_be_written_can_be_read_and_is_written_once_it_may() -> None:
    """A connection keeps its rights until it is opened again."""
    with storage.unprivileged() as folder:
        path = folder / "sessions.db"
        async with SessionsDB(f"sqlite:///{path}") as db:
            await db.broker.register("inbox", channel="test", peer="ada")
        storage.set_writable(path, False)
        async with Service.on(path) as service:
            told = await refusals(writes(service.db, "refused"))
            assert all(
                "the file is read-only here, and nothing was written" in words for words in told
            )
            assert [s.id for s in await service.db.broker.list()] == ["inbox"]
            storage.set_writable(path, True)
            await service.works("after")
        assert set(soundness.transcripts(path)) == {"inbox", "after", "after-chat"}
        assert soundness.faults(path) == []


async def test_a_url_that_says_read_only_reads_and_writes_nothing(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await db.store.append("chat", [{"role": "user", "content": "hello"}])
        url = f"sqlite:///file:{database.path}?mode=ro&uri=true"
        async with SessionsDB(url) as reader:
            assert await reader.store.load("chat") is not None
            assert (
                "a URL without mode=ro"
                in (await refusals({"": partial(reader.store.append, "chat", HELLO)}))[0]
            )
            await db.store.append("chat", HELLO)
            assert await reader.store.version("chat") == 2


async def test_a_quota_on_the_databases_pages_refuses_writes_that_do_not_fit(
    db: SessionsDB, database: Database
) -> None:
    """Writes that need no new page succeed, also in one group with writes that do."""
    for id in ("chat", "inbox"):
        await db.broker.register(id, channel="test", peer="ada")
    writer = open_database_of(db).runner._writer
    used = await database.value("PRAGMA page_count")
    await writer.run(lambda: writer.raw.execute(f"PRAGMA max_page_count = {used}").close())
    fits, *refused = await asyncio.gather(
        db.broker.update("chat", channel="other"),
        *(call() for call in writes(db, "refused").values()),
        return_exceptions=True,
    )
    assert getattr(fits, "channel", fits) == "other"
    for answer in refused:
        assert isinstance(answer, StorageError)
        assert "database or disk is full; nothing was written: free some space" in str(answer)
    await writer.run(lambda: writer.raw.execute("PRAGMA max_page_count = 1000000").close())
    assert set(soundness.transcripts(database.path)) == {"chat", "inbox"}
    await asyncio.gather(*(call() for call in writes(db, "after").values()))
    assert soundness.faults(database.path) == []


async def test_a_log_that_can_not_be_brought_into_the_file_loses_nothing(
    db: SessionsDB, database: Database
) -> None:
    """The file may not grow, but the WAL may. Checkpoints fail, and acknowledged writes stay."""
    await db.store.append("large", [{"role": "user", "content": BIG}] * 10)
    await database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    kept = ["large"]
    with storage.file_size_limit(database.path, room=0):
        for number in itertools.count():
            try:
                await db.store.append(f"s{number}", [{"role": "user", "content": BIG}])
            except StorageError:
                break
            kept.append(f"s{number}")
    assert len(kept) > 5, "the log took some"
    await db.store.append("after", HELLO)
    assert sorted(soundness.transcripts(database.path)) == sorted([*kept, "after"])
    [(_, left, done)] = await database.query("PRAGMA wal_checkpoint(PASSIVE)")
    assert left == done > 0
    assert soundness.faults(database.path) == []


@pytest.mark.parametrize("together", [1, 3])
async def test_a_commit_into_a_file_that_lost_its_name_is_not_acknowledged(
    db: SessionsDB, database: Database, together: int
) -> None:
    def delete_and_write(connection: Connection) -> str:
        database.path.unlink(missing_ok=True)
        return "acknowledged"

    answers = await asyncio.gather(
        *(open_database_of(db).runner.write(delete_and_write) for _ in range(together)),
        return_exceptions=True,
    )
    for answer in answers:
        assert isinstance(answer, StorageError)
    assert "is unknown; read before you repeat it" in str(answers[0])
    assert not database.path.exists(), "nobody has put an empty file in its place"


async def test_a_connection_of_the_callers_own_is_to_the_file_that_is_there(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="test", peer="ada")
    async with db.engine.begin() as connection:  # back into the pool with it
        await db.broker.send("chat", "to the old file", connection=connection)
    with storage.deleted(database.path):
        pass
    async with db.engine.begin() as connection:
        await db.broker.send("chat", "to the new file", connection=connection)
    contents = [content for content, _ in soundness.inbox(database.path).values()]
    assert contents == ["to the old file", "to the new file"]


async def test_a_lock_held_for_longer_than_a_lease_costs_an_attempt_and_no_message(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    began = asyncio.Event()

    async def handle(turn: Turn) -> str:
        began.set()
        if turn.attempt == 1:
            await asyncio.Event().wait()
        return "done at last"

    async with (
        SessionsDB(f"{database.url}?timeout={LOCK_SECONDS}") as db,
        running(db, handle, lease_seconds=0.5, poll_interval=0.1),
    ):
        await db.broker.register("chat", channel="test", peer="ada")
        receipt = await db.broker.send("chat", "hello")
        await began.wait()
        with storage.write_lock(database.path):
            await until(lambda: "turn given up" in caplog.text)
        outcome = await db.broker.wait(receipt, timeout=20)
        assert (outcome.status, outcome.attempts) == ("done", 2)
    assert soundness.transcripts(database.path) == {"chat": ["hello", "done at last"]}
    assert soundness.faults(database.path) == []


async def test_a_log_grown_under_a_long_reader_is_cut_when_the_reader_is_gone(
    db: SessionsDB, database: Database
) -> None:
    def log_bytes() -> int:
        return Path(f"{database.path}-wal").stat().st_size

    with closing(sqlite3.connect(database.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sessions").fetchone()
        while log_bytes() <= 2 * WAL_SIZE_LIMIT_BYTES:
            await db.store.save("large", [{"role": "user", "content": BIG}] * 20)
            await db.store.save("large", [])
    for _ in range(3):  # the first moves the pages, the next restarts the WAL
        await db.store.append("small", HELLO)
    assert log_bytes() <= WAL_SIZE_LIMIT_BYTES
