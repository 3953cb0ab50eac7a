"""The nemesis injects faults into processes and databases, as production does.

Nemesis is the word of Jepsen, a test suite for distributed databases, for the part that injects
faults.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
from pathlib import Path
from typing import Any

from soak import shared_value
from soak.journal import Journal
from soak.plan import Plan
from soak.storage import Act, Storage
from soak.supervisor import SupervisedProcess, Supervisor

FAULTS_AT_ONCE = 2
"""The number of faults at the same time."""

RETRY_SECONDS = 30.0
"""How long a fault is tried again whose victim, or server, is not running. On a loaded machine a
server that recovers from a crash was away for more than 4 s."""

STOP_CHECKS = 400
LOOK_SECONDS = 0.005
"""The nemesis waits two seconds in all for a worker to come to a commit."""

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
"""The faults on every database. Each database adds its own."""


class Nemesis:
    """Injects every kind of fault, in random order. Faults overlap."""

    def __init__(self, plan: Plan, storage: Storage, supervisor: Supervisor, folder: Path) -> None:
        self._plan = plan
        self._crew = supervisor
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

    async def run_faults(self) -> None:
        """Inject faults until the planned time is over and every kind has happened as often as
        planned. Undo each of them before returning."""
        until = time.monotonic() + self._plan.seconds
        free = asyncio.Semaphore(FAULTS_AT_ONCE)
        rounds = 0
        async with asyncio.TaskGroup() as running:
            while time.monotonic() < until or rounds < self._plan.rounds:
                rounds += 1
                for kind in self._chance.sample([*self.kinds], len(self.kinds)):
                    if rounds > self._plan.rounds and time.monotonic() >= until:
                        break
                    await free.acquire()
                    task = running.create_task(self._do(kind, random.Random(self._chance.random())))
                    task.add_done_callback(lambda _: free.release())
                    await asyncio.sleep(self._chance.uniform(0.2, 1.0) * self._plan.between_faults)

    async def _do(self, kind: str, chance: random.Random) -> None:
        began = time.monotonic()
        while time.monotonic() < began + RETRY_SECONDS:
            try:
                fields = await self.kinds[kind](chance)
            except Exception as error:
                # Another fault is in the way: the server restarts.
                self._journal.write(hindered=kind, why=repr(error)[:300])
                fields = {}
            if fields:
                self._journal.write(fault=kind, began=began, **fields)
                return
            await asyncio.sleep(0.1)

    def _victim(self, role: str, chance: random.Random) -> SupervisedProcess:
        return chance.choice(self._crew.with_role(role))

    async def _kill(self, role: str, chance: random.Random) -> dict[str, Any]:
        process = self._victim(role, chance)
        return {"victim": process.name} if self._crew.kill(process) else {}

    async def _freeze(self, role: str, chance: random.Random) -> dict[str, Any]:
        process = self._victim(role, chance)
        if not self._crew.freeze(process):
            return {}
        seconds = chance.uniform(0.05, 1.0) * self._plan.freeze
        if chance.random() < self._plan.long_odds:
            seconds = self._plan.long
        try:
            await asyncio.sleep(seconds)
        finally:
            self._crew.thaw(process)
        return {"victim": process.name, "seconds": seconds}

    async def _freeze_at_commit(self, chance: random.Random) -> dict[str, Any]:
        """Freeze a worker until its lease has passed on. Its commit must then be refused."""
        process = await self._stopped_at_commit(chance)
        if process is None:
            return {}
        seconds = chance.uniform(1.1, 2.5) * self._plan.lease
        try:
            await asyncio.sleep(seconds)
        finally:
            process.signal(signal.SIGCONT)
        return {"victim": process.name, "seconds": seconds}

    async def _kill_at_commit(self, chance: random.Random) -> dict[str, Any]:
        """Kill a worker within its commit, or just before or after."""
        process = await self._stopped_at_commit(chance)
        if process is None:
            return {}
        process.signal(signal.SIGCONT)
        await asyncio.sleep(chance.uniform(0.0, 0.01))
        return {"victim": process.name} if self._crew.kill(process) else {}

    async def _stopped_at_commit(self, chance: random.Random) -> SupervisedProcess | None:
        """Find a worker that has stopped itself between its handler and its commit."""
        process = self._victim("worker", chance)
        stall = shared_value.stop_at_commit(self._folder, process.name)
        stall.value = 1.0
        for _ in range(STOP_CHECKS):
            await asyncio.sleep(LOOK_SECONDS)
            if not stall.value:
                return process
        stall.value = 0.0
        return None

    async def _shift(self, chance: random.Random) -> dict[str, Any]:
        """Set a clock forward or back for a while, and then right again."""
        process = self._victim("worker", chance)
        shift = shared_value.clock_shift(self._folder, process.name)
        by = chance.choice([-1, 1]) * chance.uniform(0.2, 1.0) * self._plan.shift
        # Recorded before the jump: the checker then knows which decisions a wrong clock made.
        number = next(self._shifts)
        self._journal.write(shifting=number, victim=process.name, by=by)
        shift.value = by
        try:
            await asyncio.sleep(chance.uniform(0.5, 1.0) * self._plan.hold)
        finally:
            shift.value = 0.0
        self._journal.write(shifted=number)
        return {"victim": process.name, "by": by}
