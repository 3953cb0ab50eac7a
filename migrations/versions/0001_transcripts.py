"""Sessions and their transcripts.

Revision: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def _keep_free(table: str, *, fillfactor: int) -> None:
    # A keyword of create_table for this came with SQLAlchemy 2.1 only.
    if op.get_context().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {table} SET (fillfactor = {fillfactor})")


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("parent_id", KEY, nullable=True),
        sa.Column("root_id", KEY, nullable=True),
        sa.Column("depth", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("system", sa.Text(), nullable=True),
        sa.Column("tools", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("last_active", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("version", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("last_seq", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("message_count", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["namespace", "parent_id"],
            ["sessions.namespace", "sessions.id"],
            name="fk_sessions_namespace_parent_id_sessions",
        ),
        sa.PrimaryKeyConstraint("namespace", "id", name="pk_sessions"),
    )
    _keep_free("sessions", fillfactor=85)
    op.create_index(
        "ix_sessions_children",
        "sessions",
        ["namespace", "parent_id", "last_active", "id"],
        unique=False,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
        sqlite_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "ix_sessions_ended",
        "sessions",
        ["namespace", "last_active", "id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL"),
        sqlite_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_index(
        "ix_sessions_live",
        "sessions",
        ["namespace", "last_active", "id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
        sqlite_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_sessions_tree",
        "sessions",
        ["namespace", "root_id", "last_active", "id"],
        unique=False,
        postgresql_where=sa.text("root_id IS NOT NULL"),
        sqlite_where=sa.text("root_id IS NOT NULL"),
    )
    op.create_index(
        "ix_sessions_updated", "sessions", ["namespace", "updated_at", "id"], unique=False
    )
    op.create_index(
        "uq_sessions_spawn",
        "sessions",
        ["namespace", "parent_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_table(
        "messages",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("seq", BIG, autoincrement=False, nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("position", BIG, nullable=True),
        sa.Column("write_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["sessions.namespace", "sessions.id"],
            name="fk_messages_namespace_session_id_sessions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "session_id", "seq", name="pk_messages"),
    )


def downgrade() -> None:
    op.drop_table("messages")
    op.drop_index("uq_sessions_spawn", table_name="sessions")
    op.drop_index("ix_sessions_updated", table_name="sessions")
    op.drop_index("ix_sessions_tree", table_name="sessions")
    op.drop_index("ix_sessions_live", table_name="sessions")
    op.drop_index("ix_sessions_ended", table_name="sessions")
    op.drop_index("ix_sessions_children", table_name="sessions")
    op.drop_table("sessions")
