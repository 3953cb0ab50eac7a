"""The tables. Migrations follow these definitions.

Every key starts with ``namespace``. Times are UTC with microseconds. Text columns of keys compare
by code point on both databases, so that an order by id is the same on both.

- ``sessions`` is the registry, with counters of each transcript.
- ``messages`` holds the transcripts.
- ``mailboxes`` holds the state of each session's inbox in one narrow row.
- ``inbox`` is the queue. It keeps finished messages as receipts.
- ``pieces`` holds the replies that running turns stream, until their commits.
- ``state_scopes`` and ``state_values`` hold the state that agents keep beside the transcripts.
- ``waits`` holds the sessions that wait for other sessions now.
- ``write_stamps`` tells which writes were committed whose answers were lost.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    false,
    func,
    literal_column,
    text,
)
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.types import TypeDecorator

VERSION_TABLE = "sessionsdb_version"
"""The table of Alembic. Its own name keeps it apart from other Alembic projects in the database."""

INDEX_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=INDEX_NAMES)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC.

    On PostgreSQL it is a ``timestamptz``. On SQLite it is the text ``YYYY-MM-DD HH:MM:SS.ffffff``,
    which SQLite's date functions read, and which sorts by time.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time must have a zone")
        return value.astimezone(UTC)  # SQLite's type stores it without the zone

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class _PostgresText(Text):
    """The type ``text`` of PostgreSQL, for columns and for parameters.

    SQLAlchemy casts parameters to ``varchar``. PostgreSQL has no operator of ``text`` and
    ``varchar``, so it would prefer one that another role created in a schema of the search path.
    """

    render_bind_cast = True

    def adapt(self, cls: type[Any], **_: Any) -> Any:
        return _PostgresText(collation=self.collation)


PlainText = Text().with_variant(_PostgresText(), "postgresql")
KeyText = Text().with_variant(_PostgresText(collation="C"), "postgresql")
BigInt = BigInteger().with_variant(Integer(), "sqlite")


def _keep_free(*, fillfactor: int) -> tuple[str, ExecutableDDLElement]:
    """Return a listener that sets the fillfactor of a new table, on PostgreSQL only.

    A keyword of ``Table`` for this came with SQLAlchemy 2.1 only.
    """
    set_it = DDL(f"ALTER TABLE %(fullname)s SET (fillfactor = {fillfactor})")  # type: ignore[no-untyped-call]
    return "after_create", set_it.execute_if(dialect="postgresql")


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
    ForeignKeyConstraint(["namespace", "parent_id"], ["sessions.namespace", "sessions.id"]),
    Index("ix_sessions_updated", "namespace", "updated_at", "id"),
    listeners=[_keep_free(fillfactor=85)],
)

# A row is in exactly one of the next two, so a list of live sessions never reads ended ones.
Index(
    "ix_sessions_live",
    sessions.c.namespace,
    sessions.c.last_active,
    sessions.c.id,
    postgresql_where=sessions.c.ended_at.is_(None),
    sqlite_where=sessions.c.ended_at.is_(None),
)
Index(
    "ix_sessions_ended",
    sessions.c.namespace,
    sessions.c.last_active,
    sessions.c.id,
    postgresql_where=sessions.c.ended_at.is_not(None),
    sqlite_where=sessions.c.ended_at.is_not(None),
)
Index(
    "ix_sessions_children",
    sessions.c.namespace,
    sessions.c.parent_id,
    sessions.c.last_active,
    sessions.c.id,
    postgresql_where=sessions.c.parent_id.is_not(None),
    sqlite_where=sessions.c.parent_id.is_not(None),
)
Index(
    "ix_sessions_tree",
    sessions.c.namespace,
    sessions.c.root_id,
    sessions.c.last_active,
    sessions.c.id,
    postgresql_where=sessions.c.root_id.is_not(None),
    sqlite_where=sessions.c.root_id.is_not(None),
)
Index(
    "uq_sessions_spawn",
    sessions.c.namespace,
    sessions.c.parent_id,
    sessions.c.idempotency_key,
    unique=True,
    postgresql_where=sessions.c.idempotency_key.is_not(None),
    sqlite_where=sessions.c.idempotency_key.is_not(None),
)

CHANNEL_PREFIX = 16
PEER_PREFIX = 48
"""The characters of a channel and of a peer that are in an index. Both may have 4,096 characters,
and PostgreSQL limits an entry of an index to 2,704 bytes."""

_contact = (
    func.substr(sessions.c.channel, literal_column("1"), literal_column(str(CHANNEL_PREFIX))),
    func.substr(sessions.c.peer, literal_column("1"), literal_column(str(PEER_PREFIX))),
)
Index(
    "ix_sessions_peer_live",
    sessions.c.namespace,
    *_contact,
    sessions.c.last_active,
    sessions.c.id,
    postgresql_where=sessions.c.ended_at.is_(None),
    sqlite_where=sessions.c.ended_at.is_(None),
)
Index(
    "ix_sessions_peer_ended",
    sessions.c.namespace,
    *_contact,
    sessions.c.last_active,
    sessions.c.id,
    postgresql_where=sessions.c.ended_at.is_not(None),
    sqlite_where=sessions.c.ended_at.is_not(None),
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
    # came through the inbox have them. They stand here too, because inbox rows are purged.
    Column("sender", PlainText),
    Column("sent_at", UTCDateTime),
    ForeignKeyConstraint(
        ["namespace", "session_id"], ["sessions.namespace", "sessions.id"], ondelete="CASCADE"
    ),
)

# The key is before the session, so that a message is found by its key in all of the namespace.
Index(
    "uq_messages_key",
    messages.c.namespace,
    messages.c.key,
    messages.c.session_id,
    unique=True,
    postgresql_where=messages.c.key.is_not(None),
    sqlite_where=messages.c.key.is_not(None),
)


def first_epoch() -> int:
    """Return the first epoch of a new mailbox: a random number.

    A session may be deleted and created again with the same id. Its epochs must then not repeat:
    a turn of the deleted session may still hold one of them.
    """
    return secrets.randbits(48)


mailboxes = Table(
    "mailboxes",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    # All messages before head are finished, except those that are marked as ahead. Between head and
    # tail are unfinished messages and holes: messages that were cancelled or handled ahead.
    Column("head", BigInt, nullable=False, server_default=text("1")),
    Column("tail", BigInt, nullable=False, server_default=text("0")),
    Column("pending", BigInt, nullable=False, server_default=text("0")),
    # How many messages the running turn has, and the last position of them that is not ahead.
    Column("taken", BigInt, nullable=False, server_default=text("0")),
    Column("last_taken", BigInt, nullable=False, server_default=text("0")),
    Column("ready_at", UTCDateTime),
    Column("wake_at", UTCDateTime),
    Column("owner", PlainText),
    Column("lease_until", UTCDateTime),
    # Starts at first_epoch().
    Column("epoch", BigInt, nullable=False, server_default=text("0")),
    # The session has ended. The column is here too, because a send decides by the row that it has
    # locked.
    Column("closed", Boolean, nullable=False, server_default=false()),
    ForeignKeyConstraint(
        ["namespace", "session_id"], ["sessions.namespace", "sessions.id"], ondelete="CASCADE"
    ),
    CheckConstraint(
        "(CASE WHEN ready_at IS NULL THEN 0 ELSE 1 END)"
        " + (CASE WHEN wake_at IS NULL THEN 0 ELSE 1 END)"
        " + (CASE WHEN owner IS NULL THEN 0 ELSE 1 END) <= 1",
        name="one_state",
    ),
    CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name="lease"),
    CheckConstraint("pending >= taken AND taken >= 0", name="counts"),
    sqlite_with_rowid=False,
    # lease_until and pending are in no index. So a heartbeat and a send to a busy session are
    # heap-only updates (HOT), for which the free space is kept.
    listeners=[_keep_free(fillfactor=70)],
)

# A worker of one namespace does not walk over the backlog of another. A worker of all namespaces
# finds the namespaces with work by a walk that reads one entry for each of them.
Index(
    "ix_mailboxes_ready",
    mailboxes.c.namespace,
    mailboxes.c.ready_at,
    mailboxes.c.session_id,
    postgresql_where=mailboxes.c.ready_at.is_not(None),
    sqlite_where=mailboxes.c.ready_at.is_not(None),
)
Index(
    "ix_mailboxes_waiting",
    mailboxes.c.wake_at,
    mailboxes.c.namespace,
    mailboxes.c.session_id,
    postgresql_where=mailboxes.c.wake_at.is_not(None),
    sqlite_where=mailboxes.c.wake_at.is_not(None),
)
Index(
    "ix_mailboxes_leased",
    mailboxes.c.owner,
    mailboxes.c.namespace,
    mailboxes.c.session_id,
    postgresql_where=mailboxes.c.owner.is_not(None),
    sqlite_where=mailboxes.c.owner.is_not(None),
)

inbox = Table(
    "inbox",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    Column("position", BigInt, primary_key=True, autoincrement=False),
    Column("status", PlainText, nullable=False),
    Column("content", PlainText, nullable=False),
    Column("payload", PlainText),
    Column("sender", PlainText),
    # The author and the metadata of the message: see messages/extra.py.
    Column("extra", PlainText),
    # How many sessions have passed the message on since a user sent the first one, and the session
    # that the user sent it to.
    Column("hops", Integer, nullable=False, server_default=text("0")),
    Column("origin", PlainText),
    # W3C's traceparent of the send, if one was recorded. The span of the turn links to it.
    Column("trace", PlainText),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    # Claimed before the messages from head to tail, wherever it stands: a requeued message.
    Column("ahead", Boolean, nullable=False, server_default=false()),
    # Joined a turn that was already running. The attempts of that turn are not its own.
    Column("joined", Boolean, nullable=False, server_default=false()),
    # How many turns over it in a row did not commit because the transcript was rewritten.
    Column("reruns", Integer, nullable=False, server_default=text("0")),
    # Why a message was cancelled: cancel, interrupt or end.
    Column("stopped_by", PlainText),
    Column("idempotency_key", PlainText),
    # With a key: a digest of the arguments. Without: an id of the write, by which a sender whose
    # connection broke finds whether the message was committed.
    Column("fingerprint", PlainText),
    Column("error", PlainText),
    Column("enqueued_at", UTCDateTime, nullable=False),
    Column("claimed_at", UTCDateTime),
    Column("finished_at", UTCDateTime),
    # The same as finished_at, for dead messages only. An index over status instead would turn the
    # heap-only update (HOT) of every claim into a full one.
    Column("dead_at", UTCDateTime),
    Column("worker", PlainText),
    # The epoch of the lease of its last turn. A worker that lost the answer to a commit tells by it
    # whether the turn was committed: an attempt number can come again, an epoch can't.
    Column("epoch", BigInt),
    # The first and last message that the turn over this one wrote to the transcript.
    Column("first_seq", BigInt),
    Column("last_seq", BigInt),
    Column("model", PlainText),
    Column("input_tokens", BigInt),
    Column("output_tokens", BigInt),
    ForeignKeyConstraint(
        ["namespace", "session_id"],
        ["mailboxes.namespace", "mailboxes.session_id"],
        ondelete="CASCADE",
    ),
    CheckConstraint("status IN ('pending', 'running', 'done', 'dead', 'cancelled')", name="status"),
    # A message is updated when it is claimed and when it is finished. There is room for both new
    # versions of the row in its page.
    listeners=[_keep_free(fillfactor=80)],
)

Index(
    "uq_inbox_idempotency",
    inbox.c.namespace,
    inbox.c.session_id,
    inbox.c.idempotency_key,
    unique=True,
    postgresql_where=inbox.c.idempotency_key.is_not(None),
    sqlite_where=inbox.c.idempotency_key.is_not(None),
)
Index(
    "ix_inbox_ahead",
    inbox.c.namespace,
    inbox.c.session_id,
    inbox.c.position,
    postgresql_where=inbox.c.ahead,
    sqlite_where=inbox.c.ahead,
)
Index(
    "ix_inbox_dead",
    inbox.c.namespace,
    inbox.c.dead_at,
    inbox.c.session_id,
    inbox.c.position,
    postgresql_where=inbox.c.dead_at.is_not(None),
    sqlite_where=inbox.c.dead_at.is_not(None),
)

# The streamed pieces of replies, see operations/pieces.py. There is no foreign key: pieces that no
# running turn owns are invisible by their epoch, and are swept.
pieces = Table(
    "pieces",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    # The epoch of the lease of the turn that streams.
    Column("epoch", BigInt, primary_key=True, autoincrement=False),
    # How often the worker has written this turn's pieces from the start, because rows of them were
    # lost with a server that failed.
    Column("generation", Integer, primary_key=True, autoincrement=False),
    # The number of the piece in its generation, from 0 on.
    Column("number", BigInt, primary_key=True, autoincrement=False),
    # How many characters of text are before the piece.
    Column("start", BigInt, nullable=False),
    # The text of a piece, or the kind and the JSON of a piece of data.
    Column("text", PlainText),
    Column("kind", PlainText),
    Column("data", PlainText),
    Column("written_at", UTCDateTime, nullable=False),
)

# The state of a session, of a peer or of a namespace: see operations/state.py. A row is made by the
# first write to a scope, and is locked by each write.
state_scopes = Table(
    "state_scopes",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    # session, peer or namespace.
    Column("scope", KeyText, primary_key=True),
    # The id of the session, a digest of a long id or of channel and peer, or an empty text.
    Column("owner", KeyText, primary_key=True),
    # The session itself, so that its state is deleted with it.
    Column("session_id", KeyText),
    # Of a peer's scope.
    Column("channel", PlainText),
    Column("peer", PlainText),
    Column("version", BigInt, nullable=False, server_default=text("0")),
    # The size of all keys and values, in UTF-8.
    Column("bytes", BigInt, nullable=False, server_default=text("0")),
    Column("updated_at", UTCDateTime, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "session_id"], ["sessions.namespace", "sessions.id"], ondelete="CASCADE"
    ),
)
Index(
    "ix_state_scopes_session",
    state_scopes.c.namespace,
    state_scopes.c.session_id,
    postgresql_where=state_scopes.c.session_id.is_not(None),
    sqlite_where=state_scopes.c.session_id.is_not(None),
)

state_values = Table(
    "state_values",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("scope", KeyText, primary_key=True),
    Column("owner", KeyText, primary_key=True),
    Column("key", KeyText, primary_key=True),
    # JSON.
    Column("value", PlainText, nullable=False),
    ForeignKeyConstraint(
        ["namespace", "scope", "owner"],
        ["state_scopes.namespace", "state_scopes.scope", "state_scopes.owner"],
        ondelete="CASCADE",
    ),
)

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
    listeners=[_keep_free(fillfactor=20)],
)
