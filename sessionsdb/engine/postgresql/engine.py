"""Make SQLAlchemy engines for PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from uuid import uuid4

import asyncpg
from sqlalchemy import NullPool
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionsdb.engine.postgresql import failover
from sessionsdb.engine.postgresql.search_path import (
    name_schema,
    search_path,
    set_path_of_transactions,
)
from sessionsdb.errors import InvalidArgument
from sessionsdb.types import Durability


def create_postgres_engine(
    url: URL,
    durability: Durability,
    *,
    transaction_pooler: bool = False,
    schema: str | None = None,
    read_only: bool = False,
) -> AsyncEngine:
    """Return an engine for a URL, whose tables are in ``schema``.

    With ``read_only`` the server refuses every write, also after a standby was promoted.

    A transaction pooler gives a connection for one transaction at a time, so nothing may be kept on
    a connection: no prepared statements, no settings.
    """
    if transaction_pooler:
        hosts = failover.HostList()
        if durability != "full":
            raise InvalidArgument(
                'durability="normal" can\'t be set through a transaction pooler; set '
                "synchronous_commit for the role: ALTER ROLE … SET synchronous_commit = off"
            )
        engine = create_async_engine(
            url.update_query_dict({"prepared_statement_cache_size": "0"}),
            poolclass=NullPool,
            connect_args={
                "statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__sessionsdb_{uuid4().hex}__",
                "async_creator_fn": hosts.connect,
            },
        )
        return set_path_of_transactions(failover.attach(engine, hosts), schema)
    # A statement must see the rows that were committed while it waited for a lock.
    settings = {"jit": "off", "default_transaction_isolation": "read committed"}
    if durability == "normal":
        settings["synchronous_commit"] = "off"
    if read_only:
        settings["default_transaction_read_only"] = "on"
    if schema is not None:
        settings["search_path"] = search_path(schema)
    hosts = failover.HostList(partial(_set_up, settings))
    engine = create_async_engine(
        url,
        pool_size=10,
        max_overflow=10,
        connect_args={
            "server_settings": {"application_name": "sessionsdb"},
            "async_creator_fn": hosts.connect,
        },
    )
    return name_schema(failover.attach(engine, hosts), schema)


# Our statements take arrays: a plan made for the values of one call costs more than it gains. Citus
# can't distribute a generic plan.
_SET_PLAN_CACHE_MODE = """
    pg_catalog.set_config('plan_cache_mode', CASE
        WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'citus')
        THEN 'auto' ELSE 'force_generic_plan'
    END, false)
"""


async def _set_up(settings: Mapping[str, str], connection: asyncpg.Connection) -> None:
    """Make the settings of a new connection, in one round trip.

    pgbouncer refuses most of them as startup parameters, also in session mode.
    """
    pairs = [text for pair in settings.items() for text in pair]
    calls = [f"pg_catalog.set_config(${n}, ${n + 1}, false)" for n in range(1, len(pairs), 2)]
    await connection.execute(f"SELECT {', '.join([*calls, _SET_PLAN_CACHE_MODE])}", *pairs)
