"""Check a SQLite file: version, settings, pages, references."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection

from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.engine import urls
from sessionsdb.schema import metadata

MIN_VERSION = (3, 35, 0)
"""The first version with RETURNING."""

_SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
_MAX_FAULTS = 20
_FTS5 = "SELECT 1 FROM pragma_module_list WHERE name = 'fts5'"
_SEARCH_INDEX = "SELECT 1 FROM sqlite_master WHERE name = 'search_words'"

FEW_ROWS = 10
"""A table with statistics of fewer rows may be read whole, where a key would find the row."""

MANY_ROWS = 1000
"""With so many rows that takes longer than a commit."""

_HAS_STATISTICS = "SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'"
_STATISTICS = "SELECT tbl, stat FROM sqlite_stat1"
_HAS_MANY_ROWS = f"SELECT 1 FROM {{}} LIMIT 1 OFFSET {MANY_ROWS - 1}"


def check_database(connection: Connection) -> list[Finding]:
    return [
        *_version(),
        *_settings(connection),
        *_search(connection),
        *_statistics(connection),
        *make_finding(
            "quick-check",
            [line for line in _rows(connection, f"quick_check({_MAX_FAULTS})") if line != "ok"],
            meaning="the file is damaged: rows may be lost or wrong",
            action="stop all writers, keep the file and its -wal, and restore a backup; "
            "`sqlite3 FILE .recover` saves what can be read",
        ),
    ]


def check_encoding(_connection: Connection) -> list[Finding]:
    return []  # every encoding of SQLite is one of Unicode


def check_references(connection: Connection) -> list[Finding]:
    return make_finding(
        "foreign-keys",
        [
            f"{table} row {row} refers to no row of {parent}"
            for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check")
        ],
        meaning="a program with foreign keys off has left rows without their session",
        action="set PRAGMA foreign_keys = ON in that program, and delete the rows after a look",
    )


def _version() -> list[Finding]:
    too_old = [] if sqlite3.sqlite_version_info >= MIN_VERSION else [sqlite3.sqlite_version]
    return make_finding(
        "sqlite-version",
        too_old,
        meaning="the SQLite of this Python is older than 3.35, and has no RETURNING",
        action="use a Python with a newer SQLite",
    )


def _search(connection: Connection) -> list[Finding]:
    if connection.exec_driver_sql(_FTS5).first() is not None:
        return []
    has_index = connection.exec_driver_sql(_SEARCH_INDEX).first() is not None
    return make_finding(
        "full-text-search",
        [f"SQLite {sqlite3.sqlite_version} has no FTS5"],
        level="problem" if has_index else "note",
        meaning="the SQLite of this Python is too old for the search of words in messages, or was "
        "compiled without FTS5"
        + (". The file has an index of it: a delete of a session fails" if has_index else ""),
        action="use a Python whose SQLite has FTS5, where words are searched",
    )


def _statistics(connection: Connection) -> list[Finding]:
    """Find tables that were nearly empty when somebody ran ANALYZE, and have many rows now.

    This package never runs ANALYZE. With statistics of one session and 100,000 sessions a turn took
    52 ms on SQLite 3.53, and 2.7 ms without statistics.
    """
    if connection.exec_driver_sql(_HAS_STATISTICS).first() is None:
        return []
    counted: dict[str, int] = {}
    for table, stat in connection.exec_driver_sql(_STATISTICS):
        # A line for each index. It begins with the rows in it, unless somebody changed it by hand.
        rows = str(stat)[:20].split(" ", 1)[0]
        if table in metadata.tables and rows.isascii() and rows.isdigit():
            counted[table] = max(counted.get(table, 0), int(rows))
    return make_finding(
        "statistics",
        [
            f"rows of {table}: {rows} at the last ANALYZE, now {MANY_ROWS:,} or more"
            for table, rows in sorted(counted.items())
            if rows < FEW_ROWS
            and connection.exec_driver_sql(_HAS_MANY_ROWS.format(table)).first() is not None
        ],
        meaning="the statistics are from a time with few rows. So SQLite reads whole tables, and "
        "each turn takes longer with every session",
        action="run ANALYZE again, for example with `sqlite3 FILE ANALYZE`, and restart the "
        "processes that have the file open",
    )


def _settings(connection: Connection) -> list[Finding]:
    wrong = []
    journal = _rows(connection, "journal_mode")[0]
    if journal not in ("wal", "memory"):
        wrong.append(f"journal_mode is {journal}, should be wal")
    if int(_rows(connection, "foreign_keys")[0]) != 1:
        wrong.append("foreign_keys is off")
    synchronous = int(_rows(connection, "synchronous")[0])
    busy = int(_rows(connection, "busy_timeout")[0])
    expected = int(urls.busy_seconds(connection.engine.url) * 1000)
    if busy < expected:
        wrong.append(f"busy_timeout is {busy} ms, should be {expected} or more")
    if synchronous == 0:
        wrong.append("synchronous is OFF")
    weak = [] if synchronous != 1 else [f"synchronous is {_SYNCHRONOUS[synchronous]}"]
    return [
        *make_finding(
            "pragmas",
            wrong,
            meaning="connections do not have the settings that correctness needs",
            action="let sessionsdb open the database. On an engine of your own, no other code may "
            "change these settings after the connect",
        ),
        *make_finding(
            "durability",
            weak,
            level="note",
            meaning="a power loss may lose the last commits, a crash of a process does not",
            action='open the database with durability="full" unless this is intended',
        ),
    ]


def _rows(connection: Connection, pragma: str) -> list[str]:
    return [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA {pragma}")]
