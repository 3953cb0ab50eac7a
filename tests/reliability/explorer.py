"""Every interleaving of a few processes over one inbox, by the real operations.

The specification is this file. ``Processes`` has the next steps of two workers, a sender, a caller
who ends or stops the session, one who rewrites its transcript, one who forks it, and one who
schedules messages. It has the points where each may die or lose an answer, and the jumps of a
clock. ``Judge`` has the guarantees,
those of state, forks and busy sends by ``conversation_laws.py``.
The explorer goes breadth first through all reachable states. Each step is one
transaction of ``sessionsdb.operations`` on SQLite in memory. Transactions on SQLite come one after
the other, so the states between transactions are all states.

A state is the rows, the memory of the processes and the distance of the deadlines. States that
differ only in absolute times, or in epochs that no process holds, are one state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection, StaticPool, create_engine, text

from sessionsdb import Limits, SessionsDBError
from sessionsdb.engine.sqlite.clock import CLOCK_OPTION
from sessionsdb.errors import (
    LeaseLost,
    SessionBusy,
    SessionEnded,
    TranscriptRewritten,
    UnknownSession,
)
from sessionsdb.messages.codec import StoredMessage, encode, encode_text
from sessionsdb.operations import (
    busy_send,
    child_reports,
    editing,
    expiry,
    firing,
    forking,
    joining,
    lease_ends,
    mailbox,
    question_answers,
    questions,
    registry,
    saving,
    schedules,
    session_end,
    stopping,
)
from sessionsdb.operations import state as states
from sessionsdb.operations.editing import EditRequest
from sessionsdb.operations.inbox_types import Commit, Fail, Lease, Send
from sessionsdb.operations.question_rows import Ask
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.state import StateUpdate
from sessionsdb.operations.tree import delete_session
from sessionsdb.operations.turn_commit import Staged, commit_with_staged
from sessionsdb.schema import metadata
from sessionsdb.worker.reply import place_messages
from tests.reliability import conversation_laws, interleaving, invariants
from tests.reliability.conversation_laws import FORK

START = datetime(2030, 1, 1, tzinfo=UTC)
NAMESPACE = "default"
LEASE = 10.0
BACKOFF = 4.0
NEVER = 1e9
"""A question that does not expire has a later moment."""
TABLES = ("sessions", "mailboxes", "inbox", "messages", "questions")
STATE_TABLES = ("state_scopes", "state_values")
LIMITS = Limits()

_MARK_AHEAD = text("UPDATE inbox SET ahead = true WHERE position = :position")

Rows = dict[str, tuple[tuple[Any, ...], ...]]


class Violation(Exception):
    """A guarantee is broken. The text names it."""


# ---- the database ------------------------------------------------------------------------------


class Memory:
    """A database in memory whose rows can be taken out and put back."""

    def __init__(self, *, checks: bool = True, tables: tuple[str, ...] = TABLES) -> None:
        self.tables = tables
        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"factory": interleaving.Connection}
        )
        self.seconds = 0.0
        self.connection: Connection = engine.connect().execution_options(
            **{"isolation_level": "AUTOCOMMIT", CLOCK_OPTION: self.clock}
        )
        self.raw: Any = self.connection.connection.driver_connection
        metadata.create_all(self.connection)
        if not checks:
            self._take_out_checks()
        self.raw.execute("PRAGMA foreign_keys = ON")
        self._present: Rows | None = None
        self.columns = {
            table: [row[1] for row in self.raw.execute(f"PRAGMA table_info({table})")]
            for table in tables
        }

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def run(self, operation: Callable[[Connection], Any]) -> Any:
        """Run one transaction. Returns its result, or the error that rolled it back."""
        self._present = None
        self.raw.execute("BEGIN IMMEDIATE")
        try:
            result = operation(self.connection)
        except SessionsDBError as error:
            self.raw.execute("ROLLBACK")
            return error
        except Exception as error:
            self.raw.execute("ROLLBACK")
            raise Violation(f"the database refused: {error.__cause__ or error}") from error
        self.raw.execute("COMMIT")
        return result

    def rows(self) -> Rows:
        self._present = {
            table: tuple(self.raw.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3"))
            for table in self.tables
        }
        return self._present

    def put(self, rows: Rows) -> None:
        if rows == self._present:
            return
        self._present = rows
        self.raw.execute("BEGIN")
        self.raw.execute("PRAGMA defer_foreign_keys = ON")
        for table in reversed(self.tables):
            self.raw.execute(f"DELETE FROM {table}")
        for table in self.tables:
            marks = ", ".join("?" * len(self.columns[table]))
            self.raw.executemany(f"INSERT INTO {table} VALUES ({marks})", rows[table])
        self.raw.execute("COMMIT")

    def named(self, rows: Rows, table: str) -> list[dict[str, Any]]:
        return [dict(zip(self.columns[table], row, strict=True)) for row in rows[table]]

    def all_named(self, rows: Rows) -> dict[str, list[dict[str, Any]]]:
        return {table: self.named(rows, table) for table in rows}

    def close(self) -> None:
        self.connection.close()
        self.connection.engine.dispose()

    def _take_out_checks(self) -> None:
        self.raw.execute("PRAGMA ignore_check_constraints = ON")


# ---- the memory of the processes ---------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A lease in the memory of a process."""

    lease: Lease
    until: float
    valid: bool
    """Whether the lease is still valid. No process remembers this."""
    took: bool = False
    """Whether a commit with a lost answer was made."""
    refused: bool = False
    """Whether a commit was refused because the transcript was rewritten."""
    joined: tuple[int, ...] = ()
    """All messages that joined the turn. The worker knows those of the lease."""
    rewrites: int = 0
    """How often the transcript had been rewritten when the lease was given. No process knows."""
    turns: int = 0
    """The number of turns in the state of the session, as the turn has read it."""

    @property
    def session(self) -> str:
        return self.lease.session.id

    @property
    def knows_all(self) -> bool:
        known = [one.position for one in self.lease.deliveries if one.joined]
        return sorted(known) == sorted(self.joined)


@dataclass(frozen=True)
class WorkerState:
    name: str
    held: tuple[Held, ...] = ()
    strays: tuple[Held, ...] = ()
    """Claimed, but the answer was lost."""
    unsure: tuple[Held, ...] = ()
    """Committed, but the answer was lost. The worker still knows the lease."""


@dataclass(frozen=True)
class State:
    rows: Rows = field(hash=False)
    now: float
    workers: tuple[WorkerState, ...]
    orphans: tuple[Held, ...] = ()
    """The leases of dead workers."""
    sent: int = 0
    answers: int = 0
    asks: int = 0
    replies: int = 0
    ended: int = 0
    """The number of steps that the ender has made."""
    faults: int = 0
    releases: int = 0
    requeues: int = 0
    joins: int = 0
    rewrites: int = 0
    receipts: tuple[tuple[str, int, str], ...] = ()
    """The acknowledged messages: session, position and text."""
    ahead: tuple[tuple[str, int], ...] = ()
    """The messages that were requeued or queued ahead: they may overtake others."""
    kept: tuple[tuple[str, int], ...] = ()
    """The stopped messages that were kept in the transcript."""
    turns: int = 0
    """How many turns have counted themselves in the state of session a."""
    edits: int = 0
    edited: int = 0
    """How many edits have counted themselves in the state of session a."""
    forks: int = 0
    busy_sends: int = 0
    schedules: int = 0
    """How many schedules have been made."""
    later: tuple[str, float] | None = None
    """The text that must be sent later to session a, and when it is due."""
    fired: tuple[str, ...] = ()
    """The texts that must have been sent so."""


