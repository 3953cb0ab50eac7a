"""The trace context of the send of a message.

Revision: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A column without a default costs the same for any number of rows.
    op.add_column("inbox", sa.Column("trace", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("inbox", "trace")
