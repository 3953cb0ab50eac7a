"""Each statement for PostgreSQL follows the rules of ``tests/support/sql_rules.py``."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import ClauseElement, TextClause
from sqlalchemy.dialects.postgresql import asyncpg

import sessionsdb
from sessionsdb.engine.statement import Statement
from tests.support.sql_rules import broken_rules, statements_of_source

ROOT = Path(sessionsdb.__file__).parent.parent
SOURCE = [
    *statements_of_source(ROOT / "sessionsdb"),
    *statements_of_source(ROOT / "migrations"),
]


def objects_of_modules() -> dict[str, str]:
    """All statements that stand in a module, as PostgreSQL gets them."""
    found = {}
    for module in pkgutil.walk_packages(sessionsdb.__path__, "sessionsdb."):
        if "sqlite" in module.name or module.name.endswith("__main__"):
            continue
        # They need their frameworks, and have no statements: SOURCE reads them too.
        if module.name.startswith(("sessionsdb.adapters.", "sessionsdb.agents.")):
            continue
        for name, value in vars(import_module(module.name)).items():
            if isinstance(value, Statement | TextClause):
                found[f"{module.name}.{name}"] = str(getattr(value, "sql", value))
            elif isinstance(value, ClauseElement) and hasattr(value, "compile"):
                found[f"{module.name}.{name}"] = str(value.compile(dialect=asyncpg.dialect()))
    return found


OBJECTS = objects_of_modules()


def test_the_statements_are_found() -> None:
    assert {"sessionsdb.operations.postgresql.leasing.CLAIM"} <= set(OBJECTS)
    assert len(OBJECTS) > 50
    assert len(SOURCE) > 50


@pytest.mark.parametrize("place", OBJECTS)
def test_a_statement_object_follows_the_rules(place: str) -> None:
    assert broken_rules(OBJECTS[place]) == []


@pytest.mark.parametrize(("place", "sql"), SOURCE, ids=[place for place, _ in SOURCE])
def test_a_statement_of_the_source_follows_the_rules(place: str, sql: str) -> None:
    assert broken_rules(sql) == [], place


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM inbox",
        "SELECT lower(x) AS y FROM t",
        "SELECT * FROM unnest(CAST(:a AS text[])) AS n(name)",
        "SELECT public.format('%s', x)",
        "WITH l AS (SELECT m.id FROM a AS m JOIN b ON true FOR NO KEY UPDATE OF m) SELECT 1",
        "UPDATE t SET at = pg_catalog.clock_timestamp()",
        "WITH a AS (SELECT 1) UPDATE t SET at = a.b + pg_catalog.make_interval(secs => 1) FROM a",
        "WITH a AS (UPDATE t SET at = pg_catalog.clock_timestamp() RETURNING 1) SELECT 1",
        "DELETE FROM waits WHERE until < pg_catalog.clock_timestamp()",
    ],
)
def test_a_statement_that_breaks_a_rule_is_seen(sql: str) -> None:
    assert broken_rules(sql) != []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT pg_catalog.count(*) FROM inbox WHERE status IN ('a(b)', 'c')",
        "SELECT * FROM unnest(CAST(:a AS text[]), CAST(:b AS text[])) AS n(name, other)",
        "WITH RECURSIVE name(namespace) AS (SELECT coalesce(a, 1)) INSERT INTO t (a, b) VALUES (1)",
        "WITH l AS (SELECT * FROM (SELECT 1 FROM a AS m JOIN b ON true FOR UPDATE OF m) AS x) "
        "SELECT 1",
        "UPDATE t SET at = (SELECT pg_catalog.clock_timestamp() AS now)",
    ],
)
def test_a_sound_statement_passes(sql: str) -> None:
    assert broken_rules(sql) == []
