"""Stamps: a transaction whose answer was lost tells by a row whether it was committed.

A transaction first writes the number of its write into a row of ``write_stamps``, and only then
runs its operation. The row and the changes of the operation are committed together or not at all.
After a lost answer the transaction runs again with the same number. If the row has that number
already, the first one was committed, and the operation does not run. The first attempt of a write
has a new number, which no row can have. It needs no answer, so its stamp goes along with BEGIN.

This needs no transaction id, so it holds after a restart, on a promoted standby, and where another
server keeps the rows. It also needs no knowledge of the first transaction: while that one still
runs, it holds the row's lock, and the second one waits.
"""

from __future__ import annotations

from typing import Generic, TypeVar
from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.server_process import ServerProcess
from sessionsdb.engine.postgresql.stamped_begin import StampingConnection, stamping_connection
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.statement import Statement

T = TypeVar("T")

WRITES_A_SLOT = 1_000
"""A slot gets a new row after this many writes.

Each write leaves a dead version of the row behind. While an old transaction is open, a backup for
example, PostgreSQL can't remove them, and each write walks over all of them.
"""

# Returns how often this write was committed before: 0 or more.
_STAMP = Statement("""
INSERT INTO write_stamps AS w (slot, number, repeats, used_at)
VALUES (:slot, :number, 0, pg_catalog.clock_timestamp())
ON CONFLICT (slot) DO UPDATE
SET number = excluded.number,
    repeats = CASE WHEN w.number = excluded.number THEN w.repeats + 1 ELSE 0 END,
    used_at = excluded.used_at
RETURNING repeats
""")

# Rows of processes that have ended. A write in doubt is settled or given up within minutes.
_FORGET = Statement("""
DELETE FROM write_stamps WHERE slot IN (
    SELECT slot FROM write_stamps
    WHERE slot = :replaced OR used_at < pg_catalog.clock_timestamp() - interval '1 day'
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
""")


class _Slot:
    """A row of ``write_stamps``, used by one write at a time of this process."""

    def __init__(self) -> None:
        self._key = uuid4().hex
        self._replaced = ""
        self._number = 0

    @property
    def is_new(self) -> bool:
        """Whether no write has stamped this slot."""
        return self._number == 1

    def next_write(self) -> None:
        self._number += 1
        if self._number > WRITES_A_SLOT:
            self._key, self._replaced, self._number = uuid4().hex, self._key, 1

    def stamp(self, connection: Connection) -> bool:
        """Write the number of the write. Return whether the write was committed before."""
        if self.is_new:
            _FORGET.rows(connection, {"replaced": self._replaced})
        row = _STAMP.row(connection, {"slot": self._key, "number": self._number})
        assert row is not None
        return bool(row[0])

    def stamp_with_begin(self, connection: StampingConnection) -> None:
        """Write the number of a write that was never tried before with the next BEGIN."""
        connection.stamp_next_transaction(self._key, self._number)


class StampSlots:
    """The slots of one process: one for each transaction that runs at the same time."""

    def __init__(self) -> None:
        self.with_begin = False
        """Whether a stamp may go along with BEGIN, see ``stamped_begin``."""
        self._idle: list[_Slot] = []

    def take(self) -> _Slot:
        slot = self._idle.pop() if self._idle else _Slot()
        slot.next_write()
        return slot

    def give_back(self, slot: _Slot) -> None:
        self._idle.append(slot)


class StampedWrite(Generic[T]):
    """One write in a transaction, which may take several attempts."""

    def __init__(self, operation: Operation[T], slots: StampSlots | None) -> None:
        """``slots`` is ``None`` for an operation that may be committed twice."""
        self._operation = operation
        self._slots = slots
        self._slot: _Slot | None = None
        self._result: T
        self.in_doubt = False
        """Whether an attempt may have been committed whose answer was lost."""
        self.committing = False
        """Whether this attempt has sent its COMMIT."""
        self.lost_process: ServerProcess | None = None
        """The process of an attempt whose connection broke: it may still run."""
        self._process = ServerProcess()

    @property
    def result(self) -> T:
        return self._result

    @property
    def is_unsettled(self) -> bool:
        """Whether the database must be asked before the write can succeed or fail."""
        return self.in_doubt or self.lost_process is not None

    def run_transaction(self, connection: Connection) -> None:
        """Run the operation in a transaction, unless an earlier attempt was committed."""
        # Explicit, since SQLAlchemy begins none for a `Statement`.
        transaction = connection.begin()
        self._process = ServerProcess()
        self._process.run(connection, self._run)
        self.committing = True
        transaction.commit()

    def _run(self, connection: Connection) -> None:
        if self._slots is not None:
            if self._slot is None:  # not earlier: only so many connections write at a time
                self._slot = self._slots.take()
                if self._slots.with_begin and not self._slot.is_new:
                    stamping = stamping_connection(connection)
                    if stamping is not None:
                        return self._run_with_begin(connection, stamping, self._slot)
            if self._slot.stamp(connection):
                return None
        self.in_doubt = False
        self._result = self._operation(connection)
        return None

    def _run_with_begin(
        self, connection: Connection, stamping: StampingConnection, slot: _Slot
    ) -> None:
        """Run the first attempt of a write. Its first statement sends BEGIN and the stamp."""
        slot.stamp_with_begin(stamping)
        try:
            self._result = self._operation(connection)
            stamping.require_stamp()
        finally:
            stamping.drop_stamp()

    def lose_answer(self) -> None:
        """Note that the connection of this attempt broke, or that none could be made."""
        if self.committing:
            self.in_doubt = True
        if not self.in_doubt:  # the broken transaction can't commit, but may hold the row's lock
            self._slot = None
        if self._process.identity is not None:
            self.lost_process, self._process = self._process, ServerProcess()

    def close(self) -> None:
        if self._slots is not None and self._slot is not None and not self.in_doubt:
            self._slots.give_back(self._slot)
