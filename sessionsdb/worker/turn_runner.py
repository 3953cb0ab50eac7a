"""Run one turn, from its lease to its commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb import validation
from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import ONE_IS_BAD
from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import LeaseLost, StorageError, TranscriptRewritten
from sessionsdb.operations import lease_ends, mailbox, usage
from sessionsdb.operations.child_reports import of_commit
from sessionsdb.operations.inbox_types import NO_USAGE, Commit, Fail, Lease, Send, Usage
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.tree import Spawn
from sessionsdb.operations.turn_commit import Staged, commit_with_staged
from sessionsdb.runtime import current_turn
from sessionsdb.runtime.batched_calls import MAX_CHARACTERS, characters
from sessionsdb.runtime.database_access import DONE, WORK, hint_about
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import observed
from sessionsdb.telemetry.observed import TurnObservation, TurnResult
from sessionsdb.worker.attempt_error import describe_error, summarise_error
from sessionsdb.worker.claims import Claims
from sessionsdb.worker.handler import BrokenHandler, require_awaitable
from sessionsdb.worker.leases import HeldLease, LeaseKeeper
from sessionsdb.worker.options import WorkerOptions
from sessionsdb.worker.retry import Backoff
from sessionsdb.worker.streaming import StreamLane
from sessionsdb.worker.tries import Tries
from sessionsdb.worker.turn import (
    Turn,
    build_commit,
    end_stream,
    give_back_unseen,
    has_taken_incoming,
    read_answer,
    stage_state,
    stream_of,
)

log = logging.getLogger("sessionsdb.worker")

_NO_TIMEOUT = contextlib.nullcontext()


class _Ended(NamedTuple):
    """How a handler ended: with a turn to commit, or with an error."""

    commit: Commit | None
    error: BaseException | None
    started_at: float


def _session_key(end: Commit | Fail) -> SessionKey:
    return end.lease.key


class TurnRunner:
    """Runs the turns of one worker, and commits them."""

    def __init__(
        self,
        database: OpenDatabase,
        worker_id: str,
        options: WorkerOptions,
        leases: LeaseKeeper,
        claims: Claims,
        *,
        is_ending: Callable[[], bool],
        on_commit: Callable[[HeldLease], None],
    ) -> None:
        """``on_commit`` is called before a turn is committed."""
        self._database = database
        self._worker = worker_id
        self._options = options
        self._leases = leases
        self._claims = claims
        self._is_ending = is_ending
        self._on_commit = on_commit
        self._commits: KeyedBatcher[Commit, bool] = KeyedBatcher(
            self._commit_batch,
            key=_session_key,
            count=database.parallel_batches,
            weight=lambda commit: characters(commit.messages),
            max_weight=MAX_CHARACTERS,
            apart=database.locked_sessions,
        )
        self._failures: KeyedBatcher[Fail, bool] = KeyedBatcher(
            self._fail_batch,
            key=_session_key,
            count=database.parallel_batches,
            apart=database.locked_sessions,
        )
        self._lane = StreamLane(database, worker_id)

    async def close(self) -> None:
        """Stop writing the pieces of turns that were released."""
        await self._lane.close()

    async def run(self, held: HeldLease) -> TurnResult | None:
        """Run the handler, and commit its turn or record the failure. Return the turn's result.

        ``None``: the task was cancelled by neither the worker nor a lost lease. Another task
        finishes the turn then, see ``HeldLease.hand_over``.
        """
        held.note_task()
        lease = held.lease
        if held.slot is not None or self._leases.superseded:
            try:
                if self._leases.superseded:
                    await self._leases.stop_previous(held)
                if held.slot is not None and not await held.slot:
                    return await self._claims.give_back(held)
                if self._leases.superseded:
                    await self._leases.wait_for_previous(held)
            except asyncio.CancelledError:
                if held.cancel_reason is not None:
                    return _given_up(held)
                raise  # the worker gives the lease back
            if held in self._leases.superseded:
                return _given_up(held)  # this turn was stopped too, while it waited
        held.has_begun = True
        broker = self._options.broker_of(lease.namespace)
        turn = Turn(self._database, self._worker, held, broker, self._lane)
        observation = observed.telemetry.turn(lease.namespace, lease.session_id, lease.deliveries)
        with observation.current():
            ended = await self._run_handler(held, turn)
        end_stream(turn)
        finish = partial(self._finish, held, turn, ended, observation)
        given_up = held.cancel_reason is not None
        if isinstance(ended.error, BrokenHandler) and not given_up:
            raise _released(held, observation, ended)  # its messages are not to blame
        stopped = not given_up and self._is_ending()
        cancelled = held.task.cancelling() > 0 or isinstance(ended.error, asyncio.CancelledError)
        if not cancelled or given_up or (stopped and ended.commit is not None):
            with contextlib.suppress(asyncio.CancelledError):
                return await finish()
        if self._is_ending():
            raise _released(held, observation, ended)
        # The handler left something behind that cancels this task, maybe again and again: a cancel
        # scope that was not closed, or a timer. Here nothing could be recorded.
        held.hand_over(finish())
        return None

    async def _run_handler(self, held: HeldLease, turn: Turn) -> _Ended:
        """Run the handler, and return its turn or the error that it ended with.

        No error passes, whatever its type: it would end the task before the failure is recorded.
        """
        started_at = time.monotonic()
        handler = self._options.handler
        seconds = self._options.turn_timeout
        timeout = None if seconds is None else asyncio.timeout(seconds)
        commit, error = None, None
        current = current_turn.enter(self._database, held.lease)
        try:
            async with timeout or _NO_TIMEOUT:
                if (fault := held.lease.fault) is not None:
                    raise fault
                if held.lease.is_about_question:
                    await read_answer(turn)
                answer = await require_awaitable(handler, handler(turn))
            if held.cancel_reason is not None:  # the handler suppressed its cancellation
                raise asyncio.CancelledError(held.cancel_reason)
            if timeout is not None and timeout.expired():
                raise TimeoutError
            stage_state(turn)
            commit = build_commit(turn, answer)
        except BaseException as raised:
            if not _is_current(held.task):
                raise  # this coroutine is being closed, together with its event loop
            error = raised
            if isinstance(raised, SystemExit | KeyboardInterrupt | BrokenHandler):
                held.exit = raised
            if timeout is not None and timeout.expired():
                error = TimeoutError(f"the turn took longer than its limit of {seconds} s")
        current.over = held.handler_done = True
        return _Ended(commit, error, started_at)

    async def _finish(
        self,
        held: HeldLease,
        turn: Turn,
        ended: _Ended,
        observation: TurnObservation,
    ) -> TurnResult:
        """Commit the turn, or record its failure, and return the turn's result."""
        lease, error = held.lease, ended.error
        result: TurnResult
        if held.cancel_reason is not None:
            error = None
            result = _given_up(held)
            level = logging.INFO if held.was_stopped else logging.WARNING
            event = "turn stopped" if held.was_stopped else "turn given up"
            _log_turn(level, event, lease, ended, error=held.cancel_reason)
            if held.was_stopped and turn.used != NO_USAGE:
                await self._keep_usage(lease, turn.used)
        elif ended.commit is None:
            assert error is not None
            result = await self._record_failure(held, error, ended, turn.used)
        else:
            self._on_commit(held)
            try:
                await self._commit(held, ended.commit, turn)
            except LeaseLost as lost:
                result = "lost"
                _log_turn(logging.WARNING, "turn lost its lease", lease, ended, error=str(lost))
            except TranscriptRewritten as rewritten:
                result = await self._rerun(held, rewritten, ended, turn.used)
                error = rewritten if result in ("failed", "dead") else None
            except Exception as refused:
                error = refused
                result = await self._record_failure(held, refused, ended, turn.used)
            else:
                result = "committed"
                _log_turn(logging.INFO, "turn committed", lease, ended)
                if sends := [one for one in turn.staged if isinstance(one, Send | Spawn)]:
                    observed.telemetry.record_staged_sends(len(sends))
        observation.end(result, error)
        return result

    async def _keep_usage(self, lease: Lease, used: Usage) -> None:
        """Keep the tokens of a stopped turn. Its lease has ended, so there is no second try."""
        add = partial(usage.add_to_stopped, lease=lease, usage=used)
        try:
            await self._database.write(add, wakes=())
        except StorageError as error:
            log.warning("can't keep the tokens of a stopped turn: %s", error)

    async def _commit(self, held: HeldLease, commit: Commit, turn: Turn) -> None:
        """Commit a turn. While the database fails, try again for the length of one lease.

        Raises ``LeaseLost`` if the lease ran out meanwhile. Otherwise it raises the last
        ``StorageError``: the turn has failed.
        """
        stream = stream_of(turn)
        if stream is not None:
            await stream.settle()
        tries = Tries(held, self._options.lease_seconds, "commit a turn")
        while True:
            try:
                if has_taken_incoming(turn):
                    await give_back_unseen(turn)
                if (
                    turn.staged
                    or stream is not None
                    or commit.lease.is_about_question
                    or (commit.lease.reports and of_commit(commit) is not None)
                ):
                    await self._commit_staged(commit, turn.staged, streamed=stream is not None)
                elif tries.have_failed:  # alone: another turn of the batch may be the cause
                    [committed] = await self._commit_batch([commit])
                    result_or_raise(committed)
                else:
                    await self._commits.submit(commit)
                break
            except LeaseLost:
                # An earlier try may have been committed whose answer was lost: it ended the lease.
                if await self._database.read_durable(partial(mailbox.find_committed, turn=commit)):
                    self._database.wake((WORK, DONE))
                    break
                raise
            except ONE_IS_BAD:
                raise  # it would be refused again
            except StorageError as error:
                if await tries.go_on(error):
                    continue
                if tries.has_lease:
                    raise
                raise LeaseLost(commit.lease.session_id) from error

    async def _commit_batch(
        self, turns: list[Commit]
    ) -> Sequence[bool | LeaseLost | TranscriptRewritten]:
        # It may make sessions ready. The worker claims next, and then tells the others if it has
        # left any: with a hint here 8 idle workers made 17 claims for a message, and 9 without.
        return await self._database.write_exactly_once(
            turns,
            self._execute_commits,
            mailbox.find_committed,
            wakes=(hint_about(DONE, [turn.lease.key for turn in turns]),),
        )

    def _execute_commits(
        self, connection: Connection, turns: list[Commit]
    ) -> Sequence[bool | LeaseLost | TranscriptRewritten]:
        return mailbox.commit(connection, self._worker, turns)

    async def _commit_staged(
        self, commit: Commit, staged: Sequence[Staged], *, streamed: bool
    ) -> None:
        await self._database.write(
            partial(
                commit_with_staged,
                worker=self._worker,
                commit=commit,
                staged=staged,
                limits=self._database.limits,
                streamed=streamed,
            ),
            wakes=(WORK, hint_about(DONE, [commit.lease.key])),
        )

    async def _fail_batch(self, failures: list[Fail]) -> Sequence[bool]:
        dead = [failure.lease.key for failure in failures if failure.retry_in is None]
        return await self._database.write(
            partial(lease_ends.fail, worker=self._worker, failures=failures),
            wakes=(WORK, hint_about(DONE, dead)) if dead else (WORK,),
        )

    async def _record_failure(
        self, held: HeldLease, error: BaseException, ended: _Ended, usage: Usage
    ) -> TurnResult:
        """Record a failed attempt: its messages wait for the next attempt, or are dead."""
        lease = held.lease
        attempts = max(delivery.attempt for delivery in lease.begun)
        is_last = attempts >= self._options.max_attempts
        retry_in = None if is_last else self._retry_delay(attempts, error)
        failure = Fail(lease, describe_error(error), retry_in, usage)
        _log_turn(
            logging.ERROR if is_last else logging.WARNING,
            "message is dead" if is_last else "turn failed",
            lease,
            ended,
            error=summarise_error(error),
            retry_in=None if retry_in is None else round(retry_in, 3),
        )
        tries = Tries(held, self._options.lease_seconds, "record a failed turn")
        while True:
            try:
                if tries.have_failed:  # alone: another failure of the batch may be the cause
                    [recorded] = await self._fail_batch([failure])
                else:
                    recorded = await self._failures.submit(failure)
                break
            except StorageError as storage_error:
                if not await tries.go_on(storage_error):
                    return "lost"  # the lease will expire, which counts as this attempt
        if not recorded:
            return "lost"
        return "dead" if is_last else "failed"

    async def _rerun(
        self, held: HeldLease, rewritten: TranscriptRewritten, ended: _Ended, usage: Usage
    ) -> TurnResult:
        """Give the messages of a turn back, to be run again over the rewritten transcript.

        The attempt counts and has failed if that has happened too often in a row.
        """
        rerun = partial(lease_ends.rerun, worker=self._worker, lease=held.lease, usage=usage)
        tries = Tries(held, self._options.lease_seconds, "give a turn back")
        while True:
            try:
                given_back = await self._database.write(rerun, wakes=(WORK,))
                break
            except StorageError as error:
                if not await tries.go_on(error):
                    return "lost"  # the lease will expire, which counts as an attempt
        if given_back is None:
            return await self._record_failure(held, rewritten, ended, usage)
        result: TurnResult = "rerun" if given_back else "lost"
        _log_turn(logging.INFO, "turn is run again", held.lease, ended, error=str(rewritten))
        return result

    def _retry_delay(self, attempt: int, error: BaseException) -> float:
        """Ask the worker's retry, and use ``Backoff()`` if it fails: the failed attempt must be
        recorded in any case."""
        try:
            return validation.seconds(self._options.retry.delay(attempt, error), "a retry's delay")
        except Exception as raised:
            log.error("the retry failed, the default one decides instead", exc_info=raised)
        return Backoff().delay(attempt, error)


def _released(
    held: HeldLease, observation: TurnObservation, ended: _Ended
) -> asyncio.CancelledError:
    """Leave a turn to the worker, which releases the lease of a task that ends as cancelled."""
    held.handler_done = False
    observation.end("released", ended.error)
    return asyncio.CancelledError()


def _given_up(held: HeldLease) -> TurnResult:
    return "stopped" if held.was_stopped else "given_up"


def _is_current(task: asyncio.Task[Any]) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no event loop runs
        return False


def _log_turn(level: int, event: str, lease: Lease, ended: _Ended, **extra: Any) -> None:
    if not log.isEnabledFor(level):
        return
    details = {
        "session": lease.session_id,
        "namespace": lease.namespace,
        "positions": lease.positions,
        "attempt": lease.deliveries[0].attempt,
        "seconds": round(time.monotonic() - ended.started_at, 6),
        **extra,
    }
    shown = " ".join(f"{name}={value}" for name, value in details.items() if value is not None)
    log.log(level, "%s: %s", event, shown, extra={"turn": {"event": event, **details}})
