"""The product's statements that the floor runs unchanged.

The floor proves what the package costs above the same SQL. So where the SQL is meant to be the
same, the floor imports it, and follows every change of the schema.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sessionsdb.engine.statement import Statement
from sessionsdb.operations import history_page, saving, transcripts

HISTORY = history_page.NEWEST
FIRST_SEQ, LAST_SEQ = history_page.FIRST_SEQ, history_page.LAST_SEQ
LOAD = transcripts._LOAD
STORED = saving._STORED
CUT = saving._DELETE_TAIL

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class NumberedSql(NamedTuple):
    """A statement with ``$1`` parameters, as asyncpg wants it, and their names in that order."""

    sql: str
    names: tuple[str, ...]


def numbered(statement: Statement) -> NumberedSql:
    names = tuple(dict.fromkeys(_PARAMETER.findall(statement.sql)))
    numbers = {name: f"${number}" for number, name in enumerate(names, 1)}
    return NumberedSql(_PARAMETER.sub(lambda found: numbers[found[1]], statement.sql), names)
