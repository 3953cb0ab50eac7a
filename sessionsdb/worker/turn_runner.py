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

from sessionsdb import validation
from sessionsdb.engine.batcher import Batcher
from sessionsdb.engine.exactly_once import write_exactly_once
from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.engine.tasks import backoff_seconds, result_or_raise
from sessionsdb.errors import InvalidArgument, LeaseLost, StorageError
from sessionsdb.messages.json_text import storable
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Commit, Fail, Lease, Send
from sessionsdb.operations.row_locks import SessionKey, lock_mailboxes, lock_sessions
from sessionsdb.operations.spawning import send_message, spawn_child
from sessionsdb.operations.tree import Spawn
from sessionsdb.runtime.batched_calls import parallel_batches
from sessionsdb.runtime.database_access import DONE, WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import spans
from sessionsdb.types import Limits
from sessionsdb.worker.retry import Backoff, Retry
from sessionsdb.worker.turn import Handler, Turn, encode_result, handler_name

log = logging.getLogger("sessionsdb.worker")

ERROR_CHARACTERS = 4_000
"""What is kept of a failed attempt's error."""

TRACEBACK_LINES = 20

_NO_TIMEOUT = contextlib.nullcontext()


def _session(commit: Commit) -> SessionKey:
    return commit.lease.key


class HeldLease:
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
        self.committing = False
        """The handler is done; from here on the fence in the database decides."""

    def give_up(self, why: str) -> None:
        """Cancel the turn; it commits nothing any more."""
        if self.given_up is None and not self.committing:
            self.given_up = why
            self.task.cancel(why)


class TurnRunner:
    """Runs turns for one worker, and commits them."""

    def __init__(
        self,
        database: OpenDatabase,
        worker: str,
        handler: Handler,
        *,
        max_attempts: int,
        retry: Retry,
        turn_timeout: float | None,
    ) -> None:
        self._database = database
        self._worker = worker
        self._handler = handler
        self._max_attempts = max_attempts
        self._retry = retry
        self._turn_timeout = turn_timeout
        self._commits: KeyedBatcher[Commit, bool] = KeyedBatcher(
            database.waking(self._commit_batch, wakes=(WORK, DONE)),
            key=_session,
            count=parallel_batches(database.runner),
        )
        self._failures: Batcher[Fail, bool] = Batcher(self._fail_batch)

    async def run(self, held: HeldLease) -> bool:
        """Run the handler and commit its turn, or record its failure; whether it committed."""
        lease = held.lease
        with spans.instruments.turn(lease.namespace, lease.session.id, lease.deliveries) as watched:
            watched.result = await self._run(held, watched)
        return watched.result == "committed"

    async def _run(self, held: HeldLease, watched: spans.ObservedTurn) -> spans.Result:
        lease = held.lease
        begun = time.monotonic()
        turn = Turn(self._database, lease)
        limit = None if self._turn_timeout is None else asyncio.timeout(self._turn_timeout)
        try:
            async with limit or _NO_TIMEOUT:
                answer = await self._call_handler(turn)
            if held.given_up is not None:  # it went on in spite of being cancelled
                raise asyncio.CancelledError(held.given_up)
            if limit is not None and limit.expired():
                raise TimeoutError
            commit = self._build_commit(lease, answer)
            held.committing = True
            await self._commit(held, commit, turn.staged)
        except asyncio.CancelledError as error:
            if held.given_up is not None:
                _log(logging.WARNING, "turn given up", lease, begun, error=held.given_up)
                return "given_up"
            if _is_cancelled():
                raise
            # Of the handler's own making: a task that it awaited was cancelled.
            held.committing = True
            watched.error = error
            return await self._fail(held, error, begun)
        except LeaseLost as error:
            if not held.committing:  # raised by the handler, of a lease that is not this one
                held.committing = True
                watched.error = error
                return await self._fail(held, error, begun)
            _log(logging.WARNING, "turn lost its lease", lease, begun, error=str(error))
            return "lost"
        except Exception as error:
            held.committing = True
            late = TimeoutError(f"the turn took longer than its limit of {self._turn_timeout} s")
            watched.error = late if limit is not None and limit.expired() else error
            return await self._fail(held, watched.error, begun)
        _log(logging.INFO, "turn committed", lease, begun)
        if turn.staged:
            spans.record_staged_sends(len(turn.staged))
        return "committed"

    async def _call_handler(self, turn: Turn) -> Any:
        running = self._handler(turn)
        if not inspect.isawaitable(running):
            raise InvalidArgument(
                f"the handler {handler_name(self._handler)} must be async: it returned "
                f"{type(running).__name__}, which can't be awaited"
            )
        return await running

    def _build_commit(self, lease: Lease, answer: Any) -> Commit:
        replies, usage = encode_result(answer, max_bytes=self._database.limits.message_bytes)
        return Commit(
            lease,
            [delivery.message for delivery in lease.deliveries] + replies,
            model=usage.model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )

    async def _commit(
        self, held: HeldLease, commit: Commit, staged: Sequence[Send | Spawn]
    ) -> None:
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
                if await self._database.read_durable(self._was_committed(commit)):
                    self._database.wake((WORK, DONE))
                    break
                raise
            except StatementRefused:
                raise  # it would be refused again
            except StorageError as error:
                if time.monotonic() > held.until:
                    raise LeaseLost(commit.lease.session.id) from error
                log.warning("can't commit a turn, trying again: %s", error)
                await asyncio.sleep(backoff_seconds(failures, most=2.0))

    def _was_committed(self, commit: Commit) -> Any:
        return partial(mailbox.find_committed, worker=self._worker, turn=commit)

    async def _commit_batch(self, turns: list[Commit]) -> Sequence[bool | LeaseLost]:
        run = partial(mailbox.commit, worker=self._worker)
        answers: Sequence[bool | LeaseLost]
        if self._database.engine.dialect.name == "sqlite":
            answers = await self._database.runner.write(partial(run, turns=turns))
        else:
            answers = await write_exactly_once(
                turns,
                lambda left: self._database.runner.statement(partial(run, turns=left)),
                lambda left: self._database.runner.read_durable(
                    lambda c: [mailbox.find_committed(c, self._worker, turn) for turn in left]
                ),
            )
        return answers

    async def _commit_staged(self, commit: Commit, staged: Sequence[Send | Spawn]) -> None:
        await self._database.write(
            partial(
                _commit_with_staged,
                worker=self._worker,
                commit=commit,
                staged=staged,
                limits=self._database.limits,
            ),
            wakes=(WORK, DONE),
        )

    async def _fail_batch(self, failures: list[Fail]) -> Sequence[bool]:
        any_dead = any(failure.retry_in is None for failure in failures)
        return await self._database.write(
            partial(mailbox.fail, worker=self._worker, failures=failures),
            wakes=(WORK, DONE) if any_dead else (WORK,),
        )

    async def _fail(self, held: HeldLease, error: BaseException, begun: float) -> spans.Result:
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
                await asyncio.sleep(backoff_seconds(failures, most=2.0))
        return "failed" if retry_in is not None else "dead"

    def _delay(self, attempt: int) -> float:
        """What the retry says; a retry that fails must not cost the message its record."""
        try:
            return validation.seconds(self._retry.delay(attempt), "a retry's delay")
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
    keys: list[SessionKey] = [commit.lease.key]
    keys += [(one.namespace, one.session_id) for one in staged if isinstance(one, Send)]
    lock_mailboxes(connection, keys)
    lock_sessions(connection, keys)
    [committed] = mailbox.commit(connection, worker, [commit])
    result_or_raise(committed)
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
