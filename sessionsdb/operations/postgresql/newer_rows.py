"""Read the rows behind remembered ones on PostgreSQL: with the state of the transcript, in one
statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sessionsdb.engine.statement import Row
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.newer_rows import NewRows, ReadState

REQUEST_COLUMNS = MappingProxyType(
    {
        "namespace": "text",
        "session_id": "text",
        "incarnation": "text",
        "version": "bigint",
        "rewrites": "bigint",
        "last_seq": "bigint",
    }
)
"""The columns of a request, and their types."""

_TIME_AT = """(
            SELECT CAST(extract(epoch FROM t.created_at) AS text) FROM messages AS t
            WHERE t.namespace = r.namespace AND t.session_id = r.session_id AND t.seq = {seq}
        )"""

_STATE = f"""pg_catalog.concat_ws(
        ',', s.version, s.rewrites, s.last_seq, coalesce({_TIME_AT.format(seq="s.last_seq")}, ''),
        s.message_count, coalesce({_TIME_AT.format(seq="r.last_seq")}, ''),
        read.behind, coalesce(s.incarnation, '')
    )"""


def one_request(columns: Mapping[str, str]) -> str:
    """Return the SQL of a table of one request, which has the number 1."""
    casts = ", ".join(f"CAST(:{name} AS {sql}) AS {name}" for name, sql in columns.items())
    return f"(SELECT {casts}, 1 AS number) AS r"


def select_new_rows(requests: str, columns: Mapping[str, str], *, rest: str = "") -> str:
    """Return the SQL that reads the state of each transcript and the rows behind remembered ones.

    ``columns`` has the name of each column and its value, of the message ``t``. ``content`` and
    ``seq`` are two of them. One more column is the number of the request. ``rest`` follows the
    condition for the messages.

    The state is a row of its own, without a role, and its values are in ``content``. In columns of
    their own they would take a third of the time of a plain message, in each of its messages.
    """
    of_state = {"content": _STATE, "seq": str(FIRST_SEQ)}
    state = ", ".join(f"{of_state.get(name, 'NULL')} AS {name}" for name in columns)
    messages = ", ".join(f"{value} AS {name}" for name, value in columns.items())
    return f"""
SELECT m.*, r.number
FROM {requests}
JOIN sessions AS s ON s.namespace = r.namespace AND s.id = r.session_id
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN coalesce(s.incarnation, '') = r.incarnation AND s.rewrites = r.rewrites
            AND (s.version = r.version OR s.last_seq > r.last_seq)
        THEN r.last_seq
        ELSE {FIRST_SEQ}
    END AS behind
) AS read
CROSS JOIN LATERAL (
    SELECT {state}
    UNION ALL (
        SELECT {messages}
        FROM messages AS t
        WHERE t.namespace = r.namespace AND t.session_id = r.session_id AND t.seq > read.behind
        {rest}
    )
) AS m
"""


def values_of(key: SessionKey, remembered: ReadState) -> tuple[str | int, ...]:
    """Return the values of ``REQUEST_COLUMNS``."""
    return (
        *key,
        remembered.incarnation,
        remembered.version,
        remembered.rewrites,
        remembered.last_seq,
    )


def new_rows_of(rows: Sequence[Row]) -> NewRows:
    """Split the rows of a request, in the order of ``seq``: the first one is the state."""
    values: str = rows[0][1]
    version, rewrites, last_seq, last_at, count, remembered_at, behind, incarnation = values.split(
        ",", 7
    )
    return NewRows(
        ReadState(
            incarnation, int(version), int(rewrites), int(last_seq), last_at or None, int(count)
        ),
        remembered_at or None,
        int(behind),
        rows[1:],
    )
