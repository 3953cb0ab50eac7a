"""Copy the rows of a database into another one, of either kind, and compare both.

Each table is read in the order of its primary key on both sides, and the two are merged. Missing
rows are inserted, and rows that differ are written again. Rows that only the target has are
deleted. So a copy that was interrupted goes on when it is run again. A second merge at the end
writes nothing, and finds no difference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb.database import SessionsDB
from sessionsdb.engine import functions
from sessionsdb.engine.dialect import kind_of
from sessionsdb.engine.sqlite.engine import DEFERRED_OPTION
from sessionsdb.errors import InvalidArgument, StorageError
from sessionsdb.schema import (
    inbox,
    mailboxes,
    messages,
    pieces,
    questions,
    schedules,
    search_documents,
    search_marks,
    sessions,
    state_scopes,
    state_values,
    tokens,
    waits,
    write_stamps,
)

TABLES = (
    sessions,
    messages,
    mailboxes,
    inbox,
    questions,
    state_scopes,
    state_values,
    schedules,
    tokens,
)
"""The tables in the order in which they are copied: a row comes behind those that it refers to."""

LEFT_OUT = (pieces, waits, write_stamps, search_marks, search_documents)
"""The other tables. Pieces of running turns, waits and stamps belong to running processes. The
index of the search has another form in each database, and is made anew from the messages."""

MAX_ROWS = 2_000
"""Rows of one transaction at most."""

MAX_BYTES = 8 * 1024 * 1024
"""Characters of text in one transaction, about. A larger row is written alone."""

FETCHED_ROWS = 100
"""Rows that are fetched at once."""

Row = tuple[Any, ...]
Progress = Callable[[int], object]
"""Called with the number of rows since the last call. Each row is counted when it is copied, and
again when it is verified."""


class CopyResult(NamedTuple):
    """The rows of a finished copy."""

    rows: int
    """All rows of ``TABLES``, which are the same in both databases."""
    written: int
    """Rows that this call wrote or deleted. The others were there already."""


async def count_rows(db: SessionsDB) -> int:
    """Return the number of rows that a copy compares, in all namespaces."""
    async with _reading(db) as connection:
        total = 0
        for table in TABLES:
            total += (
                await connection.execute(select(functions.count()).select_from(table))
            ).scalar_one()
        return total


async def copy_database(
    source: SessionsDB, target: SessionsDB, *, progress: Progress = lambda _: None
) -> CopyResult:
    """Copy all namespaces of ``source`` into ``target``, and verify the copy row by row.

    The copy has the state of ``source`` at one moment, the beginning of this call. Nothing else may
    use ``target`` meanwhile. It takes bounded memory: about 8 MB of text, and the largest row.

    Raises ``InvalidArgument`` if ``target`` has sessions or tokens that are no copies from
    ``source``, or sessions that were used since they were copied. Raises ``StorageError`` if the
    copy differs at the end.
    """
    written = 0
    async with _reading(source) as connection:
        await _refuse_other_sessions(connection, target)
        await _refuse_other_tokens(connection, target)
        for table in TABLES:
            # A child may come before its parent, so its link is made behind all sessions.
            columns = [c for c in table.c if c is not sessions.c.parent_id]
            written += await _merge(
                connection, target, table, list(table.c), progress, write=columns
            )
        # The links are the last part of the copy. Their rows are counted already.
        links = [sessions.c.namespace, sessions.c.id, sessions.c.parent_id]
        await _merge(connection, target, sessions, links, lambda _: None, write=links)
        rows = 0

        def count(compared: int) -> None:
            nonlocal rows
            rows += compared
            progress(compared)

        for table in TABLES:
            if await _merge(connection, target, table, list(table.c), count):
                raise StorageError(
                    f"the copy differs from its source in the table {table.name}: something else "
                    "writes to the target; stop it, and run the copy again"
                )
    return CopyResult(rows, written)


async def _refuse_other_sessions(source: AsyncConnection, target: SessionsDB) -> None:
    """Raise ``InvalidArgument`` unless each session of the target is a copy of the source's."""
    columns = [*sessions.primary_key.columns, sessions.c.incarnation, sessions.c.created_at]
    columns.append(sessions.c.last_active)
    async with _reading(target) as other:
        async for ours, theirs in _pairs(source, other, sessions, columns):
            if theirs is None:
                continue
            if ours is None or ours[2:4] != theirs[2:4]:
                raise InvalidArgument(
                    f"the target has a session that is no copy from the source: {theirs[1]} in "
                    f"the namespace {theirs[0]}; name an empty database"
                )
            if theirs[4] > ours[4]:
                raise InvalidArgument(
                    f"session {theirs[1]} of the target was used since it was copied, in the "
                    f"namespace {theirs[0]}; name an empty database"
                )


async def _refuse_other_tokens(source: AsyncConnection, target: SessionsDB) -> None:
    """Raise ``InvalidArgument`` unless each token of the target is one of the source.

    The copy would delete it, and its client would be refused.
    """
    columns = [tokens.c.digest, tokens.c.id, tokens.c.namespace]
    async with _reading(target) as other:
        async for ours, theirs in _pairs(source, other, tokens, columns):
            if ours is None and theirs is not None:
                raise InvalidArgument(
                    f"the target has a token that is not in the source, in the namespace "
                    f"{theirs[2]}; run `sessionsdb token --revoke {theirs[1]}` on the target"
                )


