"""Report views on SQLite that read only the rows of the requested namespace. No new columns.

Revision: 0006
Revises: 0005
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

VIEWS = ("report_turns", "report_activity", "report_latency", "report_tree")


def upgrade() -> None:
    _make("0006_reports.sqlite.sql")


def downgrade() -> None:
    _make("0004_reports.sqlite.sql")


def _make(frozen: str) -> None:
    if op.get_context().dialect.name != "sqlite":
        return  # PostgreSQL's planner pushes the namespace into the existing views
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    for statement in Path(__file__).with_name(frozen).read_text(encoding="utf-8").split(";\n"):
        if any(f"CREATE VIEW {view} AS" in statement for view in VIEWS):
            op.execute(statement.strip())