@dataclass(frozen=True)
class Scenario:
    """The processes, and how often each event may happen."""

    sends: tuple[tuple[str, str, str | None], ...]
    """Session, text and idempotency key, in order."""
    ender: tuple[str, ...] = ()
    """The calls on session a: ``end``, ``end tree``, ``delete``, ``register``, ``reopen``,
    ``interrupt``, ``cancel`` and a position. The last two keep the partial reply with ``, keep``
    behind them. ``end b`` is a call on session b. ``unschedule`` removes what is sent later."""
    sessions: tuple[tuple[str, str | None], ...] = (("a", None),)
    """Id and parent."""
    reports: bool = False
    """Whether session b reports to its parent, session a."""
    answers: tuple[str, ...] = ()
    """The texts that are queued ahead of others, as the answers to questions are."""
    asks: int = 0
    """How many turns of session a ask a question to a person."""
    expires_in: float | None = None
    """The seconds until a question expires."""
    replies: tuple[str, ...] = ()
    """The texts that people answer with, in order, to the question that was asked last."""
    stages: str | None = None
    """The session that turns of session a send to."""
    faults: int = 1
    """The number of deaths and lost answers in all."""
    releases: int = 0
    requeues: int = 0
    joins: int = 0
    """How often a turn takes all waiting messages."""
    rewrites: int = 0
    """How often the transcript of session a is rewritten."""
    rewriter: Literal["save", "edit", "pop", "truncate", "replace"] = "save"
    """The verb that rewrites it."""
    counts_turns: bool = False
    """Whether a turn of session a reads the number of turns from its state, and stages the next."""
    edits: int = 0
    """How many edits append to session a and count themselves in its state."""
    forks: int = 0
    """How often session a is forked: once at most."""
    busy_sends: tuple[tuple[str, Literal["interrupt", "reject"], str | None], ...] = ()
    """Text, ``when_busy`` and idempotency key of sends to session a, in order."""
    schedules: tuple[tuple[str, float], ...] = ()
    """The texts that are sent later to session a, and the seconds until then, in order. All have
    one name, so each takes the place of the one before, unless that has been sent."""
    room: int = LIMITS.pending
    """A scheduled message waits while so many messages are unfinished."""
    max_attempts: int = 2
    batch: int = 1
    remembered: int = 2
    """The most leases that a worker remembers: a lost one beside a valid one."""

    @property
    def tables(self) -> tuple[str, ...]:
        uses_state = self.counts_turns or self.edits or self.forks
        tables = TABLES + STATE_TABLES if uses_state else TABLES
        return (*tables, "schedules") if self.schedules else tables


@dataclass
class Report:
    """The number of states and steps."""

    states: int = 0
    edges: int = 0
    ends: int = 0
    counterexample: str | None = None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = f"{self.states} states, {self.edges} steps, {self.ends} ends"
        if self.counterexample is None:
            return told
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(self.trace, 1))
        return f"{self.counterexample}\n{steps}\n({told})"


# ---- steps -------------------------------------------------------------------------------------

Step = tuple[str, Callable[[], State]]
"""The name of a step, and the function that makes the next state of the one in the database."""


