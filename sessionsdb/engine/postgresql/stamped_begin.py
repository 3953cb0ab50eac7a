"""Begin a transaction and write its stamp in one message to the server.

A statement of its own for the stamp is one more round trip in each transaction, a sixth of a lone
``update``. So the stamp goes along with BEGIN. A message of several commands has no parameters, and
the server would plan its text each time. So a connection prepares the stamp by name once, and each
message executes it.

Only connections of our own engines are used so. The owner of an engine may drop all prepared
statements, and a pooler may give the next transaction another connection of the server. Where the
server does not know the name, the stamp is a statement of its own for the rest of the connection.
"""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import Connection

from sessionsdb.private_apis import forget_transaction

_BEGINNINGS = ("BEGIN;", "BEGIN ISOLATION LEVEL ")
"""The texts by which the driver begins a transaction. SQLAlchemy names the isolation level on a
connection that was in AUTOCOMMIT before."""

_NAME = "sessionsdb_stamp"

# An UPDATE would take the server half as long. But it has a plan, and the plan of a young table is
# to read all of it. While an old transaction keeps the dead versions of all rows, that is slow.
_WRITE = """
INSERT INTO write_stamps (slot, number, repeats, used_at)
VALUES ($1, $2, 0, pg_catalog.clock_timestamp())
ON CONFLICT (slot) DO UPDATE SET number = excluded.number, repeats = 0, used_at = excluded.used_at
"""


class UnstampedTransaction(RuntimeError):
    """A transaction has begun without the stamp that was to go along with its BEGIN."""


class StampingConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that can write a stamp together with a BEGIN."""

    _stamp: tuple[str, int] | None = None
    """The slot and the number of the stamp that the next BEGIN writes."""

    _is_prepared = False
    _keeps_statements = True
    """Whether the server has kept what was prepared by name."""

    def stamp_next_transaction(self, slot: str, number: int) -> None:
        """Write this stamp with the next BEGIN. The number must be new."""
        self._stamp = (slot, number)

    def require_stamp(self) -> None:
        """Raise ``UnstampedTransaction`` if a transaction has begun without its stamp.

        Without a statement no transaction has begun, and no stamp is needed.
        """
        if self._stamp is not None and self.has_begun():
            raise UnstampedTransaction("the driver began a transaction in an unknown way")

    def has_begun(self) -> bool:
        """Return whether the server is in a transaction. A lost connection is in none."""
        return not self.is_closed() and bool(self.is_in_transaction())

    def drop_stamp(self) -> None:
        """Leave later transactions without a stamp."""
        self._stamp = None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if self._stamp is not None and query.startswith(_BEGINNINGS):
            slot, number = self._stamp
            self._stamp = None
            return await self._begin(query, slot, number, timeout)
        status: str = await super().execute(query, *args, timeout=timeout)
        return status

    async def _begin(self, begin: str, slot: str, number: int, timeout: float | None) -> str:
        try:
            if self._keeps_statements and await self._execute_prepared(
                begin, slot, number, timeout
            ):
                return begin
            await super().execute(begin, timeout=timeout)
            await super().execute(_WRITE, slot, number)
        except asyncpg.PostgresError:
            # For the driver no transaction has begun. So it would not be rolled back.
            if self.has_begun():
                await super().execute("ROLLBACK")
            forget_transaction(self)
            raise
        except BaseException:
            self.terminate()
            raise
        return begin

    async def _execute_prepared(
        self, begin: str, slot: str, number: int, timeout: float | None
    ) -> bool:
        """Begin, and write the row of the slot. Return false if the server forgot the name."""
        try:
            if not self._is_prepared:
                await super().execute(f"PREPARE {_NAME} (text, bigint) AS {_WRITE}")
                self._is_prepared = True
            # Both values are ours: a hexadecimal text and an integer.
            await super().execute(f"{begin} EXECUTE {_NAME}('{slot}', {number})", timeout=timeout)
        except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
            self._keeps_statements = False
            if self.has_begun():
                await super().execute("ROLLBACK")
            return False
        return True


def stamping_connection(connection: Connection) -> StampingConnection | None:
    """Return the driver's connection, if its next statement begins a transaction that it can stamp.

    ``None`` within a transaction, and for connections of another class.
    """
    driver = connection.connection.driver_connection
    if isinstance(driver, StampingConnection) and not driver.has_begun():
        return driver
    return None
