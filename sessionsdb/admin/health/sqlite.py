"""The health of a SQLite file: its settings and its pages."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection

from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.engine import urls

LEAST_VERSION = (3, 35, 0)
"""The first with RETURNING."""

_SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
_MOST_FAULTS = 20


def check(connection: Connection) -> list[Finding]:
    """Its version, the settings of our connections, and whether its pages are sound."""
    return [
        *_version(),
        *_settings(connection),
        *make_finding(
            "quick-check",
            [line for line in _rows(connection, f"quick_check({_MOST_FAULTS})") if line != "ok"],
            meaning="the file is damaged: rows may be lost or wrong",
            action="stop all writers, keep the file and its -wal, and restore a backup; "
            "`sqlite3 FILE .recover` saves what can be read",
        ),
    ]


def orphans(connection: Connection) -> list[Finding]:
    """Rows whose session or mailbox is not there."""
    return make_finding(
        "foreign-keys",
        [
            f"{table} row {row} refers to no row of {parent}"
            for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check")
        ],
        meaning="rows without their session were left by a program that writes with "
        "foreign keys off",
        action="have it set PRAGMA foreign_keys = ON; delete the rows once you have looked",
    )


def _version() -> list[Finding]:
    too_old = [] if sqlite3.sqlite_version_info >= LEAST_VERSION else [sqlite3.sqlite_version]
    return make_finding(
        "sqlite-version",
        too_old,
        meaning="this Python's SQLite is older than 3.35, and lacks RETURNING",
        action="use a Python with a newer SQLite",
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
    asked = int(urls.busy_seconds(connection.engine.url) * 1000)
    if busy < asked:
        wrong.append(f"busy_timeout is {busy} ms, should be {asked} or more")
    if synchronous == 0:
        wrong.append("synchronous is OFF")
    weak = [] if synchronous != 1 else [f"synchronous is {_SYNCHRONOUS[synchronous]}"]
    return [
        *make_finding(
            "pragmas",
            wrong,
            meaning="connections are not set up as correctness needs",
            action="let sessionsdb open the database; on an engine of yours nothing else may "
            "change these after the connect",
        ),
        *make_finding(
            "durability",
            weak,
            level="note",
            meaning="a power loss, not a crash, may take the last commits with it",
            action='open it with durability="full" if that is not meant',
        ),
    ]


def _rows(connection: Connection, pragma: str) -> list[str]:
    return [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA {pragma}")]
