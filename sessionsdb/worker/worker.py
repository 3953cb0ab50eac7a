"""The worker as its users see it: run, run until idle, stop."""

from __future__ import annotations

from uuid import uuid4

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.worker.loop import WorkerLoop
from sessionsdb.worker.options import WorkerOptions


class Worker:
    """Runs the handler for every session that has messages in its inbox, and commits the results.

    Made by ``SessionsDB.worker``. Any number of workers, in any number of processes and hosts,
    share the work of one database. A session is run by one worker at a time, and its messages are
    handled in the order in which their sends committed.
    """

    def __init__(self, database: OpenDatabase, options: WorkerOptions) -> None:
        self._database = database
        self._options = options
        self._loop: WorkerLoop | None = None
        self._failed = 0
        self._died = 0

    @property
    def id(self) -> str | None:
        """The id of this worker while it runs, otherwise ``None``. Each run has a new id."""
        return None if self._loop is None else self._loop.id

    @property
    def died(self) -> int:
        """How many messages are dead after an attempt by this worker, in all its runs so far."""
        return self._died + (0 if self._loop is None else self._loop.died)

    @property
    def failed(self) -> int:
        """How many attempts of this worker failed, in all its runs so far."""
        return self._failed + (0 if self._loop is None else self._loop.failed)

    async def run(self) -> None:
        """Work until ``stop`` is called.

        When the database fails, the worker tries again until it answers. When the task of this
        call is cancelled, the worker cancels its turns and releases their leases at once.

        Raises ``InvalidArgument`` if this worker is running already.
        """
        await self._run(until_idle=False)

    async def run_until_idle(self) -> int:
        """Work until the inboxes of all its namespaces hold no unfinished message.

        A message that waits for a retry, or that another worker handles, is unfinished: this call
        waits for it. Returns the number of turns that this worker committed.
        """
        return await self._run(until_idle=True)

    async def stop(self, grace: float = 30.0) -> None:
        """Stop claiming sessions, and let running turns finish for at most ``grace`` seconds.

        After that, turns that still run are cancelled and their leases released, which costs their
        messages no attempt. Returns when the worker has stopped. A second call with a shorter
        ``grace`` shortens the first. Does nothing if the worker does not run. While ``run`` opens
        the database, this waits for it, and no turn begins.
        """
        self._database.require_home()
        if self._loop is not None:
            await self._loop.stop(validation.seconds(grace, "grace"))

    async def _run(self, *, until_idle: bool) -> int:
        if self._loop is not None:
            raise InvalidArgument("this worker is running already; make another one")
        worker_id = f"{self._options.name or 'worker'}-{uuid4().hex[:12]}"
        self._loop = WorkerLoop(self._database, worker_id, self._options)
        try:
            return await self._loop.run(until_idle=until_idle)
        finally:
            self._failed += self._loop.failed
            self._died += self._loop.died
            self._loop = None
