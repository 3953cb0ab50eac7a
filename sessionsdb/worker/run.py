"""One turn, from its lease to its commit."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import time
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from sessionsdb import arguments
from sessionsdb.content import storable
from sessionsdb.engine import telemetry
from sessionsdb.engine.coalescer import Coalescer
from sessionsdb.engine.core import Core
from sessionsdb.engine.hot import raised, settled, streams_of
from sessionsdb.engine.runner import StatementRefused, pause_after
from sessionsdb.engine.streams import Streams
from sessionsdb.errors import InvalidArgument, LeaseLost, StorageError
from sessionsdb.operations import mailbox
from sessionsdb.operations.deliveries import Commit, Fail, Lease, Send
from sessionsdb.operations.family import Spawn
from sessionsdb.operations.locks import Key, lock_mailboxes, lock_sessions
from sessionsdb.requests import send_message, spawn_child
from sessionsdb.types import Limits
from sessionsdb.worker.retry import Backoff, Retry
from sessionsdb.worker.turn import Handler, Turn, named, stored_answer

log = logging.getLogger("sessionsdb.worker")

ERROR_CHARACTERS = 4_000
"""What is kept of a failed attempt's error."""

TRACEBACK_LINES = 20

_NO_LIMIT = contextlib.nullcontext()


def _session(commit: Commit) -> Key:
    return commit.lease.key


