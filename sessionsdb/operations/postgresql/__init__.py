"""The statements that only PostgreSQL runs: its ``Dialect``, see ``operations/dialect.py``.

The hot transitions of a mailbox are one statement each, for a list of requests: ``send``,
``claim``, ``heartbeat`` and ``commit``. All have the same shape. The mailboxes are locked first, in
key order, and are read in their current state. Everything else in a statement is read as of its
snapshot, which may be older. So each decision is made by the locked row. The clock is read while
the locks are held. Only then the session rows are locked, in key order too. A claim and a heartbeat
pass over mailboxes that are locked.

The values of a request are joined once, with the row that it locks, and are carried along from
there. The planner takes an array for one row or ten, and joins two of them by comparing each row
with each.

A row of ``inbox`` or ``messages`` is searched by a whole key, whose columns come from one relation,
from parameters or from subqueries. If the number of the key comes from another relation than the
session, the planner may search by the session alone, and read all of its rows. It does so where a
session has one row on average (``tests/test_plans_skew.py``).
"""

from sessionsdb.operations.postgresql.committing import commit
from sessionsdb.operations.postgresql.following import read_ends, read_pieces, read_states
from sessionsdb.operations.postgresql.history import read_new_pages, read_pages
from sessionsdb.operations.postgresql.leasing import claim, heartbeat, ready_namespaces
from sessionsdb.operations.postgresql.loading import read_new_rows
from sessionsdb.operations.postgresql.locks import lock_mailboxes, lock_sessions, lock_waits
from sessionsdb.operations.postgresql.lookups import (
    ids_values,
    in_few,
    in_ids,
    in_positions,
    positions_values,
    receipt_table,
    receipt_values,
    reply_join,
)
from sessionsdb.operations.postgresql.pieces import find_runs, write_pieces
from sessionsdb.operations.postgresql.schedules import first_schedules
from sessionsdb.operations.postgresql.search import (
    create_search_index,
    find_documents,
    has_search_index,
    write_search_parts,
)
from sessionsdb.operations.postgresql.sending import send
from sessionsdb.operations.postgresql.sessions import (
    change_sessions,
    create_sessions,
    insert_session,
)
from sessionsdb.operations.postgresql.state import write_state_value
from sessionsdb.operations.postgresql.transcripts import (
    append,
    extend,
    lock_marked,
    lock_transcript,
    lock_version,
    write_tail,
)

has_row_locks = True

__all__ = [
    "append",
    "change_sessions",
    "claim",
    "commit",
    "create_search_index",
    "create_sessions",
    "extend",
    "find_documents",
    "find_runs",
    "first_schedules",
    "has_row_locks",
    "has_search_index",
    "heartbeat",
    "ids_values",
    "in_few",
    "in_ids",
    "in_positions",
    "insert_session",
    "lock_mailboxes",
    "lock_marked",
    "lock_sessions",
    "lock_transcript",
    "lock_version",
    "lock_waits",
    "positions_values",
    "read_ends",
    "read_new_pages",
    "read_new_rows",
    "read_pages",
    "read_pieces",
    "read_states",
    "ready_namespaces",
    "receipt_table",
    "receipt_values",
    "reply_join",
    "send",
    "write_pieces",
    "write_search_parts",
    "write_state_value",
    "write_tail",
]
