"""Functions and operators that an attacker creates in a schema of the search path."""

from __future__ import annotations

import re
from collections.abc import Iterable

from devtools.databases import Database

TYPES = (
    *("text", "varchar", "name", "integer", "bigint", "double precision", "numeric", "boolean"),
    *("timestamptz", "interval", "oid", "regclass", "text[]", "bigint[]", "double precision[]"),
)
OPERAND_TYPES = (
    *TYPES,
    *("bpchar", '"char"', "smallint", "timestamp", "date", "regnamespace", "xid8", "varchar[]"),
)
OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "+", "-", "*", "/", "||", "~~")

_BODY = """
    LANGUAGE plpgsql AS $body$ BEGIN
        PERFORM pg_catalog.nextval(''public.taken'');
        RAISE EXCEPTION ''taken: %(name)s'';
    END $body$
"""


def functions_in(statements: Iterable[str]) -> set[str]:
    """The names of the server's functions that these statements call."""
    called = {name for sql in statements for name in re.findall(r"pg_catalog\.(\w+)\(", sql)}
    # The parser, SQLAlchemy and the drivers call these.
    return called | {"unnest", "timezone", "extract", "version", "pg_table_is_visible"}


async def plant(database: Database, functions: Iterable[str]) -> None:
    """Create an overload of each function, and each operator that PostgreSQL lacks.

    A call raises, and leaves a mark that no rollback takes back.
    """
    connection = await database.connect_to_postgres()
    names, types = sorted(functions), list(TYPES)
    try:
        await connection.execute("CREATE SEQUENCE public.taken")
        await connection.execute(
            _LOOP.format(
                declared="op text; a text; b text; known text;",
                loops=_OPERATORS.format(
                    types=_array(OPERAND_TYPES),
                    operators=_array(OPERATORS),
                    body=_BODY % {"name": "operator"},
                ),
            )
        )
        await connection.execute(
            _LOOP.format(
                declared="name text; a text; b text; c text;",
                loops=_FUNCTIONS.format(
                    names=_array(names), types=_array(types), body=_BODY % {"name": "function"}
                ),
            )
        )
    finally:
        await connection.close()


async def was_taken(database: Database) -> bool:
    """Whether a planted function or operator was called since ``plant``."""
    return bool(await database.value("SELECT is_called FROM public.taken"))


def _array(values: Iterable[str]) -> str:
    return "ARRAY[" + ", ".join(f"'{value}'" for value in values) + "]"


_LOOP = "DO $do$ DECLARE {declared} BEGIN {loops} END $do$"

_FUNCTIONS = """
FOREACH name IN ARRAY {names} LOOP
    FOREACH a IN ARRAY {types} LOOP
        EXECUTE pg_catalog.format(
            'CREATE FUNCTION public.%I(%s) RETURNS text {body}', name, a
        );
        FOREACH b IN ARRAY ({types})[:7] LOOP
            EXECUTE pg_catalog.format(
                'CREATE FUNCTION public.%I(%s, %s) RETURNS text {body}', name, a, b
            );
        END LOOP;
    END LOOP;
    EXECUTE pg_catalog.format(
        'CREATE FUNCTION public.%I(text, text, text) RETURNS text {body}', name
    );
    EXECUTE pg_catalog.format(
        'CREATE FUNCTION public.%I(text, text, text, text) RETURNS text {body}', name
    );
    EXECUTE pg_catalog.format(
        'CREATE FUNCTION public.%I() RETURNS text {body}', name
    );
END LOOP;
EXECUTE 'CREATE FUNCTION public.make_interval(secs double precision, more bigint[] DEFAULT NULL)
         RETURNS interval {body}';
"""

_OPERATORS = """
FOREACH a IN ARRAY {types} LOOP
    FOREACH b IN ARRAY {types} LOOP
        EXECUTE pg_catalog.format(
            'CREATE FUNCTION public.taken_operator(%s, %s) RETURNS boolean {body}', a, b
        );
        FOREACH op IN ARRAY {operators} LOOP
            known := pg_catalog.format('pg_catalog.%s(%s, %s)', op, a, b);
            IF pg_catalog.to_regoperator(known) IS NULL THEN
                EXECUTE pg_catalog.format(
                    'CREATE OPERATOR public.%s '
                    '(LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.taken_operator)', op, a, b
                );
            END IF;
        END LOOP;
    END LOOP;
END LOOP;
"""
