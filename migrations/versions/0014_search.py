"""Words in messages, for full-text search.

Revision: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "search_marks",
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("version", BIG, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("rewrites", BIG, nullable=False),
        sa.Column("removed", BIG, nullable=False),
        sa.PrimaryKeyConstraint("namespace", "session_id", name="pk_search_marks"),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["sessions.namespace", "sessions.id"],
            name="fk_search_marks_namespace_session_id_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "search_documents",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        sa.Column("namespace", KEY, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("digest", BIG, nullable=False),
        sa.Column("words", sa.Text().with_variant(TSVECTOR(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_search_documents"),
        sa.ForeignKeyConstraint(
            ["namespace", "session_id"],
            ["search_marks.namespace", "search_marks.session_id"],
            name="fk_search_documents_namespace_session_id_search_marks",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_search_documents_message", "search_documents", ["namespace", "session_id", "seq"]
    )
    # SQLite has the virtual table search_words in its place, and an empty index.
    op.create_index(
        "ix_search_documents_words",
        "search_documents",
        ["words"],
        postgresql_using="gin",
        sqlite_where=sa.text("0"),
    )


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        # Made when the first message was indexed. Its triggers go with search_documents.
        op.execute("DROP TABLE IF EXISTS search_words")
    op.drop_table("search_documents")
    op.drop_table("search_marks")
