"""A check of a whole database: the schema, the server or the file, and every session's books."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.admin import schema_check
from sessionsdb.admin.findings import MAX_EXAMPLES, Finding, HealthReport, make_finding
from sessionsdb.admin.health import postgresql, sqlite
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.engine import migrations
from sessionsdb.errors import SchemaOutOfDate
from sessionsdb.operations import consistency, repair, stats, wait_graph
from sessionsdb.operations.consistency import InconsistencyKind
from sessionsdb.operations.keys import SessionKey
from sessionsdb.runtime.database_access import DONE, WORK

PAGE_SESSIONS = 500
"""How many sessions' books are read in one statement."""

OVERDUE_SECONDS = 60.0
"""A worker takes an expired lease back within its poll interval; after this long none has."""


class _Says(NamedTuple):
    meaning: str
    action: str


_REPAIR = "`sessionsdb doctor --fix` sets it to what the rows say"

_COUNTERS: dict[InconsistencyKind, _Says] = {
    "message-count": _Says(
        "list and reports show another number of messages than there are", _REPAIR
    ),
    "last-seq": _Says("the next append to the session fails on a seq that is taken", _REPAIR),
    "no-mailbox": _Says(
        "the session can't be sent to, and answers as an unknown one",
        "`sessionsdb doctor --fix` makes an empty mailbox",
    ),
    "closed": _Says(
        "the session and its mailbox disagree on whether it has ended",
        "`sessionsdb doctor --fix` ends it wholly if nothing waits in it; if something does, "
        "decide: `sessionsdb end ID` cancels what waits, or clear sessions.ended_at by hand",
    ),
    "pending": _Says(
        "back-pressure and reports go by another number than waits: a send may be refused early",
        _REPAIR,
    ),
    "line": _Says(
        "unfinished messages stand where no claim looks for them: they would wait for ever",
        "`sessionsdb doctor --fix` puts them first, in their order",
    ),
    "taken": _Says(
        "a turn is taken to work on another number of messages than are running", _REPAIR
    ),
    "state": _Says(
        "what waits in the mailbox and its state contradict each other: messages are stuck, or "
        "a worker is sent to an empty inbox",
        "`sessionsdb doctor --fix` makes it ready or idle, as the rows say",
    ),
}


async def examine(
    db: SessionsDB, *, fix: bool = False, progress: Callable[[int], Any] = lambda _: None
) -> HealthReport:
    """Check everything of an open database, in all namespaces; with ``fix`` mend what can be mended
    safely. ``progress`` is told how many more sessions were checked.

    It reads all sessions, messages and inboxes once, page by page, and holds no lock but, to mend
    one session, that session's.
    """
    read = open_database_of(db).read
    health = sqlite if db.engine.dialect.name == "sqlite" else postgresql
    findings = await read(schema_check.check)
    findings += await read(health.check)
    checked = 0
    if not any(found.check in ("missing-tables", "quick-check") for found in findings):
        checked, wrong = await _check_counters(db, fix=fix, progress=progress)
        findings += wrong
        findings += await _check_leases(db)
        findings += await _check_waits(db, fix=fix)
        if db.engine.dialect.name == "sqlite":
            findings += await read(sqlite.orphans)
    return HealthReport(
        database=_kind(db), revision=migrations.head(), sessions=checked, findings=findings
    )


def out_of_date(db: SessionsDB, error: SchemaOutOfDate) -> HealthReport:
    """The report on a database that can't be opened for its schema."""
    found = "no tables" if error.found is None else f"revision {error.found}"
    wrong = make_finding(
        "schema",
        [f"{found}, this version needs {migrations.head()}"],
        meaning="this version of the package can't work with the tables",
        action=str(error),
    )
    return HealthReport(database=_kind(db), revision=error.found, findings=wrong)


def _kind(db: SessionsDB) -> Any:
    return db.engine.dialect.name


async def _check_counters(
    db: SessionsDB, *, fix: bool, progress: Callable[[int], Any]
) -> tuple[int, list[Finding]]:
    counts: dict[InconsistencyKind, int] = defaultdict(int)
    mended: dict[InconsistencyKind, int] = defaultdict(int)
    examples: dict[InconsistencyKind, list[str]] = defaultdict(list)
    start: SessionKey | None = consistency.FIRST_KEY
    checked = 0
    while start is not None:
        page, start = await open_database_of(db).read(
            partial(consistency.read_counters, start=start, limit=PAGE_SESSIONS)
        )
        for one in page:
            wrong = consistency.find_inconsistencies(one)
            left = wrong
            if wrong and fix:
                wrong, left = await open_database_of(db).write(
                    partial(repair.repair, key=one.key), wakes=(WORK, DONE)
                )
            for fault in wrong:
                counts[fault.kind] += 1
                if len(examples[fault.kind]) < MAX_EXAMPLES:
                    examples[fault.kind].append(f"{one.namespace}/{one.session_id}: {fault.detail}")
            kinds_left = {fault.kind for fault in left}
            for kind in {fault.kind for fault in wrong} - kinds_left:
                mended[kind] += 1
        checked += len(page)
        progress(len(page))
    return checked, [
        Finding(
            check=kind,
            count=counts[kind],
            examples=examples[kind],
            meaning=says.meaning,
            action=says.action,
            mended=mended[kind],
        )
        for kind, says in _COUNTERS.items()
        if counts[kind]
    ]


async def _check_leases(db: SessionsDB) -> list[Finding]:
    overdue = await open_database_of(db).read(
        partial(stats.overdue_leases, seconds=OVERDUE_SECONDS)
    )
    return make_finding(
        "overdue-leases",
        [
            f"{o.namespace}/{o.session_id}: held by {o.owner}, {o.seconds:.0f} s over"
            for o in overdue
        ],
        meaning="their workers died, and no other has taken them back for "
        f"{OVERDUE_SECONDS:.0f} s: no worker serves the namespace",
        action="start a worker: it takes them back, and counts the attempt",
    )


async def _check_waits(db: SessionsDB, *, fix: bool) -> list[Finding]:
    def clear(connection: Connection) -> int:
        return wait_graph.delete_expired_waits(connection)

    count = await open_database_of(db).read(wait_graph.count_expired_waits)
    if not count:
        return []
    mended = await open_database_of(db).write(clear, wakes=()) if fix else 0
    return [
        Finding(
            check="expired-waits",
            level="note",
            count=max(count, mended),
            meaning="sessions waited for others when their processes died; the entries count for "
            "nothing, and go when the next session waits",
            action="nothing, or `sessionsdb doctor --fix`",
            mended=mended,
        )
    ]
