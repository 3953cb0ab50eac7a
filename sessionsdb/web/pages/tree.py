"""The page of a tree: who spawned whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Response

from sessionsdb.reports.queries import read_sessions
from sessionsdb.types import SessionDetails, SessionSummary
from sessionsdb.web.api.parameters import SessionIdPath
from sessionsdb.web.pages.access import ReaderPage
from sessionsdb.web.pages.rendering import page

router = APIRouter()

MAX_NODES = 500
"""A larger tree is cut, and says so."""


@router.get("/sessions/{id}/tree")
async def tree(caller: ReaderPage, id: SessionIdPath) -> Response:
    """Show the tree of a session, from its topmost ancestor down."""
    details = await caller.db.broker.get(id)
    root = details.root or details.id
    found = await caller.db.broker.list(
        root=root, include_ended=True, details=True, limit=MAX_NODES + 1
    )
    members = [one for one in found[:MAX_NODES] if isinstance(one, SessionDetails)]
    return page(
        "tree.html",
        caller,
        id=id,
        root=root,
        nodes=list(in_order(members, root)),
        is_cut=len(found) > MAX_NODES,
        tokens=await _tokens(caller, {one.id for one in members}),
    )


def in_order(sessions: Sequence[SessionDetails], root: str) -> Iterator[tuple[SessionDetails, int]]:
    """Yield the sessions of a tree with their depths, parents first, children as they were made.

    A session whose parent is not among them comes last, at depth 1.
    """
    children: dict[str, list[SessionDetails]] = defaultdict(list)
    ids = {one.id for one in sessions}
    for one in sorted(sessions, key=_age):
        if one.id != root:
            children[str(one.parent) if one.parent in ids else ""].append(one)
    top = [(one, 0) for one in sessions if one.id == root]
    stack = [(one, 1) for one in reversed(children.pop("", []))] + top
    while stack:
        one, depth = stack.pop()
        yield one, depth
        stack += [(child, depth + 1) for child in reversed(children.get(one.id, []))]


def _age(session: SessionSummary) -> tuple[float, str]:
    return session.created_at.timestamp(), session.id


async def _tokens(caller: ReaderPage, ids: set[str]) -> dict[str, int]:
    """Return the tokens that the sessions have spent."""
    rows = (await read_sessions(caller.db, ids)).dicts()
    return {
        row["session_id"]: (row["input_tokens"] or 0) + (row["output_tokens"] or 0) for row in rows
    }
