"""Run one turn, from its lease to its commit."""

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
from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import InvalidArgument, LeaseLost, StorageError
from sessionsdb.messages.json_text import replace_unstorable
from sessionsdb.operations import lease_ends, mailbox
from sessionsdb.operations.inbox_types import Commit, Fail, Lease, Send
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.tree import Spawn
from sessionsdb.operations.turn_commit import commit_with_staged
from sessionsdb.runtime.database_access import DONE, WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import observed
from sessionsdb.telemetry.observed import ObservedTurn, TurnResult
from sessionsdb.worker.leases import HeldLease
from sessionsdb.worker.options import WorkerOptions
from sessionsdb.worker.retry import Backoff
from sessionsdb.worker.turn import Turn, encode_result, handler_name

log = logging.getLogger("sessionsdb.worker")

ERROR_CHARACTERS = 4_000
"""The error of a failed attempt is stored up to this length."""

TRACEBACK_LINES = 20

_NO_TIMEOUT = contextlib.nullcontext()


def _session_key(commit: Commit) -> SessionKey:
    return commit.lease.key


class TurnRunner:
    """Runs the turns of one worker, and commits them."""

    def __init__(self, database: OpenDatabase, worker_id: str, options: WorkerOptions) -> None:
        self._database = database
        self._worker = worker_id
        self._options = options
        self._commits: KeyedBatcher[Commit, bool] = KeyedBatcher(
            self._commit_batch, key=_session_key, count=database.parallel_batches
        )
        self._failures: Batcher[Fail, bool] = Batcher(self._fail_batch)

    async def run(self, held: HeldLease) -> bool:
        """Run the handler and commit its turn, or record the failure. Returns whether the turn was
        committed."""
        lease = held.lease
        observation = observed.telemetry.turn(lease.namespace, lease.session.id, lease.deliveries)
        with observation:
            observation.result = await self._run_turn(held, observation)
        return observation.result == "committed"

    async def _run_turn(self, held: HeldLease, observation: ObservedTurn) -> TurnResult:
        lease = held.lease
        started_at = time.monotonic()
        turn = Turn(self._database, lease)
        seconds = self._options.turn_timeout
        timeout = None if seconds is None else asyncio.timeout(seconds)
        try:
            async with timeout or _NO_TIMEOUT:
                answer = await self._call_handler(turn)
            if held.cancel_reason is not None:  # the handler suppressed its cancellation
                raise asyncio.CancelledError(held.cancel_reason)
            if timeout is not None and timeout.expired():
                raise TimeoutError
            commit = self._build_commit(lease, answer)
            held.handler_done = True
            await self._commit(held, commit, turn.staged)
        except asyncio.CancelledError as error:
            if held.cancel_reason is not None:
                _log_turn(
                    logging.WARNING, "turn given up", lease, started_at, error=held.cancel_reason
                )
                return "given_up"
            if _is_cancelled():
                raise
            # Raised by the handler itself: a task that it awaited was cancelled.
            held.handler_done = True
            observation.error = error
            return await self._record_failure(held, error, started_at)
        except LeaseLost as error:
            if not held.handler_done:  # raised by the handler, about another lease
                held.handler_done = True
                observation.error = error
                return await self._record_failure(held, error, started_at)
            _log_turn(logging.WARNING, "turn lost its lease", lease, started_at, error=str(error))
            return "lost"
        except Exception as error:
            held.handler_done = True
            late = TimeoutError(f"the turn took longer than its limit of {seconds} s")
            observation.error = late if timeout is not None and timeout.expired() else error
            return await self._record_failure(held, observation.error, started_at)
        _log_turn(logging.INFO, "turn committed", lease, started_at)
        if turn.staged:
            observed.telemetry.record_staged_sends(len(turn.staged))
        return "committed"

    async def _call_handler(self, turn: Turn) -> Any:
        handler = self._options.handler
        result = handler(turn)
        if not inspect.isawaitable(result):
            raise InvalidArgument(
                f"the handler {handler_name(handler)} must be async: it returned "
                f"{type(result).__name__}, which can't be awaited"
            )
        return await result

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
        """Commit a turn. While the database fails, try again until the lease runs out.

        Raises ``LeaseLost``.
        """
        for failures in itertools.count(1):
            try:
                if staged:
                    await self._commit_staged(commit, staged)
                else:
                    await self._commits.submit(commit)
                break
            except LeaseLost:
                # An earlier try may have been committed whose answer was lost: it ended the lease.
                if await self._database.read_durable(partial(mailbox.find_committed, turn=commit)):
                    self._database.wake((WORK, DONE))
                    break
                raise
            except StatementRefused:
                raise  # it would be refused again
            except StorageError as error:
                if time.monotonic() > held.deadline:
                    raise LeaseLost(commit.lease.session.id) from error
                log.warning("can't commit a turn, trying again: %s", error)
                await asyncio.sleep(backoff_seconds(failures, max_seconds=2.0))

    async def _commit_batch(self, turns: list[Commit]) -> Sequence[bool | LeaseLost]:
        return await self._database.write_exactly_once(
            turns, self._execute_commits, mailbox.find_committed, wakes=(WORK, DONE)
        )

    def _execute_commits(
        self, connection: Connection, turns: list[Commit]
    ) -> Sequence[bool | LeaseLost]:
        return mailbox.commit(connection, self._worker, turns)

    async def _commit_staged(self, commit: Commit, staged: Sequence[Send | Spawn]) -> None:
        await self._database.write(
            partial(
                commit_with_staged,
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
            partial(lease_ends.fail, worker=self._worker, failures=failures),
            wakes=(WORK, DONE) if any_dead else (WORK,),
        )

    async def _record_failure(
        self, held: HeldLease, error: BaseException, started_at: float
    ) -> TurnResult:
        """Record a failed attempt: its messages wait for the next attempt, or are dead."""
        lease = held.lease
        attempts = max(delivery.attempt for delivery in lease.deliveries)
        is_last = attempts >= self._options.max_attempts
        retry_in = None if is_last else self._retry_delay(attempts)
        failure = Fail(lease, describe_error(error), retry_in)
        _log_turn(
            logging.ERROR if is_last else logging.WARNING,
            "message is dead" if is_last else "turn failed",
            lease,
            started_at,
            error=_summary(error),
            retry_in=retry_in,
        )
        for failures in itertools.count(1):
            try:
                await self._failures.submit(failure)
                break
            except StorageError as storage_error:
                if time.monotonic() > held.deadline:
                    return "lost"  # the lease will expire, which counts as this attempt
                log.warning("can't record a failed turn, trying again: %s", storage_error)
                await asyncio.sleep(backoff_seconds(failures, max_seconds=2.0))
        return "dead" if is_last else "failed"

    def _retry_delay(self, attempt: int) -> float:
        """Ask the worker's retry, and use ``Backoff()`` if it fails: the failed attempt must be
        recorded in any case."""
        try:
            return validation.seconds(self._options.retry.delay(attempt), "a retry's delay")
        except Exception as error:
            log.error("the retry failed, the default one decides instead", exc_info=error)
            return Backoff().delay(attempt)


def describe_error(error: BaseException) -> str:
    """Return the error's type and message, then the last lines of its traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next  # frames of this file say nothing about the handler
    lines = "".join(traceback.format_tb(frame)).splitlines()[-TRACEBACK_LINES:]
    text = "\n".join([_summary(error), *lines])
    if len(text) > ERROR_CHARACTERS:
        text = text[:ERROR_CHARACTERS] + " … (cut)"
    return replace_unstorable(text)


def _summary(error: BaseException) -> str:
    # Not str(error), which an error of the handler's own class may fail to make.
    return "".join(traceback.format_exception_only(error)).strip()[: ERROR_CHARACTERS // 2]


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _log_turn(level: int, event: str, lease: Lease, started_at: float, **extra: Any) -> None:
    if not log.isEnabledFor(level):
        return
    details = {
        "session": lease.session.id,
        "namespace": lease.namespace,
        "positions": lease.positions,
        "attempt": lease.deliveries[0].attempt,
        "seconds": round(time.monotonic() - started_at, 6),
        **extra,
    }
    shown = " ".join(f"{name}={value}" for name, value in details.items() if value is not None)
    log.log(level, "%s: %s", event, shown, extra={"turn": {"event": event, **details}})
