"""The index over the words of messages: ``search_marks`` and ``search_documents``.

Both are filled behind the commits that write messages, see operations/search_index.py. A database
in which nothing was indexed has no rows here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Dialect, ForeignKeyConstraint, Index, Table, Text, text
from sqlalchemy.types import TypeDecorator, TypeEngine

from sessionsdb.schema.base import BigInt, KeyText, metadata, set_options_later


class _Words(TypeDecorator[str]):
    """Words for a full-text search: a ``tsvector`` on PostgreSQL, and a text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name != "postgresql":
            return dialect.type_descriptor(Text())
        # Here, because a process with SQLite starts 5% faster without SQLAlchemy's dialect of
        # PostgreSQL.
        from sqlalchemy.dialects.postgresql import TSVECTOR

        return dialect.type_descriptor(TSVECTOR())


# How far the transcript of a session is indexed.
search_marks = Table(
    "search_marks",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    # Goes up with each change of the row. Of two indexers at one session only one moves the mark.
    Column("version", BigInt, nullable=False),
    # The messages up to this one are indexed.
    Column("seq", BigInt, nullable=False),
    # `sessions.rewrites` when they were, and how many messages had been removed: last_seq -
    # message_count. With other numbers the transcript is compared with the index from the start.
    Column("rewrites", BigInt, nullable=False),
    Column("removed", BigInt, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "session_id"], ["sessions.namespace", "sessions.id"], ondelete="CASCADE"
    ),
)

# One row for each message that has words.
search_documents = Table(
    "search_documents",
    metadata,
    # The time of the message in milliseconds, then bits of its seq and random ones. So the order of
    # the ids is the order of the hits. FTS5 of SQLite needs one number for a document.
    Column("id", BigInt, primary_key=True, autoincrement=False),
    Column("namespace", KeyText, nullable=False),
    Column("session_id", KeyText, nullable=False),
    Column("seq", BigInt, nullable=False),
    # A digest of the words, by which a message that was replaced is found.
    Column("digest", BigInt, nullable=False),
    # The words as messages/search_words.py tells them apart. On SQLite FTS5 reads them from here
    # when a document is deleted.
    Column("words", _Words, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "session_id"],
        ["search_marks.namespace", "search_marks.session_id"],
        ondelete="CASCADE",
    ),
    Index("ix_search_documents_message", "namespace", "session_id", "seq"),
)

# SQLite has the virtual table search_words in its place, and this index is empty there. FTS5 makes
# the table when the first message is indexed: a SQLite without FTS5 can use all other tables.
set_options_later(
    Index("ix_search_documents_words", search_documents.c.words),
    postgresql={"using": "gin"},
    sqlite={"where": text("0")},
)
