"""The messages that are sent later: ``schedules``."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    text,
)

from sessionsdb.schema.base import KeyText, PlainText, UTCDateTime, metadata, partial_index

# A row is written only while the mailbox of its session is locked: see operations/schedules.py.
schedules = Table(
    "schedules",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("id", KeyText, primary_key=True),
    Column("session_id", KeyText, nullable=False),
    # A session has a name at most once. Many schedules have none.
    Column("name", KeyText),
    # The message, as in ``inbox``.
    Column("content", PlainText, nullable=False),
    Column("payload", PlainText),
    Column("extra", PlainText),
    # The session whose agent scheduled it, and the place of the message in a chain of sends, as in
    # ``inbox``.
    Column("sender", PlainText),
    Column("hops", Integer, nullable=False, server_default=text("0")),
    Column("origin", PlainText),
    # Exactly one of both: a moment, or an expression that is read in the zone.
    Column("at", UTCDateTime),
    Column("cron", PlainText),
    Column("tz", PlainText, nullable=False),
    # one or all: the messages for due times that passed without a worker.
    Column("catch_up", PlainText, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    # The next due time, and the moment at which a worker looks at the row. They differ while a due
    # message waits for room in the inbox, or while no worker knows the zone.
    Column("due_at", UTCDateTime, nullable=False),
    Column("try_at", UTCDateTime, nullable=False),
    # When the inbox was full the last time that the message was due. NULL after a success.
    Column("refused_at", UTCDateTime),
    Column("last_fired_at", UTCDateTime),
    ForeignKeyConstraint(
        ["namespace", "session_id"], ["sessions.namespace", "sessions.id"], ondelete="CASCADE"
    ),
    CheckConstraint("(at IS NULL) <> (cron IS NULL)", name="when"),
    CheckConstraint("catch_up IN ('one', 'all')", name="catch_up"),
    # The schedules of a session are found by it too.
    Index("uq_schedules_name", "namespace", "session_id", "name", unique=True),
    # The first is for workers of one namespace, the second for workers of all namespaces. So a poll
    # reads one entry, however many schedules there are.
    Index("ix_schedules_due", "namespace", "try_at"),
    Index("ix_schedules_first", "try_at"),
)
partial_index(
    "ix_schedules_refused",
    schedules.c.namespace,
    schedules.c.id,
    where=schedules.c.refused_at.is_not(None),
)
