"""The search on PostgreSQL, by a ``tsvector`` and a GIN index.

The vectors are made from the words that messages/search_words.py tells apart, with the positions
for phrases. No text search configuration of the server has a part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.search_words import Query, Term
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.search_types import (
    Document,
    IndexedPart,
    Search,
    namespace_word,
    new_id,
)

_MAX_POSITIONS = 255
"""PostgreSQL keeps no more positions of one word."""

_CUT = "§cut"
"""A word that no text has. It is in a document with words whose positions are not all kept."""

_MARKS = ArrayTable(
    "r",
    namespace="text",
    id="text",
    incarnation="text",
    version="bigint",
    seq="bigint",
    rewrites="bigint",
    removed="bigint",
)
_DOCUMENTS = ArrayTable(
    "d",
    id="bigint",
    namespace="text",
    session_id="text",
    seq="bigint",
    digest="bigint",
    words="text",
)

# The session is locked before its mark, as a purge and a delete do it. Writes of messages do not
# wait for this lock.
_MOVE_MARKS = Statement(f"""
WITH locked AS MATERIALIZED (
    SELECT * FROM (
        SELECT s.namespace, s.id, r.version, r.seq, r.rewrites, r.removed
        FROM {_MARKS}
        JOIN sessions AS s ON s.namespace = r.namespace AND s.id = r.id
        WHERE s.incarnation IS NOT DISTINCT FROM r.incarnation
        ORDER BY s.namespace, s.id
        FOR KEY SHARE OF s
    ) AS l
)
INSERT INTO search_marks AS k (namespace, session_id, version, seq, rewrites, removed)
SELECT l.namespace, l.id, l.version, l.seq, l.rewrites, l.removed FROM locked AS l
ORDER BY l.namespace, l.id
ON CONFLICT (namespace, session_id) DO UPDATE
SET version = excluded.version, seq = excluded.seq, rewrites = excluded.rewrites,
    removed = excluded.removed
WHERE k.version = excluded.version - 1
RETURNING k.namespace, k.session_id
""")

_DELETE = Statement("DELETE FROM search_documents WHERE id = ANY(CAST(:ids AS bigint[]))")

# A document whose id is taken, perhaps by an indexer at work, is not inserted.
_INSERT = Statement(f"""
INSERT INTO search_documents (id, namespace, session_id, seq, digest, words)
SELECT d.id, d.namespace, d.session_id, d.seq, d.digest, CAST(d.words AS tsvector)
FROM {_DOCUMENTS}
ON CONFLICT (id) DO NOTHING
RETURNING id
""")

# The documents with the words are found first, by the GIN index. Otherwise the planner may read all
# documents backwards, in the hope that the page is full soon.
_FOUND = """
found AS MATERIALIZED (
    SELECT d.id, d.session_id, d.seq FROM search_documents AS d
    WHERE d.words @@ CAST(:query AS tsquery) AND d.namespace = :namespace AND d.id < :before
),
page AS MATERIALIZED (
    SELECT f.id, f.session_id, f.seq FROM found AS f
    WHERE (
        CAST(:channel AS text) IS NULL AND CAST(:peer AS text) IS NULL
        OR EXISTS (
            SELECT 1 FROM sessions AS s
            WHERE s.namespace = :namespace AND s.id = f.session_id
              AND (CAST(:channel AS text) IS NULL OR s.channel = CAST(:channel AS text))
              AND (CAST(:peer AS text) IS NULL OR s.peer = CAST(:peer AS text))
        )
    ){below}
    ORDER BY f.id DESC LIMIT :limit
)
SELECT p.id, p.session_id, p.seq, m.role, m.content, m.payload, m.created_at
FROM page AS p
LEFT JOIN messages AS m
    ON m.namespace = :namespace AND m.session_id = p.session_id AND m.seq = p.seq
