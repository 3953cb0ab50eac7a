"""Make a database refuse a message."""

from __future__ import annotations

from devtools.databases import Database


async def forbid(database: Database, content: str, *, table: str = "inbox") -> None:
    """Make every statement fail that would write a row with this content."""
    if database.kind == "sqlite":
        await database.query(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} WHEN NEW.content = '{content}'"
            " BEGIN SELECT RAISE(ABORT, 'not here'); END"
        )
        return
    await database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not here'; END $$"
    )
    await database.query(
        f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW"
        f" WHEN (NEW.content = '{content}') EXECUTE FUNCTION refuse()"
    )
