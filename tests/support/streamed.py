"""The pieces that are stored in a database."""

from __future__ import annotations

from typing import NamedTuple

from devtools.databases import Database


class StoredPiece(NamedTuple):
    """A row of ``pieces``, in the order of the primary key."""

    session_id: str
    epoch: int
    generation: int
    number: int
    start: int
    text: str | None
    kind: str | None
    data: str | None

    @property
    def shown(self) -> str | tuple[str | None, str | None]:
        """The text, or the kind and the JSON."""
        return (self.kind, self.data) if self.text is None else self.text


async def stored_pieces(database: Database) -> list[StoredPiece]:
    rows = await database.query(
        "SELECT session_id, epoch, generation, number, start, text, kind, data FROM pieces"
        " ORDER BY namespace, session_id, epoch, generation, number"
    )
    return [StoredPiece(*row) for row in rows]


async def stored_text(database: Database) -> str:
    """The text of the pieces of all runs, one behind the other."""
    return "".join(piece.text or "" for piece in await stored_pieces(database))
