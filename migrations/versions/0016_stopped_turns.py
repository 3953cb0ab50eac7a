"""Stopped turns in the report views.

Revision: 0016
Revises: 0015
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


VIEWS = ("report_turns", "report_activity")


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        _drop_views("")
    # On PostgreSQL the views are replaced. So the rights of readers stay.
    _run("0016_reports")


def downgrade() -> None:
    # A view of a reader for one namespace has the new column, if it was made since. PostgreSQL
    # can't take a column from a view.
    _drop_views(" CASCADE" if op.get_context().dialect.name == "postgresql" else "")
    _run("0016_before")


def _drop_views(cascade: str) -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}{cascade}")


def _run(frozen: str) -> None:
    path = Path(__file__).with_name(f"{frozen}.{op.get_context().dialect.name}.sql")
    for statement in path.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            op.execute(statement.strip())
