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


async def break_session(database: Database, session_id: str) -> None:
    """Make the writes fail that end a turn of this session with a reply or an error. The error says
    nothing of the values: the database itself seems to be broken."""
    condition = f"WHEN (OLD.session_id = '{session_id}' AND OLD.status = 'running')"
    await _break(database, "inbox", f"BEFORE UPDATE ON inbox FOR EACH ROW {condition}")


async def break_replies(database: Database, session_id: str) -> None:
    """Make the writes of messages to this session fail, as ``break_session`` does."""
    condition = f"WHEN (NEW.session_id = '{session_id}')"
    await _break(database, "messages", f"BEFORE INSERT ON messages FOR EACH ROW {condition}")


async def break_claims(database: Database) -> None:
    """Make the claims of all sessions fail, as ``break_session`` does."""
    condition = "WHEN (OLD.owner IS NULL AND NEW.owner IS NOT NULL)"
    await _break(database, "mailboxes", f"BEFORE UPDATE ON mailboxes FOR EACH ROW {condition}")


async def mend(database: Database, table: str) -> None:
    """Undo ``break_session`` (the table ``inbox``), ``break_replies`` (``messages``) or
    ``break_claims`` (``mailboxes``)."""
    of_table = f" ON {table}" if database.kind == "postgresql" else ""
    await database.query(f"DROP TRIGGER broken_{table}{of_table}")


async def _break(database: Database, table: str, when: str) -> None:
    if database.kind == "sqlite":
        # An integer overflow, which SQLite reports as a failure of its own.
        await database.query(
            f"CREATE TRIGGER broken_{table} {when} BEGIN SELECT abs(-9223372036854775808); END"
        )
        return
    await database.query(
        f"CREATE FUNCTION break_{table}() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$"
    )
    await database.query(f"CREATE TRIGGER broken_{table} {when} EXECUTE FUNCTION break_{table}()")
