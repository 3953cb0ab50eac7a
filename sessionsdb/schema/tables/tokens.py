"""The tokens of clients of ``sessionsdb serve``: ``tokens``."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Table

from sessionsdb.schema.base import KeyText, PlainText, UTCDateTime, metadata

tokens = Table(
    "tokens",
    metadata,
    # The SHA-256 of the token in hexadecimal. The token itself is stored nowhere.
    Column("digest", KeyText, primary_key=True),
    # A short id, by which people see and revoke the token.
    Column("id", KeyText, nullable=False, unique=True),
    Column("namespace", KeyText, nullable=False),
    # Who or what uses it, for people.
    Column("name", PlainText, nullable=False),
    Column("rights", PlainText, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    # From then on it is refused. NULL: never.
    Column("expires_at", UTCDateTime),
    CheckConstraint("rights IN ('read', 'write', 'admin')", name="rights"),
)
