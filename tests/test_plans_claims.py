"""A claim reads the same number of rows for every backlog, as the database reports it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from devtools.backlog import fill
from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Commit, Lease
from tests.support.plans import Watch, explain_everything, plans_are_in, watched

SLOTS = 8

SHAPES = {"one hot session": (1, 1), "spread over many": (100, 10_000)}


async def claim(db: SessionsDB, *, batch: int = 1, everywhere: bool = False) -> list[Lease]:
    return await open_database_of(db).runner.write_autocommit(
        partial(
            mailbox.claim,
            worker="w",
            namespaces=None if everywhere else ["default"],
            slots=SLOTS,
            batch=batch,
            lease_seconds=60,
        )
    )


async def rows_read(database: Database, waiting: int, sessions: int, **how: int) -> Watch:
    """The rows read by the second claim of a connection. The first finds a cold catalogue."""
    await fill(database, waiting=waiting, sessions=sessions)
    await explain_everything(database)
    async with watched(database) as (db, watch):
        await claim(db)
        await plans_are_in()
        watch.clear()
        if sessions == 1:  # make it ready again
            await database.query(
                "UPDATE mailboxes SET ready_at = lease_until, owner = NULL, lease_until = NULL,"
                " taken = 0"
            )
        leases = await claim(db, **how)
        await plans_are_in()
    assert len(leases) == min(SLOTS, sessions)
    assert watch.plans
    return watch


@pytest.fixture
def pair(kind: str, request: pytest.FixtureRequest) -> Iterator[tuple[Database, Database]]:
    """Two databases, for a small backlog and a large one."""
    maker = request.getfixturevalue("sqlite_files" if kind == "sqlite" else "postgres_server")
    with maker.new_database() as small, maker.new_database() as large:
        yield small, large


@pytest.mark.parametrize("how", [{}, {"batch": 10}, {"everywhere": True}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_claim_reads_as_much_at_100_000_waiting_as_at_1_000(
    pair: tuple[Database, Database], shape: str, how: dict[str, int]
) -> None:
    few = await rows_read(pair[0], 1_000, SHAPES[shape][0], **how)
    many = await rows_read(pair[1], 100_000, SHAPES[shape][1], **how)
    # SQLite also reports a scan when it reads the result of another part of the statement.
    scans = [step for plan in many.plans for step in plan.scans if "(subquery" not in step]
    if SHAPES[shape][1] == 1:  # a table of one row may be scanned
        scans = [step for step in scans if "inbox" in step]
    assert not scans, str(many)
    assert many.rows_read <= 1.5 * few.rows_read, f"{few}\n\n{many}"
    assert many.rows_read < 40 * SLOTS * how.get("batch", 1), str(many)


@pytest.mark.parametrize("size", [(1_000, 1_000), (20_000, 10_000)], ids=str)
async def test_a_claim_looks_messages_up_where_many_sessions_have_one_or_two(
    database: Database, size: tuple[int, int]
) -> None:
    """A scan of the inbox looks cheap to a planner that expects many claims."""
    watch = await rows_read(database, *size)
    assert watch.rows_read < 40 * SLOTS, str(watch)


CANCELLED = 100_000


async def test_a_claim_walks_over_cancelled_messages_once(database: Database) -> None:
    """Behind a message that waits, 100,000 were cancelled. The claim after it passes them, and
    stores the new head. So the next claim reads as much as without them."""
    done = waiting = CANCELLED + 3
    await fill(database, waiting=waiting, sessions=1)
    await database.query(
        "UPDATE inbox SET status = 'cancelled', stopped_by = 'cancel', finished_at = enqueued_at"
        f" WHERE position BETWEEN {done + 2} AND {done + CANCELLED + 1}"
    )
    await database.query("UPDATE mailboxes SET pending = 3")
    await explain_everything(database)
    rows = []
    async with watched(database) as (db, watch):
        await claim(db)  # finds a cold catalogue
        await database.query(
            "UPDATE mailboxes SET ready_at = lease_until, owner = NULL, lease_until = NULL,"
            " taken = 0, last_taken = 0"
        )
        for place in (1, CANCELLED + 2, CANCELLED + 3):
            watch.clear()
            [lease] = await claim(db)
            await plans_are_in()
            rows.append(watch.rows_read)
            assert lease.positions == [done + place]
            [committed] = await open_database_of(db).runner.write_autocommit(
                partial(
                    mailbox.commit,
                    worker="w",
                    turns=[Commit(lease, [lease.deliveries[0].message])],
                )
            )
            assert committed is True
    without, first, second = rows
    # SQLite passes about six rows in the steps in which it would return one.
    assert CANCELLED / 10 <= first <= 2 * CANCELLED, rows
    assert second <= 1.5 * without, rows
