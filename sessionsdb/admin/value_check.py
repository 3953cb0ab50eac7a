"""Stored values that can't be read: a part of the doctor that reads all of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from sessionsdb.admin.findings import MAX_EXAMPLES, Finding
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import json_columns


async def check(db: SessionsDB) -> list[Finding]:
    """Return the finding on JSON values that other code has changed."""
    read = open_database_of(db).read
    count, examples = 0, list[str]()
    for table in json_columns.FORMS:
        last: tuple[Any, ...] | None = None
        while True:
            page = await read(partial(json_columns.read_faults, table=table, after=last))
            count += len(page.faults)
            examples += page.faults[: MAX_EXAMPLES - len(examples)]
            last = page.last
            if last is None:
                break
    if not count:
        return []
    return [
        Finding(
            check="damaged-values",
            count=count,
            examples=examples,
            meaning="other code has changed values. A read of them fails with DamagedValue, and a "
            "turn over such a message fails until the message is dead",
            action="set each column to valid JSON, to its value in a backup, or delete the row. "
            "Then restart the processes that have read it, and requeue dead messages",
        )
    ]
