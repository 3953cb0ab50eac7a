"""Questions of turns to people.

Revision: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Columns without a default, or with a constant one, cost the same for any number of rows.
    op.add_column("sessions", sa.Column("withdrawn", BIG, nullable=True))
    op.add_column("inbox", sa.Column("answers", BIG, nullable=True))
    op.add_column(
        "inbox", sa.Column("asked", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("mailboxes", sa.Column("answer", BIG, nullable=True))
    op.add_column(
        "mailboxes",
        sa.Column("accepts_message", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("mailboxes", sa.Column("question", BIG, nullable=True))
    op.create_table(
        "questions",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("position", BIG, nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("accept_message", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("answer_position", BIG, nullable=True),
        sa.Column("answer_digest", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", "session_id", "position", name="pk_questions"),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["mailboxes.namespace", "mailboxes.session_id"],
            name="fk_questions_namespace_session_id_mailboxes",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "status IN ('open', 'answered', 'expired', 'withdrawn', 'ended')",
            name=op.f("ck_questions_status"),
        ),
    )
    op.create_index(
        "ix_questions_open",
        "questions",
        ["namespace", "asked_at", "session_id", "position"],
        postgresql_where=sa.text("closed_at IS NULL"),
        sqlite_where=sa.text("closed_at IS NULL"),
    )


def downgrade() -> None:
    # Revision 0010 knows no questions: open ones are withdrawn, so that no session waits for ever.
    op.execute("""
        UPDATE mailboxes
        SET wake_at = NULL,
            ready_at = CASE WHEN pending > 0 THEN (
                SELECT q.asked_at FROM questions AS q
                WHERE q.namespace = mailboxes.namespace AND q.session_id = mailboxes.session_id
                  AND q.position = mailboxes.question
            ) END,
            question = NULL
        WHERE question IS NOT NULL
    """)
    op.drop_table("questions")
    op.drop_column("mailboxes", "question")
    op.drop_column("mailboxes", "accepts_message")
    op.drop_column("mailboxes", "answer")
    op.drop_column("inbox", "asked")
    op.drop_column("inbox", "answers")
    op.drop_column("sessions", "withdrawn")
