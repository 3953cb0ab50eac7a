"""The questions of turns to people: ``questions``."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Table,
    false,
)

from sessionsdb.schema.base import BigInt, KeyText, PlainText, UTCDateTime, metadata, partial_index

# A row is made by the commit of the turn that asks. It is kept when the question is closed. So a
# repeated or late answer gets a true reply, and the turn of the answer can read it.
questions = Table(
    "questions",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    # The inbox position of the last message of the turn that asked. A message is done once, so the
    # position never asks twice.
    Column("position", BigInt, primary_key=True, autoincrement=False),
    # The text for people and for SQL. NUL and lone surrogates are U+FFFD here.
    Column("prompt", PlainText, nullable=False),
    # The exact prompt and the data, as JSON. NULL when the prompt says it all.
    Column("payload", PlainText),
    Column("accept_message", Boolean, nullable=False, server_default=false()),
    Column("status", PlainText, nullable=False),
    Column("asked_at", UTCDateTime, nullable=False),
    Column("expires_at", UTCDateTime),
    Column("closed_at", UTCDateTime),
    # The inbox position of the answer, or of the notice of the expiry.
    Column("answer_position", BigInt),
    # A digest of the message and the author of the answer: the same answer again is no error.
    Column("answer_digest", PlainText),
    ForeignKeyConstraint(
        ["namespace", "session_id"],
        ["mailboxes.namespace", "mailboxes.session_id"],
        ondelete="CASCADE",
    ),
    CheckConstraint(
        "status IN ('open', 'answered', 'expired', 'withdrawn', 'ended')", name="status"
    ),
)

# Open questions are few, and are listed with the oldest first.
partial_index(
    "ix_questions_open",
    questions.c.namespace,
    questions.c.asked_at,
    questions.c.session_id,
    questions.c.position,
    where=questions.c.closed_at.is_(None),
)
