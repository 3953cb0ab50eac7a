"""Indices over the channel alone, and stopped turns in the report views.

Revision: 0016
Revises: 0015
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


VIEWS = ("report_turns", "report_activity")


def upgrade() -> None:
    _create_index("ix_sessions_channel_live", "ended_at IS NULL")
    _create_index("ix_sessions_channel_ended", "ended_at IS NOT NULL")
    if op.get_context().dialect.name == "sqlite":
        _drop_views("")
    # On PostgreSQL the views are replaced. So the rights of readers stay.
    _run("0016_reports")


def _create_index(name: str, where: str) -> None:
    # PostgreSQL limits an entry to 2,704 bytes. A channel may be longer.
    substr = "pg_catalog.substr" if op.get_context().dialect.name == "postgresql" else "substr"
    op.create_index(
        name,
        "sessions",
        ["namespace", sa.text(f"{substr}(channel, 1, 16)"), "last_active", "id"],
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )


def downgrade() -> None:
    # A view of a reader for one namespace has the new column, if it was made since. PostgreSQL
    # can't take a column from a view.
    _drop_views(" CASCADE" if op.get_context().dialect.name == "postgresql" else "")
    _run("0016_before")
    op.drop_index("ix_sessions_channel_ended", "sessions")
    op.drop_index("ix_sessions_channel_live", "sessions")


def _drop_views(cascade: str) -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}{cascade}")


def _run(frozen: str) -> None:
    path = Path(__file__).with_name(f"{frozen}.{op.get_context().dialect.name}.sql")
    for statement in path.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            op.execute(statement.strip())
