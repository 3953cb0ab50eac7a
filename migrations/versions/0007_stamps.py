"""The stamps by which a write whose answer was lost tells whether it was committed.

Revision: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # A column without a default costs the same for any number of rows.
    op.add_column("inbox", sa.Column("epoch", BIG, nullable=True))
    op.create_table(
        "write_stamps",
        sa.Column("slot", KEY, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("repeats", BIG, nullable=False),
        sa.Column("used_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("slot", name="pk_write_stamps"),
    )
    # A keyword of create_table for this came with SQLAlchemy 2.1 only.
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE write_stamps SET (fillfactor = 20)")


def downgrade() -> None:
    op.drop_table("write_stamps")
    op.drop_column("inbox", "epoch")
