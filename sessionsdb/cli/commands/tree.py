"""The command that shows sessions as trees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from sessionsdb import SessionDetails, SessionsDB, SessionSummary, UnknownSession
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.short_ids import short_ids
from sessionsdb.cli.decorators import with_reads
from sessionsdb.cli.session_prefix import whole_id

DEFAULT_LIMIT = 200
MAX_READS = 32


@with_reads
async def tree(
    db: SessionsDB,
    id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="The session at the top. Default: all sessions."),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="Show at most N sessions, from the trees whose root was active last.",
        ),
    ] = DEFAULT_LIMIT,
    json_: AsJson = False,
) -> None:
    """Show sessions as trees of parents and children, ended ones included.

    Each line shows a session's channel and peer, the number of messages in
    its transcript, and its state. The state is idle, running, ended, or the
    number of messages that wait in its inbox. A fork shows the session that it
    came from.

    With --json the output is one array, parents before their children. Each
    session has its depth below the top.

    Examples:

        sessionsdb tree
        sessionsdb tree chat-1
        sessionsdb tree chat-1 --json
    """
    if id is not None:
        id = await whole_id(db, id)
        await db.broker.get(id)
    forest = Forest(await db.broker.list(root=id, include_ended=True))
    nodes = forest.newest(limit, top=id)
    sessions = await _read_details(db, nodes)
    if json_:
        output.print_json_array(
            {**output.wire_form(session), "depth": depth} for session, depth in sessions
        )
    elif sessions:
        console = output.console()
        ids = [session.id for session, _ in sessions]
        for top in render(sessions, short_ids(ids) if console.is_terminal else {}):
            console.print(top)
    else:
        output.note("no sessions")
    if forest.size > len(nodes):
        hidden = output.quantity(forest.size - len(nodes), "session")
        output.note(f"{hidden} not shown: raise --limit, or give the id of one")


class Forest:
    """Trees of sessions. Children are in the order of their creation."""

    def __init__(self, sessions: list[SessionSummary]) -> None:
        known = {session.id for session in sessions}
        self.size = len(sessions)
        self._tops: list[str] = []  # the one that was active last is the last, as in a list
        self._children: dict[str, list[SessionSummary]] = {}
        for session in sessions:
            if session.parent in known:
                self._children.setdefault(str(session.parent), []).append(session)
            else:
                self._tops.append(session.id)
        for children in self._children.values():
            children.sort(key=lambda child: (child.created_at, child.id))

    def newest(self, limit: int, *, top: str | None = None) -> list[tuple[str, int]]:
        """Return at most ``limit`` ids with their depths, tree by tree, parents first.

        The trees whose top was active last are chosen.
        """
        trees: list[list[tuple[str, int]]] = []
        left = limit
        for root in [top] if top is not None else reversed(self._tops):
            if left == 0:
                break
            members = [node for node, _ in zip(self._walk(root), range(left), strict=False)]
            left -= len(members)
            trees.append(members)
        return [node for members in reversed(trees) for node in members]

    def _walk(self, root: str) -> Iterator[tuple[str, int]]:
        stack = [(root, 0)]
        while stack:
            id, depth = stack.pop()
            yield id, depth
            children = self._children.get(id, ())
            stack.extend((child.id, depth + 1) for child in reversed(children))


def render(
    sessions: list[tuple[SessionDetails, int]], shown_ids: dict[str, str] | None = None
) -> list[Tree]:
    """Return trees to print. ``sessions`` have their depths, parents before their children.

    ``shown_ids`` has short forms of ids.
    """
    shown_ids = shown_ids or {}
    tops: list[Tree] = []
    path: list[Tree] = []
    for session, depth in sessions:
        del path[depth:]
        if path:
            path.append(path[-1].add(label(session, shown_ids)))
        else:
            path.append(Tree(label(session, shown_ids)))
            tops.append(path[0])
    return tops


def label(session: SessionDetails, shown_ids: dict[str, str]) -> Text:
    """Return one session on one line."""
    return Text.assemble(
        output.cell(shown_ids.get(session.id, session.id), "bold"),
        "  ",
        output.cell(session.channel + (f"/{session.peer}" if session.peer else ""), "cyan"),
        f"  {output.quantity(session.message_count, 'message')}  ",
        output.cell(state(session), "dim" if session.ended_at else "green"),
        output.cell(_forked_from(session, shown_ids), "dim"),
    )


def _forked_from(session: SessionDetails, shown_ids: dict[str, str]) -> str:
    point = session.forked_from
    return "" if point is None else f"  fork of {shown_ids.get(point.id, point.id)} at {point.seq}"


def state(session: SessionDetails) -> str:
    """Return the state of a session in words."""
    if session.ended_at is not None:
        return f"ended: {session.end_reason}" if session.end_reason else "ended"
    parts = ["running"] if session.running else []
    if session.pending:
        parts.append(f"{session.pending} waiting")
    return ", ".join(parts) or "idle"


async def _read_details(
    db: SessionsDB, nodes: list[tuple[str, int]]
) -> list[tuple[SessionDetails, int]]:
    """Read the sessions of the nodes, without the ones that were deleted meanwhile."""
    slots = asyncio.Semaphore(MAX_READS)

    async def read(id: str) -> SessionDetails | None:
        async with slots:
            try:
                return await db.broker.get(id)
            except UnknownSession:
                return None

    found = await asyncio.gather(*(read(id) for id, _ in nodes))
    return [
        (session, depth)
        for session, (_, depth) in zip(found, nodes, strict=True)
        if session is not None
    ]
