"""Servers that die under load: PostgreSQL with a synchronous standby, and one that restarts."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from devtools.postgres_cluster import (
    PostgresCluster,
    PostgresNode,
    postgres_cluster,
    postgres_node,
)
from sessionsdb import SessionsDB
from sessionsdb.handlers import echo
from tests.support.failover_load import Answers, Load, assert_answers_hold
from tests.support.scale import SCALE
from tests.support.waiting import until
from tests.support.work import running
from tests.support.worker_process import Journal, worker_process

NAME = "agents"
FAILOVERS = 2 * SCALE

pytestmark = pytest.mark.timeout(120 + 30 * SCALE)


@pytest.fixture
def cluster() -> Iterator[PostgresCluster]:
    with postgres_cluster() as cluster:
        make_database(cluster.primary, cluster.url(NAME))
        yield cluster


@pytest.fixture
def node() -> Iterator[PostgresNode]:
    with postgres_node() as node:
        make_database(node, node.url(NAME))
        yield node


def make_database(node: PostgresNode, url: str) -> None:
    node.sql(f"CREATE DATABASE {NAME}")
    asyncio.run(_migrate(url))


async def _migrate(url: str) -> None:
    async with SessionsDB(url, migrate=True):
        pass


@asynccontextmanager
async def load_on(url: str, folder: Path) -> AsyncIterator[Answers]:
    """Clients in this process and two worker processes, both at work. At the end all messages are
    done."""
    journals = [Journal(folder / f"journal-{number}") for number in range(2)]
    with ExitStack() as stack:
        for journal in journals:
            stack.enter_context(worker_process(url, journal, concurrency=8))
        async with Load(url).running() as answers:
            # A process that starts while the server is away ends, and does no work afterwards.
            await until(lambda: all(journal.count() for journal in journals), within=60)
            yield answers


async def acknowledged(answers: Answers, more: int) -> None:
    enough = len(answers.sent) + more
    await until(lambda: len(answers.sent) >= enough, within=60)


DEATHS: list[tuple[str, Callable[[PostgresNode], None]]] = [
    ("killed with its children", PostgresNode.kill),
    ("postmaster killed", PostgresNode.kill_postmaster),
    ("stopped like a crash", lambda node: node.stop("immediate")),
    ("stopped in order", lambda node: node.stop("fast")),
    ("frozen", PostgresNode.freeze),
]


async def test_nothing_acknowledged_is_lost_or_doubled_when_a_standby_takes_over(
    cluster: PostgresCluster, tmp_path: Path
) -> None:
    """Fail over and back, with the old primary as the new standby, SESSIONSDB_TEST_SCALE times."""
    figures = []
    async with load_on(cluster.url(NAME, connect_timeout="2"), tmp_path) as answers:
        for _, (how, die) in zip(range(FAILOVERS), itertools.cycle(DEATHS), strict=False):
            await acknowledged(answers, 100)
            began = time.monotonic()
            await asyncio.to_thread(die, cluster.primary)
            await asyncio.to_thread(cluster.promote_standby)
            promoted = time.monotonic()
            await acknowledged(answers, 1)
            figures.append((how, promoted - began, answers.first_after(promoted)))
            await acknowledged(answers, 50)  # with a primary alone
            await asyncio.to_thread(cluster.rejoin)
    await assert_answers_hold(answers, cluster.primary.url(NAME))
    report("failover", figures, answers)
    assert all(first is not None and first < 15 for *_, first in figures)


RESTARTS: list[tuple[str, Callable[[PostgresNode], None]]] = [
    ("restarted in order", lambda node: node.restart("fast")),
    ("restarted like a crash", lambda node: node.restart("immediate")),
    ("one of its processes killed", PostgresNode.crash),
]


async def test_nothing_acknowledged_is_lost_or_doubled_when_the_server_restarts(
    node: PostgresNode, tmp_path: Path
) -> None:
    figures = []
    async with load_on(node.url(NAME), tmp_path) as answers:
        for how, restart in RESTARTS * SCALE:
            await acknowledged(answers, 100)
            began = time.monotonic()
            await asyncio.to_thread(restart, node)
            up = time.monotonic()
            await acknowledged(answers, 1)
            figures.append((how, up - began, answers.first_after(up)))
    await assert_answers_hold(answers, node.url(NAME))
    report("restart", figures, answers)
    assert all(first is not None and first < 10 for *_, first in figures)


async def test_hints_come_again_after_a_failover(cluster: PostgresCluster) -> None:
    """A worker that polls once an hour is notified of a send of another process."""
    async with (
        SessionsDB(cluster.url(NAME)) as here,
        SessionsDB(cluster.url(NAME)) as there,
        running(there, echo, poll_interval=3_600),
    ):
        await here.broker.register("chat", channel="test", peer="p")
        await asyncio.to_thread(cluster.primary.kill)
        await asyncio.to_thread(cluster.promote_standby)
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
        await until(lambda: cluster.primary.sql(listening, NAME) != "0", within=30)
        for _ in range(3):
            receipt = await here.broker.send("chat", "hello")
            assert (await here.broker.wait(receipt, timeout=20)).status == "done"


def report(what: str, figures: list[tuple[str, float, float | None]], answers: Answers) -> None:
    """Print the figures of the docs, shown with ``-s``."""
    for how, away, first in figures:
        sys.stderr.write(f"{what}, {how}: {away:.2f} s away, first send after {first:.2f} s\n")
    sys.stderr.write(
        f"{what}: {len(answers.sent)} sends, {len(answers.relayed)} staged, "
        f"{len(answers.registered)} registered, "
        f"{sum(map(len, answers.appended.values()))} appended, "
        f"{len(answers.outcomes)} waits; errors: {dict(answers.errors)}\n"
    )
