"""The command that copies a database into another one: copy."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated

import typer

from sessionsdb.admin.database_copy import copy_database, count_rows
from sessionsdb.cli.console import output
from sessionsdb.cli.console.errors import report_errors
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress
from sessionsdb.cli.decorators import without_database
from sessionsdb.cli.target import Target


@without_database
async def copy(
    target: Target,
    source: Annotated[str, typer.Argument(metavar="FROM", help="The URL of the database to copy.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="The URL of the database to write.")],
    json_: AsJson = False,
) -> None:
    """Copy a database into another one, in all namespaces, and compare both.

    This is the way from SQLite to PostgreSQL, and back. Stop all workers and
    other writers first: the copy has the state of the moment in which the
    command began. TO is an empty database, or an earlier copy that was
    interrupted: then the command goes on. A PostgreSQL database needs
    'sessionsdb migrate' first. At the end both are compared row by row. The
    tokens of clients are copied too. The index of 'sessionsdb search' is not.

    Examples:

        sessionsdb copy sqlite:///sessions.db postgresql://user@host/sessions
        sessionsdb copy postgresql://user@host/sessions sqlite:///sessions.db
    """
    if source == to:
        raise typer.BadParameter("FROM and TO are the same database.")
    with report_errors(source):
        origin = target.at(source)
        origin.require_file("as FROM")
    async with AsyncExitStack() as opened:
        # An error names the database that it is about.
        with report_errors(source):
            db = await opened.enter_async_context(origin.open(migrate=False))
        with report_errors(to):
            other = await opened.enter_async_context(target.at(to).open())
        total = await count_rows(db)
        with progress("copying and verifying rows", 2 * total) as advance:
            copied = await copy_database(db, other, progress=advance)
    if json_:
        output.print_json(copied._asdict())
    else:
        output.say(
            f"copied: {output.quantity(copied.rows, 'row')}, all compared; "
            f"{copied.written} written now"
        )
