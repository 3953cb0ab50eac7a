"""Run the revisions for the `alembic` command, and compare the tables with `sessionsdb.schema`.

`sessionsdb.engine.migrations` passes a connection. The `alembic` command passes none, so the
connection is made here. A command that changes nothing takes no lock and creates no schema.
"""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from sessionsdb import schema
from sessionsdb.engine import migrations
from sessionsdb.runtime import open_database


def run_offline() -> None:
    context.configure(
        dialect_name=migrations.dialect_of(context.config),
        dialect_opts={"paramstyle": "named"},  # others double each % of the DDL
        target_metadata=schema.metadata,
        version_table=schema.VERSION_TABLE,
        literal_binds=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        for statement in migrations.schema_ddl(context.config):
            context.execute(statement)
        context.run_migrations()


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        version_table=schema.VERSION_TABLE,
        transactional_ddl=True,
        compare_server_default=True,
        include_name=migrations.is_ours,
    )
    if not context.get_context().opts.get("dont_mutate"):  # as `alembic current` sets it
        migrations.prepare(connection)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    engine = open_database.create_engine(migrations.url_of(context.config), "full")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    run_offline()
elif "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    asyncio.run(connect_and_run())
