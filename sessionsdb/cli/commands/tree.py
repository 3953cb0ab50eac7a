"""The command that shows who spawned whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from sessionsdb import SessionDetails, SessionsDB, SessionSummary, UnknownSession
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import with_database
from sessionsdb.cli.console.options import AsJson

DEFAULT_LIMIT = 200
READS_AT_ONCE = 32


@with_database
async def tree(
    db: SessionsDB,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The session at the top; all if not given.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="At most so many sessions: those of the trees whose top was active last.",
        ),
    ] = DEFAULT_LIMIT,
    json_: AsJson = False,
) -> None:
    """Show sessions as a tree of who spawned whom, ended ones included.

    Each with its channel and peer, the messages of its transcript, and what
    it does: idle, running, what waits in its inbox, or ended.

    As JSON it is one array, parents before their children, each session with
    its depth below the top.

    Examples:

        sessionsdb tree
        sessionsdb tree chat-1
        sessionsdb tree chat-1 --json
    """
    if id is not None:
        await db.broker.get(id)
    family = Family(await db.broker.list(root=id, include_ended=True))
    places = family.newest(limit, top=id)
    shown = await _details(db, places)
    if json_:
        output.print_json_array(
            {**output.wire(session), "depth": depth} for session, depth in shown
        )
    elif shown:
        for top in render(shown):
            output.console().print(top)
    else:
        output.note("no sessions")
    if family.size > len(places):
        hidden = output.counted(family.size - len(places), "session")
        output.note(f"{hidden} not shown: raise --limit, or give the id of one")


class Family:
    """Sessions by parent, in the order of their creation."""

    def __init__(self, sessions: list[SessionSummary]) -> None:
        known = {session.id for session in sessions}
        self.size = len(sessions)
        self._tops: list[str] = []  # the one active last at the end, as sessions are listed
        self._children: dict[str, list[SessionSummary]] = {}
        for session in sessions:
            if session.parent in known:
                self._children.setdefault(str(session.parent), []).append(session)
            else:
                self._tops.append(session.id)
        for children in self._children.values():
            children.sort(key=lambda child: (child.created_at, child.id))

    def newest(self, limit: int, *, top: str | None = None) -> list[tuple[str, int]]:
        """At most ``limit`` ids with their depths, tree by tree, parents first; of the trees
        those whose top was active last."""
        trees: list[list[tuple[str, int]]] = []
        left = limit
        for root in [top] if top is not None else reversed(self._tops):
            if left == 0:
                break
            members = [place for place, _ in zip(self._walk(root), range(left), strict=False)]
            left -= len(members)
            trees.append(members)
        return [place for members in reversed(trees) for place in members]

    def _walk(self, root: str) -> Iterator[tuple[str, int]]:
        waiting = [(root, 0)]
        while waiting:
            id, depth = waiting.pop()
            yield id, depth
            children = self._children.get(id, ())
            waiting.extend((child.id, depth + 1) for child in reversed(children))


def render(sessions: list[tuple[SessionDetails, int]]) -> list[Tree]:
    """Trees to print, of sessions with their depths, parents before their children."""
    tops: list[Tree] = []
    path: list[Tree] = []
    for session, depth in sessions:
        del path[depth:]
        if path:
            path.append(path[-1].add(label(session)))
        else:
            path.append(Tree(label(session)))
            tops.append(path[0])
    return tops


def label(session: SessionDetails) -> Text:
    """One session on one line."""
    return Text.assemble(
        output.cell(session.id, "bold"),
        "  ",
        output.cell(session.channel + (f"/{session.peer}" if session.peer else ""), "cyan"),
        f"  {output.counted(session.message_count, 'message')}  ",
        output.cell(state(session), "dim" if session.ended_at else "green"),
    )


def state(session: SessionDetails) -> str:
    """What a session does, in words."""
    if session.ended_at is not None:
        return f"ended: {session.end_reason}" if session.end_reason else "ended"
    parts = ["running"] if session.running else []
    if session.pending:
        parts.append(f"{session.pending} waiting")
    return ", ".join(parts) or "idle"


async def _details(
    db: SessionsDB, places: list[tuple[str, int]]
) -> list[tuple[SessionDetails, int]]:
    """The sessions at ``places``, without those that were deleted meanwhile."""
    slots = asyncio.Semaphore(READS_AT_ONCE)

    async def look_up(id: str) -> SessionDetails | None:
        async with slots:
            try:
                return await db.broker.get(id)
            except UnknownSession:
                return None

    found = await asyncio.gather(*(look_up(id) for id, _ in places))
    return [
        (session, depth)
        for session, (_, depth) in zip(found, places, strict=True)
        if session is not None
    ]
