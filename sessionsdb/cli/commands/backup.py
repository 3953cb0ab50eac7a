"""The command that copies a SQLite database."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sessionsdb import InvalidArgument
from sessionsdb.admin import backup as backups
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress
from sessionsdb.cli.decorators import with_target
from sessionsdb.cli.target import Target
from sessionsdb.engine.postgresql.search_path import quote_identifier


@with_target
async def backup(
    target: Target,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing FILE, after the copy was checked.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Copy a SQLite database while other processes write to it.

    The copy is a single file with the state of one moment. The copy is
    checked before it gets its name, so FILE is never an incomplete copy.
    Back up a PostgreSQL database with pg_dump, see docs/operating.md.

    Examples:

        sessionsdb backup backup.db
        sessionsdb --url sqlite:///agents.db backup /var/backups/agents.db --force
    """
    source = target.sqlite_file()
    if target.kind == "postgresql":
        schema = target.schema
        only = "" if schema is None else f"--schema={shlex.quote(quote_identifier(schema))} "
        raise InvalidArgument(
            "a PostgreSQL database is backed up by its own tools: "
            f"pg_dump {only}--format=custom --file=FILE, see docs/operating.md#backups"
        )
    if source is None:
        raise InvalidArgument("a database in memory has no file to copy")
    with progress("copying pages", None) as advance:
        copied = 0

        def report(done: int, _total: int) -> None:
            nonlocal copied
            advance(done - copied)
            copied = done

        try:
            copy = await backups.backup(source, file, overwrite=force, progress=report)
        except InvalidArgument as error:
            raise InvalidArgument(str(error).replace("overwrite it", "use --force")) from error
    if json_:
        output.print_json(copy)
    else:
        output.say(f"copied: {copy.file}, {copy.bytes} bytes, revision {copy.revision or 'none'}")
