"""Conditions and joins of SQLite that statements for both databases contain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sessionsdb.operations.keys import MessageKey

in_ids = "IN (SELECT i.value FROM json_each(:ids) AS i)"


def ids_values(ids: Sequence[str]) -> dict[str, Any]:
    return {"ids": json.dumps(ids)}


in_positions = "IN (SELECT p.value FROM json_each(:positions) AS p)"


def positions_values(positions: Sequence[int]) -> dict[str, Any]:
    return {"positions": json.dumps(positions)}


def in_few(select: str) -> str:
    return f"IN ({select})"


receipt_table = """
(SELECT json_extract(r.value, '$[0]') AS namespace, json_extract(r.value, '$[1]') AS session_id,
        json_extract(r.value, '$[2]') AS position
 FROM json_each(:receipts) AS r) AS g
"""


def receipt_values(receipts: Sequence[MessageKey]) -> dict[str, Any]:
    return {"receipts": json.dumps(receipts)}


reply_join = """
LEFT JOIN messages AS m
    ON m.namespace = i.namespace AND m.session_id = i.session_id AND m.seq = (
        SELECT max(r.seq) FROM messages AS r
        WHERE r.namespace = i.namespace AND r.session_id = i.session_id
          AND r.seq BETWEEN i.first_seq AND i.last_seq
          AND r.role = 'assistant' AND (r.content <> '' OR r.payload IS NULL)
    )
"""
