"""Sessions with their transcripts: ``sessions`` and ``messages``."""

from __future__ import annotations

import secrets

from sqlalchemy import (
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    func,
    literal_column,
    text,
)

from sessionsdb.schema.base import (
    BigInt,
    KeyText,
    PlainText,
    UTCDateTime,
    keep_free,
    metadata,
    partial_index,
)

sessions = Table(
    "sessions",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("id", KeyText, primary_key=True),
    Column("parent_id", KeyText),
    # The root of the session's tree. NULL for a session without a parent: most sessions have none,
    # and are so kept out of the tree's index.
    Column("root_id", KeyText),
    Column("depth", Integer, nullable=False, server_default=text("0")),
    Column("channel", PlainText, nullable=False),
    Column("peer", PlainText, nullable=False),
    Column("model", PlainText),
    Column("system", PlainText),
    Column("tools", PlainText),
    Column("metadata", PlainText),
    Column("created_at", UTCDateTime, nullable=False),
    Column("updated_at", UTCDateTime, nullable=False),
    Column("last_active", UTCDateTime, nullable=False),
    Column("ended_at", UTCDateTime),
    Column("end_reason", PlainText),
    Column("version", BigInt, nullable=False, server_default=text("0")),
    Column("last_seq", BigInt, nullable=False, server_default=text("0")),
    Column("message_count", BigInt, nullable=False, server_default=text("0")),
    # How many writes removed or replaced a message. A turn that began before such a write does not
    # commit. An append leaves the number as it is.
    Column("rewrites", BigInt, nullable=False, server_default=text("0")),
    # A random id, see new_incarnation(). NULL for sessions that were made before revision 0008.
    Column("incarnation", PlainText),
    # Identify a repeated spawn of one parent.
    Column("idempotency_key", PlainText),
    Column("fingerprint", PlainText),
    # The session that this one is a fork of, and the last message that was copied, 0 for none. The
    # other session may have been deleted since.
    Column("forked_from", PlainText),
    Column("forked_seq", BigInt),
    # The question that was withdrawn last, until a turn commits that has seen so.
    Column("withdrawn", BigInt),
    # Whether the parent is told what came of this child, see operations/child_reports.py: each (it
    # is still to be told), sent, dropped, or NULL.
    Column("report", PlainText),
    # The hops and the origin of the prompt, for the report. The inbox row may have been purged.
    Column("report_hops", Integer),
    Column("report_origin", PlainText),
    ForeignKeyConstraint(["namespace", "parent_id"], ["sessions.namespace", "sessions.id"]),
    Index("ix_sessions_updated", "namespace", "updated_at", "id"),
    listeners=[keep_free(fillfactor=85)],
)

# A row is in exactly one of the next two, so a list of live sessions never reads ended ones.
partial_index(
    "ix_sessions_live",
    sessions.c.namespace,
    sessions.c.last_active,
    sessions.c.id,
    where=sessions.c.ended_at.is_(None),
)
partial_index(
    "ix_sessions_ended",
    sessions.c.namespace,
    sessions.c.last_active,
    sessions.c.id,
    where=sessions.c.ended_at.is_not(None),
)
partial_index(
    "ix_sessions_children",
    sessions.c.namespace,
    sessions.c.parent_id,
    sessions.c.last_active,
    sessions.c.id,
    where=sessions.c.parent_id.is_not(None),
)
partial_index(
    "ix_sessions_tree",
    sessions.c.namespace,
    sessions.c.root_id,
    sessions.c.last_active,
    sessions.c.id,
    where=sessions.c.root_id.is_not(None),
)
partial_index(
    "uq_sessions_spawn",
    sessions.c.namespace,
    sessions.c.parent_id,
    sessions.c.idempotency_key,
    unique=True,
    where=sessions.c.idempotency_key.is_not(None),
)

CHANNEL_PREFIX = 16
PEER_PREFIX = 48
"""The characters of a channel and of a peer that are in an index. Both may have 4,096 characters,
and PostgreSQL limits an entry of an index to 2,704 bytes."""

_contact = (
    func.substr(sessions.c.channel, literal_column("1"), literal_column(str(CHANNEL_PREFIX))),
    func.substr(sessions.c.peer, literal_column("1"), literal_column(str(PEER_PREFIX))),
)
partial_index(
    "ix_sessions_peer_live",
    sessions.c.namespace,
    *_contact,
    sessions.c.last_active,
    sessions.c.id,
    where=sessions.c.ended_at.is_(None),
)
partial_index(
    "ix_sessions_peer_ended",
    sessions.c.namespace,
    *_contact,
    sessions.c.last_active,
    sessions.c.id,
    where=sessions.c.ended_at.is_not(None),
)


def new_incarnation() -> str:
    """Return a random id for a new session.

    A session may be deleted and created again with the same id. A follower tells by this id that
    its cursor belongs to the deleted one.
    """
    return secrets.token_hex(8)


messages = Table(
    "messages",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    Column("seq", BigInt, primary_key=True, autoincrement=False),
    Column("role", PlainText, nullable=False),
    Column("content", PlainText, nullable=False),
    Column("payload", PlainText),
    Column("created_at", UTCDateTime, nullable=False),
    Column("position", BigInt),
    # On the first row of a write. A caller whose connection broke finds the row by it, and so knows
    # whether the write was committed. Appends on SQLite have none: an answer can't be lost there.
    Column("write_id", PlainText),
    # A JSON object with the rare properties of a message: see messages/extra.py.
    Column("extra", PlainText),
    # A name that the caller gave to the message: a session has it once, see operations/editing.py.
    Column("key", PlainText),
    # The session whose agent sent the message, and when the message was sent. Only messages that
    # came through the inbox have them. They stand here too, because inbox rows are purged. A
    # message that was imported from another program's file has its own time too.
    Column("sender", PlainText),
    Column("sent_at", UTCDateTime),
    ForeignKeyConstraint(
        ["namespace", "session_id"], ["sessions.namespace", "sessions.id"], ondelete="CASCADE"
    ),
)

# The key is before the session, so that a message is found by its key in all of the namespace.
partial_index(
    "uq_messages_key",
    messages.c.namespace,
    messages.c.key,
    messages.c.session_id,
    unique=True,
    where=messages.c.key.is_not(None),
)
