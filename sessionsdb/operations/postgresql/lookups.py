"""Conditions and joins of PostgreSQL that statements for both databases contain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sessionsdb.engine.postgresql.arrays import ArrayTable, array_text

in_ids = "= ANY (CAST(:ids AS text[]))"


def ids_values(ids: Sequence[str]) -> dict[str, Any]:
    return {"ids": list(ids)}


in_positions = "= ANY (CAST(CAST(:positions AS text) AS bigint[]))"


def positions_values(positions: Sequence[int]) -> dict[str, Any]:
    return {"positions": array_text(positions)}


def in_few(select: str) -> str:
    """Return the condition on an array: a join may search by the columns before the number alone,
    if the statistics know of no session with many rows."""
    return f"= ANY (ARRAY({select}))"


_RECEIPTS = ArrayTable("g", namespace="text", session_id="text", position="bigint")
receipt_table = str(_RECEIPTS)
receipt_values = _RECEIPTS.parameters


# As a plain join on the key, the planner may read all messages of the session and hash them, if the
# statistics know of no session with many. The row of a LATERAL with a limit is found by its key.
reply_join = """
LEFT JOIN LATERAL (
    SELECT r.seq, r.role, r.content, r.created_at, r.extra FROM messages AS r
    WHERE r.namespace = i.namespace AND r.session_id = i.session_id
      AND r.seq BETWEEN i.first_seq AND i.last_seq
      AND r.role = 'assistant' AND (r.content <> '' OR r.payload IS NULL)
    ORDER BY r.seq DESC
    LIMIT 1
) AS m ON true
"""
