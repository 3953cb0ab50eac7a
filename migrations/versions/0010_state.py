"""State of sessions, peers and namespaces, forks, and an index over channel and peer.

Revision: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
ZERO = sa.text("0")


def upgrade() -> None:
    # Columns without a default cost the same for any number of rows.
    op.add_column("sessions", sa.Column("forked_from", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("forked_seq", BIG, nullable=True))
    _create_index("ix_sessions_peer_live", "ended_at IS NULL")
    _create_index("ix_sessions_peer_ended", "ended_at IS NOT NULL")
    op.create_table(
        "state_scopes",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("scope", KEY, nullable=False),
        sa.Column("owner", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=True),
        sa.Column("channel", sa.Text(), nullable=True),
        sa.Column("peer", sa.Text(), nullable=True),
        sa.Column("version", BIG, nullable=False, server_default=ZERO),
        sa.Column("bytes", BIG, nullable=False, server_default=ZERO),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("namespace", "scope", "owner", name="pk_state_scopes"),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["sessions.namespace", "sessions.id"],
            name="fk_state_scopes_namespace_session_id_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_state_scopes_session",
        "state_scopes",
        ["namespace", "session_id"],
        postgresql_where=sa.text("session_id IS NOT NULL"),
        sqlite_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_table(
        "state_values",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("scope", KEY, nullable=False),
        sa.Column("owner", KEY, nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "scope", "owner", "key", name="pk_state_values"),
        sa.ForeignKeyConstraint(
            ["namespace", "scope", "owner"],
            ["state_scopes.namespace", "state_scopes.scope", "state_scopes.owner"],
            name="fk_state_values_namespace_scope_owner_state_scopes",
            ondelete="CASCADE",
        ),
    )


def _create_index(name: str, where: str) -> None:
    # PostgreSQL limits an entry to 2,704 bytes. A channel and a peer may be longer.
    substr = "pg_catalog.substr" if op.get_context().dialect.name == "postgresql" else "substr"
    op.create_index(
        name,
        "sessions",
        [
            "namespace",
            sa.text(f"{substr}(channel, 1, 16)"),
            sa.text(f"{substr}(peer, 1, 48)"),
            "last_active",
            "id",
        ],
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )


def downgrade() -> None:
    op.drop_table("state_values")
    op.drop_table("state_scopes")
    op.drop_index("ix_sessions_peer_ended", "sessions")
    op.drop_index("ix_sessions_peer_live", "sessions")
    op.drop_column("sessions", "forked_seq")
    op.drop_column("sessions", "forked_from")