async def _merge(
    source: AsyncConnection,
    target: SessionsDB,
    table: Table,
    columns: list[Column[Any]],
    progress: Progress,
    *,
    write: Sequence[Column[Any]] = (),
) -> int:
    """Return the number of rows of a table that differ in ``columns``.

    The columns ``write`` of these rows are written. Without any nothing is written.
    """
    differences, compared = 0, 0
    batch = _Batch(target, table, columns, write)
    async with _reading(target) as other:
        async for ours, theirs in _pairs(source, other, table, columns):
            compared += ours is not None
            if ours != theirs:
                differences += 1
                if write:
                    await batch.add(ours, theirs)
            if compared == FETCHED_ROWS:
                progress(compared)
                compared = 0
    await batch.write()
    progress(compared)
    return differences


class _Batch:
    """Rows that are written in one transaction."""

    def __init__(
        self,
        target: SessionsDB,
        table: Table,
        columns: Sequence[Column[Any]],
        written: Sequence[Column[Any]],
    ) -> None:
        self._target = target
        self._table = table
        self._columns = columns
        self._written = written
        self._keys = list(table.primary_key.columns)
        self._changed: list[Row] = []
        self._new: list[Row] = []
        self._gone: list[Row] = []
        self._size = 0

    async def add(self, ours: Row | None, theirs: Row | None) -> None:
        row = ours or theirs or ()
        (self._gone if ours is None else self._new if theirs is None else self._changed).append(row)
        self._size += sum(len(value) for value in row if isinstance(value, str))
        count = len(self._changed) + len(self._new) + len(self._gone)
        if count >= MAX_ROWS or self._size >= MAX_BYTES:
            await self.write()

    async def write(self) -> None:
        if not (self._changed or self._new or self._gone):
            return
        is_row = and_(*(column == bindparam(f"at_{column.name}") for column in self._keys))
        async with self._target.engine.begin() as connection:
            if self._gone:
                await connection.execute(
                    delete(self._table).where(is_row), [self._place(row) for row in self._gone]
                )
            if self._changed:
                values = {c.name: bindparam(f"to_{c.name}", type_=c.type) for c in self._written}
                await connection.execute(
                    update(self._table).where(is_row).values(values),
                    [
                        self._place(row) | {f"to_{n}": v for n, v in self._values(row).items()}
                        for row in self._changed
                    ],
                )
            if self._new:
                await connection.execute(
                    insert(self._table), [self._values(row) for row in self._new]
                )
        self._changed, self._new, self._gone, self._size = [], [], [], 0

    def _named(self, row: Row) -> dict[str, Any]:
        return {c.name: value for c, value in zip(self._columns, row, strict=True)}

    def _values(self, row: Row) -> dict[str, Any]:
        named = self._named(row)
        return {column.name: named[column.name] for column in self._written}

    def _place(self, row: Row) -> dict[str, Any]:
        named = self._named(row)
        return {f"at_{column.name}": named[column.name] for column in self._keys}


async def _pairs(
    left: AsyncConnection, right: AsyncConnection, table: Table, columns: Sequence[Column[Any]]
) -> AsyncIterator[tuple[Row | None, Row | None]]:
    """Yield the rows of both sides by primary key, ``None`` where a side has no such row."""
    width = len(table.primary_key.columns)
    ours, theirs = _rows(left, table, columns), _rows(right, table, columns)
    one, other = await anext(ours, None), await anext(theirs, None)
    while one is not None or other is not None:
        if other is None or (one is not None and _key(one, width) < _key(other, width)):
            yield one, None
            one = await anext(ours, None)
        elif one is None or _key(other, width) < _key(one, width):
            yield None, other
            other = await anext(theirs, None)
        else:
            yield one, other
            one, other = await anext(ours, None), await anext(theirs, None)


def _key(row: Row, width: int) -> tuple[Any, ...]:
    return row[:width]


async def _rows(
    connection: AsyncConnection, table: Table, columns: Sequence[Column[Any]]
) -> AsyncIterator[Row]:
    """Yield the rows by primary key. The columns begin with those of the key."""
    statement = select(*columns).order_by(*table.primary_key.columns)
    options = {"yield_per": FETCHED_ROWS}
    async with connection.stream(statement, execution_options=options) as found:
        # In parts: an await for each row would take longer than the row.
        async for part in found.partitions(FETCHED_ROWS):
            for row in part:
                yield tuple(row)


@asynccontextmanager
async def _reading(db: SessionsDB) -> AsyncIterator[AsyncConnection]:
    """A connection that sees one moment of the database."""
    if kind_of(db.engine) == "sqlite":
        options: dict[str, Any] = {DEFERRED_OPTION: True}
    else:
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    async with db.engine.connect() as connection:
        await connection.execution_options(**options)
        async with connection.begin():
            yield connection
