"""The command that copies a SQLite database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sessionsdb import InvalidArgument
from sessionsdb.admin import backup as backups
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import Target, with_target
from sessionsdb.cli.console.database_files import sqlite_file
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress
from sessionsdb.engine import urls


@with_target
async def backup(
    target: Target,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it exists, once the copy is sound.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Copy a SQLite database while others go on writing.

    The copy is the database as it was at one moment, in a single file. It is
    checked before it gets its name, so a copy that is there is a sound one.
    A PostgreSQL database is backed up by pg_dump, see docs/operating.md.

    Examples:

        sessionsdb backup backup.db
        sessionsdb --url sqlite:///agents.db backup /var/backups/agents.db --force
    """
    source = sqlite_file(target.url)
    if urls.kind(urls.parse(target.url)) == "postgresql":
        raise InvalidArgument(
            "a PostgreSQL database is backed up by its own tools: "
            "pg_dump --format=custom --file=FILE, see docs/operating.md#backups"
        )
    if source is None:
        raise InvalidArgument("a database in memory is gone with its process; there is no file")
    with progress("copying pages", None) as moved:
        before = 0

        def copied(done: int, _all: int) -> None:
            nonlocal before
            moved(done - before)
            before = done

        try:
            made = await backups.backup(source, file, overwrite=force, progress=copied)
        except InvalidArgument as error:
            raise InvalidArgument(str(error).replace("overwrite it", "use --force")) from error
    if json_:
        output.print_json(made)
    else:
        output.say(f"copied: {made.file}, {made.bytes} bytes, revision {made.revision or 'none'}")
