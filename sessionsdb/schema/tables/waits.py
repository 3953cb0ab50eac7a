"""The sessions that wait for other sessions now: ``waits``."""

from __future__ import annotations

from sqlalchemy import Column, Index, Table

from sessionsdb.schema.base import BigInt, KeyText, UTCDateTime, metadata

# The waits of sessions for other sessions now. A wait that has expired was left by a process that
# died, and is ignored. There is no foreign key, so deleting a session does not touch this table.
waits = Table(
    "waits",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("waiter_id", KeyText, primary_key=True),
    Column("wait_id", KeyText, primary_key=True),
    Column("target_id", KeyText, nullable=False),
    Column("target_position", BigInt, nullable=False),
    Column("until", UTCDateTime, nullable=False),
    Index("ix_waits_until", "namespace", "until"),
)
