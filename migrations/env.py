"""How alembic runs our revisions: from `alembic`, from `sessionsdb migrate`, and in tests.

`sessionsdb.migrate` passes a connection that holds the migration lock; the `alembic` command has
none and opens its own through the same module.
"""

from __future__ import annotations

from alembic import context

from sessionsdb import schema
from sessionsdb.engine import migrate


def run() -> None:
    config = context.config
    if context.is_offline_mode():
        context.configure(
            dialect_name=migrate.dialect_of(config),
            target_metadata=schema.metadata,
            version_table=schema.VERSION_TABLE,
            literal_binds=True,
            transactional_ddl=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        return
    connection = config.attributes.get("connection")
    if connection is None:
        migrate.run_alembic_command(config, run)
        return
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        version_table=schema.VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=False,
        compare_type=True,
        include_name=migrate.is_ours,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
