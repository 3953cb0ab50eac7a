"""The metadata and the column types that all tables share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    Text,
)
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.types import TypeDecorator

VERSION_TABLE = "sessionsdb_version"
"""The table of Alembic. Its own name keeps it apart from other Alembic projects in the database."""

INDEX_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=INDEX_NAMES)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC.

    On PostgreSQL it is a ``timestamptz``. On SQLite it is the text ``YYYY-MM-DD HH:MM:SS.ffffff``,
    which SQLite's date functions read, and which sorts by time.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time must have a zone")
        return value.astimezone(UTC)  # SQLite's type stores it without the zone

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class _PostgresText(Text):
    """The type ``text`` of PostgreSQL, for columns and for parameters.

    SQLAlchemy casts parameters to ``varchar``. PostgreSQL has no operator of ``text`` and
    ``varchar``, so it would prefer one that another role created in a schema of the search path.
    """

    render_bind_cast = True

    def adapt(self, cls: type[Any], **_: Any) -> Any:
        return _PostgresText(collation=self.collation)


PlainText = Text().with_variant(_PostgresText(), "postgresql")
KeyText = Text().with_variant(_PostgresText(collation="C"), "postgresql")
BigInt = BigInteger().with_variant(Integer(), "sqlite")


def keep_free(*, fillfactor: int) -> tuple[str, ExecutableDDLElement]:
    """Return a listener that sets the fillfactor of a new table, on PostgreSQL only.

    A keyword of ``Table`` for this came with SQLAlchemy 2.1 only.
    """
    sql = f"ALTER TABLE %(fullname)s SET (fillfactor = {fillfactor})"
    set_it = DDL(sql)  # type: ignore[no-untyped-call]  # DDL has no types
    return "after_create", set_it.execute_if(dialect="postgresql")


_index_options: list[tuple[Index, dict[str, dict[str, Any]]]] = []


def partial_index(
    name: str, *columns: ColumnElement[Any], where: ColumnElement[bool], unique: bool = False
) -> None:
    """Add an index that has the rows of a condition only."""
    options = {"where": where}
    index = Index(name, *columns, unique=unique)
    set_options_later(index, postgresql=options, sqlite=options)


def set_options_later(index: Index, **options: dict[str, Any]) -> None:
    """Give an index options for each database, when the metadata is read and not before.

    The options of an index for PostgreSQL import SQLAlchemy's dialect of PostgreSQL. That takes a
    twentieth of the start of a process, and no query needs an index.
    """
    _index_options.append((index, options))


def with_options(tables: MetaData) -> MetaData:
    """Return the metadata, after its indices have got their options. It may be called again."""
    for index, options in _index_options:
        for database, given in options.items():
            for option, value in given.items():
                index.dialect_options[database][option] = value
    return tables
