"""The stamps of committed writes: ``write_stamps``."""

from __future__ import annotations

from sqlalchemy import Column, Table

from sessionsdb.schema.base import BigInt, KeyText, UTCDateTime, keep_free, metadata

# One row for each transaction that a process runs at the same time, see
# engine/postgresql/write_stamps.py. Empty on SQLite, where an answer can't be lost.
write_stamps = Table(
    "write_stamps",
    metadata,
    Column("slot", KeyText, primary_key=True),
    Column("number", BigInt, nullable=False),
    # How often the same write was committed again, to find out that it had been before.
    Column("repeats", BigInt, nullable=False),
    # In no index, so that each stamp is a heap-only update (HOT) in its page.
    Column("used_at", UTCDateTime, nullable=False),
    listeners=[keep_free(fillfactor=20)],
)
