"""One turn at a time: no two valid leases on a session, and no commit after the lease was lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from soak.history import NEVER, History, Run
from soak.payloads import parsed
from soak.tables import Tables
from soak.violation import Violation

CLOCK_OF_THE_PROCESSES = "sqlite"
"""Where the processes' wall clocks decide how long a lease lasts, and one of them was wrong, the
times of leases cannot be compared. Their epochs can."""


LONGEST_BEGIN = 5.0
"""A handler records its beginning at most so many seconds after its lease was given. The lease may
be stopped in between."""


def check(history: History, tables: Tables, kind: str) -> Iterator[Violation]:
    committed = _committed(history, tables)
    epochs = {row["session_id"]: row["epoch"] for row in tables.mailboxes}
    for session, line in _proxy(history).items():
        last = line[-1].epoch
        assert last is not None
        if session in epochs and last > epochs[session]:
            text = f"a lease had epoch {last}, and the session is at {epochs[session]}"
            yield Violation("leases", session, text)
        yield from _each_epoch_once(session, line)
        yield from _no_late_commit(session, line, committed)
        yield from _no_two_valid(history, session, line, kind)


def compared(history: History, kind: str) -> int:
    """How many pairs of leases were compared by their times."""
    return sum(_comparable(history, one, other, kind) for one, other in _successions(history))


def overtaken(history: History) -> int:
    """How many handlers were running still, or had died, when their session was given to the next
    one: each of these might have committed too late."""
    return sum(one.ended >= other.began for one, other in _successions(history))


def _successions(history: History) -> Iterator[tuple[Run, Run]]:
    for line in _proxy(history).values():
        yield from pairwise(line)


def _proxy(history: History) -> dict[str, list[Run]]:
    """By session, the runs whose epoch is known, in its order."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in history.runs.values():
        if run.epoch is not None:
            runs[run.session].append(run)
    return {session: sorted(line, key=_place) for session, line in runs.items()}


def _place(run: Run) -> tuple[int, float]:
    assert run.epoch is not None
    return run.epoch, run.began


def _committed(history: History, tables: Tables) -> set[str]:
    """The runs whose replies are in the transcripts."""
    replies = (row["content"] for row in tables.messages if row["role"] == "assistant")
    return {str(parsed(reply).get("run")) for reply in replies} & history.runs.keys()


def _each_epoch_once(session: str, line: list[Run]) -> Iterator[Violation]:
    for one, other in pairwise(line):
        if one.epoch == other.epoch:
            text = f"{one.id} and {other.id} both ran under epoch {one.epoch}"
            yield Violation("leases", session, text)


def _no_late_commit(session: str, line: list[Run], committed: set[str]) -> Iterator[Violation]:
    """A run that committed had ended before the session was leased again."""
    first_later = NEVER
    for run in reversed(line):
        if run.id in committed and first_later < run.ended and run.how is not None:
            text = f"{run.id} committed under epoch {run.epoch}, while a later lease was running"
            yield Violation("leases", session, text)
        first_later = min(first_later, run.began)


def _no_two_valid(
    history: History, session: str, line: list[Run], kind: str
) -> Iterator[Violation]:
    """A lease that was not given back is over before the next one is given."""
    for one, other in pairwise(line):
        if not _comparable(history, one, other, kind) or one.ended < other.began:
            continue  # its handler was done: the lease was given back, or could have been
        if _was_stopped(history, one, other):
            continue  # a stopped handler may overlap with the next turn
        assert one.lease_until is not None
        assert other.claimed_at is not None
        if other.claimed_at < one.lease_until:
            text = (
                f"{other.id} was given the session at {other.claimed_at} under epoch"
                f" {other.epoch}, and {one.id} held it under {one.epoch} until {one.lease_until}"
            )
            yield Violation("leases", session, text)


def _was_stopped(history: History, one: Run, other: Run) -> bool:
    """Whether a caller may have taken the lease of ``one`` before ``other`` was given the session.

    Also an end can be followed by another lease: after a reopening.
    """
    stops = [stop for position in one.positions for stop in history.stops(one.session, position)]
    if one.session in history.reopened():
        stops += history.of("end")
    return any(stop.at < other.began and stop.told_at > one.began - LONGEST_BEGIN for stop in stops)


def _comparable(history: History, one: Run, other: Run, kind: str) -> bool:
    if one.lease_until is None or other.claimed_at is None:
        return False
    return kind != CLOCK_OF_THE_PROCESSES or not history.a_clock_was_wrong(one.began, other.began)
