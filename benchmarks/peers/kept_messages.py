"""A table of messages, as an application has it beside a queue that keeps none.

A job writes its message and the reply to it in one statement. An index finds the messages of a
session in their order. Nothing makes a repeated job write them only once.
"""

from __future__ import annotations

from benchmarks.messages import text

REPLY = text(2)

TABLE = """
CREATE TABLE kept_messages (
    session bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    role text NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (session, id)
)
"""


def insert(session: str, message: str, reply: str) -> str:
    """Return the statement, with these placeholders."""
    return (
        "INSERT INTO kept_messages (session, role, content)"
        f" VALUES ({session}, 'user', {message}), ({session}, 'assistant', {reply})"
    )
