"""The inboxes of sessions: ``mailboxes`` and ``inbox``."""

from __future__ import annotations

import secrets

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Integer,
    Table,
    false,
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
    # The open question that the session is held by: its position in questions. wake_at is then the
    # expiry of the question.
    Column("question", BigInt),
    # The next message without a sender is the answer to the open question.
    Column("accepts_message", Boolean, nullable=False, server_default=false()),
    # The position of an answer that is not handled yet. It is claimed before all other messages,
    # and alone. Others that were requeued wait for its end.
    Column("answer", BigInt),
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
    listeners=[keep_free(fillfactor=70)],
)

# A worker of one namespace does not walk over the backlog of another. A worker of all namespaces
# finds the namespaces with work by a walk that reads one entry for each of them.
partial_index(
    "ix_mailboxes_ready",
    mailboxes.c.namespace,
    mailboxes.c.ready_at,
    mailboxes.c.session_id,
    where=mailboxes.c.ready_at.is_not(None),
)
partial_index(
    "ix_mailboxes_waiting",
    mailboxes.c.wake_at,
    mailboxes.c.namespace,
    mailboxes.c.session_id,
    where=mailboxes.c.wake_at.is_not(None),
)
partial_index(
    "ix_mailboxes_leased",
    mailboxes.c.owner,
    mailboxes.c.namespace,
    mailboxes.c.session_id,
    where=mailboxes.c.owner.is_not(None),
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
    # It is the answer to the question with this position, or the notice of its expiry.
    Column("answers", BigInt),
    # The turn over it has asked a question, with the position of this message.
    Column("asked", Boolean, nullable=False, server_default=false()),
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
    listeners=[keep_free(fillfactor=80)],
)

partial_index(
    "uq_inbox_idempotency",
    inbox.c.namespace,
    inbox.c.session_id,
    inbox.c.idempotency_key,
    unique=True,
    where=inbox.c.idempotency_key.is_not(None),
)
partial_index(
    "ix_inbox_ahead",
    inbox.c.namespace,
    inbox.c.session_id,
    inbox.c.position,
    where=inbox.c.ahead,
)
partial_index(
    "ix_inbox_dead",
    inbox.c.namespace,
    inbox.c.dead_at,
    inbox.c.session_id,
    inbox.c.position,
    where=inbox.c.dead_at.is_not(None),
)
