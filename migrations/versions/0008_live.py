"""Live turns: streamed pieces, messages that are stopped, join a turn or go ahead, and reruns.

Revision: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
ZERO = sa.text("0")

AHEAD = {"postgresql_where": sa.text("ahead"), "sqlite_where": sa.text("ahead")}
REQUEUED = {"postgresql_where": sa.text("requeued"), "sqlite_where": sa.text("requeued")}
READY = {
    "postgresql_where": sa.text("ready_at IS NOT NULL"),
    "sqlite_where": sa.text("ready_at IS NOT NULL"),
}


def upgrade() -> None:
    # Columns without a default, or with a constant one, cost the same for any number of rows.
    op.add_column("sessions", sa.Column("rewrites", BIG, nullable=False, server_default=ZERO))
    op.add_column("sessions", sa.Column("incarnation", sa.Text(), nullable=True))
    op.add_column("messages", sa.Column("extra", sa.Text(), nullable=True))
    op.add_column("mailboxes", sa.Column("last_taken", BIG, nullable=False, server_default=ZERO))
    op.execute("UPDATE mailboxes SET last_taken = head + taken - 1 WHERE owner IS NOT NULL")
    op.drop_index("ix_mailboxes_ready_anywhere", "mailboxes")
    op.drop_index("ix_inbox_requeued", "inbox")
    _rename_column("requeued", "ahead")
    op.create_index("ix_inbox_ahead", "inbox", ["namespace", "session_id", "position"], **AHEAD)
    op.add_column(
        "inbox", sa.Column("joined", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("inbox", sa.Column("reruns", sa.Integer(), nullable=False, server_default=ZERO))
    op.add_column("inbox", sa.Column("stopped_by", sa.Text(), nullable=True))
    op.create_table(
        "pieces",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("start", BIG, nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("data", sa.Text(), nullable=True),
        sa.Column("written_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint(
            "namespace", "session_id", "epoch", "generation", "number", name="pk_pieces"
        ),
    )


def _rename_column(old: str, new: str) -> None:
    op.execute(f"ALTER TABLE inbox RENAME COLUMN {old} TO {new}")
    if op.get_context().dialect.name == "postgresql":
        # PostgreSQL 18 and later name the constraint of a column that is not null.
        op.execute(f"""
            DO $$ BEGIN
                IF EXISTS (
                    SELECT 1 FROM pg_catalog.pg_constraint
                    WHERE conrelid = CAST(CAST('inbox' AS regclass) AS oid)
                      AND conname = CAST('inbox_{old}_not_null' AS name)
                ) THEN
                    ALTER TABLE inbox
                    RENAME CONSTRAINT inbox_{old}_not_null TO inbox_{new}_not_null;
                END IF;
            END $$
        """)


def downgrade() -> None:
    op.drop_table("pieces")
    # Revision 0007 knows no holes between head and tail. A claim of its workers finds messages
    # that are marked as requeued wherever they stand.
    op.execute("UPDATE inbox SET ahead = true WHERE status IN ('pending', 'running')")
    op.execute("UPDATE mailboxes SET head = tail + 1 WHERE pending > 0")
    op.drop_column("inbox", "stopped_by")
    op.drop_column("inbox", "reruns")
    op.drop_column("inbox", "joined")
    op.drop_index("ix_inbox_ahead", "inbox")
    _rename_column("ahead", "requeued")
    op.create_index(
        "ix_inbox_requeued", "inbox", ["namespace", "session_id", "position"], **REQUEUED
    )
    op.create_index(
        "ix_mailboxes_ready_anywhere", "mailboxes", ["ready_at", "namespace", "session_id"], **READY
    )
    op.drop_column("mailboxes", "last_taken")
    op.drop_column("messages", "extra")
    op.drop_column("sessions", "incarnation")
    op.drop_column("sessions", "rewrites")
