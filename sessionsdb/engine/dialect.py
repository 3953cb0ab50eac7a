"""Which of the supported databases a connection or an engine is for.

This is the only place that reads SQLAlchemy's ``dialect.name``. Code that differs by database lives
in one folder for each database, and is looked up there by ``kind_of``.
"""

from __future__ import annotations

from typing import Literal, Protocol, cast

import sqlalchemy

Kind = Literal["sqlite", "postgresql"]


class _HasDialect(Protocol):
    """A connection or an engine of SQLAlchemy, synchronous or not."""

    @property
    def dialect(self) -> sqlalchemy.Dialect: ...


def kind_of(source: _HasDialect) -> Kind:
    """Return the database that a connection or an engine is for.

    The engine was checked when the database was opened (``urls.check_engine``).
    """
    return cast(Kind, source.dialect.name)
