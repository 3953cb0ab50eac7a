"""Reports of children, and the views that know questions and schedules.

Revision: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("report", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("report_hops", sa.Integer(), nullable=True))
    op.add_column("sessions", sa.Column("report_origin", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("sessions", "report_origin")
    op.drop_column("sessions", "report_hops")
    op.drop_column("sessions", "report")
