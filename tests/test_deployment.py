"""The unit, the container file and the compose file in ``deploy/`` start commands that work."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support.command_line import PROGRAM, CommandLine, environment

DEPLOY = Path(__file__).parents[1] / "deploy"
SYSTEMD = shutil.which("systemd-analyze")
UNIT = DEPLOY / "sessionsdb-worker@.service"
SERVE_UNIT = DEPLOY / "sessionsdb-serve.service"
AGENT = "async def handle(turn):\n    return f're {turn.text}'\n"
GRACE_AND_CLEANUP = 5.0
"""The seconds that a cancelled turn gets beyond ``--grace``."""


def unit(path: Path = UNIT) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(path)
    return parser


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def container_command() -> list[str]:
    [line] = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    words: list[str] = json.loads(line)
    return words


def commands() -> dict[str, list[str]]:
    found = {
        "unit": shlex.split(unit()["Service"]["ExecStart"]),
        "unit of serve": shlex.split(unit(SERVE_UNIT)["Service"]["ExecStart"]),
        "container": container_command(),
    }
    for name, service in compose()["services"].items():
        if "command" in service:
            found[f"compose {name}"] = service["command"]
    return found


@pytest.mark.parametrize("name", commands())
def test_a_command_and_its_options_exist(name: str) -> None:
    program, *words = commands()[name]
    assert Path(program).name == "sessionsdb"
    shown = CommandLine("sqlite://")(*words, "--help").ok().stdout
    assert all(word.split("=")[0] in shown for word in words if word.startswith("--"))


def test_the_server_behind_a_proxy_needs_tokens_and_has_the_port_and_name_of_the_proxy() -> None:
    words = commands()["unit of serve"]
    assert "--require-token" in words
    proxy = (DEPLOY / "nginx.conf").read_text()
    assert f"proxy_pass http://127.0.0.1:{words[words.index('--port') + 1]};" in proxy
    assert f"server_name {words[words.index('--allowed-host') + 1]};" in proxy


@pytest.mark.parametrize(
    ("name", "stop_seconds"),
    [
        ("unit", float(unit()["Service"]["TimeoutStopSec"])),
        ("compose worker", float(compose()["services"]["worker"]["stop_grace_period"].rstrip("s"))),
    ],
)
def test_a_worker_gets_more_time_to_stop_than_its_grace(name: str, stop_seconds: float) -> None:
    words = commands()[name]
    grace = float(words[words.index("--grace") + 1])
    assert stop_seconds > grace + GRACE_AND_CLEANUP


def test_the_workers_of_a_composition_start_behind_the_migration() -> None:
    services = compose()["services"]
    assert services["worker"]["depends_on"]["migrate"]["condition"] == (
        "service_completed_successfully"
    )
    assert services["migrate"]["depends_on"]["database"]["condition"] == "service_healthy"
    assert services["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("kind", ["postgresql"])
def test_the_composition_migrates_answers_a_message_and_stops(
    empty_database: Database, tmp_path: Path
) -> None:
    """The commands of the composition as processes of this machine, without a container engine."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "agent.py").write_text(AGENT)
    services = compose()["services"]
    with contextlib.ExitStack() as stack:

        def start(service: str) -> subprocess.Popen[str]:
            words = [word.replace("8700", "0") for word in services[service]["command"][1:]]
            process = subprocess.Popen(
                [PROGRAM, *words],
                cwd=tmp_path,
                env=environment({"SESSIONSDB_URL": empty_database.url}),
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        assert start("migrate").wait(60) == 0
        workers = [start("worker") for _ in range(services["worker"]["deploy"]["replicas"])]
        server = start("serve")
        assert server.stderr is not None
        port = server.stderr.readline().strip().rpartition(":")[2]
        address = f"http://localhost:{port}"
        # The check of the composition, with the port of this test.
        _, _, option, check = services["serve"]["healthcheck"]["test"]
        done = [sys.executable, option, check.replace("8700", port)]
        subprocess.run(done, check=True, timeout=60)

        cli = CommandLine(empty_database.url)
        secret = cli("token", "me", "--rights", "write").ok().stdout.strip()
        cli("register", "chat").ok()
        request = urllib.request.Request(
            f"{address}/api/v1/sessions/chat/inbox",
            data=b'{"message": "hello"}',
            headers={"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status in (200, 201, 202)
        outcome = cli("outcome", "chat", "1", "--wait", "60").ok().stdout
        assert "re hello" in outcome

        for process in (*workers, server):
            process.send_signal(signal.SIGTERM)
        # One worker may not have set its handlers yet. The other one has answered.
        codes = {process.wait(60) for process in workers}
        assert 0 in codes
        assert codes | {server.wait(60)} <= {0, -signal.SIGTERM}


@pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed")
@pytest.mark.parametrize("path", [UNIT, SERVE_UNIT], ids=lambda path: path.stem)
def test_systemd_accepts_the_unit(tmp_path: Path, path: Path) -> None:
    """It says nothing about a unit whose settings it knows, with a program that exists. Other units
    of the machine may have faults."""
    copy = tmp_path / path.name.replace("@", "@1")
    program, _, rest = unit(path)["Service"]["ExecStart"].partition(" ")
    copy.write_text(path.read_text().replace(f"{program} {rest}", f"{sys.executable} {rest}"))
    done = subprocess.run(
        [str(SYSTEMD), "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if "sessionsdb" in line] == []


async def test_the_unit_runs_a_worker_and_stops_it(database: Database, tmp_path: Path) -> None:
    """The unit's own command line, with another handler, and the signal that systemd sends."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "agent.py").write_text(AGENT)
    _, *words = shlex.split(unit()["Service"]["ExecStart"].replace("%i", "1"))
    worker = await asyncio.to_thread(
        subprocess.Popen,
        [PROGRAM, *words],
        cwd=tmp_path,
        env=environment({"SESSIONSDB_URL": database.url}),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        async with SessionsDB(database.url) as db:
            await db.broker.register("chat", channel="test", peer="p")
            receipt = await db.broker.send("chat", "hello")
            outcome = await db.broker.wait(receipt, timeout=60)
            assert outcome.reply is not None
            assert outcome.reply.content == "re hello"
        worker.send_signal(signal.SIGTERM)
        _, logged = await asyncio.to_thread(worker.communicate, timeout=30)
    finally:
        worker.kill()
    assert worker.returncode == 0
    entries = [json.loads(line) for line in logged.splitlines()]
    assert any(entry["message"].startswith("SIGTERM") for entry in entries)
