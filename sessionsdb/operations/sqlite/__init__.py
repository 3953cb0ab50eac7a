"""The statements that only SQLite runs: its ``Dialect``, see ``operations/dialect.py``.

A writing transaction on SQLite is the only one. Nothing needs a lock or a second look. So a
transition of a mailbox is a conditional UPDATE, and the number of changed rows says whether it took
place. Or its conditions are read before, by a statement of their own. RETURNING would take longer,
see ``Statement.changes``.
"""

from sessionsdb.operations.sqlite.committing import commit
from sessionsdb.operations.sqlite.following import read_ends, read_pieces, read_states
from sessionsdb.operations.sqlite.history import read_new_pages, read_pages
from sessionsdb.operations.sqlite.leasing import claim, heartbeat, ready_namespaces
from sessionsdb.operations.sqlite.loading import read_new_rows
from sessionsdb.operations.sqlite.locks import lock_mailboxes, lock_sessions, lock_waits
from sessionsdb.operations.sqlite.lookups import (
    ids_values,
    in_few,
    in_ids,
    in_positions,
    positions_values,
    receipt_table,
    receipt_values,
    reply_join,
)
from sessionsdb.operations.sqlite.pieces import find_runs, write_pieces
from sessionsdb.operations.sqlite.schedules import first_schedules
from sessionsdb.operations.sqlite.search import (
    create_search_index,
    find_documents,
    has_search_index,
    write_search_parts,
)
from sessionsdb.operations.sqlite.sending import send
from sessionsdb.operations.sqlite.sessions import (
    change_sessions,
    create_sessions,
    insert_session,
)
from sessionsdb.operations.sqlite.state import write_state_value
from sessionsdb.operations.sqlite.transcripts import (
    append,
    extend,
    lock_marked,
    lock_transcript,
    lock_version,
    write_tail,
)

has_row_locks = False

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
