"""How far a server has come in the log of its cluster: the same number on primary and standby."""

from __future__ import annotations

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement

_POSITION = Statement("""
SELECT CAST(pg_catalog.pg_wal_lsn_diff(
    CASE
        WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
        ELSE pg_catalog.pg_current_wal_insert_lsn()
    END,
    CAST('0/0' AS pg_catalog.pg_lsn)
) AS bigint), pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))
""")

_PAGE = 8192
_PAGE_HEADER = 24
_FILE_HEADER = 40


def log_position(connection: Connection) -> int:
    """Return the position in the log, in bytes, of the last change that a reader may see.

    Every change that a reader sees now is before the position, on every server of the cluster. A
    standby that has replayed nothing yet is at 0.
    """
    row = _POSITION.row(connection, {})
    assert row is not None
    position, file_size = int(row[0] or 0), int(row[1])
    # At the end of a page the primary's number is behind the header of the next page, which is
    # longer at the beginning of a file. The standby reaches that only with the next record.
    if position % file_size == _FILE_HEADER:
        return position - _FILE_HEADER
    return position - _PAGE_HEADER if position % _PAGE == _PAGE_HEADER else position
