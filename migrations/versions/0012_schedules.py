"""Messages that are sent later, once or again and again.

Revision: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
REFUSED = sa.text("refused_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("name", KEY, nullable=True),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("extra", sa.Text(), nullable=True),
        sa.Column("sender", sa.Text(), nullable=True),
        sa.Column("hops", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("origin", sa.Text(), nullable=True),
        sa.Column("at", TIME, nullable=True),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("tz", sa.Text(), nullable=False),
        sa.Column("catch_up", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("try_at", TIME, nullable=False),
        sa.Column("refused_at", TIME, nullable=True),
        sa.Column("last_fired_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("namespace", "id", name="pk_schedules"),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["sessions.namespace", "sessions.id"],
            name="fk_schedules_namespace_session_id_sessions",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("(at IS NULL) <> (cron IS NULL)", name=op.f("ck_schedules_when")),
        sa.CheckConstraint("catch_up IN ('one', 'all')", name=op.f("ck_schedules_catch_up")),
    )
    op.create_index(
        "uq_schedules_name", "schedules", ["namespace", "session_id", "name"], unique=True
    )
    op.create_index("ix_schedules_due", "schedules", ["namespace", "try_at"])
    op.create_index("ix_schedules_first", "schedules", ["try_at"])
    op.create_index(
        "ix_schedules_refused",
        "schedules",
        ["namespace", "id"],
        postgresql_where=REFUSED,
        sqlite_where=REFUSED,
    )


def downgrade() -> None:
    op.drop_table("schedules")
