"""The polling worker."""

from __future__ import annotations

from uuid import uuid4

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.worker.loop import WorkerLoop
from sessionsdb.worker.options import WorkerOptions


class Worker:
    """Drains the inboxes of one or more namespaces: claims sessions that have messages, runs the
    handler for each, and commits what it returns. Made by ``SessionsDB.worker``.

    Any number of workers, in any number of processes and hosts, share the work of a database. A
    session is run by one of them at a time, its messages in the order their sends committed.
    """

    def __init__(self, database: OpenDatabase, options: WorkerOptions) -> None:
        self._database = database
        self._options = options
        self._loop: WorkerLoop | None = None

    @property
    def id(self) -> str | None:
        """This worker's id while it runs: a new one at every start."""
        return None if self._loop is None else self._loop.id

    async def run(self) -> None:
        """Work until ``stop`` is called.

        A database that can't be reached is waited for. When the task that runs this is
        cancelled, turns are cancelled and their leases released at once.
        """
        await self._run(until_idle=False)

    async def run_until_idle(self) -> int:
        """Work until no message of these namespaces is unfinished anywhere, neither waiting for
        a retry nor held by another worker; the number of turns committed here."""
        return await self._run(until_idle=True)

    async def stop(self, grace: float = 30.0) -> None:
        """Claim nothing new, let the turns that run finish for ``grace`` seconds, then cancel
        them and release their leases, which costs them no attempt. Returns when ``run`` is about
        to. A second call with a shorter grace shortens the first."""
        if self._loop is not None:
            await self._loop.stop(validation.seconds(grace, "grace"))

    async def _run(self, *, until_idle: bool) -> int:
        if self._loop is not None:
            raise InvalidArgument("this worker is running already; make another one")
        worker_id = f"{self._options.name or 'worker'}-{uuid4().hex[:12]}"
        self._loop = WorkerLoop(self._database, worker_id, self._options)
        try:
            return await self._loop.work(until_idle=until_idle)
        finally:
            self._loop = None
