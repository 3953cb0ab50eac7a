"""The state that agents keep beside transcripts: ``state_scopes`` and ``state_values``."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKeyConstraint, Table, text

from sessionsdb.schema.base import BigInt, KeyText, PlainText, UTCDateTime, metadata, partial_index

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
partial_index(
    "ix_state_scopes_session",
    state_scopes.c.namespace,
    state_scopes.c.session_id,
    where=state_scopes.c.session_id.is_not(None),
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
