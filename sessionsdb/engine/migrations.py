"""Read, check and change the schema revision of a database.

Alembic runs the revisions. It is imported where it runs, since most openings of a database only
read the revision, and the import takes 0.1 s. The revisions are in ``migrations/``, beside the
package in a checkout and inside it in a wheel. A migration holds a lock, so that two concurrent
ones both succeed: the second finds the schema up to date.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TextClause,
    column,
    inspect,
    select,
    table,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable
from sqlalchemy.util.concurrency import await_only, in_greenlet

from sessionsdb import schema
from sessionsdb.engine import urls
from sessionsdb.engine.dialect import kind_of
from sessionsdb.engine.postgresql import revision, search_path
from sessionsdb.engine.postgresql.migration_lock import lock_migrations, run_in_attempts
from sessionsdb.engine.repeatable import repeatable
from sessionsdb.errors import SchemaOutOfDate, StorageError
from sessionsdb.schema import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script, ScriptDirectory

# duplicate_table, also for an index or a view; duplicate_object
_TAKEN_SQLSTATES = ("42P07", "42710")

# Alembic keeps its state in module globals, so a process runs one migration at a time.
_RUN_LOCK = threading.Lock()

# As alembic creates it.
_VERSION = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)


def configuration(**attributes: Any) -> Config:
    """Return alembic's configuration, in a checkout and in an installed package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes.update(attributes)
    return config


def _folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    in_wheel, in_checkout = package / "migrations", package.parent / "migrations"
    return in_wheel if in_wheel.is_dir() else in_checkout


@cache
def head() -> str:
    """Return the revision that this version of the package works with."""
    return revisions()[-1]


@cache
def revisions() -> tuple[str, ...]:
    """Return all revisions, oldest first. The name of a revision's file begins with its number."""
    files = (_folder() / "versions").glob("[0-9]*.py")
    return tuple(sorted(file.name.partition("_")[0] for file in files))


def current(connection: Connection) -> str | None:
    """Return the revision of a database, or ``None`` if it has no revision."""
    if kind_of(connection) == "postgresql":
        return revision.current_revision(connection)
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    versions = select(column("version_num", Text)).select_from(table(VERSION_TABLE))
    return connection.execute(versions).scalar_one_or_none()


def check(connection: Connection) -> None:
    """Raise ``SchemaOutOfDate`` unless the database is at the head."""
    found = current(connection)
    if found is None:
        raise _missing_tables(connection)
    if found != head():
        raise SchemaOutOfDate(found, head(), newer=found not in revisions())


def require_file(url: URL) -> None:
    """Raise ``SchemaOutOfDate`` if the file of a SQLite database does not exist."""
    file = urls.file_of(url)
    if file is not None and not file.exists():
        raise SchemaOutOfDate(None, head(), state=f"{file} does not exist")


@repeatable("a second run finds the schema up to date, and changes nothing")
def upgrade(connection: Connection, target: str = "head") -> tuple[str | None, str | None]:
    """Upgrade a database to ``target`` in the caller's transaction.

    Returns the revisions before and after. Raises ``SchemaOutOfDate`` for a database of a newer
    version of the package.
    """
    prepare(connection)
    before = current(connection)
    if before is not None and before not in revisions():
        raise SchemaOutOfDate(before, head(), newer=True)
    steps = list(_script().iterate_revisions(target, before or "base"))[::-1]
    with _explain_taken_names(connection):
        _run(connection, [(step.module.upgrade, step.revision) for step in steps])
    return before, current(connection)


def downgrade(connection: Connection, target: str) -> None:
    """Downgrade a database to ``target`` in the caller's transaction.

    Data that only later revisions can store is lost.
    """
    lock(connection)
    steps = list(_script().iterate_revisions(current(connection), target))
    _run(connection, [(step.module.downgrade, _below(step)) for step in steps])


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(configuration())


def _below(step: Script) -> str | None:
    below = step.down_revision
    assert below is None or isinstance(below, str), "our revisions are a line without branches"
    return below


def _run(connection: Connection, steps: Sequence[tuple[Callable[[], None], str | None]]) -> None:
    """Run functions of revisions, each with the revision that it leads to."""
    run = partial(_run_at_once, connection, steps)
    if kind_of(connection) == "postgresql":
        run_in_attempts(connection, run)
    else:
        run()


