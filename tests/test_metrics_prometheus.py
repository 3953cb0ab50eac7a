"""A worker process that is scraped like Prometheus does."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support.command_line import PROGRAM, CommandLine, environment
from tests.support.waiting import until

AGENT = """
import asyncio

async def handle(turn):
    if turn.text == "hang":
        await asyncio.Event().wait()
    if turn.text == "fail":
        raise ValueError("can't do it")
    return "yes"
"""


def scrape(url: str) -> dict[str, dict[str | None, float]]:
    """The value of each sample, by name and result."""
    # No proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as page:
        text = page.read().decode()
    samples: dict[str, dict[str | None, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[sample.labels.get("result")] = sample.value
    return samples


async def started(database: Database, folder: Path, *options: str) -> tuple[Any, str]:
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "--url", database.url, "worker", "my_agent:handle", "--max-attempts", "1"),
        *("--prometheus-port", "0", "--concurrency", "4", *options),
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    assert line.startswith("metrics: http://127.0.0.1:"), line
    return process, line.removeprefix("metrics: ").strip()


async def test_a_worker_process_serves_what_it_does(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    (tmp_path / "my_agent.py").write_text(AGENT)
    for id, text in (("a", "hang"), ("b", "works"), ("c", "fail")):
        await db.broker.register(id, channel="cli", peer="ada")
        await db.broker.send(id, text)
    process, url = await started(database, tmp_path, "--grace", "0")
    try:

        async def done() -> bool:
            samples = await asyncio.to_thread(scrape, url)
            return samples.get("sessionsdb_turns_total") == {"committed": 1.0, "dead": 1.0}

        await until(done)
        for n in range(2):
            await db.broker.send("a", str(n))

        async def depth() -> bool:
            # The database is asked at most once in 5 seconds.
            samples = await asyncio.to_thread(scrape, url)
            return samples["sessionsdb_inbox_pending"] == {None: 2.0}

        await until(depth)
        samples = await asyncio.to_thread(scrape, url)
        assert samples["sessionsdb_inbox_running"] == {None: 1.0}
        assert samples["sessionsdb_claims_total"] == {None: 3.0}
        assert samples["sessionsdb_message_wait_seconds_count"] == {None: 3.0}
        assert samples["sessionsdb_turn_duration_seconds_count"] == {"committed": 1.0, "dead": 1.0}
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors
    with socket.socket() as probe:
        port = int(url.rpartition(":")[2].partition("/")[0])
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the port is free again"


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/t.db")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = ("worker", "sessionsdb.handlers:echo", "--until-idle", "--prometheus-port", port)
        assert "in use" in cli.program(*command).failed()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """Without the SDK the API does nothing, and the worker works as usual."""
    program = (
        "import sys; sys.modules['opentelemetry.sdk.metrics'] = None\n"
        "from sessionsdb.cli import main; main()"
    )
    base = [sys.executable, "-c", program, "--url", f"sqlite:///{tmp_path}/t.db"]
    worker = [*base, "worker", "sessionsdb.handlers:echo", "--until-idle"]
    done = subprocess.run(worker, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "committed 0 turns\n"), done.stderr
    refused = subprocess.run(
        [*worker, "--prometheus-port", "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert "pip install 'sessionsdb[metrics]'" in refused.stderr
