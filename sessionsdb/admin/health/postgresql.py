"""The health of a PostgreSQL database: version, long transactions, bloat, indices."""

from __future__ import annotations

from sqlalchemy import Connection, text

from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.schema import metadata

LEAST_VERSION = 14

LONG_SECONDS = 300.0
"""A transaction that is open longer keeps VACUUM from cleaning what died since."""

DEAD_PART, DEAD_LEAST = 0.5, 10_000
"""Bloat: more dead rows than half the living, once they are this many. Busy mailboxes have a few
dead rows each at any time, and that is as it should be."""

_LONG = text("""
SELECT pid, coalesce(usename, '?') AS role, coalesce(application_name, '') AS program, state,
       extract(epoch FROM clock_timestamp() - xact_start) AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
  AND backend_type = 'client backend'
  AND xact_start < clock_timestamp() - make_interval(secs => CAST(:seconds AS double precision))
ORDER BY xact_start
""")

_PREPARED = text("""
SELECT gid, extract(epoch FROM clock_timestamp() - prepared) AS seconds FROM pg_prepared_xacts
WHERE database = current_database()
  AND prepared < clock_timestamp() - make_interval(secs => CAST(:seconds AS double precision))
""")

# After a purge much is dead, and autovacuum will come: it is a problem where it is off, or where it
# has come and not again for a day.
_DEAD = text("""
SELECT t.relname, t.n_live_tup AS live, t.n_dead_tup AS dead,
       greatest(t.last_autovacuum, t.last_vacuum) AS vacuumed_at,
       coalesce(greatest(t.last_autovacuum, t.last_vacuum) < now() - interval '1 day', false)
           OR current_setting('autovacuum') = 'off'
           OR coalesce('autovacuum_enabled=false' = ANY(c.reloptions), false) AS neglected
FROM pg_stat_user_tables AS t JOIN pg_class AS c ON c.oid = t.relid
WHERE t.schemaname = current_schema() AND t.relname = ANY(CAST(:tables AS text[]))
  AND t.n_dead_tup
      > greatest(CAST(:least AS bigint), t.n_live_tup * CAST(:part AS double precision))
ORDER BY t.relname
""")

_INVALID = text("""
SELECT i.relname
FROM pg_index AS x
JOIN pg_class AS i ON i.oid = x.indexrelid
JOIN pg_class AS t ON t.oid = x.indrelid
WHERE NOT (x.indisvalid AND x.indisready)
  AND t.relnamespace = CAST(current_schema() AS regnamespace)
  AND t.relname = ANY(CAST(:tables AS text[]))
ORDER BY i.relname
""")

_NOT_VALID = text("""
SELECT c.conname
FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid
WHERE NOT c.convalidated AND t.relnamespace = CAST(current_schema() AS regnamespace)
  AND t.relname = ANY(CAST(:tables AS text[]))
ORDER BY c.conname
""")


def check(connection: Connection) -> list[Finding]:
    tables = {"tables": sorted(metadata.tables)}
    return [
        *_version(connection),
        *_transactions(connection),
        *_bloat(connection, tables),
        *make_finding(
            "invalid-indices",
            list(connection.execute(_INVALID, tables).scalars()),
            meaning="a CREATE INDEX CONCURRENTLY was broken off: the index costs and serves nobody",
            action="REINDEX INDEX CONCURRENTLY each of them",
        ),
        *make_finding(
            "unvalidated-constraints",
            list(connection.execute(_NOT_VALID, tables).scalars()),
            meaning="rows that were there before may contradict them",
            action="ALTER TABLE … VALIDATE CONSTRAINT each of them",
        ),
    ]


def _version(connection: Connection) -> list[Finding]:
    number = int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
    return make_finding(
        "postgresql-version",
        [] if number >= LEAST_VERSION * 10_000 else [f"PostgreSQL {number // 10_000}"],
        meaning=f"older than {LEAST_VERSION}, the first version that is supported",
        action="upgrade the server",
    )


def _transactions(connection: Connection) -> list[Finding]:
    limit = {"seconds": LONG_SECONDS}
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
        meaning=f"open for more than {LONG_SECONDS:.0f} s: VACUUM can't clean what died since, and "
        "rows they have locked stay so",
        action="end them: SELECT pg_terminate_backend(pid); set "
        "idle_in_transaction_session_timeout for the program",
    )


def _bloat(connection: Connection, tables: dict[str, list[str]]) -> list[Finding]:
    rows = connection.execute(_DEAD, tables | {"least": DEAD_LEAST, "part": DEAD_PART}).all()
    return make_finding(
        "bloat",
        [
            f"{row.relname}: {row.dead} dead rows beside {row.live}, last vacuumed "
            + ("never" if row.vacuumed_at is None else f"{row.vacuumed_at:%F %T}")
            for row in rows
        ],
        level="problem" if any(row.neglected for row in rows) else "note",
        meaning="much is dead and not cleaned up yet: claims and sends walk over it",
        action="wait for autovacuum, which must be on, or VACUUM (ANALYZE) the tables; if it comes "
        "back, end long transactions and let autovacuum come sooner: "
        "ALTER TABLE … SET (autovacuum_vacuum_scale_factor = 0.02)",
    )
