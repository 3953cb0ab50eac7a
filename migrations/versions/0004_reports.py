"""The report views, and on PostgreSQL what each column means.

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
    # Frozen: what the package says of its views today is in sessionsdb/reports/views.
    frozen = Path(__file__).with_name(f"0004_reports.{op.get_context().dialect.name}.sql")
    for statement in frozen.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            op.execute(statement.strip())


def downgrade() -> None:
    # What `sessionsdb grant-reader` made for one namespace reads these views, and goes with them.
    cascade = " CASCADE" if op.get_context().dialect.name == "postgresql" else ""
    for view in reversed(VIEWS):
        op.execute(f"DROP VIEW {view}{cascade}")