def _run_at_once(
    connection: Connection, steps: Sequence[tuple[Callable[[], None], str | None]]
) -> None:
    """Run functions of revisions.

    Alembic's own runner is not used: it compares the version with operators that another role may
    have created in a schema of PostgreSQL's search path.
    """
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    options = {"version_table": VERSION_TABLE, "target_metadata": schema.metadata}
    context = MigrationContext.configure(connection, opts=options)
    with _exclusive_run(), Operations.context(context):
        connection.execute(CreateTable(_VERSION, if_not_exists=True))
        for change, reached in steps:
            change()
            connection.execute(_VERSION.delete())
            if reached is not None:
                connection.execute(_VERSION.insert().values(version_num=reached))


def prepare(connection: Connection) -> None:
    """Create the schema of the connection's engine if it is missing, and take the lock.

    Raises ``StorageError`` with the statement for an administrator if the role may not create it.
    """
    # First, because without the schema a table would become a temporary one.
    if kind_of(connection) == "postgresql" and search_path.schema_of(connection) is not None:
        search_path.create_schema(connection)
    lock(connection)


def lock(connection: Connection) -> None:
    """Wait until no other migration runs, and keep others out until the transaction ends.

    SQLite needs no lock, since it has one write transaction at a time.
    """
    if kind_of(connection) == "postgresql":
        lock_migrations(connection)


def _missing_tables(connection: Connection) -> SchemaOutOfDate:
    """Return the error for a database without a revision, with the reason and its remedy."""
    if search_path.schema_of(connection) is not None and not search_path.has_schema(connection):
        name = search_path.quote_identifier(str(search_path.schema_of(connection)))
        return SchemaOutOfDate(None, head(), state=f"has no schema {name}")
    if kind_of(connection) == "postgresql":
        taken = revision.taken_names(connection)
    else:
        inspector = inspect(connection)
        existing = {*inspector.get_table_names(), *inspector.get_view_names()}
        taken = sorted(existing & set(schema.metadata.tables))
    if not taken:
        return SchemaOutOfDate(None, head())
    return SchemaOutOfDate(
        None,
        head(),
        state=f"has no sessionsdb tables, but tables of another program: {', '.join(taken)}",
        remedy=f"{_own_place(connection)}; then run sessionsdb migrate with that URL",
    )


@contextmanager
def _explain_taken_names(connection: Connection) -> Iterator[None]:
    """Give advice when a table or index of another program has the name of one of ours."""
    try:
        yield
    except DBAPIError as error:
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate not in _TAKEN_SQLSTATES and "already exists" not in str(error.orig):
            raise
        raise StorageError(
            f"nothing was migrated, a name is taken by another program: {error.orig}; "
            f"{_own_place(connection)}"
        ) from error.orig


def _own_place(connection: Connection) -> str:
    if kind_of(connection) == "sqlite":
        return "keep the sessions in a file of their own, as in --url sqlite:///agents.db"
    return (
        "keep the sessions in a schema of their own: add schema= to the URL, as in "
        "postgresql://USER@HOST/NAME?schema=agents"
    )


@contextmanager
def _exclusive_run() -> Iterator[None]:
    # Over asyncpg, alembic runs in a greenlet of the event loop. It must not block the loop, since
    # the run that holds the lock may be on the same loop.
    while not _RUN_LOCK.acquire(blocking=not in_greenlet()):
        await_only(asyncio.sleep(0.005))
    try:
        yield
    finally:
        _RUN_LOCK.release()


def ddl(url: str, target: str = "head", *, since: str | None = None) -> str:
    """Return the SQL that ``upgrade`` would run, for a DBA to run."""
    from alembic import command

    out = io.StringIO()
    parsed = urls.parse(url)
    config = configuration(dialect=urls.kind(parsed), schema=urls.schema_of(parsed))
    config.output_buffer = out
    with _exclusive_run():
        command.upgrade(config, f"{since or 'base'}:{target}", sql=True)
    return out.getvalue()


def url_of(config: Config) -> str:
    """Return the URL for the ``alembic`` command, of ``SESSIONSDB_URL`` or of ``alembic.ini``."""
    return os.environ.get("SESSIONSDB_URL") or config.get_main_option("sqlalchemy.url") or ""


def dialect_of(config: Config) -> str:
    """Return the dialect to print SQL for in alembic's offline mode."""
    dialect = config.attributes.get("dialect")
    return str(dialect) if dialect is not None else urls.kind(urls.parse(url_of(config)))


def schema_ddl(config: Config) -> list[TextClause]:
    """Return the statements that alembic's offline mode prints before those of the revisions."""
    if "dialect" in config.attributes:
        name = config.attributes["schema"]
    else:
        name = urls.schema_of(urls.parse(url_of(config)))
    return [] if name is None else search_path.schema_ddl(name)


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Return whether autogenerate should look at an object: other tables may be beside ours."""
    return kind != "table" or name in schema.metadata.tables
