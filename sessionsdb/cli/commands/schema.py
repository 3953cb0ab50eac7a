"""The command that migrates the tables to this version."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import SchemaOutOfDate, SessionsDB
from sessionsdb.admin.doctor import examine_encoding
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.decorators import with_target
from sessionsdb.cli.target import Target
from sessionsdb.engine import migrations


@with_target
async def migrate(
    target: Target,
    sql: Annotated[
        bool,
        typer.Option("--sql", help="Print the SQL, without connecting to the database."),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="REVISION",
            help="With --sql: only the SQL after this revision. Default: all.",
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Migrate the tables of a database to this version.

    A database at the newest revision is not changed. Two processes that
    migrate at the same time both succeed.

    Examples:

        sessionsdb --url postgresql://me@db.example/agents migrate
        sessionsdb --url postgresql:// migrate --sql > schema.sql
        sessionsdb --url postgresql:// migrate --sql --since 0001
    """
    if sql:
        if json_:
            raise typer.BadParameter("--sql prints SQL, so it can't be used with --json.")
        typer.echo(_sql(target.url, since), nl=False)
        return
    if since is not None:
        raise typer.BadParameter("--since needs --sql.")
    before, after = await _upgrade(target)
    if json_:
        output.print_json(
            {"after": after} if before is None else {"before": before, "after": after}
        )
    elif before == after:
        output.say(f"nothing to do: the database is at revision {after}")
    else:
        output.say(f"migrated: from {_describe(before)} to {_describe(after)}")


async def _upgrade(target: Target) -> tuple[str | None, str]:
    """Migrate, and return the revisions before and after."""
    before: str | None = migrations.head()
    try:
        async with target.open(migrate=False) as db:
            await _warn_of_encoding(db)
    except SchemaOutOfDate as error:
        before = error.found
        async with target.open(migrate=True) as db:
            await _warn_of_encoding(db)
    return before, migrations.head()


async def _warn_of_encoding(db: SessionsDB) -> None:
    for finding in await examine_encoding(db):
        output.note(f"{finding.examples[0]}: {finding.meaning}; {finding.action}")


def _sql(url: str, since: str | None) -> str:
    if since is not None and since not in migrations.revisions():
        known = ", ".join(migrations.revisions())
        raise typer.BadParameter(f"no revision {since!r}; the revisions are {known}.")
    return migrations.ddl(url, since=since)


def _describe(revision: str | None) -> str:
    return "no tables" if revision is None else f"revision {revision}"
