"""No state is kept on a connection, so the package works behind a transaction pooler.

A pooler in transaction mode may give every statement outside of a transaction another connection,
and every transaction one that somebody else has used. Here the server's connections are dropped
and made anew for each, which is what such a client must be able to bear.
"""

from __future__ import annotations

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.handlers import echo
from tests.support.proxy import proxy_to
from tests.support.work import running


@pytest.fixture
def kind() -> str:
    return "postgresql"


async def test_work_goes_on_and_nothing_is_kept_on_the_server(database: Database) -> None:
    async with SessionsDB(database.url, transaction_pooler=True) as db:
        await db.broker.register("chat", channel="test", peer="p")
        await db.store.append("chat", [{"role": "user", "content": "before"}])
        async with running(db, echo, poll_interval=0.05):
            receipt = await db.broker.send("chat", "hello")
            outcome = await db.broker.wait(receipt, timeout=30)
        assert outcome.status == "done"
        mine = (
            "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert await database.query(f"SELECT query {mine}") == []


async def test_every_statement_runs_within_a_transaction(database: Database) -> None:
    """The driver prepares, then executes: outside of a transaction the pooler may give each to
    another connection, which does not have the prepared statement."""
    async with proxy_to(database) as proxy:
        async with (
            SessionsDB(proxy.url, transaction_pooler=True) as db,
            running(db, echo, poll_interval=0.05),
        ):
            await db.broker.register("chat", channel="test", peer="p")
            receipt = await db.broker.send("chat", "hello")
            await db.broker.wait(receipt, timeout=30)
            await db.store.append("chat", [{"role": "user", "content": "hello"}])
            await db.broker.history("chat")
        assert len(proxy.outside) == 0
        assert any("INSERT INTO inbox" in statement for statement in proxy.executed)


async def test_no_connection_listens_through_a_pooler(database: Database) -> None:
    async with (
        SessionsDB(database.url, transaction_pooler=True) as db,
        running(db, echo, poll_interval=0.05),
    ):
        await db.broker.register("chat", channel="test", peer="p")
        for text in "abc":
            await db.broker.wait(await db.broker.send("chat", text), timeout=30)
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
        assert await database.value(listening) == 0


async def test_sqlite_has_no_pooler_and_says_so() -> None:
    with pytest.raises(InvalidArgument, match="leave it out for SQLite"):
        SessionsDB("sqlite://", transaction_pooler=True)
