"""The processes of a soak: started, killed, frozen and thawed, and started again when they end.

They are forked from a server that has everything imported already, which takes some 20 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from soak.clients import ClientProcess
from soak.journal import Journal
from soak.plan import Plan
from soak.workers import WorkerProcess

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])

ROLES: dict[str, type[ClientProcess | WorkerProcess]] = {
    "sender": ClientProcess,
    "worker": WorkerProcess,
}

WATCH_SECONDS = 0.05
STOP_SECONDS = 30.0

_PR_SET_PDEATHSIG = 1


def main(role: str, plan: Plan, name: str, incarnation: int, folder: Path, url: str) -> None:
    """One process, from its birth to its end."""
    # Nothing may outlive the soak: the fork server ends with it, and this process with that.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(ROLES[role](plan, name, incarnation, folder).run(url))


class Member:
    """One place in the crew, and the process that fills it now."""

    def __init__(self, role: str, number: int) -> None:
        self.role = role
        self.name = f"{role}-{number}"
        self.incarnation = -1
        self.process: ForkServerProcess | None = None
        self.frozen = 0
        """How many have frozen it and not thawed it yet."""
        self.leaving = False
        """It was asked to end, and is not started again."""
        self.gone = asyncio.Event()
        """It has ended, and is not started again."""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def signal(self, number: signal.Signals) -> bool:
        """Whether there was somebody to send it to."""
        if not self.alive:
            return False
        assert self.process is not None
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        return True


class Crew:
    """All processes of a soak."""

    def __init__(self, plan: Plan, url: str, folder: Path) -> None:
        self._plan = plan
        self._url = url
        self._folder = folder
        self._journal = Journal(folder, "crew")
        counts = {"sender": plan.senders, "worker": plan.workers}
        self.members = [Member(role, n) for role, count in counts.items() for n in range(count)]
        self.deaths = 0

    def of(self, role: str) -> list[Member]:
        return [member for member in self.members if member.role == role]

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[Crew]:
        """Everybody at work, and replaced when they die; killed at the end."""
        for member in self.members:
            self._start(member)
        watching = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.wait((watching,))
            for member in self.members:
                member.leaving = True
                self.kill(member)

    def kill(self, member: Member) -> bool:
        """SIGKILL, which also ends who is frozen."""
        if not member.signal(signal.SIGKILL):
            return False
        assert member.process is not None
        member.process.join()
        return True

    def freeze(self, member: Member) -> bool:
        stopped = member.signal(signal.SIGSTOP)
        member.frozen += stopped
        return stopped

    def thaw(self, member: Member) -> None:
        member.frozen = max(0, member.frozen - 1)
        if member.frozen == 0:
            member.signal(signal.SIGCONT)

    async def stop(self, role: str) -> None:
        """SIGTERM to all of a role, and wait until they have come to an end."""
        for member in self.of(role):
            member.leaving = True
            if not member.signal(signal.SIGTERM) and member.process is None:
                member.gone.set()
        await self.ended(role, STOP_SECONDS)

    async def ended(self, role: str, within: float | None) -> None:
        """Wait for all of a role to end by themselves; who does not in time is killed, and that
        is written down as a crash."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await asyncio.gather(*(member.gone.wait() for member in self.of(role)))
        for member in self.of(role):
            if member.alive:
                self._journal.write(crash=member.name, code="did not end")
                self.kill(member)

    def _start(self, member: Member) -> None:
        member.incarnation += 1
        member.frozen = 0
        member.process = _processes.Process(
            target=main,
            args=(
                member.role,
                self._plan,
                member.name,
                member.incarnation,
                self._folder,
                self._url,
            ),
            daemon=True,
        )
        member.process.start()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._note_ends(self.members)
            for member in self.members:
                if member.process is None and not member.leaving:
                    self._start(member)

    def _note_ends(self, members: Iterable[Member]) -> None:
        for member in members:
            if member.process is None or member.alive:
                continue
            code = member.process.exitcode
            member.process.close()
            member.process = None
            if code == 0:
                member.leaving = True
            elif code == -signal.SIGKILL:
                self.deaths += 1
            else:
                self._journal.write(crash=member.name, code=code)
            if member.leaving:
                member.gone.set()
