"""Another Alembic project in the same database: its autogenerate, with the function of the docs."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, Table

from devtools.databases import Database
from tests.support.schemas import in_transaction, upgrade
from tests.test_docs import ROOT, blocks


def include_name_of_the_docs(place: str | None) -> Any:
    """The function of docs/migrations.md, with the package's tables in ``place``."""
    found = blocks(ROOT / "docs" / "migrations.md", "python no-run")
    [code] = [block.text for block in found if "def include_name" in block.text]
    names: dict[str, Any] = {}
    exec(code.partition("context.configure")[0], names)
    names["PLACE"] = place
    return names["include_name"]


async def changes(database: Database, theirs: MetaData, **options: Any) -> set[tuple[str, ...]]:
    """The changes of autogenerate: the kind of each, and the name of its table and column."""

    def compare(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), theirs))

    found = set()
    for change in await in_transaction(database, compare):
        if change[0].endswith("_table"):
            found.add((change[0], change[1].name))
        elif change[0].endswith("_column"):
            found.add((change[0], f"{change[1]}.{change[2]}", change[3].name))
    return found


async def test_it_does_not_see_our_tables(database: Database) -> None:
    await database.query("CREATE TABLE orders (id integer)")
    include_name = include_name_of_the_docs(None)
    assert await changes(database, MetaData(), include_name=include_name) == {
        ("remove_table", "orders")
    }


class TestOnPostgreSQL:
    @pytest.fixture
    def kind(self) -> str:
        return "postgresql"

    @pytest.mark.parametrize("place", [None, "agents"])
    async def test_it_sees_its_own_sessions_in_every_schema(
        self, empty_database: Database, place: str | None
    ) -> None:
        query = "" if place is None else f"&schema={place}"
        await upgrade(Database("postgresql", empty_database.url + query))
        await empty_database.query("CREATE SCHEMA app")
        await empty_database.query("CREATE TABLE app.sessions (id integer, dropped integer)")
        await empty_database.query("CREATE TABLE app.messages (id integer)")
        theirs = MetaData()
        Table("sessions", theirs, Column("id", Integer), Column("added", Integer), schema="app")
        found = await changes(
            empty_database,
            theirs,
            include_schemas=True,
            include_name=include_name_of_the_docs(place),
        )
        assert found == {
            ("remove_table", "messages"),
            ("add_column", "app.sessions", "added"),
            ("remove_column", "app.sessions", "dropped"),
        }
