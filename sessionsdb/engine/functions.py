"""Functions of SQL for SQLAlchemy statements that run on both databases.

PostgreSQL takes the function whose argument types fit best, from any schema of the search path. So
a role that may create functions in one of these schemas could have its own function called in place
of the server's. On PostgreSQL the functions here are rendered with their schema, ``pg_catalog``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Function, Integer, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeEngine

from sessionsdb.engine.statement import QUALIFIER


class _ServerFunction(Function[Any]):
    """A function of the database itself."""

    inherit_cache = True


@compiles(_ServerFunction, "postgresql")
def _with_schema(element: _ServerFunction, compiler: Any, **options: Any) -> str:
    return QUALIFIER + str(compiler.visit_function(element, **options))


def count() -> ColumnElement[int]:
    """Return ``count(*)``."""
    return _ServerFunction("count", literal_column("*"), type_=Integer)


def maximum(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return _ServerFunction("max", column, type_=column.type)


def minimum(column: ColumnElement[Any], type_: TypeEngine[Any] | None = None) -> ColumnElement[Any]:
    return _ServerFunction("min", column, type_=type_ or column.type)


def total(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return ``sum(column)``."""
    return _ServerFunction("sum", column)


def start_of(column: ColumnElement[str], characters: int) -> ColumnElement[str]:
    """Return the first characters of a text. The number stands in the SQL, as in an index."""
    return _ServerFunction(
        "substr", column, literal_column("1"), literal_column(str(characters)), type_=column.type
    )
