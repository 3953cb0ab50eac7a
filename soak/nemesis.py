"""The nemesis: does to processes and databases what production does to them, all the time."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any

from soak import dial
from soak.journal import Journal
from soak.plan import Plan
from soak.processes import Crew, Member
from soak.storage import Act, Storage

HANDS = 2
"""How many faults it holds at the same time."""

RETRIES = 40
"""How often a fault is tried again that found its victim, or the server, gone."""


STALL_LOOKS = 400
LOOK_SECONDS = 0.005
"""How long it waits for a worker to come to a commit: two seconds."""

PROCESS_FAULTS = frozenset(
    (
        "kill a worker",
        "kill clients",
        "freeze a worker",
        "freeze a worker at its commit",
        "kill a worker at its commit",
        "freeze clients",
        "shift a worker's clock",
    )
)
"""What it does on every database, beside the database's own faults."""


class Nemesis:
    """Every kind of fault in turn, in an order of chance, overlapping."""

    def __init__(self, plan: Plan, storage: Storage, crew: Crew, folder: Path) -> None:
        self._plan = plan
        self._crew = crew
        self._folder = folder
        self._journal = Journal(folder, "nemesis")
        self._chance = random.Random(f"{plan.seed} nemesis")
        self._shifts = itertools.count(1)
        self.kinds: dict[str, Act] = {
            "kill a worker": lambda chance: self._kill("worker", chance),
            "kill clients": lambda chance: self._kill("sender", chance),
            "freeze a worker": lambda chance: self._freeze("worker", chance),
            "freeze a worker at its commit": self._freeze_at_commit,
            "kill a worker at its commit": self._kill_at_commit,
            "freeze clients": lambda chance: self._freeze("sender", chance),
            "shift a worker's clock": self._shift,
        }
        assert self.kinds.keys() == PROCESS_FAULTS
        self.kinds |= storage.faults(plan)

    async def rage(self) -> None:
        """Until the plan's time is over and every kind has happened as often as planned; then
        everything is as it was."""
        until = time.monotonic() + self._plan.seconds
        hands = asyncio.Semaphore(HANDS)
        rounds = 0
        async with asyncio.TaskGroup() as running:
            while time.monotonic() < until or rounds < self._plan.rounds:
                rounds += 1
                for kind in self._chance.sample([*self.kinds], len(self.kinds)):
                    if rounds > self._plan.rounds and time.monotonic() >= until:
                        break
                    await hands.acquire()
                    task = running.create_task(self._do(kind, random.Random(self._chance.random())))
                    task.add_done_callback(lambda _: hands.release())
                    await asyncio.sleep(self._chance.uniform(0.2, 1.0) * self._plan.between_faults)

    async def _do(self, kind: str, chance: random.Random) -> None:
        began = time.monotonic()
        for _ in range(RETRIES):
            try:
                told = await self.kinds[kind](chance)
            except Exception as error:
                # Another fault of ours took away what this one was at: the server restarts.
                self._journal.write(hindered=kind, why=repr(error)[:300])
                told = {}
            if told:
                self._journal.write(fault=kind, began=began, **told)
                return
            await asyncio.sleep(0.1)

    def _victim(self, role: str, chance: random.Random) -> Member:
        return chance.choice(self._crew.of(role))

    async def _kill(self, role: str, chance: random.Random) -> dict[str, Any]:
        member = self._victim(role, chance)
        return {"victim": member.name} if self._crew.kill(member) else {}

    async def _freeze(self, role: str, chance: random.Random) -> dict[str, Any]:
        member = self._victim(role, chance)
        if not self._crew.freeze(member):
            return {}
        seconds = chance.uniform(0.05, 1.0) * self._plan.freeze
        if chance.random() < self._plan.long_odds:
            seconds = self._plan.long
        try:
            await asyncio.sleep(seconds)
        finally:
            self._crew.thaw(member)
        return {"victim": member.name, "seconds": seconds}

    async def _freeze_at_commit(self, chance: random.Random) -> dict[str, Any]:
        """Until others have taken over: what it commits then must be refused."""
        member = await self._stopped_at_commit(chance)
        if member is None:
            return {}
        seconds = chance.uniform(1.1, 2.5) * self._plan.lease
        try:
            await asyncio.sleep(seconds)
        finally:
            member.signal(signal.SIGCONT)
        return {"victim": member.name, "seconds": seconds}

    async def _kill_at_commit(self, chance: random.Random) -> dict[str, Any]:
        """Some moment within it, or just before or after."""
        member = await self._stopped_at_commit(chance)
        if member is None:
            return {}
        member.signal(signal.SIGCONT)
        await asyncio.sleep(chance.uniform(0.0, 0.01))
        return {"victim": member.name} if self._crew.kill(member) else {}

    async def _stopped_at_commit(self, chance: random.Random) -> Member | None:
        """A worker that has stopped itself between its handler and its commit."""
        member = self._victim("worker", chance)
        stall = dial.stall(self._folder, member.name)
        stall.value = 1.0
        for _ in range(STALL_LOOKS):
            await asyncio.sleep(LOOK_SECONDS)
            if not stall.value:
                return member
        stall.value = 0.0
        return None

    async def _shift(self, chance: random.Random) -> dict[str, Any]:
        """Forward or back, for a while, and then right again: three jumps."""
        member = self._victim("worker", chance)
        shift = dial.shift(self._folder, member.name)
        by = chance.choice([-1, 1]) * chance.uniform(0.2, 1.0) * self._plan.shift
        # Written down before: the checker takes what was decided meanwhile for what it is.
        number = next(self._shifts)
        self._journal.write(shifting=number, victim=member.name, by=by)
        shift.value = by
        try:
            await asyncio.sleep(chance.uniform(0.5, 1.0) * self._plan.hold)
        finally:
            shift.value = 0.0
        self._journal.write(shifted=number)
        return {"victim": member.name, "by": by}
