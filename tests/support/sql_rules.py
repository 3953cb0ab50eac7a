"""Rules for the SQL that PostgreSQL runs, and the places of a text that break them.

1. Each function is called as ``pg_catalog.name(…)``. Otherwise PostgreSQL may call a function of
   the same name that another role created in a schema of the search path. ``unnest(a, b)`` with
   several arrays is an exception: it can't be qualified, and the parser takes it from
   ``pg_catalog`` itself.
2. On Citus, a lock of one table of a join stands in a subselect:
   ``SELECT * FROM (… FOR NO KEY UPDATE OF m) AS l``.
3. On Citus, an UPDATE or DELETE calls no volatile function, and adds no interval to a column. The
   time comes from a scalar subselect or from a CTE.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Words that a parenthesis may follow although they are no functions. PostgreSQL's grammar knows
# COALESCE, GREATEST, LEAST, NULLIF and EXTRACT itself.
_WORDS = frozenset(
    (
        *(
            "all",
            "and",
            "any",
            "as",
            "array",
            "by",
            "case",
            "cast",
            "check",
            "coalesce",
            "conflict",
        ),
        *(
            "conflict",
            "cross",
            "default",
            "distinct",
            "double",
            "else",
            "except",
            "exists",
            "extract",
        ),
        *("filter", "from", "greatest", "group", "having", "in", "intersect", "join", "key"),
        *("lateral", "least", "limit", "materialized", "not", "nullif", "numeric", "offset", "on"),
        *("or", "over", "precision", "references", "returning", "row", "select", "set", "table"),
        *("then", "trim", "union", "unique", "using", "values", "varchar", "when", "where"),
        *("with", "within"),
    )
)
_VOLATILE = frozenset(("clock_timestamp", "random", "gen_random_uuid", "nextval", "make_interval"))
_CALL = re.compile(r"(?<![\w.:$])((?:\w+\.)*\w+)\s*\(")
_STARTS = re.compile(
    r"\s*(?:WITH|SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE (?:OR REPLACE )?VIEW|SET LOCAL)\s"
)


def broken_rules(sql: str) -> list[str]:
    """Return the faults of a statement, each with the place."""
    text = _without_literals(sql)
    return [*_unqualified(text), *_joined_locks(text), *_volatile_updates(text)]


def statements_of_source(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of all SQL for PostgreSQL, from Python and SQL files."""
    for file in sorted(folder.rglob("*.py")):
        if "sqlite" in file.parts or file.name in ("backup.py", "demo.py"):
            continue  # the statements of SQLite alone
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
                 for part in ast.walk(node) if part is not node}  # fmt: skip
        for node in ast.walk(tree):
            text = _text_of(node) if id(node) not in inner else None
            if text is not None and _STARTS.match(text):
                yield f"{file.relative_to(folder)}:{node.lineno}", text
    for file in sorted(folder.rglob("*.sql")):
        if "postgresql" in file.name or "postgresql" in file.parts:
            yield str(file.relative_to(folder)), file.read_text(encoding="utf-8")


def _text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values
        )
    return None


def _without_literals(sql: str) -> str:
    sql = re.sub(r"--[^\n]*", "", sql)
    sql = re.sub(r"'(?:[^']|'')*'", "''", sql)
    return re.sub(r'"(?:[^"]|"")*"', "quoted", sql)


def _unqualified(text: str) -> Iterator[str]:
    for call in _CALL.finditer(text):
        name = call[1].lower()
        before = text[: call.start()].split()[-2:]
        last = before[-1].upper() if before else ""
        if name in _WORDS or name.startswith("pg_catalog."):
            continue
        arguments, end = _arguments(text, call.end())
        if last in ("AS", "INTO", "TABLE", "INDEX", "ON", "REFERENCES", "KEY", "EXISTS"):
            continue  # a list of columns
        if re.match(r"\s+AS\s+(?:NOT\s+)?(?:MATERIALIZED\s+)?\(", text[end:]):
            continue  # a CTE with names for its columns
        if name == "unnest" and arguments > 1:
            continue
        yield f"{call[1]}() is not qualified with pg_catalog: {text[call.start() : end][:80]}"


def _arguments(text: str, start: int) -> tuple[int, int]:
    """The number of arguments of the call whose parenthesis opens before ``start``, and its end."""
    depth, commas = 1, 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        commas += text[index] == "," and depth == 1
        if depth == 0:
            return commas + 1, index + 1
    return commas + 1, len(text)


def _joined_locks(text: str) -> Iterator[str]:
    for lock in re.finditer(r"FOR (?:NO KEY )?UPDATE OF|FOR (?:KEY )?SHARE OF", text):
        group = _enclosing(text, lock.start())
        if group is not None and not re.search(r"SELECT \* FROM\s*$", text[:group]):
            yield f"a lock of a join outside of SELECT * FROM (…): {text[group : lock.end() + 5]}"


def _volatile_updates(text: str) -> Iterator[str]:
    for call in _CALL.finditer(text):
        if call[1].rpartition(".")[2].lower() not in _VOLATILE:
            continue
        place: int | None = call.start()
        while place is not None:
            place = _enclosing(text, place)
            inside = text[0 if place is None else place + 1 :].lstrip().upper()
            if inside.startswith("SELECT"):
                break
            main = _main_verb(text) if place is None else inside.split(maxsplit=1)[0]
            if main in ("UPDATE", "DELETE"):
                yield f"{call[1]}() in an {main}: {text[call.start() :][:60]}"
                break


def _enclosing(text: str, place: int) -> int | None:
    """The place of the parenthesis that is open at ``place``."""
    depth = 0
    for index in range(place - 1, -1, -1):
        if text[index] == ")":
            depth += 1
        elif text[index] == "(":
            if depth == 0:
                return index
            depth -= 1
    return None


def _main_verb(text: str) -> str:
    """The verb of the statement itself, behind its CTEs."""
    depth = 0
    for token in re.finditer(r"[()]|\b(?:SELECT|INSERT|UPDATE|DELETE)\b", text, re.IGNORECASE):
        if token[0] in "()":
            depth += 1 if token[0] == "(" else -1
        elif depth == 0:
            return token[0].upper()
    return ""
