"""Check a PostgreSQL database: version, long transactions, bloat, indices."""

from __future__ import annotations

from sqlalchemy import Connection, text

from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.engine.postgresql.citus import has_citus
from sessionsdb.engine.postgresql.safe_path import schemas_open_to_everyone
from sessionsdb.engine.postgresql.search_path import quote_identifier
from sessionsdb.schema import metadata

MIN_VERSION = 14

LONG_TRANSACTION_SECONDS = 300.0
"""A longer transaction keeps VACUUM from removing rows that died since its start."""

BLOAT_RATIO, MIN_DEAD_ROWS = 0.5, 10_000
"""Bloat is more than 10,000 dead rows, and more than half the number of live rows. A busy mailbox
always has a few dead rows, which is normal."""

_LONG = text("""
SELECT pid, coalesce(usename, '?') AS role, coalesce(application_name, '') AS program, state,
       extract(epoch FROM pg_catalog.clock_timestamp() - xact_start) AS seconds
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
  AND xact_start IS NOT NULL
  AND backend_type = 'client backend'
  AND xact_start < pg_catalog.clock_timestamp()
      - pg_catalog.make_interval(secs => CAST(:seconds AS double precision))
ORDER BY xact_start
""")

_PREPARED = text("""
SELECT gid, extract(epoch FROM pg_catalog.clock_timestamp() - prepared) AS seconds
FROM pg_catalog.pg_prepared_xacts
WHERE database = pg_catalog.current_database()
  AND prepared < pg_catalog.clock_timestamp()
      - pg_catalog.make_interval(secs => CAST(:seconds AS double precision))
""")

# A purge leaves many dead rows, which autovacuum removes later. Bloat is a problem if autovacuum is
# off, or if its last run was more than a day ago.
_DEAD = text("""
SELECT t.relname, t.n_live_tup AS live, t.n_dead_tup AS dead,
       greatest(t.last_autovacuum, t.last_vacuum) AS vacuumed_at,
       coalesce(
           greatest(t.last_autovacuum, t.last_vacuum) < pg_catalog.now() - interval '1 day', false
       )
           OR pg_catalog.current_setting('autovacuum') = 'off'
           OR coalesce('autovacuum_enabled=false' = ANY(c.reloptions), false) AS neglected
FROM pg_catalog.pg_stat_user_tables AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
WHERE t.schemaname = pg_catalog.current_schema() AND t.relname = ANY(CAST(:tables AS text[]))
  AND CAST(t.n_dead_tup AS double precision) > greatest(
      CAST(:min_dead AS double precision),
      CAST(t.n_live_tup AS double precision) * CAST(:ratio AS double precision)
  )
ORDER BY t.relname
""")

_INVALID = text("""
SELECT i.relname
FROM pg_catalog.pg_index AS x
JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class AS t ON t.oid = x.indrelid
WHERE NOT (x.indisvalid AND x.indisready)
  AND t.relnamespace
    = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema())
  AND t.relname = ANY(CAST(:tables AS text[]))
ORDER BY i.relname
""")

_NOT_VALID = text("""
SELECT c.conname
FROM pg_catalog.pg_constraint AS c JOIN pg_catalog.pg_class AS t ON t.oid = c.conrelid
WHERE NOT c.convalidated
  AND t.relnamespace
    = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema())
  AND t.relname = ANY(CAST(:tables AS text[]))
ORDER BY c.conname
""")


def check_database(connection: Connection) -> list[Finding]:
    tables = {"tables": sorted(metadata.tables)}
    return [
        *_version(connection),
        *check_encoding(connection),
        *_isolation(connection),
        *_transactions(connection),
        *_bloat(connection, tables),
        *_open_schemas(connection),
        *_citus(connection),
        *make_finding(
            "invalid-indices",
            list(connection.execute(_INVALID, tables).scalars()),
            meaning="a CREATE INDEX CONCURRENTLY was interrupted: the index slows writes and "
            "serves no read",
            action="run REINDEX INDEX CONCURRENTLY on each of them",
        ),
        *make_finding(
            "unvalidated-constraints",
            list(connection.execute(_NOT_VALID, tables).scalars()),
            meaning="older rows may violate them",
            action="run ALTER TABLE … VALIDATE CONSTRAINT on each of them",
        ),
    ]


