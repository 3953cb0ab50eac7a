"""Reports of children, and the views that know questions and schedules.

Revision: 0013
Revises: 0012
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


VIEWS = ("report_sessions", "report_inbox", "report_tree")


def upgrade() -> None:
    op.add_column("sessions", sa.Column("report", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("report_hops", sa.Integer(), nullable=True))
    op.add_column("sessions", sa.Column("report_origin", sa.Text(), nullable=True))
    if op.get_context().dialect.name == "sqlite":
        _drop_views("")
    # On PostgreSQL the views are replaced. So the rights of readers stay.
    _run("0013_reports")


def downgrade() -> None:
    # A view of a reader for one namespace has the new columns, if it was made since. PostgreSQL
    # can't take a column from a view.
    _drop_views(" CASCADE" if op.get_context().dialect.name == "postgresql" else "")
    _run("0013_before")
    op.drop_column("sessions", "report_origin")
    op.drop_column("sessions", "report_hops")
    op.drop_column("sessions", "report")


def _drop_views(cascade: str) -> None:
    for view in reversed(VIEWS):
        op.execute(f"DROP VIEW {view}{cascade}")


def _run(frozen: str) -> None:
    path = Path(__file__).with_name(f"{frozen}.{op.get_context().dialect.name}.sql")
    for statement in path.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            op.execute(statement.strip())
