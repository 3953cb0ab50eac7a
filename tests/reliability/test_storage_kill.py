"""SIGKILL during writes, many times, and the content of the file after it."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support import soundness
from tests.support.doomed_process import SHARED, doomed_process, echo
from tests.support.scale import SCALE
from tests.support.waiting import until

KILLS = 100 * SCALE


@pytest.fixture
def kind() -> str:
    return "sqlite"


Journal = list[dict[str, Any]]


@pytest.mark.timeout(120 + 2 * KILLS)
async def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_is_there_in_part(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    """Two processes write at once. One is killed at a random moment, and another replaces it."""
    journal = tmp_path / "journal"
    journal.touch()
    chance = random.Random()
    for n in range(SHARED):
        await db.broker.register(f"inbox-{n}", channel="test", peer="somebody")
        await db.store.save(f"append-{n}", [])

    def lines() -> int:
        return journal.read_bytes().count(b"\n")

    alive: list[ExitStack] = []
    for number in range(KILLS):
        if len(alive) == 2:
            # Some before they have written anything, and most in the middle.
            target = lines() + chance.choice((0, 1, 1, 3, 10, 40))
            await until(lambda target=target: lines() >= target)
            alive.pop(chance.randrange(2)).close()
        life = ExitStack()
        alive.append(life)
        life.enter_context(doomed_process(database.path, f"p{number}", journal))
        if number % 10 == 0:
            assert soundness.integrity(database.path) == []
    for life in alive:
        life.close()

    assert soundness.faults(database.path) == []
    told = read(journal)
    check_sends(told, soundness.inbox(database.path))
    check_appends(told, soundness.transcripts(database.path))
    check_saves(told, soundness.transcripts(database.path))
    unanswered = sum(1 if line["did"] == "intent" else -1 for line in told)
    assert unanswered > KILLS / 4, "they were killed in the middle of it"

    await db.worker(echo, concurrency=SHARED, max_attempts=1_000).run_until_idle()
    check_turns(soundness.inbox(database.path), soundness.transcripts(database.path))
    assert soundness.faults(database.path) == []


def read(journal: Path) -> Journal:
    """A kill may cut the line that is being written, where it crosses a page of the file. The next
    process writes behind it. A cut line was not acknowledged."""
    whole = journal.read_text().splitlines(keepends=True)
    return [json.loads(line[line.rindex('{"op"') :]) for line in whole if line.endswith("\n")]


def check_sends(told: Journal, inbox: dict[tuple[str, int], tuple[str, str]]) -> None:
    """An acknowledged message has its position. No message is doubled, and all were sent."""
    sends = [line for line in told if line["op"] == "send"]
    for line in sends:
        if line["did"] == "ack":
            assert inbox[line["session"], line["position"]][0] == line["texts"][0]
    contents = [content for content, _ in inbox.values()]
    assert len(contents) == len(set(contents))
    assert set(contents) <= {line["texts"][0] for line in sends}


def check_appends(told: Journal, transcripts: dict[str, list[str]]) -> None:
    """Each append is there once and complete. Without an acknowledgement it may be missing."""
    wanted = {line["texts"][0]: line["texts"] for line in told if line["op"] == "append"}
    sure = {line["texts"][0] for line in told if line["op"] == "append" and line["did"] == "ack"}
    found = set()
    for n in range(SHARED):
        transcript = transcripts[f"append-{n}"]
        for start in range(0, len(transcript), 3):
            first = transcript[start]
            assert transcript[start : start + 3] == wanted[first]
            assert first not in found
            found.add(first)
    assert sure <= found


def check_saves(told: Journal, transcripts: dict[str, list[str]]) -> None:
    """The last save. If it was not acknowledged, the save before is possible too."""
    saves: dict[str, Journal] = defaultdict(list)
    for line in told:
        if line["op"] == "save":
            saves[line["session"]].append(line)
    for session, lines in saves.items():
        possible = [lines[-1]["texts"]]
        if lines[-1]["did"] == "intent":
            possible.append(lines[-2]["texts"] if len(lines) > 1 else [])
        assert transcripts[session] in possible


def check_turns(
    inbox: dict[tuple[str, int], tuple[str, str]], transcripts: dict[str, list[str]]
) -> None:
    """Every message was answered once, in order."""
    assert {status for _, status in inbox.values()} == {"done"}
    for n in range(SHARED):
        session = f"inbox-{n}"
        sent = [inbox[key][0] for key in sorted(inbox) if key[0] == session]
        assert transcripts[session] == [
            text for content in sent for text in (content, f"echo: {content}")
        ]
