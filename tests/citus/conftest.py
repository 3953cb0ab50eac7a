"""Tests on Citus, with the tables of a group of tenants in a schema of their own.

They run where ``SESSIONSDB_TEST_CITUS_URL`` names a coordinator, with a superuser that needs no
password: ``postgresql://postgres@127.0.0.1:9750/postgres``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import make_url

from devtools.databases import Database
from sessionsdb import SessionsDB

COORDINATOR = os.environ["SESSIONSDB_TEST_CITUS_URL"]
NUMBERS = itertools.count(1)


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
async def database(kind: str) -> AsyncIterator[Database]:
    """A role with a schema, migrated, whose tables Citus keeps on one node."""
    assert kind == "postgresql"
    name = f"tenant_{os.getpid()}_{next(NUMBERS)}"
    admin = await asyncpg.connect(COORDINATOR)
    try:
        await admin.execute(f"CREATE ROLE {name} LOGIN")
        await admin.execute(f"ALTER ROLE {name} SET search_path = {name}")
        await admin.execute("SET citus.enable_schema_based_sharding TO on")
        await admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        url = make_url(COORDINATOR).set(username=name)
        tenant = Database("postgresql", url.render_as_string(hide_password=False))
        async with SessionsDB(tenant.url, migrate=True):
            pass
        yield tenant
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", name
        )
        await admin.execute(f"DROP SCHEMA {name} CASCADE")
        await admin.execute(f"DROP OWNED BY {name}")
        await admin.execute(f"DROP ROLE {name}")
    finally:
        await admin.close()