def _open_schemas(connection: Connection) -> list[Finding]:
    return make_finding(
        "open-schemas",
        [f"schema {quote_identifier(name)}" for name in schemas_open_to_everyone(connection)],
        level="note",
        meaning="every role may create functions in a schema of the search path, and so have them "
        "called by the queries of other roles. `sessionsdb grant-reader` refuses to add readers",
        action="run REVOKE CREATE ON SCHEMA … FROM PUBLIC, as PostgreSQL 15 does for new databases",
    )


def _citus(connection: Connection) -> list[Finding]:
    return make_finding(
        "citus",
        ["the database is distributed by Citus"] if has_citus(connection) else [],
        level="note",
        meaning="four guarantees are weaker here. A wake-up reaches the processes that are "
        "connected to the same server, and the others find out by their next poll. A lease may be "
        "written by the clock of one server and judged by another's. Roles of `sessionsdb "
        "grant-reader` can't read the reports, because a server runs a view with their own rights. "
        "If a server fails during a commit, reads find its rows up to a minute later",
        action="connect all processes to one server, keep the clocks within a second of each other "
        "(NTP), and hand out reports with `sessionsdb report NAME --format csv`",
    )


def check_references(_connection: Connection) -> list[Finding]:
    return []  # PostgreSQL enforces foreign keys on every connection


def _version(connection: Connection) -> list[Finding]:
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    return make_finding(
        "postgresql-version",
        [] if number >= MIN_VERSION * 10_000 else [f"PostgreSQL {number // 10_000}"],
        meaning=f"older than {MIN_VERSION}, the first version that is supported",
        action="upgrade the server",
    )


def check_encoding(connection: Connection) -> list[Finding]:
    encoding = str(connection.exec_driver_sql("SHOW server_encoding").scalar_one())
    return make_finding(
        "database-encoding",
        [] if encoding in ("UTF8", "SQL_ASCII") else [f"the encoding is {encoding}"],
        meaning="messages with other characters, an emoji for example, will be refused",
        action="create a database with ENCODING 'UTF8' TEMPLATE template0, migrate it, and move "
        "the sessions with export and import",
    )


def _isolation(connection: Connection) -> list[Finding]:
    """Our own connections set the level. Those of a pooler or of a given engine may not."""
    level = str(connection.exec_driver_sql("SHOW default_transaction_isolation").scalar_one())
    return make_finding(
        "transaction-isolation",
        [] if level == "read committed" else [f"the default is {level}"],
        meaning="a call that has waited for a lock does not see what was committed meanwhile: "
        "limits of children are passed, and calls fail with serialization errors",
        action="run ALTER ROLE … SET default_transaction_isolation = 'read committed' for the role "
        "of this connection, and connect anew",
    )


def _transactions(connection: Connection) -> list[Finding]:
    limit = {"seconds": LONG_TRANSACTION_SECONDS}
    long = [
        f"pid {row.pid}, {row.role} {row.program}: {row.state} for {row.seconds:.0f} s"
        for row in connection.execute(_LONG, limit)
    ]
    long += [
        f"prepared transaction {row.gid}: for {row.seconds:.0f} s"
        for row in connection.execute(_PREPARED, limit)
    ]
    return make_finding(
        "long-transactions",
        long,
        meaning=f"open for more than {LONG_TRANSACTION_SECONDS:.0f} s: VACUUM can't remove rows "
        "that died since, and locked rows stay locked",
        action="end them with SELECT pg_terminate_backend(pid), and set "
        "idle_in_transaction_session_timeout for the program",
    )


def _bloat(connection: Connection, tables: dict[str, list[str]]) -> list[Finding]:
    rows = connection.execute(
        _DEAD, tables | {"min_dead": MIN_DEAD_ROWS, "ratio": BLOAT_RATIO}
    ).all()
    return make_finding(
        "bloat",
        [
            f"{row.relname}: {row.dead} dead rows beside {row.live}, last vacuumed "
            + ("never" if row.vacuumed_at is None else f"{row.vacuumed_at:%F %T}")
            for row in rows
        ],
        level="problem" if any(row.neglected for row in rows) else "note",
        meaning="many dead rows are not removed yet: claims and sends have to skip them",
        action="wait for autovacuum, which must be on, or run VACUUM (ANALYZE) on the tables. If "
        "the bloat returns, end long transactions and let autovacuum run sooner: "
        "ALTER TABLE … SET (autovacuum_vacuum_scale_factor = 0.02)",
    )