class Processes:
    """All possible next steps."""

    def __init__(self, scenario: Scenario, memory: Memory) -> None:
        self.scenario = scenario
        self.memory = memory

    def first(self) -> State:
        for id, parent in self.scenario.sessions:
            self.memory.run(partial(registry.register, registration=_registration(id, parent)))
        if self.scenario.rewrites:
            self._write_seed()
        if self.scenario.reports:
            self.memory.run(lambda c: child_reports.promise(c, NAMESPACE, "b"))
        workers = tuple(WorkerState(name) for name in ("w1", "w2"))
        return State(self.memory.rows(), 0.0, workers)

    def steps(self, state: State) -> Iterator[Step]:
        spare = state.faults < self.scenario.faults
        if state.sent < len(self.scenario.sends):
            yield "send", partial(self._send, state)
            if spare:
                yield "send, the answer is lost", partial(self._send, state, lost=True)
        if state.answers < len(self.scenario.answers):
            yield "an answer comes in", partial(self._answer, state)
        if state.replies < len(self.scenario.replies) and state.asks:
            yield "a person answers", partial(self._reply, state)
        if state.rewrites < self.scenario.rewrites:
            yield "the transcript is rewritten", partial(self._rewrite, state)
        if state.busy_sends < len(self.scenario.busy_sends):
            told = f"send, {self.scenario.busy_sends[state.busy_sends][1]} if busy"
            yield told, partial(self._send_to_busy, state)
            if spare:
                yield f"{told}, the answer is lost", partial(self._send_to_busy, state, lost=True)
        if state.edits < self.scenario.edits:
            yield "an edit appends, and changes the state", partial(self._edit, state)
            if spare:
                told = "an edit appends, and changes the state, the answer is lost"
                yield told, partial(self._edit, state, lost=True)
        if state.forks < self.scenario.forks:
            yield "fork", partial(self._fork, state)
        if state.schedules < len(self.scenario.schedules):
            yield "schedule", partial(self._schedule, state)
        if self.scenario.schedules:
            yield "fire", partial(self._fire, state)
        if state.ended < len(self.scenario.ender):
            what = self.scenario.ender[state.ended]
            yield what, partial(self._end, state, what)
        for number, worker in enumerate(state.workers):
            yield from self._of_worker(state, number, worker, spare)
        boxes = self.memory.named(state.rows, "mailboxes")
        if any(row["owner"] is not None for row in boxes):
            yield "reap", partial(self._reap, state)
            if self.scenario.reports:
                yield "reap b", partial(self._reap_reporting, state)
        if any(row["wake_at"] is not None for row in boxes):
            yield "wake", partial(self._wake, state)
        for row in self.memory.named(state.rows, "inbox"):
            if row["status"] == "dead" and state.requeues < self.scenario.requeues:
                letter = (row["session_id"], row["position"])
                yield f"requeue {letter}", partial(self._requeue, state, letter)
        if (later := self._deadline(state)) is not None:
            told = f"{later - state.now:g} s pass"
            yield told, lambda: replace(state, now=later)

    def _of_worker(
        self, state: State, number: int, worker: WorkerState, spare: bool
    ) -> Iterator[Step]:
        name = worker.name
        if len(worker.held) + len(worker.unsure) < self.scenario.remembered:
            yield f"{name} claims", partial(self._claim, state, number)
            if spare:
                told = f"{name} claims, the answer is lost"
                yield told, partial(self._claim, state, number, lost=True)
        for place, held in enumerate(worker.held):
            lease = f"{held.session} (messages {held.lease.positions})"
            yield f"{name} commits {lease}", partial(self._commit, state, number, place)
            if spare:
                told = f"{name} commits {lease}, the answer is lost"
                yield told, partial(self._commit, state, number, place, lost=True)
            if state.asks < self.scenario.asks:
                yield (
                    f"{name} asks in {lease}",
                    partial(self._commit, state, number, place, ask=True),
                )
                if spare:
                    told = f"{name} asks in {lease}, the answer is lost"
                    yield told, partial(self._commit, state, number, place, lost=True, ask=True)
            yield f"{name} fails {lease}", partial(self._fail, state, number, place)
            yield f"{name} renews {lease}", partial(self._heartbeat, state, number, place)
            if state.releases < self.scenario.releases:
                yield f"{name} releases {lease}", partial(self._release, state, number, place)
            if state.joins < self.scenario.joins:
                yield f"{name} takes more into {lease}", partial(self._join, state, number, place)
                if spare:
                    told = f"{name} takes more into {lease}, the answer is lost"
                    yield told, partial(self._join, state, number, place, lost=True)
            if not held.knows_all:
                told = f"{name} asks which messages joined {lease}"
                yield told, partial(self._find_joined, state, number, place)
                told = f"{name} gives back what joined {lease}"
                yield told, partial(self._give_back, state, number, place)
            if held.refused:
                yield f"{name} reruns {lease}", partial(self._rerun, state, number, place)
                if spare:
                    told = f"{name} reruns {lease}, the answer is lost"
                    yield told, partial(self._rerun, state, number, place, lost=True)
        for place in range(len(worker.unsure)):
            yield (
                f"{name} asks whether it committed",
                partial(self._settle, state, number, place),
            )
        if worker.strays:
            told = f"{name} releases what it knows nothing of"
            yield told, partial(self._release_unknown, state, number)
        if spare and (worker.held or worker.unsure):
            yield f"{name} dies", partial(self._die, state, number)

    def _deadline(self, state: State) -> float | None:
        """The moment at which the next lease has expired, or the next backoff is over."""
        moments = []
        for row in self.memory.named(state.rows, "mailboxes"):
            if row["lease_until"] is not None:
                moments.append(_seconds(row["lease_until"]) + 1)
            if row["wake_at"] is not None and _seconds(row["wake_at"]) < NEVER:
                moments.append(_seconds(row["wake_at"]))
        if self.scenario.schedules:
            moments += [
                _seconds(one["try_at"]) for one in self.memory.named(state.rows, "schedules")
            ]
        later = [moment for moment in moments if moment > state.now]
        return min(later, default=None)

    # ---- the sender and the ender --------------------------------------------------------------

    def _send(self, state: State, *, lost: bool = False) -> State:
        session, text, key = self.scenario.sends[state.sent]
        message = encode_text(text, field="text", max_bytes=100_000)
        request = Send(NAMESPACE, session, message, f"of {text}", idempotency_key=key)
        result = self.memory.run(lambda c: mailbox.send(c, [request], LIMITS))
        answer = result if isinstance(result, SessionsDBError) else result[0]
        receipts = state.receipts
        if not isinstance(answer, SessionsDBError) and not lost:
            receipts = (*receipts, (session, answer.position, text))
        again = lost and key is not None  # a send with a key can be repeated
        return replace(
            state,
            sent=state.sent + (not again),
            faults=state.faults + lost,
            receipts=receipts,
        )

    def _end(self, state: State, what: str) -> State:
        if what.startswith(("cancel", "interrupt")):
            return self._stop(state, what)
        if what == "unschedule":
            return self._unschedule(replace(state, ended=state.ended + 1))
        if what.startswith(("end", "delete")) and what != "end b":
            state = replace(state, later=None)
        if what == "reopen":
            self.memory.run(lambda c: session_end.reopen(c, NAMESPACE, "a", LIMITS))
            return replace(state, ended=state.ended + 1)
        if what == "end b":
            self.memory.run(lambda c: session_end.end(c, NAMESPACE, "b"))
            return replace(self._lost(state, {"b"}), ended=state.ended + 1)
        if what.startswith("end"):
            tree = what == "end tree"
            self.memory.run(lambda c: session_end.end(c, NAMESPACE, "a", subtree=tree))
            gone = {id for id, parent in self.scenario.sessions if id == "a" or tree}
            return replace(self._lost(state, gone), ended=state.ended + 1)
        if what == "delete":
            self.memory.run(lambda c: delete_session(c, NAMESPACE, "a", "detach"))
            receipts = tuple(one for one in state.receipts if one[0] != "a")
            ahead = tuple(one for one in state.ahead if one[0] != "a")
            kept = tuple(one for one in state.kept if one[0] != "a")
            state = replace(state, receipts=receipts, ahead=ahead, kept=kept, turns=0, edited=0)
            state = replace(state, fired=())
            return replace(self._lost(state, {"a"}), ended=state.ended + 1)
        self.memory.run(partial(registry.register, registration=_registration("a", None)))
        return replace(state, ended=state.ended + 1)

    def _requeue(self, state: State, letter: tuple[str, int]) -> State:
        answer = self.memory.run(lambda c: mailbox.requeue(c, NAMESPACE, *letter))
        if isinstance(answer, SessionsDBError):
            return state
        return replace(state, requeues=state.requeues + 1, ahead=_with_one(state.ahead, letter))

    def _answer(self, state: State) -> State:
        """Queue a message that is ahead of those that wait, although its position is the last."""
        said = self.scenario.answers[state.answers]
        request = Send(NAMESPACE, "a", encode_text(said, field="text", max_bytes=100_000), said)

        def answer(connection: Connection) -> Any:
            [receipt] = mailbox.send(connection, [request], LIMITS)
            if not isinstance(receipt, SessionsDBError):
                connection.execute(_MARK_AHEAD, {"position": receipt.position})
            return receipt

        receipt = self.memory.run(answer)
        if not isinstance(receipt, SessionsDBError):
            place = ("a", receipt.position)
            receipts = (*state.receipts, (*place, said))
            state = replace(state, receipts=receipts, ahead=_with_one(state.ahead, place))
        return replace(state, answers=state.answers + 1)

    def _reply(self, state: State) -> State:
        """A person answers the question that was asked last."""
        said = self.scenario.replies[state.replies]
        after = replace(state, replies=state.replies + 1)
        asked = self.memory.named(state.rows, "questions")
        if not asked:
            return after  # its session was deleted
        question = asked[-1]
        request = Send(NAMESPACE, "a", encode_text(said, field="text", max_bytes=100_000), said)
        receipt = self.memory.run(
            lambda c: question_answers.answer(c, request, question["position"])
        )
        expires_at = question["expires_at"]
        in_time = expires_at is None or _seconds(expires_at) > state.now
        is_open = question["status"] == "open" and in_time
        if isinstance(receipt, SessionsDBError):
            self._unchanged(state, "a refused answer")
            if is_open:
                raise Violation("the answer to an open question was refused")
            return after
        if not is_open:
            raise Violation("the answer to a closed question was taken")
        place = ("a", receipt.position)
        receipts = (*state.receipts, (*place, said))
        return replace(after, receipts=receipts, ahead=_with_one(state.ahead, place))

    def _send_to_busy(self, state: State, *, lost: bool = False) -> State:
        """Send a message that is rejected by a busy session, or that interrupts it."""
        content, when_busy, key = self.scenario.busy_sends[state.busy_sends]
        message = encode_text(content, field="text", max_bytes=100_000)
        request = Send(NAMESPACE, "a", message, f"of {content}", idempotency_key=key)
        sent = self.memory.run(lambda c: busy_send.send(c, request, LIMITS, when_busy))
        again = lost and key is not None
        state = replace(
            state, busy_sends=state.busy_sends + (not again), faults=state.faults + lost
        )
        known = [
            row
            for row in self.memory.named(state.rows, "inbox")
            if key is not None and row["idempotency_key"] == key
        ]
        before = self.memory.all_named(state.rows)
        if isinstance(sent, SessionsDBError):
            self._unchanged(state, "a refused send")
            busy = when_busy == "reject" and conversation_laws.is_busy(before) and not known
            if isinstance(sent, SessionBusy) != busy:
                raise Violation(f"a send with {when_busy} was refused: {sent}")
            return state
        place = ("a", sent.receipt.position)
        if known:
            self._unchanged(state, "a repeated send")
        else:
            after = self.memory.all_named(self.memory.rows())
            self._holds(conversation_laws.busy_send_was_right(before, after, when_busy, place[1]))
            stopped = conversation_laws.interrupted_by_send(before)
            ran = [one for one in stopped if self._letters(state.rows)[one]["status"] == "running"]
            for one in ran:  # a send keeps the partial reply
                state = replace(state, kept=_with_one(state.kept, one))
            if ran:
                state = self._lost(state, {"a"})
        if not lost:
            state = replace(state, receipts=(*state.receipts, (*place, content)))
        return state

    # ---- those who stop and rewrite --------------------------------------------------------------

    def _stop(self, state: State, what: str) -> State:
        verb, keep = what.split(", ", maxsplit=1)[0], what.endswith("keep")
        before = self._letters(state.rows)
        turn = [place for place, row in before.items() if row["status"] == "running"]
        if verb == "interrupt":
            stopped = self.memory.run(
                lambda c: stopping.interrupt(c, NAMESPACE, "a", keep_partial=keep).places
            )
        else:
            position = int(verb.split()[1])
            self.memory.run(
                lambda c: stopping.cancel(c, NAMESPACE, "a", position, keep_partial=keep)
            )
            stopped = [("a", position)]
        state = replace(state, ended=state.ended + 1)
        if isinstance(stopped, SessionsDBError):
            return state
        after = self._letters(self.memory.rows())
        for place in stopped:
            if place in before and after[place]["status"] in ("pending", "running"):
                raise Violation("a stopped message is not final")
        hit = [place for place in turn if place in stopped]
        if not hit:
            return state
        self._given_back(state, {"a"}, uncounted=1, stopped=hit)
        if keep:
            for place in hit:
                state = replace(state, kept=_with_one(state.kept, place))
        return self._lost(state, {"a"})

    def _write_seed(self) -> None:
        seed = StoredMessage("system", "seed", None)
        self.memory.run(lambda c: saving.save(c, NAMESPACE, "a", [seed]))

    def _rewrite(self, state: State) -> State:
        """Replace the last message of the transcript, unless it came from the inbox."""
        rows = [
            row for row in self.memory.named(state.rows, "messages") if row["session_id"] == "a"
        ]
        if not rows or rows[-1]["role"] == "user":
            return state
        stored = [StoredMessage(row["role"], row["content"], row["payload"]) for row in rows]
        stored[-1] = StoredMessage(stored[-1].role, f"{stored[-1].content}!", None)
        self.memory.run(partial(self._write, stored, rows[-1]["seq"]))
        return replace(state, rewrites=state.rewrites + 1)

    def _write(self, stored: list[StoredMessage], last_seq: int, connection: Connection) -> Any:
        """Rewrite the end of the transcript with the verb of the scenario."""
        request = EditRequest(NAMESPACE, "a")
        match self.scenario.rewriter:
            case "save":
                return saving.save(connection, NAMESPACE, "a", stored)
            case "edit":
                request = request._replace(
                    append=stored[-1:], keys=[None], keep_through=last_seq - 1
                )
                return editing.edit(connection, request, LIMITS)
            case "truncate":
                request = request._replace(keep_through=last_seq - 1)
                return editing.edit(connection, request, LIMITS)
            case "pop":
                return editing.pop(connection, request, count=1)
            case "replace":
                return editing.replace(connection, request, last_seq, stored[-1])

    def _edit(self, state: State, *, lost: bool = False) -> State:
        """Append a note and count it in the state. The key of the note makes a repetition
        harmless."""
        note = StoredMessage("system", "note", None)
        request = EditRequest(
            NAMESPACE,
            "a",
            append=[note],
            keys=[f"note {state.edits}"],
            state=[("session", {"edits": str(state.edited + 1)})],
        )
        sessions = [row for row in self.memory.named(state.rows, "sessions") if row["id"] == "a"]
        notes = [row for row in self.memory.named(state.rows, "messages") if row["key"]]
        repeated = any(row["key"] == request.keys[0] for row in notes)
        if sessions and not repeated:
            other = request._replace(expected_version=sessions[0]["version"] + 1)
            self.memory.run(lambda c: editing.edit(c, other, LIMITS))
            self._unchanged(state, "an edit of another version")
        edited = self.memory.run(lambda c: editing.edit(c, request, LIMITS))
        if repeated:
            self._unchanged(state, "a repeated edit")
        made = not repeated and not isinstance(edited, SessionsDBError)
        return replace(
            state,
            edits=state.edits + (not lost),
            edited=state.edited + made,
            faults=state.faults + lost,
        )

    def _fork(self, state: State) -> State:
        fork = self.memory.run(lambda c: forking.fork(c, NAMESPACE, "a", FORK, None))
        if isinstance(fork, SessionsDBError):
            self._unchanged(state, "a refused fork")
            if any(row["id"] == "a" for row in self.memory.named(state.rows, "sessions")):
                raise Violation(f"a fork was refused: {fork}")
            return state
        before = self.memory.all_named(state.rows)
        after = self.memory.all_named(self.memory.rows())
        self._holds(conversation_laws.fork_is_of(before, after))
        return replace(state, forks=state.forks + 1)

    # ---- schedules -----------------------------------------------------------------------------

    def _schedule(self, state: State) -> State:
        said, seconds = self.scenario.schedules[state.schedules]
        new = schedules.NewSchedule(
            NAMESPACE,
            "a",
            f"schedule {state.schedules}",
            encode_text(said, field="text", max_bytes=100_000),
            at=self.memory.clock() + timedelta(seconds=seconds),
            cron=None,
            tz="UTC",
            name="later",
            extra=None,
            sender=None,
            catch_up="one",
        )
        made = self.memory.run(lambda c: schedules.put(c, new, LIMITS))
        state = replace(state, schedules=state.schedules + 1)
        if isinstance(made, SessionsDBError):
            self._unchanged(state, "a refused schedule")
            return state
        return replace(state, later=(said, state.now + seconds))

    def _unschedule(self, state: State) -> State:
        ids = [row["id"] for row in self.memory.named(state.rows, "schedules")]
        gone = [
            self.memory.run(partial(schedules.remove, namespace=NAMESPACE, id=id)) for id in ids
        ]
        if any(gone) != (state.later is not None):
            raise Violation("the removal of a schedule had a wrong answer")
        return replace(state, later=None)

    def _fire(self, state: State) -> State:
        """Either worker sends what is due."""
        limits = Limits(pending=self.scenario.room)
        fired = self.memory.run(lambda c: firing.fire(c, namespaces=[NAMESPACE], limits=limits))
        tries = [_seconds(row["try_at"]) for row in self.memory.named(state.rows, "schedules")]
        is_due = state.later is not None and min(tries, default=state.now) <= state.now
        [pending] = [
            row["pending"]
            for row in self.memory.named(state.rows, "mailboxes")
            if row["session_id"] == "a"
        ] or [0]
        is_full = pending >= self.scenario.room
        if fired != (is_due and not is_full, is_due and is_full):
            raise Violation(f"{fired.messages} scheduled messages were sent at a wrong moment")
        if state.later is None or not is_due or is_full:
            return state
        return replace(state, later=None, fired=(*state.fired, state.later[0]))

    # ---- workers -------------------------------------------------------------------------------

    def _claim(self, state: State, number: int, *, lost: bool = False) -> State:
        worker = state.workers[number]
        leases = self.memory.run(
            lambda c: mailbox.claim(
                c,
                worker.name,
                namespaces=[NAMESPACE],
                slots=1,
                batch=self.scenario.batch,
                lease_seconds=LEASE,
            )
        )
        for lease in leases:
            for other in _all(state):
                if other.session == lease.session.id and other.valid and other.until >= state.now:
                    raise Violation("two valid leases on one session at the same time")
        got = tuple(
            Held(
                lease,
                state.now + LEASE,
                valid=True,
                rewrites=state.rewrites,
                turns=self._count_of_turns(lease),
            )
            for lease in leases
        )
        letters = self._letters(state.rows)
        for lease in leases:
            for position in lease.positions:
                status = letters[lease.session.id, position]["status"]
                if status != "pending":
                    raise Violation(f"a claim delivered a message that was {status}")
            if self._first(state, lease.session.id) not in (None, *lease.positions[:1]):
                raise Violation("a claim delivered another message before the answer")
            if self._first(state, lease.session.id) is not None and len(lease.positions) > 1:
                raise Violation("a claim delivered another message together with the answer")
        state = self._lost(state, {held.session for held in got})
        worker = state.workers[number]
        if lost:
            worker = replace(worker, strays=worker.strays + got)
            return self._with(state, number, worker, faults=state.faults + bool(got))
        return self._with(state, number, replace(worker, held=worker.held + got))

    def _first(self, state: State, session: str) -> int | None:
        """The position of the answer that comes before all other messages."""
        for row in self.memory.named(state.rows, "inbox"):
            if row["session_id"] == session and row["answers"] and row["status"] == "pending":
                return int(row["position"])
        return None

    def _commit(
        self, state: State, number: int, place: int, *, lost: bool = False, ask: bool = False
    ) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        reply = encode({"role": "assistant", "content": "reply"}, max_bytes=1000)
        first = held.lease.deliveries[0]
        is_notice = first.answers is not None and first.message.content == questions.EXPIRY_TEXT
        messages, beside = place_messages(
            held.lease.deliveries, [reply], first.position if is_notice else None
        )
        turn = Commit(held.lease, messages, beside=beside)
        staged = self._staged_by(held, ask=ask)
        if staged or held.lease.reports or held.lease.withdrawn is not None:
            answer = self.memory.run(
                lambda c: commit_with_staged(c, worker.name, turn, staged, LIMITS)
            )
            if isinstance(answer, SessionEnded | UnknownSession) and self.scenario.stages:
                self._unchanged(state, "a turn whose staged send was refused")
                return state  # the turn fails: another step
            took = answer is None
            if took and ask and not self._is_held(held.session):
                raise Violation("a turn that asks was committed, and its session is not held")
        else:
            [answer] = self.memory.run(lambda c: mailbox.commit(c, worker.name, [turn]))
            took = answer is True
        self._committed(state, held, answer, took)
        counted = took and self.scenario.counts_turns and held.session == "a"
        state = replace(state, asks=state.asks + (took and ask), turns=state.turns + counted)
        if isinstance(answer, LeaseLost) and not lost:
            self._ask(held, turn)
        refused = isinstance(answer, TranscriptRewritten)
        state = self._lost(state, {held.session} if took else set())
        worker = state.workers[number]
        if refused and not lost:
            kept = list(worker.held)
            kept[place] = replace(held, refused=True)
            return self._with(state, number, replace(worker, held=tuple(kept)))
        unsure = worker.unsure
        if lost:
            unsure += (replace(worker.held[place], took=took),)
        worker = replace(worker, held=_without(worker.held, place), unsure=unsure)
        return self._with(state, number, worker, faults=state.faults + lost)

    def _is_held(self, session: str) -> bool:
        boxes = self.memory.named(self.memory.rows(), "mailboxes")
        return any(row["session_id"] == session and row["question"] is not None for row in boxes)

    def _committed(self, state: State, held: Held, answer: Any, took: bool) -> None:
        """Check the answer to a commit."""
        # The steps are counted too: an operation that forgets to count is found.
        rewritten = held.rewrites != state.rewrites or any(
            row["rewrites"] != held.lease.rewrites
            for row in self.memory.named(state.rows, "sessions")
            if row["id"] == held.session
        )
        if held.valid and took and rewritten:
            raise Violation("a turn over a rewritten transcript was committed")
        if held.valid and took and not held.knows_all:
            raise Violation("a turn was committed without a message that joined it")
        if held.valid and isinstance(answer, TranscriptRewritten):
            if not rewritten and held.knows_all:
                raise Violation("the commit of a valid lease was refused")
            self._unchanged(state, "a refused commit")
        else:
            self._fenced(state, held, took, "commit")

    def _ask(self, held: Held, turn: Commit) -> bool:
        committed = bool(self.memory.run(lambda c: mailbox.find_committed(c, turn)))
        if committed and not held.took:
            raise Violation("a worker was told that its turn is committed, and it is not")
        return committed

    def _staged_by(self, held: Held, *, ask: bool) -> list[Staged]:
        """The changes that a turn has staged."""
        staged: list[Staged] = []
        if self.scenario.stages is not None and held.session == "a":
            message = encode_text("staged", field="text", max_bytes=1000)
            chain = held.lease.chain.next(held.session)
            staged.append(
                Send(NAMESPACE, self.scenario.stages, message, "staged", held.session, chain=chain)
            )
        if self.scenario.counts_turns and held.session == "a":
            scope = states.session_scope(NAMESPACE, "a")
            staged.append(StateUpdate(scope, "a", {"turns": str(held.turns + 1)}))
        if ask:
            staged.append(Ask("Well?", None, False, self.scenario.expires_in))
        return staged

    def _count_of_turns(self, lease: Lease) -> int:
        """The number of turns that the handler of a turn reads at its beginning."""
        if not self.scenario.counts_turns or lease.session.id != "a":
            return 0
        _, found = self.memory.run(lambda c: states.read_of_session(c, NAMESPACE, "a", "session"))
        return int(found.values.get("turns", 0))

    def _settle(self, state: State, number: int, place: int) -> State:
        worker, held = state.workers[number], state.workers[number].unsure[place]
        committed = self._ask(held, Commit(held.lease, []))
        there = any(one[0] == held.session for one in self.scenario.sessions)
        if held.took and not committed and there and "delete" not in self.scenario.ender:
            raise Violation("a worker was told that its turn is not committed, and it is")
        worker = replace(worker, unsure=_without(worker.unsure, place))
        if held.valid:  # it tries again to commit
            worker = replace(worker, held=(*worker.held, held))
        return self._with(state, number, worker)

    def _join(self, state: State, number: int, place: int, *, lost: bool = False) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        answer = self.memory.run(lambda c: joining.join(c, worker.name, held.lease, None))
        if isinstance(answer, LeaseLost):
            self._fenced(state, held, False, "join")
            return self._over(state, number, place, took=False)
        if not held.valid:
            raise Violation("a message joined a turn that has lost its lease")
        if not answer:
            self._unchanged(state, "a join of nothing")
            return state
        joined = held.joined + tuple(one.position for one in answer)
        lease = held.lease
        if not lost:
            lease = lease._replace(deliveries=lease.deliveries + answer)
        kept = list(worker.held)
        kept[place] = replace(held, joined=joined, lease=lease)
        return self._with(
            state,
            number,
            replace(worker, held=tuple(kept)),
            joins=state.joins + 1,
            faults=state.faults + lost,
        )

    def _find_joined(self, state: State, number: int, place: int) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        answer = self.memory.run(lambda c: joining.find_joined(c, worker.name, held.lease))
        if isinstance(answer, LeaseLost):
            self._fenced(state, held, False, "question")
            return self._over(state, number, place, took=False)
        if sorted(one.position for one in answer) != sorted(held.joined):
            raise Violation("a worker was told of other messages than those that joined its turn")
        begun = [one for one in held.lease.deliveries if not one.joined]
        kept = list(worker.held)
        kept[place] = replace(held, lease=held.lease._replace(deliveries=begun + answer))
        return self._with(state, number, replace(worker, held=tuple(kept)))

    def _give_back(self, state: State, number: int, place: int) -> State:
        """Give back the messages that joined, and that the handler did not get."""
        worker, held = state.workers[number], state.workers[number].held[place]
        known = [one.position for one in held.lease.deliveries if one.joined]
        unseen = [one for one in held.joined if one not in known]
        answer = self.memory.run(lambda c: joining.give_back(c, worker.name, held.lease, unseen))
        self._fenced(state, held, not isinstance(answer, LeaseLost), "return of messages")
        if isinstance(answer, LeaseLost):
            return self._over(state, number, place, took=False)
        before, after = self._letters(state.rows), self._letters(self.memory.rows())
        for position in unseen:
            was, letter = before[held.session, position], after[held.session, position]
            if (letter["status"], letter["attempts"]) != ("pending", was["attempts"]):
                raise Violation("a message that was given back has an attempt of the turn")
        kept = list(worker.held)
        kept[place] = replace(held, joined=tuple(known))
        return self._with(state, number, replace(worker, held=tuple(kept)))

    def _rerun(self, state: State, number: int, place: int, *, lost: bool = False) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        took = self.memory.run(lambda c: lease_ends.rerun(c, worker.name, held.lease))
        if took is None:
            raise Violation("a turn was not run again, although it may be")
        self._fenced(state, held, took, "rerun")
        if took:
            self._given_back(state, {held.session}, uncounted=1)
        if lost:
            state = self._lost(state, {held.session} if took else set())
            return replace(state, faults=state.faults + 1)
        return self._over(state, number, place, took)

    def _fail(self, state: State, number: int, place: int) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        worn_out = max(one.attempt for one in held.lease.deliveries) >= self.scenario.max_attempts
        failure = Fail(held.lease, "Boom", None if worn_out else BACKOFF)
        [took] = self.memory.run(lambda c: lease_ends.fail(c, worker.name, [failure]))
        self._fenced(state, held, took, "fail")
        if took:
            self._given_back(state, {held.session}, uncounted=0)
        return self._over(state, number, place, took)

    def _heartbeat(self, state: State, number: int, place: int) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        renewed = self.memory.run(
            lambda c: mailbox.heartbeat(
                c, worker.name, [(held.lease.key, held.lease.epoch)], lease_seconds=LEASE
            )
        )
        self._fenced(state, held, bool(renewed), "heartbeat")
        if not renewed:
            return self._over(state, number, place, took=False)
        kept = list(worker.held)
        kept[place] = replace(held, until=state.now + LEASE)
        return self._with(state, number, replace(worker, held=tuple(kept)))

    def _release(self, state: State, number: int, place: int) -> State:
        worker, held = state.workers[number], state.workers[number].held[place]
        self.memory.run(lambda c: lease_ends.release(c, worker.name, [held.lease]))
        self._fenced(state, held, self.memory.rows() != state.rows, "release")
        if held.valid:
            self._given_back(state, {held.session}, uncounted=1)
        state = self._over(state, number, place, held.valid)
        return replace(state, releases=state.releases + 1)

    def _release_unknown(self, state: State, number: int) -> State:
        worker = state.workers[number]
        known = [held.lease.fence for held in worker.held + worker.unsure]
        self.memory.run(lambda c: lease_ends.release_unknown(c, worker.name, known))
        gone = {one.session for one in worker.strays if one.valid}
        self._given_back(state, gone, uncounted=1)
        state = self._lost(state, gone)
        return self._with(state, number, state.workers[number])

    def _die(self, state: State, number: int) -> State:
        """Replace the worker by a new one with a new name. No process owns its old leases."""
        worker = state.workers[number]
        left = tuple(one for one in worker.strays + worker.held + worker.unsure if one.valid)
        heir = WorkerState(f"{worker.name}'")
        return self._with(
            state, number, heir, faults=state.faults + 1, orphans=state.orphans + left
        )

    def _reap(self, state: State) -> State:
        reaped = self.memory.run(
            lambda c: expiry.reap(
                c, namespaces=[NAMESPACE], max_attempts=self.scenario.max_attempts
            )
        )
        count, left = reaped.leases, {id for _, id in reaped.reporting}
        expired = self._expired(state)
        if not left <= expired:
            raise Violation("a lease that has not expired was left to another transaction")
        expired -= left
        if count != len(expired):
            raise Violation(f"{count} leases were taken back, {len(expired)} have expired")
        self._given_back(state, expired, uncounted=0)
        return self._lost(state, expired)

    def _reap_reporting(self, state: State) -> State:
        """The second transaction of a reap. A worker may have died before it, or another one may
        have been faster."""
        reaped = self.memory.run(
            lambda c: expiry.reap_reporting(
                c, (NAMESPACE, "b"), max_attempts=self.scenario.max_attempts
            )
        )
        expired = self._expired(state) & {"b"}
        if reaped.leases != len(expired):
            raise Violation(f"{reaped.leases} leases were taken back, {len(expired)} have expired")
        self._given_back(state, expired, uncounted=0)
        return self._lost(state, expired)

    def _expired(self, state: State) -> set[str]:
        return {one.session for one in _all(state) if one.valid and one.until < state.now}

    def _wake(self, state: State) -> State:
        self.memory.run(lambda c: expiry.wake(c, namespaces=[NAMESPACE]))
        for place, row in self._letters(self.memory.rows()).items():
            if row["answers"] is not None:
                state = replace(state, ahead=_with_one(state.ahead, place))
        return state

    # ---- parts ---------------------------------------------------------------------------------

    def _fenced(self, state: State, held: Held, took: bool, what: str) -> None:
        if took and not held.valid:
            raise Violation(f"the {what} of a lease that was lost took place")
        if held.valid and not took:
            raise Violation(f"the {what} of a valid lease was refused")
        if not took:
            self._unchanged(state, f"a refused {what}")

    def _given_back(
        self,
        state: State,
        sessions: set[str],
        *,
        uncounted: int,
        stopped: Collection[tuple[str, int]] = (),
    ) -> None:
        """Check the messages of turns whose leases a step has ended.

        ``uncounted``: how many attempts less the messages have that the turns began with.
        ``stopped``: messages that were cancelled.
        """
        joined = {(one.session, at) for one in _all(state) if one.valid for at in one.joined}
        after = self._letters(self.memory.rows())
        for place, row in self._letters(state.rows).items():
            if row["status"] != "running" or place[0] not in sessions or place in stopped:
                continue
            letter = after[place]
            if place in joined:
                if letter["status"] == "dead":
                    raise Violation("a message that joined a turn was buried with it")
                if (letter["status"], letter["attempts"]) != ("pending", row["attempts"]):
                    raise Violation("a message that joined a turn has an attempt of it")
            elif letter["attempts"] != row["attempts"] - uncounted:
                raise Violation("a turn that is over was counted wrongly as an attempt")

    def _letters(self, rows: Rows) -> dict[tuple[str, int], dict[str, Any]]:
        return {(r["session_id"], r["position"]): r for r in self.memory.named(rows, "inbox")}

    def _holds(self, broken: str | None) -> None:
        if broken is not None:
            raise Violation(broken)

    def _unchanged(self, state: State, what: str) -> None:
        if self.memory.rows() != state.rows:
            raise Violation(f"{what} has changed something")

    def _over(self, state: State, number: int, place: int, took: bool) -> State:
        if took:
            state = self._lost(state, {state.workers[number].held[place].session})
        worker = state.workers[number]
        return self._with(state, number, replace(worker, held=_without(worker.held, place)))

    def _lost(self, state: State, sessions: set[str]) -> State:
        """Mark the leases of these sessions as lost, for every worker that holds one."""
        if not sessions:
            return state

        def lost(held: tuple[Held, ...]) -> tuple[Held, ...]:
            return tuple(
                replace(one, valid=False) if one.session in sessions else one for one in held
            )

        workers = tuple(
            replace(one, held=lost(one.held), strays=lost(one.strays), unsure=lost(one.unsure))
            for one in state.workers
        )
        orphans = tuple(one for one in state.orphans if one.session not in sessions)
        return replace(state, workers=workers, orphans=orphans)

    def _with(self, state: State, number: int, worker: WorkerState, **more: Any) -> State:
        workers = list(state.workers)
        # A stray that is lost is nothing any more.
        strays = tuple(one for one in worker.strays if one.valid)
        workers[number] = replace(worker, strays=strays)
        return replace(state, workers=tuple(workers), **more)