ORDER BY p.id DESC
"""
FIND = Statement(f"WITH {_FOUND.format(below='')}")
FIND_BELOW = Statement(f"""
WITH RECURSIVE tree(namespace, id, top) AS (
    SELECT t.namespace, t.id, t.id FROM sessions AS t
    WHERE t.namespace = :namespace AND t.id = :root
    UNION ALL
    SELECT c.namespace, c.id, p.top FROM tree AS p
    JOIN sessions AS c
        ON c.namespace = p.namespace AND c.parent_id = p.id AND c.id <> p.top
),
{_FOUND.format(below=" AND f.session_id IN (SELECT tree.id FROM tree)")}
""")


def has_search_index(_connection: Connection) -> bool:
    return True


def create_search_index(_connection: Connection) -> None:
    """The index is a part of the schema."""


def write_search_parts(connection: Connection, parts: Sequence[IndexedPart]) -> set[SessionKey]:
    marks = [(*part.key, part.incarnation, *part.mark) for part in parts]
    rows = _MOVE_MARKS.rows(connection, _MARKS.parameters(marks))
    written = {(namespace, id) for namespace, id in rows}
    moved = [part for part in parts if part.key in written]
    if removed := [id for part in moved for id in part.removed]:
        _DELETE.rows(connection, {"ids": removed})
    _insert(connection, [(part.key, one) for part in moved for one in part.added])
    return written


def _insert(connection: Connection, documents: Sequence[tuple[SessionKey, Document]]) -> None:
    left = [
        (document, (*key, document.seq, document.digest, _vector(key[0], document.words)))
        for key, document in documents
    ]
    attempt = 0
    while left:
        chosen = {new_id(document, attempt): values for document, values in left}
        rows = [(id, *chosen[id]) for id in sorted(chosen)]
        inserted = {id for (id,) in _INSERT.rows(connection, _DOCUMENTS.parameters(rows))}
        done = {chosen[id][:3] for id in inserted}
        left = [(document, values) for document, values in left if values[:3] not in done]
        attempt += 1


def _vector(namespace: str, words: Sequence[str]) -> str:
    """Return the text of a ``tsvector``. No word has a quote or a backslash."""
    positions: dict[str, list[int]] = {}
    is_cut = False
    for position, word in enumerate(words, 1):
        places = positions.setdefault(word, [])
        if len(places) < _MAX_POSITIONS:
            places.append(position)
        else:
            is_cut = True
    listed = [f"'{word}':{','.join(map(str, places))}" for word, places in positions.items()]
    marks = [f"'{namespace_word(namespace)}'", *([f"'{_CUT}'"] if is_cut else [])]
    return " ".join([*marks, *listed])


def find_documents(connection: Connection, search: Search) -> Sequence[Row]:
    parameters = {
        "namespace": search.namespace,
        "query": match_expression(search.namespace, search.query),
        "channel": search.channel,
        "peer": search.peer,
        "limit": search.limit,
        "before": search.before,
    }
    if search.root is None:
        return FIND.rows(connection, parameters)
    return FIND_BELOW.rows(connection, parameters | {"root": search.root})


def match_expression(namespace: str, query: Query) -> str:
    """Return a query as the text of a ``tsquery``. Each word is quoted: none is an operator."""
    wanted = [f"'{namespace_word(namespace)}'", *map(_wanted, query.wanted)]
    return " & ".join([*wanted, *(f"!{_term(term)}" for term in query.unwanted)])


def _wanted(term: Term) -> str:
    """Return a term. A cut document may have the phrase where no position tells it.

    The hits are compared with their messages, so that a document with the words alone is no hit.
    """
    phrase = _term(term)
    if len(term.words) == 1:
        return phrase
    alone = " & ".join(f"'{word}'" for word in term.words[:-1])
    last = f"'{term.words[-1]}'" + (":*" if term.prefix else "")
    return f"({phrase} | ('{_CUT}' & {alone} & {last}))"


def _term(term: Term) -> str:
    *first, last = (f"'{word}'" for word in term.words)
    return f"({' <-> '.join([*first, last + (':*' if term.prefix else '')])})"
