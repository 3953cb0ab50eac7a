"""Health checks of one kind of database: the file of SQLite, the server of PostgreSQL."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection

from sessionsdb.admin.findings import Finding
from sessionsdb.admin.health import postgresql, sqlite
from sessionsdb.engine.dialect import Kind


class HealthChecks(Protocol):
    """The checks that differ by database. A module implements them."""

    def check_database(self, connection: Connection) -> list[Finding]:
        """Check the version, the settings and the storage."""

    def check_encoding(self, connection: Connection) -> list[Finding]:
        """Check that the database can store every character."""

    def check_references(self, connection: Connection) -> list[Finding]:
        """Check that every row has the session or the mailbox that it refers to."""


CHECKS: dict[Kind, HealthChecks] = {"sqlite": sqlite, "postgresql": postgresql}