class Held:
    """A lease this worker holds, and the task that runs its turn.

    It is given up at ``until``, by this process's own monotonic clock: before the database would
    let anyone else have it.
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.task: asyncio.Task[bool]
        self.until = 0.0
        self.given_up: str | None = None
        """Why the turn was cancelled, if it was."""
        self.settling = False
        """The handler is done; from here on the fence in the database decides."""

    def give_up(self, why: str) -> None:
        """Cancel the turn; it commits nothing any more."""
        if self.given_up is None and not self.settling:
            self.given_up = why
            self.task.cancel(why)


class Runs:
    """Runs turns for one worker, and commits them."""

    def __init__(
        self,
        core: Core,
        worker: str,
        handler: Handler,
        *,
        max_attempts: int,
        retry: Retry,
        turn_timeout: float | None,
    ) -> None:
        self._core = core
        self._worker = worker
        self._handler = handler
        self._max_attempts = max_attempts
        self._retry = retry
        self._turn_timeout = turn_timeout
        self._commits: Streams[Commit, bool] = Streams(
            self._commit_batch, key=_session, count=streams_of(core.runner)
        )
        self._failures: Coalescer[Fail, bool] = Coalescer(self._fail_batch)

    async def run(self, held: Held) -> bool:
        """Run the handler and commit its turn, or record its failure; whether it committed."""
        lease = held.lease
        with telemetry.on.turn(lease.namespace, lease.session.id, lease.deliveries) as watched:
            watched.result = await self._run(held, watched)
        return watched.result == "committed"

    async def _run(self, held: Held, watched: telemetry.WatchedTurn) -> telemetry.Result:
        lease = held.lease
        begun = time.monotonic()
        turn = Turn(self._core, lease)
        limit = None if self._turn_timeout is None else asyncio.timeout(self._turn_timeout)
        try:
            async with limit or _NO_LIMIT:
                answer = await self._called(turn)
            if held.given_up is not None:  # it went on in spite of being cancelled
                raise asyncio.CancelledError(held.given_up)
            if limit is not None and limit.expired():
                raise TimeoutError
            commit = self._finished(lease, answer)
            held.settling = True
            await self._commit(held, commit, turn.staged)
        except asyncio.CancelledError as error:
            if held.given_up is not None:
                _log(logging.WARNING, "turn given up", lease, begun, error=held.given_up)
                return "given_up"
            if _is_cancelled():
                raise
            # Of the handler's own making: a task that it awaited was cancelled.
            held.settling = True
            watched.error = error
            return await self._fail(held, error, begun)
        except LeaseLost as error:
            if not held.settling:  # raised by the handler, of a lease that is not this one
                held.settling = True
                watched.error = error
                return await self._fail(held, error, begun)
            _log(logging.WARNING, "turn lost its lease", lease, begun, error=str(error))
            return "lost"
        except Exception as error:
            held.settling = True
            late = TimeoutError(f"the turn took longer than its limit of {self._turn_timeout} s")
            watched.error = late if limit is not None and limit.expired() else error
            return await self._fail(held, watched.error, begun)
        _log(logging.INFO, "turn committed", lease, begun)
        if turn.staged:
            telemetry.staged(len(turn.staged))
        return "committed"

    async def _called(self, turn: Turn) -> Any:
        running = self._handler(turn)
        if not inspect.isawaitable(running):
            raise InvalidArgument(
                f"the handler {named(self._handler)} must be async: it returned "
                f"{type(running).__name__}, which can't be awaited"
            )
        return await running

    def _finished(self, lease: Lease, answer: Any) -> Commit:
        replies, usage = stored_answer(answer, max_bytes=self._core.limits.message_bytes)
        return Commit(
            lease,
            [delivery.message for delivery in lease.deliveries] + replies,
            model=usage.model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )

    async def _commit(self, held: Held, commit: Commit, staged: Sequence[Send | Spawn]) -> None:
        """Commit, with patience while the database is away and the lease lasts."""
        for failures in itertools.count(1):
            try:
                if staged:
                    await self._commit_staged(commit, staged)
                else:
                    await self._commits.submit(commit)
                break
            except LeaseLost:
                # Not lost, if it was the answer to an earlier try that got lost.
                if await self._core.runner.settle(self._was_committed(commit)):
                    self._announce()
                    break
                raise
            except StatementRefused:
                raise  # it would be refused again
            except StorageError as error:
                if time.monotonic() > held.until:
                    raise LeaseLost(commit.lease.session.id) from error
                log.warning("can't commit a turn, trying again: %s", error)
                await asyncio.sleep(pause_after(failures, most=2.0))

    def _announce(self) -> None:
        self._core.wakeups.announce("done")
        self._core.wakeups.announce("work")

    def _was_committed(self, commit: Commit) -> Any:
        return partial(mailbox.committed, worker=self._worker, turn=commit)

    async def _commit_batch(self, turns: list[Commit]) -> Sequence[bool | LeaseLost]:
        run = partial(mailbox.commit, worker=self._worker)
        answers: Sequence[bool | LeaseLost]
        if self._core.engine.dialect.name == "sqlite":
            answers = await self._core.runner.write(partial(run, turns=turns))
        else:
            answers = await settled(
                turns,
                lambda left: self._core.runner.statement(partial(run, turns=left)),
                lambda left: self._core.runner.settle(
                    lambda c: [mailbox.committed(c, self._worker, turn) for turn in left]
                ),
            )
        self._announce()
        return answers

    async def _commit_staged(self, commit: Commit, staged: Sequence[Send | Spawn]) -> None:
        await self._core.runner.write(
            partial(
                _commit_with_staged,
                worker=self._worker,
                commit=commit,
                staged=staged,
                limits=self._core.limits,
            )
        )
        self._announce()

    async def _fail_batch(self, failures: list[Fail]) -> Sequence[bool]:
        return await self._core.runner.write(
            partial(mailbox.fail, worker=self._worker, failures=failures)
        )

    async def _fail(self, held: Held, error: BaseException, begun: float) -> telemetry.Result:
        """Record a failed attempt: the messages wait for the next one, or are dead."""
        lease = held.lease
        attempts = max(delivery.attempt for delivery in lease.deliveries)
        retry_in = None if attempts >= self._max_attempts else self._delay(attempts)
        failure = Fail(lease, describe(error), retry_in)
        _log(
            logging.WARNING if retry_in is not None else logging.ERROR,
            "turn failed" if retry_in is not None else "message is dead",
            lease,
            begun,
            error=_summary(error),
            retry_in=retry_in,
        )
        for failures in itertools.count(1):
            try:
                await self._failures.submit(failure)
                break
            except StorageError as storage_error:
                if time.monotonic() > held.until:
                    return "lost"  # the lease will expire, which counts as this attempt
                log.warning("can't record a failed turn, trying again: %s", storage_error)
                await asyncio.sleep(pause_after(failures, most=2.0))
        self._core.wakeups.announce("work")
        if retry_in is None:
            self._core.wakeups.announce("done")
        return "failed" if retry_in is not None else "dead"

    def _delay(self, attempt: int) -> float:
        """What the retry says; a retry that fails must not cost the message its record."""
        try:
            return arguments.seconds(self._retry.delay(attempt), "a retry's delay")
        except Exception as error:
            log.error("the retry failed, the default one decides instead", exc_info=error)
            return Backoff().delay(attempt)


def _commit_with_staged(
    connection: Connection,
    worker: str,
    commit: Commit,
    staged: Sequence[Send | Spawn],
    limits: Limits,
) -> None:
    """A turn's commit together with what it staged: all of it, or none."""
    keys: list[Key] = [commit.lease.key]
    keys += [(one.namespace, one.session_id) for one in staged if isinstance(one, Send)]
    lock_mailboxes(connection, keys)
    lock_sessions(connection, keys)
    [committed] = mailbox.commit(connection, worker, [commit])
    raised(committed)
    for one in staged:
        if isinstance(one, Send):
            send_message(connection, one, limits)
        else:
            chain = commit.lease.chain.next(commit.lease.session.id)
            spawn_child(connection, one, limits, chain)


def describe(error: BaseException) -> str:
    """What is kept of an error: type and message, then the traceback's last lines."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next  # ours say nothing about the handler
    lines = "".join(traceback.format_tb(frame)).splitlines()[-TRACEBACK_LINES:]
    text = "\n".join([_summary(error), *lines])
    if len(text) > ERROR_CHARACTERS:
        text = text[:ERROR_CHARACTERS] + " … (cut)"
    return storable(text)


def _summary(error: BaseException) -> str:
    """Type and message, also of an error whose message can't be made."""
    return "".join(traceback.format_exception_only(error)).strip()[: ERROR_CHARACTERS // 2]


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs this."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _log(level: int, what: str, lease: Lease, begun: float, **extra: Any) -> None:
    if not log.isEnabledFor(level):
        return
    details = {
        "session": lease.session.id,
        "namespace": lease.namespace,
        "positions": lease.positions,
        "attempt": lease.deliveries[0].attempt,
        "seconds": round(time.monotonic() - begun, 6),
        **extra,
    }
    shown = " ".join(f"{name}={value}" for name, value in details.items() if value is not None)
    log.log(level, "%s: %s", what, shown, extra={"turn": {"event": what, **details}})
