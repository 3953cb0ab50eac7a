"""Worker processes, whose handler records when it runs and under which lease."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from sessionsdb import Backoff, Question, Reply, SpawnRequest, Turn, Worker
from soak import clock, shared_value
from soak.database import opened
from soak.journal import Journal
from soak.observer import Observer, observer
from soak.payloads import CHILD, PARTIAL, RELAYED, payload, replies, understood
from soak.plan import Plan

GRACE = 1.0

TAKING_ODDS = 0.1
"""The fraction of runs that take the messages that came since they began."""


class RequestedFailure(Exception):
    """The error of a handler whose message asks for a failure."""


class WorkerProcess:
    """A worker in a process of its own, in one of its incarnations."""

    def __init__(self, plan: Plan, name: str, incarnation: int, folder: Path) -> None:
        self._plan = plan
        self._name = f"{name}.{incarnation}"
        # Some workers take several messages in one turn.
        self._batch = 3 if (int(name[-1]) + incarnation) % 2 else 1
        self._journal = Journal(folder, self._name)
        self._chance = random.Random(f"{plan.seed} {self._name}")
        self._runs = itertools.count(1)
        self._shift = shared_value.clock_shift(folder, name)
        self._stall = shared_value.stop_at_commit(folder, name)
        self._observer: Observer
        self._worker: Worker

    async def run(self, url: str) -> None:
        clock.install(self._shift)
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
        self._observer = observer(url)
        async with opened(url, self._plan) as db:
            self._worker = db.worker(
                self._handle,
                concurrency=8,
                batch=self._batch,
                lease_seconds=self._plan.lease,
                poll_interval=0.5,
                max_attempts=self._plan.max_attempts,
                retry=Backoff(first=0.02, most=0.2),
                turn_timeout=30.0,
                name=self._name,
            )
            working = asyncio.create_task(self._worker.run())
            stop = asyncio.create_task(stopped.wait())
            await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await self._worker.stop(grace=GRACE)
            await working

    async def _handle(self, turn: Turn) -> Reply | list[dict[str, Any]] | None:
        run = f"{self._name}!{next(self._runs)}"
        positions = [receipt.position for receipt in turn.receipts]
        lease = await self._observer.look(turn.session.id, positions[0])
        ours = lease.get("owner") == self._worker.id and lease.get("attempts") == turn.attempt
        self._journal.write(
            begin=run,
            session=turn.session.id,
            positions=positions,
            attempt=turn.attempt,
            shift=self._shift.value,
            # A lease of a successor is not the lease of this run.
            **(
                {name: lease[name] for name in ("epoch", "lease_until", "claimed_at")}
                if ours
                else {}
            ),
        )
        how = "cancelled"
        try:
            answer = await self._answered(run, turn)
            how = "returned"
            return answer
        except Exception as error:
            how = type(error).__name__
            raise
        finally:
            if how == "returned" and self._stall.value:
                # Frozen between the last check of the lease and the commit. The nemesis thaws us.
                self._stall.value = 0.0
                os.kill(os.getpid(), signal.SIGSTOP)
            self._journal.write(end=run, how=how)

    async def _answered(self, run: str, turn: Turn) -> Reply | list[dict[str, Any]]:
        await self._take_more(run, turn)
        payloads = [understood(message.content) for message in turn.messages]
        self._stream(run, turn)
        for one in payloads:
            match one["verb"]:
                case "fail":
                    if self._chance.random() < one["odds"]:
                        raise RequestedFailure(one["token"])
                case "slow":
                    await asyncio.sleep(one["seconds"])
                case "spin":
                    # A wrong handler, which blocks the event loop: no heartbeat is sent meanwhile.
                    time.sleep(one["seconds"])  # noqa: ASYNC251
                case "relay":
                    turn.send(one["to"], payload(one["token"] + RELAYED))
                case "child":
                    turn.spawn(SpawnRequest(prompt=payload(one["token"] + CHILD)))
        await self._count(run, turn, payloads)
        messages = replies(run, payloads)
        for one in payloads:
            if one["verb"] == "ask":
                question = Question(prompt=one["token"], expires_in=one["expires"])
                return Reply(messages, ask=question)
        if self._chance.random() < 0.5:
            return messages
        return Reply(messages, model="soak", input_tokens=len(turn.text), output_tokens=1)

    async def _take_more(self, run: str, turn: Turn) -> None:
        """In some runs, wait a moment and take the messages that came meanwhile."""
        if self._chance.random() >= TAKING_ODDS:
            return
        self._journal.write(taking=run)
        await asyncio.sleep(self._chance.uniform(0.0, 0.2))
        taken = await turn.take_incoming(limit=self._chance.choice([1, 3, None]))
        receipts = turn.receipts[len(turn.receipts) - len(taken) :]
        self._journal.write(took=run, positions=[one.position for one in receipts])

    def _stream(self, run: str, turn: Turn) -> None:
        if self._chance.random() < 0.5:
            turn.stream(f"{PARTIAL}{run}\n")
            for number in range(self._chance.randint(0, 5)):
                turn.stream(f"{number} ")

    async def _count(self, run: str, turn: Turn, payloads: list[dict[str, Any]]) -> None:
        """Add the tokens of the turn to the state, and count the turn there."""
        tokens = [one["token"] for one in payloads if one["verb"] == "count"]
        if tokens:
            state = await turn.state()
            state.update(dict.fromkeys(tokens, run))
            state["count"] = state.get("count", 0) + 1
