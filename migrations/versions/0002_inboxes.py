"""Mailboxes and inboxes.

Revision: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
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
        "mailboxes",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("head", BIG, server_default=sa.text("1"), nullable=False),
        sa.Column("tail", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("pending", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("taken", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("ready_at", TIME, nullable=True),
        sa.Column("wake_at", TIME, nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("epoch", BIG, server_default=sa.text("0"), nullable=False),
        sa.Column("closed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.CheckConstraint(
            "(CASE WHEN ready_at IS NULL THEN 0 ELSE 1 END) + (CASE WHEN wake_at IS NULL THEN 0 ELSE 1 END) + (CASE WHEN owner IS NULL THEN 0 ELSE 1 END) <= 1",
            name=op.f("ck_mailboxes_one_state"),
        ),
        sa.CheckConstraint(
            "(owner IS NULL) = (lease_until IS NULL)", name=op.f("ck_mailboxes_lease")
        ),
        sa.CheckConstraint("pending >= taken AND taken >= 0", name=op.f("ck_mailboxes_counts")),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["sessions.namespace", "sessions.id"],
            name="fk_mailboxes_namespace_session_id_sessions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "session_id", name="pk_mailboxes"),
        sqlite_with_rowid=False,
    )
    _keep_free("mailboxes", fillfactor=70)
    op.create_index(
        "ix_mailboxes_leased",
        "mailboxes",
        ["owner", "namespace", "session_id"],
        unique=False,
        postgresql_where=sa.text("owner IS NOT NULL"),
        sqlite_where=sa.text("owner IS NOT NULL"),
    )
    op.create_index(
        "ix_mailboxes_ready",
        "mailboxes",
        ["namespace", "ready_at", "session_id"],
        unique=False,
        postgresql_where=sa.text("ready_at IS NOT NULL"),
        sqlite_where=sa.text("ready_at IS NOT NULL"),
    )
    op.create_index(
        "ix_mailboxes_ready_anywhere",
        "mailboxes",
        ["ready_at", "namespace", "session_id"],
        unique=False,
        postgresql_where=sa.text("ready_at IS NOT NULL"),
        sqlite_where=sa.text("ready_at IS NOT NULL"),
    )
    op.create_index(
        "ix_mailboxes_waiting",
        "mailboxes",
        ["wake_at", "namespace", "session_id"],
        unique=False,
        postgresql_where=sa.text("wake_at IS NOT NULL"),
        sqlite_where=sa.text("wake_at IS NOT NULL"),
    )
    op.create_table(
        "inbox",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("position", BIG, autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("sender", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("requeued", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("enqueued_at", TIME, nullable=False),
        sa.Column("claimed_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("dead_at", TIME, nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("first_seq", BIG, nullable=True),
        sa.Column("last_seq", BIG, nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("input_tokens", BIG, nullable=True),
        sa.Column("output_tokens", BIG, nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'done', 'dead', 'cancelled')",
            name=op.f("ck_inbox_status"),
        ),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["mailboxes.namespace", "mailboxes.session_id"],
            name="fk_inbox_namespace_session_id_mailboxes",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "session_id", "position", name="pk_inbox"),
    )
    _keep_free("inbox", fillfactor=80)
    op.create_index(
        "ix_inbox_dead",
        "inbox",
        ["namespace", "dead_at", "session_id", "position"],
        unique=False,
        postgresql_where=sa.text("dead_at IS NOT NULL"),
        sqlite_where=sa.text("dead_at IS NOT NULL"),
    )
    op.create_index(
        "ix_inbox_requeued",
        "inbox",
        ["namespace", "session_id", "position"],
        unique=False,
        postgresql_where=sa.text("requeued"),
        sqlite_where=sa.text("requeued"),
    )
    op.create_index(
        "uq_inbox_idempotency",
        "inbox",
        ["namespace", "session_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
    )
    # Every session has a mailbox, so existing sessions get one now.
    op.execute(
        "INSERT INTO mailboxes (namespace, session_id, closed)"
        " SELECT namespace, id, ended_at IS NOT NULL FROM sessions"
    )


def downgrade() -> None:
    op.drop_index("uq_inbox_idempotency", table_name="inbox")
    op.drop_index("ix_inbox_requeued", table_name="inbox")
    op.drop_index("ix_inbox_dead", table_name="inbox")
    op.drop_table("inbox")
    op.drop_index("ix_mailboxes_waiting", table_name="mailboxes")
    op.drop_index("ix_mailboxes_ready_anywhere", table_name="mailboxes")
    op.drop_index("ix_mailboxes_ready", table_name="mailboxes")
    op.drop_index("ix_mailboxes_leased", table_name="mailboxes")
    op.drop_table("mailboxes")