# ---- guarantees ----------------------------------------------------------------------------------


class Judge:
    """The guarantees, of a state and of a step."""

    def __init__(self, scenario: Scenario, memory: Memory) -> None:
        self.scenario = scenario
        self.memory = memory

    def state(self, state: State) -> None:
        """Check the guarantees of the state in the database."""
        for told in invariants.broken(self.memory.connection):
            raise Violation(told)
        letters = {(r["session_id"], r["position"]): r for r in self._named(state, "inbox")}
        mailboxes = {row["session_id"]: row for row in self._named(state, "mailboxes")}
        for session, position, content in state.receipts:
            letter = letters.get((session, position))
            if letter is None or letter["content"] != content:
                raise Violation("an acknowledged message is not there")
        self._once(state, letters)
        self._has_state(state)
        self._told(state, letters)
        self._fired(state, letters)
        self._in_order(state, letters)
        for held in _all(state):
            box = mailboxes.get(held.session)
            if not held.valid or held.until < state.now:
                continue
            if box is None or box["epoch"] != held.lease.epoch or box["owner"] is None:
                raise Violation("a lease that has not run out is no longer its worker's")

    def _once(self, state: State, letters: dict[tuple[str, int], Any]) -> None:
        entered = [
            (row["session_id"], row["position"], row["content"])
            for row in self._named(state, "messages")
            if row["role"] == "user" and row["session_id"] != FORK
        ]
        for key, letter in letters.items():
            times = entered.count((*key, letter["content"]))
            if letter["content"] == questions.EXPIRY_TEXT:
                if times:
                    raise Violation("the notice of an expiry is in the transcript")
                continue
            if times != (letter["status"] == "done" or key in state.kept):
                raise Violation(f"a {letter['status']} message is {times} times in the transcript")
        notices = {k for k, one in letters.items() if one["content"] == questions.EXPIRY_TEXT}
        done = sum(one["status"] == "done" for k, one in letters.items() if k not in notices)
        if len(entered) != done + len([key for key in state.kept if key not in notices]):
            raise Violation("the transcript holds a message that is none of the inbox")

    def _has_state(self, state: State) -> None:
        if not (self.scenario.counts_turns or self.scenario.edits):
            return
        tables = self.memory.all_named(state.rows)
        broken = conversation_laws.state_is(tables, state.turns, state.edited)
        if broken is not None:
            raise Violation(broken)

    def _told(self, state: State, letters: dict[tuple[str, int], Any]) -> None:
        """Check the report of session b to its parent."""
        for child in self._named(state, "sessions"):
            if child["report"] is None:
                continue
            told = [one for one in letters.values() if one["sender"] == child["id"]]
            own = [one for key, one in letters.items() if key[0] == child["id"]]
            happened = child["ended_at"] is not None or any(
                one["status"] in ("done", "dead") for one in own
            )
            if len(told) > 1:
                raise Violation("a report was sent twice")
            if child["report"] == "each" and told:
                raise Violation("a report was sent too early")
            if child["parent_id"] is None or told:
                continue
            if child["report"] == "sent" or (child["report"] == "each" and happened):
                raise Violation("a report is missing")

    def _fired(self, state: State, letters: dict[tuple[str, int], Any]) -> None:
        """Check that each scheduled message is there once after it was due, and waits before."""
        if not self.scenario.schedules:
            return
        texts = [said for said, _ in self.scenario.schedules]
        sent = sorted(one["content"] for one in letters.values() if one["content"] in texts)
        if sent != sorted(state.fired):
            raise Violation(f"scheduled messages were sent: {sent}, must be {[*state.fired]}")
        waiting = [
            (row["content"], _seconds(row["due_at"])) for row in self._named(state, "schedules")
        ]
        if waiting != ([] if state.later is None else [state.later]):
            raise Violation(f"messages wait for their time: {waiting}, must be {state.later}")

    def _in_order(self, state: State, letters: dict[tuple[str, int], Any]) -> None:
        for (session, position), letter in letters.items():
            if letter["status"] != "done" or (session, position) in state.ahead:
                continue
            for (other, earlier), before in letters.items():
                if other != session or earlier >= position or (other, earlier) in state.ahead:
                    continue
                if before["status"] in ("pending", "running"):
                    raise Violation("a message overtook an earlier one")
                if before["status"] == "done" and before["first_seq"] > letter["first_seq"]:
                    raise Violation("a message overtook an earlier one")

    def step(self, before: State, after: State) -> None:
        """Check the guarantees of a step, for every process."""
        past = {r["id"]: r for r in self._named(before, "sessions")}
        if before.ended != after.ended and "delete" in self.scenario.ender:
            return  # a new session with the same id
        if before.forks != after.forks:
            past |= {r["id"]: r for r in self._named(after, "sessions") if r["id"] == FORK}
        elif after.forks:
            tables = self.memory.all_named(before.rows), self.memory.all_named(after.rows)
            broken = conversation_laws.fork_stays(*tables)
            if broken is not None:
                raise Violation(broken)
        for row in self._named(after, "sessions"):
            was = past[row["id"]]
            if row["version"] < was["version"] or row["last_seq"] < was["last_seq"]:
                raise Violation("a version or a seq went back")
        open_now = {r["id"] for r in self._named(after, "sessions") if r["ended_at"] is None}
        for row in self._named(after, "sessions"):
            is_new = past[row["id"]]["report"] != row["report"]
            if is_new and row["report"] == "dropped" and row["parent_id"] in open_now:
                raise Violation("a report was dropped, although the parent is open")
        known = {(r["session_id"], r["seq"]) for r in self._named(before, "messages")}
        if before.forks != after.forks:
            known |= {(FORK, r["seq"]) for r in self._named(after, "messages")}
        for row in self._named(after, "messages"):
            key = (row["session_id"], row["seq"])
            if key not in known and row["seq"] <= past[row["session_id"]]["last_seq"]:
                raise Violation("a seq was given out twice")
        now = {(r["session_id"], r["position"]): r for r in self._named(after, "inbox")}
        for row in self._named(before, "inbox"):
            letter = now.get((row["session_id"], row["position"]))
            if letter is None:
                raise Violation("a message is gone")
            if row["status"] in ("done", "cancelled") and letter["status"] != row["status"]:
                raise Violation(f"a {row['status']} message became {letter['status']}")
            alone = before.requeues == after.requeues
            if alone and row["status"] == "dead" and letter["status"] != "dead":
                raise Violation(f"a dead message became {letter['status']} by itself")
        self._answers_alone(before, after)
        epochs = {r["session_id"]: r["epoch"] for r in self._named(before, "mailboxes")}
        for row in self._named(after, "mailboxes"):
            if row["epoch"] < epochs.get(row["session_id"], 0):
                raise Violation("an epoch went back")

    def _answers_alone(self, before: State, after: State) -> None:
        """Check that a waiting answer was given to a turn before all other messages, and alone."""
        waited = {
            (row["session_id"], row["position"]): row["answers"] is not None
            for row in self._named(before, "inbox")
            if row["status"] == "pending"
        }
        for id in {session for session, _ in waited}:
            given = [
                is_answer
                for (session, position), is_answer in waited.items()
                for row in self._named(after, "inbox")
                if session == id == row["session_id"] and position == row["position"]
                if row["status"] == "running"
            ]
            answer_waited = any(one for (session, _), one in waited.items() if session == id)
            if answer_waited and given and given != [True]:
                raise Violation("an answer did not come first, and alone")

    def end(self, state: State) -> None:
        """Check a state without possible steps."""
        for row in self._named(state, "inbox"):
            if row["status"] in ("pending", "running"):
                raise Violation("a message is left, and nobody will ever handle it")
        if state.later is not None:
            raise Violation("a scheduled message is left, and no worker will ever send it")

    def _named(self, state: State, table: str) -> list[dict[str, Any]]:
        return self.memory.named(state.rows, table)


