"""Check a whole database: its schema, its server or file, and the counters of every session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from sessionsdb.admin import schedule_check, schema_check, value_check
from sessionsdb.admin.findings import MAX_EXAMPLES, Finding, HealthReport, make_finding
from sessionsdb.admin.health import CHECKS
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.engine import migrations
from sessionsdb.engine.dialect import kind_of
from sessionsdb.errors import SchemaOutOfDate
from sessionsdb.operations import consistency, repair, stats, tree_places, wait_graph
from sessionsdb.operations.consistency import InconsistencyKind
from sessionsdb.operations.keys import SessionKey
from sessionsdb.runtime.database_access import DONE, STOP, WORK

PAGE_SESSIONS = 500
"""Sessions whose counters are read in one statement."""

OVERDUE_SECONDS = 60.0
"""A worker takes back an expired lease within its poll interval. After this time none does."""


class _Advice(NamedTuple):
    meaning: str
    action: str


_REPAIR = "`sessionsdb doctor --fix` sets it to the number in the rows"

_COUNTERS: dict[InconsistencyKind, _Advice] = {
    "message-count": _Advice("list and reports show a wrong number of messages", _REPAIR),
    "last-seq": _Advice("the next append to the session fails, because its seq is taken", _REPAIR),
    "no-mailbox": _Advice(
        "a send to the session fails as if the session were unknown",
        "`sessionsdb doctor --fix` makes an empty mailbox",
    ),
    "closed": _Advice(
        "the session has ended but its mailbox has not, or the reverse",
        "`sessionsdb doctor --fix` ends both if no message waits. If messages wait, decide: "
        "`sessionsdb end ID` cancels them, or clear sessions.ended_at by hand",
    ),
    "pending": _Advice(
        "back-pressure and reports count waiting messages wrongly: a send may be refused early",
        _REPAIR,
    ),
    "line": _Advice(
        "no claim finds some unfinished messages: they would wait forever",
        "`sessionsdb doctor --fix` puts them first, in their order",
    ),
    "taken": _Advice("the mailbox counts a wrong number of running messages", _REPAIR),
    "state": _Advice(
        "the state of the mailbox contradicts its messages: messages are stuck, or a worker "
        "claims an empty inbox",
        "`sessionsdb doctor --fix` makes it ready or idle, according to the rows",
    ),
    "question": _Advice(
        "the session waits for a question that is not open, or takes no turn although it is open",
        "`sessionsdb doctor --fix` withdraws the question, and the session goes on",
    ),
}


async def examine(
    db: SessionsDB,
    *,
    fix: bool = False,
    values: bool = False,
    progress: Callable[[int], Any] = lambda _: None,
) -> HealthReport:
    """Check an open database in all namespaces, and with ``fix`` repair its counters and states.

    With ``values`` this process reads all JSON values, and checks that each can be read.
    ``progress`` is called with the number of sessions that were checked since its last call. The
    check reads all sessions, messages and inboxes once, page by page. It takes no locks, except the
    locks of one session while it repairs that session.
    """
    read = open_database_of(db).read
    kind = kind_of(db.engine)
    health = CHECKS[kind]
    findings = await read(schema_check.check)
    findings += await read(health.check_database)
    sessions = 0
    if not any(finding.check in ("missing-tables", "quick-check") for finding in findings):
        sessions, wrong = await _check_counters(db, fix=fix, progress=progress)
        findings += wrong
        findings += await _check_leases(db)
        findings += await schedule_check.check(db)
        findings += await _check_trees(db, fix=fix)
        findings += await _check_waits(db, fix=fix)
        findings += await read(health.check_references)
        if values:
            findings += await value_check.check(db)
    return HealthReport(
        database=kind, revision=migrations.head(), sessions=sessions, findings=findings
    )


async def examine_encoding(db: SessionsDB) -> list[Finding]:
    """Return the finding that the encoding of an open database lacks characters, if it does."""
    return await open_database_of(db).read(CHECKS[kind_of(db.engine)].check_encoding)


def report_old_schema(db: SessionsDB, error: SchemaOutOfDate) -> HealthReport:
    """Return the report on a database whose schema is not the one of this version."""
    found = "no tables" if error.found is None else f"revision {error.found}"
    findings = make_finding(
        "schema",
        [f"{found}, this version needs {migrations.head()}"],
        meaning="this version of the package can't work with the tables",
        action=str(error),
    )
    return HealthReport(database=kind_of(db.engine), revision=error.found, findings=findings)


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
        for counters in page:
            wrong = consistency.find_inconsistencies(counters)
            left = wrong
            if wrong and fix:
                wrong, left = await open_database_of(db).write(
                    partial(repair.repair, key=counters.key), wakes=(WORK, DONE, STOP)
                )
            for fault in wrong:
                counts[fault.kind] += 1
                if len(examples[fault.kind]) < MAX_EXAMPLES:
                    examples[fault.kind].append(
                        f"{counters.namespace}/{counters.session_id}: {fault.detail}"
                    )
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
            meaning=advice.meaning,
            action=advice.action,
            mended=mended[kind],
        )
        for kind, advice in _COUNTERS.items()
        if counts[kind]
    ]


async def _check_leases(db: SessionsDB) -> list[Finding]:
    overdue = await open_database_of(db).read(
        partial(stats.overdue_leases, seconds=OVERDUE_SECONDS)
    )
    return make_finding(
        "overdue-leases",
        [
            f"{lease.namespace}/{lease.session_id}: held by {lease.owner}, "
            f"expired for {lease.seconds:.0f} s"
            for lease in overdue
        ],
        meaning="the workers of these leases died, and no other worker has taken the sessions back "
        f"for {OVERDUE_SECONDS:.0f} s: no worker serves the namespace",
        action="start a worker: it takes the sessions back, and counts the attempt",
    )


async def _check_trees(db: SessionsDB, *, fix: bool) -> list[Finding]:
    database = open_database_of(db)
    roots, circles = await database.read(tree_places.find_misplaced)
    if roots and fix:
        for root in sorted(set(roots.values())):
            await database.write(partial(tree_places.place, roots=[root]), wakes=())
    misplaced = make_finding(
        "tree-place",
        [f"{namespace}/{id}" for namespace, id in roots],
        meaning="the root or the depth of a session contradicts its parent: a list of its tree "
        "misses it, and the limit of the depth counts wrongly",
        action="`sessionsdb doctor --fix` sets both by the parents",
    )
    return [
        *(one.model_copy(update={"mended": one.count if fix else 0}) for one in misplaced),
        *make_finding(
            "parent-circle",
            [
                f"{circle[0][0]}/" + " below ".join(id for _, id in [*circle, circle[0]])
                for circle in circles
            ],
            meaning="sessions are their own ancestors: no list of a tree is right, and the report "
            "`tree` never ends",
            action="set parent_id of one session of each circle to NULL by hand, and run "
            "`sessionsdb doctor --fix`",
        ),
    ]


async def _check_waits(db: SessionsDB, *, fix: bool) -> list[Finding]:
    count = await open_database_of(db).read(wait_graph.count_expired_waits)
    if not count:
        return []
    mended = 0
    if fix:
        mended = await open_database_of(db).write(wait_graph.delete_expired_waits, wakes=())
    return [
        Finding(
            check="expired-waits",
            level="note",
            count=max(count, mended),
            meaning="processes died while their sessions waited for others. The entries have no "
            "effect, and are deleted when the next session waits",
            action="nothing, or `sessionsdb doctor --fix`",
            mended=mended,
        )
    ]
