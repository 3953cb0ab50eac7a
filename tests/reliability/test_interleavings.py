"""Every interleaving of a few processes, and a proof that the search finds bugs.

Each broken variant takes one mechanism out. The search must find the bug then, otherwise a search
without findings would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest
from sqlalchemy import Connection, delete, func, insert, literal, select, update

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import SessionBusy
from sessionsdb.operations import (
    busy_send,
    child_reports,
    editing,
    expiry,
    firing,
    forking,
    lease_ends,
    mailbox,
    question_answers,
    question_rows,
    questions,
    registry,
    running_messages,
    schedules,
    sqlite,
    stopping,
    turn_commit,
)
from sessionsdb.operations import state as states
from sessionsdb.operations.inbox_types import UNFINISHED_SQL, Commit, Lease
from sessionsdb.operations.row_conditions import is_message
from sessionsdb.operations.running_messages import RunningTurn
from sessionsdb.operations.sqlite import committing, leasing, sending
from sessionsdb.operations.state import StateUpdate
from sessionsdb.operations.state_changes import NO_LEASE_SQL, key_parameters
from sessionsdb.schema import UTCDateTime, inbox, mailboxes, messages, sessions, state_values
from tests.reliability import explorer, interleaving, invariants
from tests.reliability.explorer import (
    LIMITS,
    NAMESPACE,
    START,
    Memory,
    Processes,
    Report,
    Scenario,
    State,
    explore,
)
from tests.support.scale import SCALE

pytestmark = pytest.mark.timeout(300 * SCALE)

EDITS: tuple[Literal["edit", "pop", "truncate", "replace"], ...] = (
    "edit",
    "pop",
    "truncate",
    "replace",
)

TWO = (("a", "one", "k"), ("a", "two", None))

SCENARIOS = {
    "two workers, a sender and an ender": Scenario(TWO, ("end",), faults=0),
    "one of them dies, or loses an answer": Scenario(
        (("a", "one", "k"),), ("end",), faults=1, releases=1
    ),
    "messages in batches die and are requeued": Scenario(
        TWO, batch=2, max_attempts=1, requeues=1, faults=0, remembered=1
    ),
    "the session is deleted and made again": Scenario(
        (("a", "one", None),), ("delete", "register"), faults=0
    ),
    "turns stage sends, and the tree ends": Scenario(
        (("a", "one", None),),
        ("end tree",),
        sessions=(("a", None), ("b", "a")),
        stages="b",
        max_attempts=1,
    ),
    "a message is cancelled": Scenario(TWO, ("cancel 1, keep",), faults=0, remembered=1),
    "one of a batch is cancelled, and the transcript is rewritten": Scenario(
        TWO, ("cancel 2",), batch=2, rewrites=1, faults=0, remembered=1, max_attempts=1
    ),
    "the session is interrupted, ended and opened again": Scenario(
        TWO, ("interrupt, keep", "end", "reopen"), faults=0, remembered=1, max_attempts=1
    ),
    "a message joins a turn": Scenario(TWO, joins=1, faults=1, max_attempts=1),
    "an answer goes ahead": Scenario(
        (("a", "one", None),), answers=("yes",), faults=0, remembered=1
    ),
    "a turn asks, and a person answers": Scenario(
        TWO, asks=1, replies=("yes", "no"), faults=0, remembered=1, batch=2, max_attempts=1
    ),
    "a turn asks, and a worker dies, or loses an answer": Scenario(
        (("a", "one", None),), asks=1, replies=("yes",), faults=1, remembered=1, max_attempts=1
    ),
    "a question expires, or is answered": Scenario(
        TWO, asks=1, expires_in=4.0, replies=("yes",), faults=0, remembered=1, max_attempts=1
    ),
    "a question is withdrawn, and its session ended and opened again": Scenario(
        (("a", "one", None),),
        ("interrupt, keep", "end", "reopen"),
        asks=1,
        replies=("yes",),
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "the answer to a question is cancelled": Scenario(
        (("a", "one", None),),
        ("cancel 2, keep",),
        asks=1,
        expires_in=4.0,
        replies=("yes",),
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a dead answer is requeued": Scenario(
        TWO,
        asks=1,
        replies=("yes",),
        requeues=1,
        batch=2,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "the transcript is rewritten": Scenario(
        (("a", "one", None),), rewrites=1, faults=1, remembered=1
    ),
}

SCENARIOS |= {
    f"the transcript is rewritten with {verb}": Scenario(
        (("a", "one", None),), rewrites=1, rewriter=verb, faults=0, remembered=1
    )
    for verb in EDITS
}

SCENARIOS |= {
    "turns and edits change the state, and a worker dies": Scenario(
        (("a", "one", None),), counts_turns=True, edits=1, faults=1, remembered=1, max_attempts=1
    ),
    "turns change the state, a staged send is refused, and the session is made again": Scenario(
        (("a", "one", None),),
        ("end b", "delete", "register"),
        sessions=(("a", None), ("b", None)),
        stages="b",
        counts_turns=True,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a session is forked while its turn runs": Scenario(
        (("a", "one", None),),
        ("interrupt, keep",),
        counts_turns=True,
        forks=1,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a send interrupts, and is repeated": Scenario(
        (("a", "one", None),),
        busy_sends=(("two", "interrupt", "k"), ("two", "interrupt", "k")),
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a send interrupts a turn or its backoff": Scenario(
        (("a", "one", None),),
        busy_sends=(("two", "interrupt", None),),
        faults=0,
        remembered=1,
    ),
    "a send is rejected while a turn runs or asks": Scenario(
        (("a", "one", None),),
        busy_sends=(("two", "reject", None),),
        asks=1,
        expires_in=4.0,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
}

CHILD: dict[str, Any] = {
    "sends": (("b", "task", None),),
    "sessions": (("a", None), ("b", "a")),
    "reports": True,
    "remembered": 1,
}

SCENARIOS |= {
    "a child reports, and a worker dies or loses an answer": Scenario(
        **CHILD, faults=1, max_attempts=1
    ),
    "a child reports and ends": Scenario(**CHILD, ender=("end b",), faults=0, max_attempts=1),
    "a child reports, and its parent ends": Scenario(
        **CHILD, ender=("end",), faults=0, max_attempts=1
    ),
}

SCENARIOS |= {
    "a scheduled message is replaced, and a worker dies, or loses an answer": Scenario(
        (), schedules=(("later", 4.0), ("other", 4.0)), faults=1, remembered=1, max_attempts=1
    ),
    "a schedule is removed, and its session ended and opened again": Scenario(
        (),
        ("unschedule", "end", "reopen"),
        schedules=(("later", 4.0),),
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a scheduled message waits for room": Scenario(
        (("a", "one", None),),
        schedules=(("later", 4.0),),
        room=1,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
}

LONG = {
    "a dead answer is requeued while messages join": Scenario(
        TWO,
        asks=1,
        replies=("yes",),
        requeues=1,
        joins=1,
        batch=2,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a scheduled message waits for room, and its session is made again": Scenario(
        TWO,
        ("delete", "register", "unschedule"),
        schedules=(("later", 4.0), ("other", 2.0)),
        room=1,
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a child reports after a failed attempt, ends, and its tree ends": Scenario(
        **CHILD, ender=("end b", "end tree", "reopen"), faults=0
    ),
    "a child reports, and its parent is deleted": Scenario(
        **CHILD, ender=("delete", "register"), faults=0, max_attempts=1
    ),
    "a child reports its death, and is requeued": Scenario(
        **CHILD, ender=("end", "reopen"), requeues=1, faults=0, max_attempts=1
    ),
    "two messages, and a fault": Scenario(TWO, ("end",), faults=1),
    "deleted and made again, with two messages": Scenario(TWO, ("delete", "register"), faults=0),
    "two faults and a release": Scenario(
        (("a", "one", "k"),), ("end",), faults=2, releases=1, requeues=1
    ),
    "batches, and a fault": Scenario(TWO, ("end",), batch=2, faults=1, max_attempts=1, requeues=1),
    "two messages are cancelled": Scenario(TWO, ("cancel 1, keep", "cancel 2"), faults=0),
    "interrupted, ended and opened again, with a late worker": Scenario(
        TWO, ("interrupt", "end", "reopen"), faults=0
    ),
    "rewritten twice, with a late worker": Scenario(
        (("a", "one", None),), ("cancel 1, keep",), rewrites=2, faults=1
    ),
    "joins, a rewritten transcript, and a fault": Scenario(
        TWO, ("interrupt, keep",), joins=2, rewrites=1, faults=1, remembered=1
    ),
    "turns and edits change the state of two messages": Scenario(
        TWO, ("cancel 1, keep",), counts_turns=True, edits=2, faults=1, remembered=1
    ),
    "forked, deleted and made again": Scenario(
        TWO, ("delete", "register"), counts_turns=True, edits=1, forks=1, faults=0, remembered=1
    ),
    "sends are rejected and interrupt while a turn asks": Scenario(
        (("a", "one", None),),
        busy_sends=(("two", "reject", "k"), ("three", "interrupt", None)),
        asks=1,
        replies=("yes",),
        faults=0,
        remembered=1,
        max_attempts=1,
    ),
    "a busy send, joins and an end": Scenario(
        TWO,
        ("end", "reopen"),
        busy_sends=(("three", "interrupt", "k"), ("four", "reject", None)),
        joins=1,
        faults=0,
        remembered=1,
    ),
    "an answer joins a turn": Scenario(TWO, answers=("yes",), joins=1, faults=1, remembered=1),
}


@pytest.mark.parametrize("name", SCENARIOS | (LONG if SCALE > 1 else {}))
def test_no_interleaving_breaks_a_guarantee(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    report = explore((SCENARIOS | LONG)[name])
    record_property("explored", str(report))
    assert report.counterexample is None, str(report)
    assert report.ends > 0


def test_the_checks_of_the_tables_are_a_net_that_nothing_falls_into() -> None:
    """No guarantee depends on these alone."""
    report = explore(SCENARIOS["one of them dies, or loses an answer"], checks=False)
    assert report.counterexample is None, str(report)


# ---- broken variants -----------------------------------------------------------------------------


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as context:
        yield context


def without(breaking: pytest.MonkeyPatch, statement: str, *parts: str) -> None:
    """Take parts out of a statement of the mailbox."""
    [module] = [one for one in (sending, leasing, committing) if hasattr(one, statement)]
    sql: str = getattr(module, statement).sql
    for part in parts:
        assert part in sql
        sql = sql.replace(part, "")
    breaking.setattr(module, statement, Statement(sql))


def found(scenario: Scenario, *, checks: bool = True) -> Report:
    report = explore(scenario, checks=checks)
    assert report.counterexample is not None, "the search is blind to this"
    return report


BASIC = Scenario((("a", "one", None),), ("end",), faults=0)
LATER = Scenario((), schedules=(("later", 4.0),), faults=0, remembered=1)
AGAIN = Scenario((("a", "one", None), ("a", "two", None)), ("delete", "register"), faults=0)


def test_without_the_fence_a_zombie_commits(breaking: pytest.MonkeyPatch) -> None:
    # Neither does it compare the number of messages: that alone would refuse most of them.
    without(
        breaking, "FENCE", "AND m.owner = :worker AND m.epoch = :epoch", "AND m.taken = :answered"
    )
    shortest = ["send", "w1 claims", "end", "w1 commits a (messages [1])"]
    report = found(BASIC)
    # The first that it does is to count a message that was cancelled: the tables refuse that.
    assert "ck_mailboxes_counts" in str(report.counterexample)
    assert report.trace == shortest
    report = found(BASIC, checks=False)
    assert report.counterexample == "the commit of a lease that was lost took place"
    assert report.trace == shortest


def test_without_the_epoch_a_worker_commits_by_a_lease_it_had_before(
    breaking: pytest.MonkeyPatch,
) -> None:
    without(breaking, "FENCE", "AND m.epoch = :epoch")
    report = found(BASIC)
    assert report.counterexample == "the commit of a lease that was lost took place"
    assert [step for step in report.trace if "claims" in step] == ["w1 claims", "w1 claims"]


def test_without_the_fence_of_the_heartbeat_a_zombie_keeps_its_lease(
    breaking: pytest.MonkeyPatch,
) -> None:
    without(breaking, "HEARTBEAT", "AND owner = :worker AND epoch = :epoch")
    report = found(BASIC)
    # The first that happens: a lease on a session that has ended. The tables refuse it.
    assert "ck_mailboxes_lease" in str(report.counterexample)
    report = found(BASIC, checks=False)
    assert report.counterexample == "the heartbeat of a lease that was lost took place"


def test_without_the_fence_of_failures_a_zombie_fails_anothers_turn(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(
        lease_ends, "_still_held", lambda _c, _w, leases: {lease.fence for lease in leases}
    )
    report = found(BASIC)
    assert report.counterexample == "the fail of a lease that was lost took place"


def test_without_epochs_of_its_own_a_new_session_takes_the_turns_of_a_deleted_one(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(registry, "first_epoch", lambda: 0)
    report = found(AGAIN)
    assert "of a lease that was lost took place" in str(report.counterexample)
    assert "register" in report.trace


def test_a_send_that_wakes_a_leased_mailbox_is_stopped_by_the_check(
    breaking: pytest.MonkeyPatch,
) -> None:
    without(breaking, "SEND", "AND owner IS NULL")
    two = Scenario(TWO, faults=0)
    report = found(two)
    assert "ck_mailboxes_one_state" in str(report.counterexample)
    assert report.trace == ["send", "w1 claims", "send"]


def test_without_the_check_a_send_that_wakes_a_leased_mailbox_is_found_by_its_effect(
    breaking: pytest.MonkeyPatch,
) -> None:
    without(breaking, "SEND", "AND owner IS NULL")
    breaking.setattr(
        invariants, "broken", lambda _connection: []
    )  # without the check of the tables
    report = found(Scenario(TWO, faults=0), checks=False)
    assert report.counterexample == "two valid leases on one session at the same time"
    assert report.trace == ["send", "w1 claims", "send", "w1 claims"]


def test_without_a_look_at_the_end_a_message_enters_an_ended_session(
    breaking: pytest.MonkeyPatch,
) -> None:
    without(breaking, "SEND", "NOT closed AND")
    report = found(BASIC)
    assert "an ended session is closed, and nothing is left in it" in str(report.counterexample)
    assert report.trace == ["end", "send"]


def test_a_reap_that_does_not_wait_for_the_end_of_a_lease_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    much_later = literal(START + timedelta(days=1), UTCDateTime)
    breaking.setattr(expiry, "now", lambda _connection: much_later)
    report = found(BASIC)
    assert report.counterexample == "1 leases were taken back, 0 have expired"


def test_a_commit_of_a_message_ahead_that_moves_the_head_loses_the_others(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(Lease, "last_position", property(lambda lease: max(lease.positions)))
    report = found(SCENARIOS["an answer goes ahead"])
    assert "a claim finds the unfinished messages" in str(report.counterexample)
    assert report.trace == [
        "send",
        "an answer comes in",
        "w1 claims",
        "w1 commits a (messages [2])",
    ]


def test_a_claim_that_looks_at_the_head_only_never_passes_a_cancelled_message(
    breaking: pytest.MonkeyPatch,
) -> None:
    sql = leasing.HEAD.sql
    assert "BETWEEN :head AND :tail" in sql
    blind = sql.replace("BETWEEN :head AND :tail", "BETWEEN :head AND :head + :batch - 1")
    breaking.setattr(leasing, "HEAD", Statement(blind))
    three = (*TWO, ("a", "three", None))
    report = found(Scenario(three, ("cancel 2",), faults=0, remembered=1))
    assert report.counterexample == "a message is left, and nobody will ever handle it"
    assert "cancel 2" in report.trace


def test_a_claim_that_does_not_look_at_the_status_delivers_a_cancelled_message(
    breaking: pytest.MonkeyPatch,
) -> None:
    sql = leasing.HEAD.sql
    in_order = f"AND NOT i.ahead AND i.status IN {UNFINISHED_SQL}"
    assert in_order in sql
    breaking.setattr(leasing, "HEAD", Statement(sql.replace(in_order, "AND NOT i.ahead")))
    report = found(Scenario((*TWO, ("a", "three", None)), ("cancel 2",), faults=0, remembered=1))
    assert report.counterexample == "a claim delivered a message that was cancelled"


@pytest.mark.parametrize(
    "scenario",
    [
        # The attempt of a rerun is not counted: the same number comes again.
        Scenario((("a", "one", None),), rewrites=1, faults=1),
        # The other messages of a batch get their attempt back.
        Scenario(TWO, ("cancel 2",), batch=2, faults=0),
    ],
    ids=["rerun", "cancel"],
)
def test_a_rerun_that_is_known_by_its_attempt_takes_anothers_commit_for_its_own(
    breaking: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    def find_by_attempt(connection: Connection, turn: Commit) -> bool | None:
        delivery = turn.lease.deliveries[0]
        row = connection.execute(
            select(inbox.c.status, inbox.c.attempts).where(
                *is_message(NAMESPACE, turn.lease.session.id, delivery.position)
            )
        ).first()
        return True if row is not None and tuple(row) == ("done", delivery.attempt) else None

    breaking.setattr(mailbox, "find_committed", find_by_attempt)
    report = found(scenario)
    assert report.counterexample == "a worker was told that its turn is committed, and it is not"


def test_a_commit_that_does_not_look_at_the_transcript_misses_a_rewrite(
    breaking: pytest.MonkeyPatch,
) -> None:
    without(breaking, "FENCE", "s.rewrites = :rewrites AND ")
    report = found(SCENARIOS["the transcript is rewritten"])
    assert report.counterexample == "a turn over a rewritten transcript was committed"


@pytest.mark.parametrize("verb", EDITS)
def test_an_edit_that_is_not_counted_as_a_rewrite_is_found(
    breaking: pytest.MonkeyPatch, verb: Literal["edit", "pop", "truncate", "replace"]
) -> None:
    advance = editing._advance
    breaking.setattr(
        editing, "_advance", lambda *given, **options: advance(*given, **{**options, "rewrites": 0})
    )
    report = found(Scenario((("a", "one", None),), rewrites=1, rewriter=verb, faults=0))
    assert report.counterexample == "a turn over a rewritten transcript was committed"


def test_an_edit_that_frees_the_seqs_of_removed_messages_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    """A removed message leaves its seq behind. A version that counts from the rows reuses it."""

    def forget(connection: Connection, *given: Any, **options: Any) -> tuple[int, int]:
        connection.execute(
            update(sessions).values(
                last_seq=select(func.coalesce(func.max(messages.c.seq), 0)).scalar_subquery()
            )
        )
        return advance(connection, *given, **options)

    advance = editing._advance
    breaking.setattr(editing, "_advance", forget)
    seeds = Scenario((("a", "one", None),), rewrites=1, rewriter="truncate", faults=0, remembered=1)
    assert "went back" in str(found(seeds).counterexample)


@pytest.mark.parametrize("where", [lease_ends, expiry], ids=["fail", "reap"])
def test_a_turn_that_dies_with_the_messages_that_joined_it_is_found(
    breaking: pytest.MonkeyPatch, where: ModuleType
) -> None:
    def all_begun(connection: Connection, keys: Any) -> dict[Any, RunningTurn]:
        running = running_messages.read_running(connection, keys)
        return {
            key: RunningTurn(
                [one._replace(attempts=turn.begun[0].attempts) for one in turn.all], []
            )
            for key, turn in running.items()
        }

    breaking.setattr(where, "read_running", all_begun)
    scenario = Scenario(TWO, joins=1, faults=0, max_attempts=1)
    report = found(scenario)
    assert report.counterexample in (
        "a message that joined a turn was buried with it",
        "a message that joined a turn has an attempt of it",
    )
    assert any("takes more" in step for step in report.trace)


def test_a_commit_without_a_message_that_joined_is_found(breaking: pytest.MonkeyPatch) -> None:
    without(breaking, "FENCE", "AND m.taken = :answered")
    report = found(SCENARIOS["a message joins a turn"])
    assert report.counterexample == "a turn was committed without a message that joined it"


def test_a_stop_that_leaves_the_lease_lets_the_stopped_turn_commit(
    breaking: pytest.MonkeyPatch,
) -> None:
    end_lease = stopping._end_lease

    def leave_owner(present: str) -> Statement:
        sql = end_lease(present).sql
        assert NO_LEASE_SQL in sql
        return Statement(sql.replace(NO_LEASE_SQL, "taken = 0, last_taken = 0"))

    breaking.setattr(stopping, "_end_lease", leave_owner)
    breaking.setattr(invariants, "broken", lambda _connection: [])
    without(breaking, "FENCE", "AND m.epoch = :epoch", "AND m.taken = :answered")
    found(Scenario((("a", "one", None),), ("interrupt",), faults=0), checks=False)


ASKED = Scenario(TWO, asks=1, replies=("yes", "no"), batch=2, faults=0, remembered=1)
EXPIRING = Scenario(TWO, asks=1, expires_in=4.0, faults=0, remembered=1)
CANCELLED = Scenario((("a", "one", None),), ("cancel 2",), asks=1, replies=("yes",), faults=0)


def test_a_claim_that_does_not_know_the_answer_takes_others_with_it(
    breaking: pytest.MonkeyPatch,
) -> None:
    sql = leasing.READY.sql
    assert "m.answer" in sql
    breaking.setattr(leasing, "READY", Statement(sql.replace("m.answer", "NULL")))
    report = found(ASKED)
    assert report.counterexample == "a claim delivered another message together with the answer"


def test_a_commit_that_asks_nothing_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(questions, "hold", lambda *_: None)
    report = found(ASKED)
    assert report.counterexample == "a turn that asks was committed, and its session is not held"


def test_a_second_answer_is_found(breaking: pytest.MonkeyPatch) -> None:
    def always_open(*given: Any) -> Any:
        row = question_rows.read_question(*given)
        return None if row is None else SimpleNamespace(**{**row._mapping, "status": "open"})

    breaking.setattr(question_answers, "read_question", always_open)
    assert "closed question was taken" in str(found(ASKED, checks=False).counterexample)


def test_an_expiry_that_is_taken_for_a_backoff_is_found(breaking: pytest.MonkeyPatch) -> None:
    def end_backoff(connection: Connection, key: Any, _: int) -> None:
        connection.execute(expiry._END_BACKOFF, [key_parameters(key)])

    breaking.setattr(questions, "expire", end_backoff)
    assert "a mailbox that is held waits" in str(found(EXPIRING).counterexample)


def test_an_expiry_that_does_not_come_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(questions, "expire", lambda *_: None)
    assert found(EXPIRING).counterexample == "a message is left, and nobody will ever handle it"


def test_an_answer_that_is_taken_after_its_time_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(questions.clock, "read_now", lambda _: START)
    scenario = Scenario(TWO, asks=1, expires_in=4.0, replies=("yes",), faults=0, remembered=1)
    assert "closed question was taken" in str(found(scenario).counterexample)


def test_a_cancelled_answer_that_stays_the_first_message_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(questions, "withdraw_answers", lambda *_: None)
    assert "the answer that comes first is unfinished" in str(found(CANCELLED).counterexample)


def test_a_commit_that_forgets_the_answer_that_was_requeued_meanwhile_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    release = committing.RELEASE.sql.replace("taken = 0,", "taken = 0, answer = NULL,", 1)
    breaking.setattr(committing, "RELEASE", Statement(release))
    report = found(SCENARIOS["a dead answer is requeued"])
    assert "an answer that is unfinished comes first" in str(report.counterexample)


def test_an_answer_that_stays_the_first_message_after_its_turn_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(mailbox, "point_to_answers", lambda *_: None)
    told = "the answer that comes first is unfinished"
    assert told in str(found(ASKED, checks=False).counterexample)


def test_a_question_that_stays_open_after_the_end_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(questions, "close_at_end", lambda *_: None)
    scenario = Scenario((("a", "one", None),), ("end",), asks=1, faults=0)
    assert "a mailbox that is held waits" in str(found(scenario).counterexample)


def test_a_withdrawal_that_leaves_the_session_held_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(questions, "NOT_HELD", {})
    scenario = Scenario(TWO, ("interrupt",), asks=1, faults=0, remembered=1)
    assert "a mailbox that is held waits" in str(found(scenario).counterexample)


def test_a_report_in_a_transaction_of_its_own_is_lost_when_the_worker_dies_between(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(child_reports, "of_commit", lambda _turn: None)
    report = found(Scenario(**CHILD, faults=0))
    assert report.counterexample == "a report is missing"
    assert "commits b" in report.trace[-1]


@pytest.mark.parametrize("where", [lease_ends, expiry], ids=["fail", "reap"])
def test_a_death_that_is_not_told_is_found(breaking: pytest.MonkeyPatch, where: ModuleType) -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            return getattr(child_reports, name)

        def lock_and_send(self, *_given: Any) -> bool:
            return False

    breaking.setattr(where, "child_reports", Silent())
    report = found(Scenario(**CHILD, faults=0, max_attempts=1))
    assert report.counterexample == "a report is missing"


def forget_that_reports_were_sent(breaking: pytest.MonkeyPatch) -> None:
    """Let ``child_reports`` take a report that was sent for one that is still to be sent."""

    def without_look(statement: Statement) -> Statement:
        changed = statement.sql.replace("report = 'each'", "report IS NOT NULL")
        assert changed != statement.sql
        return Statement(changed)

    look = child_reports._open_among
    breaking.setattr(child_reports, "_open_among", lambda in_ids: without_look(look(in_ids)))
    breaking.setattr(child_reports, "_TAKE", without_look(child_reports._TAKE))


def test_a_report_that_does_not_look_for_an_earlier_one_is_sent_twice(
    breaking: pytest.MonkeyPatch,
) -> None:
    forget_that_reports_were_sent(breaking)
    report = found(Scenario(**CHILD, ender=("end b",), faults=0))
    assert report.counterexample == "a report was sent twice"


def test_a_report_before_the_fence_is_sent_twice_when_an_answer_is_lost(
    breaking: pytest.MonkeyPatch,
) -> None:
    """The worker repeats the commit whose answer was lost. Its lease is over, and this version of
    the commit does not roll its report back."""
    forget_that_reports_were_sent(breaking)

    def commit(connection: Connection, worker: str, turn: Commit, *given: Any) -> Any:
        child_reports.send(connection, [child_reports.ChildReport(turn.lease.key, "reply", "x")])
        [answer] = mailbox.commit(connection, worker, [turn])
        return None if answer is True else answer

    breaking.setattr(explorer, "commit_with_staged", commit)
    breaking.setattr(Processes, "_unchanged", lambda *_given: None)
    report = found(Scenario(**CHILD, faults=1))
    assert report.counterexample == "a report was sent twice"


# ---- state, forks, busy sends ------------------------------------------------------------------

COUNTING = Scenario(
    (("a", "one", None),), counts_turns=True, edits=1, faults=0, remembered=1, max_attempts=1
)
FORKING = Scenario((("a", "one", None),), counts_turns=True, forks=1, faults=0, remembered=1)


def interrupting(**more: Any) -> Scenario:
    sends = (("two", "interrupt", "k"),)
    return Scenario((("a", "one", None),), busy_sends=sends, remembered=1, **more)


REJECTING = Scenario(
    (("a", "one", None),), busy_sends=(("two", "reject", None),), asks=1, faults=0, remembered=1
)


def test_the_state_of_a_failed_turn_that_stays_is_found(breaking: pytest.MonkeyPatch) -> None:
    """This version of the commit writes the state before its fence, in a transaction that is not
    rolled back."""

    def commit(connection: Connection, worker: str, turn: Commit, staged: Any, _limits: Any) -> Any:
        changes = [one for one in staged if isinstance(one, StateUpdate)]
        states.merge(connection, changes, max_bytes=10_000)
        [answer] = mailbox.commit(connection, worker, [turn])
        return None if answer is True else answer

    breaking.setattr(explorer, "commit_with_staged", commit)
    breaking.setattr(Processes, "_unchanged", lambda *_given: None)
    scenario = Scenario(
        (("a", "one", None),), ("cancel 1",), counts_turns=True, faults=0, remembered=1
    )
    report = found(scenario)
    assert report.counterexample == "the state is {'turns': 1}, and {} was committed"
    assert "cancel 1" in report.trace


def test_a_commit_that_forgets_the_state_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(turn_commit.state, "merge", lambda *_given, **_options: None)
    report = found(FORKING)
    assert report.counterexample == "the state is {}, and {'turns': 1} was committed"


def test_a_state_that_is_replaced_instead_of_merged_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    def replace_all(connection: Connection, *given: Any) -> None:
        connection.execute(delete(state_values))
        write_state_value(connection, *given)

    write_state_value = sqlite.write_state_value
    breaking.setattr(sqlite, "write_state_value", replace_all)
    report = found(COUNTING)
    assert "was committed" in str(report.counterexample)
    assert any("edit" in step for step in report.trace)
    assert any("commits" in step for step in report.trace)


def test_an_edit_whose_repetition_changes_the_state_again_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(editing, "_stands_already", lambda *_given: False)
    scenario = Scenario((), edits=1, faults=1, remembered=0)
    report = found(scenario)
    assert report.counterexample == "a repeated edit has changed something"


def test_a_fork_that_reads_the_messages_of_a_running_turn_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    def copy_more(
        connection: Connection, namespace: str, session_id: str, new_id: str, at: int | None
    ) -> Any:
        copied = copy_messages(connection, namespace, session_id, new_id, at)
        if copied is None:
            count = func.count(), func.coalesce(func.max(messages.c.seq), 0)
            of_fork = messages.c.session_id == new_id
            copied = forking._Copied(*connection.execute(select(*count).where(of_fork)).one())
        running = connection.execute(select(inbox).where(inbox.c.status == "running")).all()
        for seq, row in enumerate(running, copied.last_seq + 1):
            connection.execute(
                insert(messages).values(
                    namespace=NAMESPACE,
                    session_id=new_id,
                    seq=seq,
                    role="user",
                    content=row.content,
                    created_at=START,
                )
            )
        more = len(running)
        return copied._replace(
            message_count=copied.message_count + more, last_seq=copied.last_seq + more
        )

    copy_messages = forking._copy_messages
    breaking.setattr(forking, "_copy_messages", copy_more)
    report = found(FORKING)
    assert report.counterexample == "a fork has other messages than those that were committed"
    assert report.trace == ["send", "w1 claims", "fork"]


def test_a_fork_without_the_state_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(forking, "_copy_state", lambda *_given: None)
    report = found(FORKING)
    assert report.counterexample == "a fork has another state than the committed one"


def test_a_fork_that_takes_the_positions_of_its_source_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    copy_and_count = forking._copy_and_count

    def with_positions(*, is_part: bool) -> tuple[Statement, Statement]:
        copy, count = copy_and_count(is_part=is_part)
        copied = forking._COPIED_COLUMNS
        return Statement(copy.sql.replace(copied, f"{copied}, position")), count

    breaking.setattr(forking, "_copy_and_count", with_positions)
    report = found(FORKING)
    assert report.counterexample == "a fork has a position of another inbox"


def test_a_repeated_send_that_interrupts_its_own_turn_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(busy_send, "_knows_key", lambda *_given: False)
    report = found(interrupting(faults=1))
    assert report.counterexample == "a repeated send has changed something"


def test_a_send_that_interrupts_without_a_look_at_what_runs_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    """This version stops the message that was sent last, and not the one that runs."""

    def stop_the_last(connection: Connection, namespace: str, id: str) -> Any:
        tail = connection.execute(select(mailboxes.c.tail)).scalar_one()
        if tail:
            stopping.cancel(connection, namespace, id, tail)
        return SimpleNamespace(changed=bool(tail))

    breaking.setattr(busy_send, "stopping", SimpleNamespace(interrupt=stop_the_last))
    report = found(interrupting(faults=0))
    assert "message is cancelled after a busy send" in str(report.counterexample)


@pytest.mark.parametrize("column", ["pending", "question"])
def test_a_send_that_is_not_rejected_by_a_busy_session_is_found(
    breaking: pytest.MonkeyPatch, column: str
) -> None:
    def require_free(connection: Connection, request: Any) -> None:
        row = connection.execute(select(mailboxes)).one()
        seen = {"pending": row.pending, "question": row.question}
        del seen[column]
        if any(seen.values()):
            raise SessionBusy(request.session_id, row.pending)

    breaking.setattr(busy_send, "_require_free", require_free)
    report = found(REJECTING)
    assert "accepted a message that it should reject" in str(report.counterexample)


def test_messages_that_are_given_back_by_a_lost_lease_are_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    def give_back(connection: Connection, worker: str, lease: Lease, positions: Any) -> None:
        connection.execute(
            update(inbox).where(inbox.c.position.in_(positions)).values(status="pending")
        )

    breaking.setattr(explorer.joining, "give_back", give_back)
    breaking.setattr(invariants, "broken", lambda _connection: [])
    scenario = Scenario(TWO, ("interrupt",), joins=1, faults=1, remembered=1, max_attempts=1)
    report = found(scenario, checks=False)
    assert report.counterexample == "the return of messages of a lease that was lost took place"


def test_a_schedule_that_stays_due_after_its_message_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    breaking.setattr(firing, "_advance", lambda *_: None)
    assert "messages wait for their time" in str(found(LATER).counterexample)


def test_a_schedule_that_goes_although_the_inbox_is_full_is_found(
    breaking: pytest.MonkeyPatch,
) -> None:
    advance = firing._advance

    def forget(
        connection: Connection, one: firing.Firing, accepted: int, _: Any, present: datetime
    ) -> None:
        advance(connection, one, accepted, None, present)

    breaking.setattr(firing, "_advance", forget)
    report = found(SCENARIOS["a scheduled message waits for room"])
    assert "messages wait for their time: []" in str(report.counterexample)


def test_a_schedule_that_outlives_its_session_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(schedules, "remove_of_sessions", lambda *_: None)
    report = found(replace(LATER, ender=("end", "reopen")))
    assert "messages wait for their time" in str(report.counterexample)


def test_a_message_that_is_sent_before_its_time_is_found(breaking: pytest.MonkeyPatch) -> None:
    breaking.setattr(firing.clock, "read_now", lambda _: START + timedelta(days=1))
    assert "at a wrong moment" in str(found(LATER).counterexample)


# ---- with the transaction taken out --------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


def begun(memory: Memory, *, leased: bool) -> tuple[State, list[Lease]]:
    """A session with two messages, and a worker on the first."""
    processes = Processes(Scenario(TWO, ("end",)), memory)
    state = processes.first()
    for _ in range(2):
        state = processes._send(state)
    leases = claim(memory, "w1") if leased else []
    return State(memory.rows(), 0.0, state.workers), leases


def claim(memory: Memory, worker: str) -> list[Lease]:
    return mailbox.claim(
        memory.connection, worker, namespaces=[NAMESPACE], slots=1, batch=1, lease_seconds=10.0
    )


def test_without_a_transaction_two_workers_lease_one_session(memory: Memory) -> None:
    state, _ = begun(memory, leased=False)
    claims = [partial(claim, memory, "w1"), partial(claim, memory, "w2")]
    tried, both = 0, []
    for order, leases in interleaving.schedules(lambda: memory.put(state.rows), claims):
        tried += 1
        memory._present = None
        if all(leases):
            both.append(order)
    # Both look before the first of them writes.
    assert len(both) > 0
    assert tried > len(both)


def test_without_a_transaction_a_scheduled_message_is_sent_twice() -> None:
    """A worker dies behind one of its statements, and the next worker sends what is due."""
    memory = Memory(tables=LATER.tables)
    try:
        state = Processes(LATER, memory)._schedule(Processes(LATER, memory).first())
        memory.seconds = 5.0
        rows = memory.rows()
        fire = partial(firing.fire, memory.connection, namespaces=[NAMESPACE], limits=LIMITS)
        left = [memory.rows() for _ in interleaving.halfway(fire)]
        sent = []
        for after in [rows, *left, memory.rows()]:
            memory.put(after)
            memory.run(lambda _: fire())
            sent.append(len(memory.rows()["inbox"]))
        assert state.schedules == sent[0] == sent[-1] == 1
        assert 2 in sent
    finally:
        memory.close()


def test_without_a_transaction_a_fork_takes_half_of_a_commit() -> None:
    memory = Memory(tables=FORKING.tables)
    try:
        state, [lease] = begun(memory, leased=True)
        memory.put(state.rows)
        turn = Commit(lease, [lease.deliveries[0].message])
        forked: dict[int, set[str]] = {}
        for done in interleaving.halfway(lambda: mailbox.commit(memory.connection, "w1", [turn])):
            forking.fork(memory.connection, NAMESPACE, "a", f"f{done}", None)
            forked[done] = {
                told.partition(":")[0]
                for told in invariants.broken(memory.connection)
                if f"f{done}" in told
            }
        assert {"message_count counts the messages"} in forked.values()
    finally:
        memory.close()


def test_without_a_transaction_a_worker_that_dies_leaves_half_a_turn(memory: Memory) -> None:
    state, [lease] = begun(memory, leased=True)
    memory.put(state.rows)
    turn = Commit(lease, [lease.deliveries[0].message])
    left: set[str] = set()
    for _ in interleaving.halfway(lambda: mailbox.commit(memory.connection, "w1", [turn])):
        left.update(told.partition(":")[0] for told in invariants.broken(memory.connection))
    assert "pending counts the unfinished messages" in left  # given back, and not finished
    assert "only a done or stopped message has come into the transcript" in left
    assert invariants.broken(memory.connection) == []  # no process died
