"""Write the pieces that the turns of a worker stream, all together and at most every 50 ms.

A turn never waits for it. After a flush that takes long, or that fails, the next one carries more.
Texts of a run that came in between are one piece.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from functools import partial

from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations import pieces
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.piece_types import Run
from sessionsdb.runtime.database_access import PIECES, hint_about
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.piece_sweep import sweep_pieces
from sessionsdb.worker.run_buffer import RunBuffer

log = logging.getLogger("sessionsdb.worker")

FLUSH_SECONDS = 0.050
"""The shortest time from the begin of a flush to the begin of the next: 20 writes a second."""

FLUSH_BYTES = 1_048_576
"""A flush takes no further run beyond these bytes. On SQLite other writes wait for it."""

SETTLE_SECONDS = 1.0
"""How long a commit waits for a flush that has pieces of its turn. The fence decides in any case:
the wait only avoids rows that would be swept later."""

SWEEP_SECONDS = 60.0
"""The time between two sweeps of a worker whose turns stream."""


class StreamLane:
    """The streams of all turns of one worker. It costs nothing until a turn streams."""

    def __init__(self, database: OpenDatabase, worker_id: str) -> None:
        self._database = database
        self._worker = worker_id
        self._dirty: dict[RunBuffer, None] = {}
        """The runs with pieces to write, in the order in which they wait."""
        self._flusher: asyncio.Task[None] | None = None
        self._in_flight: Sequence[RunBuffer] = ()
        self._flushed = asyncio.Event()
        self._next_flush_at = 0.0
        self._failures = 0
        self._sweeper: asyncio.Task[None] | None = None
        self._opened_since_sweep = False
        self._closed = False

    def open(self, lease: Lease) -> TurnStream:
        """Return the stream of a turn that streams its first piece."""
        self._opened_since_sweep = True
        if self._sweeper is None and not self._closed:
            self._sweeper = asyncio.create_task(self._sweep_while_used(), name="sweep of pieces")
        run = Run(lease.namespace, lease.session_id, lease.epoch)
        return TurnStream(self, RunBuffer(run, self._database.limits.stream_bytes))

    def add(self, buffer: RunBuffer) -> None:
        """Have the pieces of a run written with the next flush."""
        if self._closed:
            return
        self._dirty[buffer] = None
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_until_clean(), name="pieces")

    async def settle(self, buffer: RunBuffer) -> None:
        """Leave out the pieces of a run from now on, and wait for a flush that has some of them."""
        self._dirty.pop(buffer, None)
        if buffer in self._in_flight:
            try:
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self._flushed.wait()
            except TimeoutError:
                log.warning("a turn is committed while its last pieces are still being written")

    async def close(self) -> None:
        """Stop writing. Pieces that were not written are lost with their turns."""
        self._closed = True
        self._dirty.clear()
        tasks = [task for task in (self._flusher, self._sweeper) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- flushes -----------------------------------------------------------------------------

    async def _flush_until_clean(self) -> None:
        try:
            while self._dirty:
                await asyncio.sleep(max(0.0, self._next_flush_at - time.monotonic()))
                self._next_flush_at = time.monotonic() + FLUSH_SECONDS
                if batch := self._next_batch():
                    await self._flush(batch)
        finally:  # in the same step as the last check: the next piece starts a new task
            self._flusher = None

    def _next_batch(self) -> list[RunBuffer]:
        batch: list[RunBuffer] = []
        size = 0
        while self._dirty and size < FLUSH_BYTES:
            buffer = next(iter(self._dirty))
            del self._dirty[buffer]
            size += buffer.begin_write()
            if buffer.writing:
                batch.append(buffer)
        return batch

    async def _flush(self, batch: list[RunBuffer]) -> None:
        self._in_flight = batch
        self._flushed.clear()
        try:
            await self._write(batch)
            if self._failures:
                log.info("pieces of replies can be written again")
            self._failures = 0
        except StatementRefused as error:
            await self._write_each(batch, error)
        except SessionsDBError as error:
            self._failures += 1
            if self._failures == 1:
                log.warning("can't write pieces of replies, trying again: %s", error)
            self._next_flush_at += backoff_seconds(self._failures, max_seconds=2.0)
        finally:
            self._in_flight = ()
            self._flushed.set()
            # Also after an error, whose pieces are written again.
            self._dirty.update((one, None) for one in batch if one.has_pieces and not one.closed)

    async def _write(self, batch: list[RunBuffer]) -> None:
        counts = await self._database.write_unsynced(
            partial(
                pieces.write_pieces,
                worker=self._worker,
                runs=[buffer.next_pieces for buffer in batch],
            ),
            wakes=(hint_about(PIECES, [buffer.run.key for buffer in batch]),),
        )
        for buffer, count in zip(batch, counts, strict=True):
            buffer.end_write(count)

    async def _write_each(self, batch: list[RunBuffer], error: StatementRefused) -> None:
        """Write the runs one by one. A run that the database refuses streams no more."""
        if len(batch) == 1:
            log.error("a turn can't stream any more: %s", error)
            batch[0].close()
            return
        for buffer in batch:
            await self._flush([buffer])

    # ---- sweeps ------------------------------------------------------------------------------

    async def _sweep_while_used(self) -> None:
        """Sweep once a minute, until no turn has streamed for a minute."""
        try:
            while self._opened_since_sweep:
                self._opened_since_sweep = False
                await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.8, 1.2))
                await self._sweep()
        finally:
            self._sweeper = None

    async def _sweep(self) -> None:
        try:
            await sweep_pieces(self._database)
        except SessionsDBError as error:
            log.warning("can't sweep pieces of replies, the next sweep does: %s", error)


class TurnStream:
    """The stream of one turn."""

    def __init__(self, lane: StreamLane, buffer: RunBuffer) -> None:
        self._lane = lane
        self._buffer = buffer

    def add_text(self, text: str) -> None:
        if self._buffer.add_text(text):
            self._lane.add(self._buffer)

    def add_data(self, kind: str, data: str) -> None:
        if self._buffer.add_data(kind, data):
            self._lane.add(self._buffer)

    def close(self) -> None:
        """Take no more pieces."""
        self._buffer.close()

    async def settle(self) -> None:
        """Wait until no piece is being written, before the turn commits."""
        await self._lane.settle(self._buffer)
