"""The report views, and on PostgreSQL comments with the meaning of each column.

Revision: 0004
Revises: 0003
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

VIEWS = (
    "report_sessions",
    "report_turns",
    "report_activity",
    "report_latency",
    "report_inbox",
    "report_tree",
)


def upgrade() -> None:
    # This SQL is frozen. The current views are in sessionsdb/reports/views.
    frozen = Path(__file__).with_name(f"0004_reports.{op.get_context().dialect.name}.sql")
    for statement in frozen.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            op.execute(statement.strip())


def downgrade() -> None:
    # The views of `sessionsdb grant-reader` for one namespace read these views, so drop both.
    cascade = " CASCADE" if op.get_context().dialect.name == "postgresql" else ""
    for view in reversed(VIEWS):
        op.execute(f"DROP VIEW {view}{cascade}")
