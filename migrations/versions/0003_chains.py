"""The chains of sends, and the sessions that wait for each other.

Revision: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Existing messages count as the first of their chains, because their origin is not known.
    # A column with a constant default costs the same for any number of rows.
    op.add_column(
        "inbox", sa.Column("hops", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("inbox", sa.Column("origin", sa.Text(), nullable=True))
    op.create_table(
        "waits",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("waiter_id", KEY, nullable=False),
        sa.Column("wait_id", KEY, nullable=False),
        sa.Column("target_id", KEY, nullable=False),
        sa.Column("target_position", BIG, nullable=False),
        sa.Column("until", TIME, nullable=False),
        sa.PrimaryKeyConstraint("namespace", "waiter_id", "wait_id", name="pk_waits"),
    )
    op.create_index("ix_waits_until", "waits", ["namespace", "until"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_waits_until", table_name="waits")
    op.drop_table("waits")
    op.drop_column("inbox", "origin")
    op.drop_column("inbox", "hops")
