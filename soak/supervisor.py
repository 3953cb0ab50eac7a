"""The supervisor: starts, kills, freezes and thaws the processes of a soak, and restarts them.

Processes are forked from a server that has all modules imported, which takes some 20 ms.
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
    """Run one process from its start to its end."""
    # No process may outlive the soak: the fork server ends with the soak, and this process with
    # the fork server.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(ROLES[role](plan, name, incarnation, folder).run(url))


class SupervisedProcess:
    """A process by role and number, and its present incarnation."""

    def __init__(self, role: str, number: int) -> None:
        self.role = role
        self.name = f"{role}-{number}"
        self.incarnation = -1
        self.os_process: ForkServerProcess | None = None
        self.frozen = 0
        """How many faults have frozen the process and not thawed it yet."""
        self.leaving = False
        """The process was asked to end, and is not started again."""
        self.gone = asyncio.Event()
        """Set when the process has ended and is not started again."""

    @property
    def alive(self) -> bool:
        return self.os_process is not None and self.os_process.is_alive()

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal. Return whether there was a process to send it to."""
        if not self.alive:
            return False
        assert self.os_process is not None
        assert self.os_process.pid is not None
        os.kill(self.os_process.pid, number)
        return True


class Supervisor:
    """Starts all processes of a soak, and replaces each one that dies."""

    def __init__(self, plan: Plan, url: str, folder: Path) -> None:
        self._plan = plan
        self._url = url
        self._folder = folder
        self._journal = Journal(folder, "supervisor")
        counts = {"sender": plan.senders, "worker": plan.workers}
        self.processes = [
            SupervisedProcess(role, n) for role, count in counts.items() for n in range(count)
        ]
        self.deaths = 0

    def with_role(self, role: str) -> list[SupervisedProcess]:
        return [process for process in self.processes if process.role == role]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        """Run all processes and replace those that die. Kill all of them at the end."""
        for process in self.processes:
            self._start(process)
        watching = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            watching.cancel()
            await asyncio.wait((watching,))
            for process in self.processes:
                process.leaving = True
                self.kill(process)

    def kill(self, process: SupervisedProcess) -> bool:
        """Send SIGKILL, which also ends a frozen process."""
        if not process.signal(signal.SIGKILL):
            return False
        assert process.os_process is not None
        process.os_process.join()
        return True

    def freeze(self, process: SupervisedProcess) -> bool:
        stopped = process.signal(signal.SIGSTOP)
        process.frozen += stopped
        return stopped

    def thaw(self, process: SupervisedProcess) -> None:
        process.frozen = max(0, process.frozen - 1)
        if process.frozen == 0:
            process.signal(signal.SIGCONT)

    async def stop(self, role: str) -> None:
        """Send SIGTERM to all processes of a role, and wait until they have ended."""
        for process in self.with_role(role):
            process.leaving = True
            if not process.signal(signal.SIGTERM) and process.os_process is None:
                process.gone.set()
        await self.wait_for_end(role, STOP_SECONDS)

    async def wait_for_end(self, role: str, within: float | None) -> None:
        """Wait for all processes of a role to end by themselves. Kill a process that does not
        end in time, and record that as a crash."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await asyncio.gather(*(process.gone.wait() for process in self.with_role(role)))
        for process in self.with_role(role):
            if process.alive:
                self._journal.write(crash=process.name, code="did not end")
                self.kill(process)

    def _start(self, process: SupervisedProcess) -> None:
        process.incarnation += 1
        process.frozen = 0
        process.os_process = _processes.Process(
            target=main,
            args=(
                process.role,
                self._plan,
                process.name,
                process.incarnation,
                self._folder,
                self._url,
            ),
            daemon=True,
        )
        process.os_process.start()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._record_ends(self.processes)
            for process in self.processes:
                if process.os_process is None and not process.leaving:
                    self._start(process)

    def _record_ends(self, processes: Iterable[SupervisedProcess]) -> None:
        for process in processes:
            if process.os_process is None or process.alive:
                continue
            code = process.os_process.exitcode
            process.os_process.close()
            process.os_process = None
            if code == 0:
                process.leaving = True
            elif code == -signal.SIGKILL:
                self.deaths += 1
            elif not (code == -signal.SIGTERM and process.leaving):
                # A process that was asked to end before its first line has done nothing.
                self._journal.write(crash=process.name, code=code)
            if process.leaving:
                process.gone.set()
