"""Conversations: a message's sender, key and times stand with it in the transcript.

Revision: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

HAS_KEY = {
    "postgresql_where": sa.text('"key" IS NOT NULL'),
    "sqlite_where": sa.text('"key" IS NOT NULL'),
}


def upgrade() -> None:
    op.add_column("messages", sa.Column("key", sa.Text(), nullable=True))
    op.add_column("messages", sa.Column("sender", sa.Text(), nullable=True))
    op.add_column("messages", sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("inbox", sa.Column("extra", sa.Text(), nullable=True))
    # Only the first message with a position came through the inbox: the replies of its turn bear
    # the position too. The database does all of it, in one statement and in bounded memory.
    op.execute("""
        UPDATE messages
        SET sender = i.sender, sent_at = i.enqueued_at
        FROM inbox AS i
        WHERE i.namespace = messages.namespace AND i.session_id = messages.session_id
          AND i.position = messages.position AND messages.role = 'user'
          AND NOT EXISTS (
              SELECT 1 FROM messages AS b
              WHERE b.namespace = messages.namespace AND b.session_id = messages.session_id
                AND b.seq = messages.seq - 1 AND b.position = messages.position
          )
    """)
    op.create_index(
        "uq_messages_key", "messages", ["namespace", "key", "session_id"], unique=True, **HAS_KEY
    )
    op.execute("UPDATE sessions SET version = 1 WHERE version = 0")


def downgrade() -> None:
    # In revision 0008 a session without a history is at version 0.
    op.execute("UPDATE sessions SET version = 0 WHERE version = 1 AND last_seq = 0")
    op.drop_index("uq_messages_key", "messages")
    op.drop_column("inbox", "extra")
    op.drop_column("messages", "sent_at")
    op.drop_column("messages", "sender")
    op.drop_column("messages", "key")
