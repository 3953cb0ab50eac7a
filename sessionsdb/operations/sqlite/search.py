"""The search on SQLite, by FTS5.

``search_words`` is an index of FTS5 over ``search_documents``, which holds the words as text.
Triggers keep both equal. An index without that text (``content=''``) would be smaller. Before
SQLite 3.43 no row can be deleted from such an index, and the words of deleted sessions would stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import count
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row, Statement
from sessionsdb.errors import SearchUnavailable
from sessionsdb.messages.search_words import Query, Term
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.search_types import (
    Document,
    IndexedPart,
    Search,
    namespace_word,
    new_id,
)

# The tokenizer `ascii` takes all other characters as letters. The words are split at spaces so, and
# at nothing else. Sizes of columns would serve a rank of the hits only.
_CREATE = (
    """
    CREATE VIRTUAL TABLE IF NOT EXISTS search_words USING fts5(
        words, content='search_documents', content_rowid='id', tokenize='ascii', columnsize=0
    )
    """,
    """
    CREATE TRIGGER IF NOT EXISTS search_documents_added AFTER INSERT ON search_documents BEGIN
        INSERT INTO search_words (rowid, words) VALUES (new.id, new.words);
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS search_documents_removed AFTER DELETE ON search_documents BEGIN
        INSERT INTO search_words (search_words, rowid, words)
        VALUES ('delete', old.id, old.words);
    END
    """,
)

_HAS_MODULE = Statement("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'")
_HAS_TABLE = Statement("SELECT 1 FROM sqlite_master WHERE name = 'search_words'")

# Without WHERE the conflict clause could be read as a join condition. There is one.
_MOVE_MARK = Statement("""
INSERT INTO search_marks (namespace, session_id, version, seq, rewrites, removed)
SELECT s.namespace, s.id, :version, :seq, :rewrites, :removed FROM sessions AS s
WHERE s.namespace = :namespace AND s.id = :session_id AND s.incarnation IS :incarnation
ON CONFLICT (namespace, session_id) DO UPDATE
SET version = excluded.version, seq = excluded.seq, rewrites = excluded.rewrites,
    removed = excluded.removed
WHERE search_marks.version = excluded.version - 1
RETURNING version
""")

_DELETE = Statement("DELETE FROM search_documents WHERE id = :id")
_IS_TAKEN = Statement("SELECT 1 FROM search_documents WHERE id = :id")
_INSERT = Statement("""
INSERT INTO search_documents (id, namespace, session_id, seq, digest, words)
VALUES (:id, :namespace, :session_id, :seq, :digest, :words)
""")

# FTS5 gives the documents in the order of their ids, so the search ends with the page. CROSS JOIN
# keeps SQLite from beginning with another table.
_SELECT = """
SELECT d.id, d.session_id, d.seq, m.role, m.content, m.payload, m.created_at
FROM search_words AS w
CROSS JOIN search_documents AS d ON d.id = w.rowid
CROSS JOIN sessions AS s ON s.namespace = d.namespace AND s.id = d.session_id
LEFT JOIN messages AS m
    ON m.namespace = d.namespace AND m.session_id = d.session_id AND m.seq = d.seq
WHERE w.search_words MATCH :query AND w.rowid < :before AND d.namespace = :namespace
  AND (:channel IS NULL OR s.channel = :channel)
  AND (:peer IS NULL OR s.peer = :peer)
"""
_FIND = Statement(f"{_SELECT} ORDER BY w.rowid DESC LIMIT :limit")
_FIND_BELOW = Statement(f"""
WITH RECURSIVE tree(namespace, id, top) AS (
    SELECT t.namespace, t.id, t.id FROM sessions AS t
    WHERE t.namespace = :namespace AND t.id = :root
    UNION ALL
    SELECT c.namespace, c.id, p.top FROM tree AS p
    JOIN sessions AS c
        ON c.namespace = p.namespace AND c.parent_id = p.id AND c.id <> p.top
)
{_SELECT} AND s.id IN (SELECT tree.id FROM tree) ORDER BY w.rowid DESC LIMIT :limit
""")


def has_search_index(connection: Connection) -> bool:
    if _HAS_MODULE.row(connection, {}) is None:
        raise SearchUnavailable.without_fts5(sqlite3.sqlite_version)
    return _HAS_TABLE.row(connection, {}) is not None


def create_search_index(connection: Connection) -> None:
    if not has_search_index(connection):
        for statement in _CREATE:
            connection.exec_driver_sql(statement)


def write_search_parts(connection: Connection, parts: Sequence[IndexedPart]) -> set[SessionKey]:
    written: set[SessionKey] = set()
    documents: list[tuple[Any, ...]] = []
    for part in parts:
        namespace, session_id = part.key
        values = {
            "namespace": namespace,
            "session_id": session_id,
            "incarnation": part.incarnation,
            **part.mark._asdict(),
        }
        if _MOVE_MARK.row(connection, values) is None:
            continue
        written.add(part.key)
        _DELETE.each(connection, [(id,) for id in part.removed])
        first = namespace_word(namespace)
        taken = {row[0] for row in documents}
        for document in part.added:
            id = _free_id(connection, document, taken)
            taken.add(id)
            words = " ".join((first, *document.words))
            documents.append((id, namespace, session_id, document.seq, document.digest, words))
    # In the order of the ids: FTS5 writes its buffer to the file for each step back.
    documents.sort(key=itemgetter(0))
    _INSERT.each(connection, documents)
    return written


def _free_id(connection: Connection, document: Document, taken: AbstractSet[int]) -> int:
    ids = (new_id(document, attempt) for attempt in count())
    return next(
        id for id in ids if id not in taken and _IS_TAKEN.row(connection, {"id": id}) is None
    )


def find_documents(connection: Connection, search: Search) -> Sequence[Row]:
    statement = _FIND if search.root is None else _FIND_BELOW
    return statement.rows(
        connection,
        {
            "namespace": search.namespace,
            "query": match_expression(search.namespace, search.query),
            "channel": search.channel,
            "peer": search.peer,
            "root": search.root,
            "limit": search.limit,
            "before": search.before,
        },
    )


def match_expression(namespace: str, query: Query) -> str:
    """Return a query in the language of FTS5. Each word is quoted: none of them is an operator."""
    wanted = [f'"{namespace_word(namespace)}"', *map(_term, query.wanted)]
    expression = f"({' AND '.join(wanted)})"
    if query.unwanted:
        expression += f" NOT ({' OR '.join(map(_term, query.unwanted))})"
    return expression


def _term(term: Term) -> str:
    return f'"{" ".join(term.words)}"{" *" if term.prefix else ""}'
