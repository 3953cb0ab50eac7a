"""Tell which database a connection or an engine belongs to."""

from __future__ import annotations

from typing import Literal, cast

from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

Kind = Literal["sqlite", "postgresql"]


def kind_of(source: Connection | AsyncConnection | Engine | AsyncEngine) -> Kind:
    """Return the kind of database behind a connection or an engine."""
    return cast(Kind, source.dialect.name)