# ---- the search --------------------------------------------------------------------------------


def explore(scenario: Scenario, *, checks: bool = True, most: int = 1_000_000) -> Report:
    """Go through every state. Stops at the first broken guarantee, after the fewest steps that lead
    to it."""
    memory = Memory(checks=checks, tables=scenario.tables)
    try:
        return _explore(scenario, memory, most)
    finally:
        memory.close()


def _explore(scenario: Scenario, memory: Memory, most: int) -> Report:
    processes, judge, report = Processes(scenario, memory), Judge(scenario, memory), Report()
    first = processes.first()
    came: dict[Any, tuple[Any, str] | None] = {canonical(memory, first): None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        here = canonical(memory, state)
        report.states += 1
        moved = False
        for told, step in processes.steps(state):
            memory.seconds = state.now
            memory.put(state.rows)
            try:
                after = step()
                after = replace(after, rows=memory.rows())
                there = canonical(memory, after)
                if there == here:
                    continue
                moved = True
                report.edges += 1
                judge.step(state, after)
                if there not in came:
                    judge.state(after)
                    came[there] = (here, told)
                    queue.append(after)
            except Violation as broken:
                report.counterexample = str(broken)
                report.trace = [*_way(came, here), told]
                return report
        if not moved:
            report.ends += 1
            try:
                judge.end(state)
            except Violation as broken:
                report.counterexample = str(broken)
                report.trace = _way(came, here)
                return report
        if len(came) > most:
            raise AssertionError(f"more than {most} states")
    return report


def _way(came: dict[Any, tuple[Any, str] | None], state: Any) -> list[str]:
    steps: list[str] = []
    while (step := came[state]) is not None:
        state, told = step
        steps.append(told)
    return steps[::-1]


def canonical(memory: Memory, state: State) -> int:
    """The part of a state that decides the future. Past times keep only their order, future times
    their distance. An epoch is its distance from the epoch of the mailbox. Workers that swap places
    are the same state, and dead workers are equal."""
    orders = (state.workers, state.workers[::-1])
    return hash(min(repr(_canonical(memory, state, workers)) for workers in orders))


def _canonical(memory: Memory, state: State, workers: tuple[WorkerState, ...]) -> Any:
    names = {worker.name: number for number, worker in enumerate(workers)}
    boxes = memory.named(state.rows, "mailboxes")
    moments = [
        row[name]
        for row in boxes
        for name in ("ready_at", "wake_at", "lease_until")
        if row[name] is not None
    ]
    order = {moment: place for place, moment in enumerate(sorted(set(moments)))}

    def when(moment: str | None) -> Any:
        if moment is None:
            return None
        ahead = _seconds(moment) - state.now
        return ahead if ahead >= 0 else ("past", order[moment])

    epochs = {row["session_id"]: row["epoch"] for row in boxes}
    numbers = tuple(
        (
            row["session_id"], row["head"], row["tail"], row["pending"], row["taken"],
            row["last_taken"],
            when(row["ready_at"]) if row["ready_at"] is None else order[row["ready_at"]],
            when(row["wake_at"]), row["owner"] and names.get(row["owner"], "nobody"),
            when(row["lease_until"]), row["closed"], row["question"], row["answer"],
        )
        for row in boxes
    )  # fmt: skip
    letters = tuple(
        (
            row["session_id"], row["position"], row["status"], row["attempts"], row["ahead"],
            row["joined"], row["reruns"], row["stopped_by"], row["first_seq"], row["answers"],
            row["worker"] and names.get(row["worker"], "nobody"),
        )
        for row in memory.named(state.rows, "inbox")
    )  # fmt: skip
    transcript = tuple(
        (row["session_id"], row["seq"], row["position"])
        for row in memory.named(state.rows, "messages")
    )
    rewrites = {row["id"]: row["rewrites"] for row in memory.named(state.rows, "sessions")}
    sessions = tuple(
        (
            row["id"], row["version"], row["last_seq"], row["ended_at"] is None, row["report"],
            row["withdrawn"],
        )
        for row in memory.named(state.rows, "sessions")
    )  # fmt: skip
    waiting = tuple(
        (
            row["content"],
            row["id"],
            row["refused_at"] is None,
            max(0.0, _seconds(row["try_at"]) - state.now),
        )
        for row in (memory.named(state.rows, "schedules") if "schedules" in state.rows else ())
    )
    asked = tuple(
        (row["session_id"], row["position"], row["status"], row["answer_position"])
        for row in memory.named(state.rows, "questions")
    )

    epoch_of = {
        (row["session_id"], row["position"]): row["epoch"]
        for row in memory.named(state.rows, "inbox")
    }

    def remembered(held: Held) -> Any:
        behind = epochs.get(held.session, -(10**6)) - held.lease.epoch
        attempts = tuple(one.attempt for one in held.lease.deliveries)
        left = held.until - state.now
        return (
            held.session, tuple(held.lease.positions), attempts, held.valid, held.took,
            behind if abs(behind) < 1000 else None, left if left >= 0 else -1,
            held.refused, held.joined, rewrites.get(held.session) == held.lease.rewrites,
            held.rewrites == state.rewrites, held.turns,
            tuple(epoch_of.get((held.session, one)) == held.lease.epoch
                  for one in held.lease.positions),
        )  # fmt: skip

    minds = tuple(
        (
            tuple(remembered(held) for held in one.held),
            tuple(remembered(held) for held in one.strays),
            tuple(remembered(held) for held in one.unsure),
        )
        for one in workers
    )
    return (
        numbers, letters, transcript, sessions, asked, minds,
        tuple(remembered(held) for held in state.orphans),
        state.sent, state.ended, state.faults,
        state.releases, state.requeues, state.receipts, state.ahead,
        state.joins, state.rewrites, state.answers, state.kept, state.asks, state.replies,
        state.turns, state.edits, state.edited, state.forks, state.busy_sends,
        state.schedules, state.fired, state.later and state.later[0], waiting,
    )  # fmt: skip


def _all(state: State) -> Iterator[Held]:
    for worker in state.workers:
        yield from worker.held
        yield from worker.strays
        yield from worker.unsure
    yield from state.orphans


def _with_one(
    places: tuple[tuple[str, int], ...], place: tuple[str, int]
) -> tuple[tuple[str, int], ...]:
    return tuple(sorted({*places, place}))


def _without(held: tuple[Held, ...], place: int) -> tuple[Held, ...]:
    return held[:place] + held[place + 1 :]


def _registration(id: str, parent: str | None) -> Registration:
    return Registration(NAMESPACE, id, channel="test", peer="explorer", parent=parent)


def _seconds(stored: str) -> float:
    return (datetime.fromisoformat(stored).replace(tzinfo=UTC) - START).total_seconds()
