"""Commands that move transcripts: import, export."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sessionsdb import SessionsDB, SessionSummary, UnknownSession
from sessionsdb.admin.session_export import export_session
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import with_database
from sessionsdb.cli.console.input_lines import opened
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.transcript_import import ImportSummary, RefusedLine, save_all

MEBIBYTE = 1024 * 1024
PAGE = 500

Write = Callable[[str], object]


@with_database
async def import_transcripts(
    db: SessionsDB,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file; - reads standard input.")],
    max_line_mib: Annotated[
        int,
        typer.Option(
            "--max-line-mib",
            metavar="N",
            min=1,
            help="Refuse a longer line: memory grows with the longest.",
        ),
    ] = 64,
    json_: AsJson = False,
) -> None:
    """Save transcripts from JSON lines.

    Each line is one session: {"session_id": "…", "messages": [{…}, …]}.
    Other keys are left alone. The transcript becomes what the line says, and
    a session that does not exist is made. Of two lines of one session the
    later counts.

    A line that can't be saved is named on standard error with the reason, the
    others are saved, and the exit code is 1. A second run changes nothing, so
    after an interruption just run it again.

    Examples:

        sessionsdb import transcripts.jsonl
        zcat transcripts.jsonl.gz | sessionsdb import - --json
    """
    most = max_line_mib * MEBIBYTE
    summary = ImportSummary()
    with opened(file) as source, _progress(source.size) as (moved, warn):
        async for line, verdict in save_all(db, source.lines(most), max_line=most):
            summary.count(verdict)
            moved(line.end)
            if isinstance(verdict, RefusedLine):
                warn(f"line {line.number}: {output.one_line(str(verdict))}")
    if json_:
        output.print_json(asdict(summary))
    else:
        output.say(
            f"{summary.saved} saved, {summary.unchanged} unchanged, {summary.refused} refused"
        )
    if summary.refused:
        raise typer.Exit(1)


@with_database
async def export_transcripts(
    db: SessionsDB,
    session: Annotated[
        list[str] | None,
        typer.Option("--session", metavar="ID", help="Only this session; may be given often."),
    ] = None,
    tree: Annotated[
        bool,
        typer.Option("--tree", help="With --session: all sessions below it as well."),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="With what else is kept of a session: its settings, metadata and times under "
            '"session", its inbox under "inbox". import leaves these alone.',
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write to this file, which is replaced once all is written.",
        ),
    ] = None,
) -> None:
    """Write transcripts as JSON lines, the form that import reads.

    Each line is one session as it is when its turn comes, ended ones
    included; the messages are those that were saved, to the last character.

    Examples:

        sessionsdb export > transcripts.jsonl
        sessionsdb export --session chat-1 --session chat-2
        sessionsdb export --session chat-1 --tree --full --output request.jsonl
        sessionsdb export --output backup.jsonl
    """
    if tree and not session:
        raise typer.BadParameter("--tree needs --session.")
    ids = _each(db, session, tree=tree) if session else _every_id(db)
    if file is None:
        await _write_transcripts(db, ids, output.stdout_writer(), named=bool(session), full=full)
        return
    with _replace_file(file) as write:
        written = await _write_transcripts(db, ids, write, named=bool(session), full=full)
    output.say(f"exported: {output.counted(written, 'session')}")


async def _write_transcripts(
    db: SessionsDB, ids: AsyncIterator[str], write: Write, *, named: bool, full: bool
) -> int:
    written = 0
    async for id in ids:
        messages = await db.store.load(id)
        if messages is None:
            if named:
                raise UnknownSession(id)
            continue  # deleted since it was listed
        line: dict[str, Any] = {"session_id": id, "messages": messages}
        if full:
            kept = await export_session(db, id)
            line |= {"session": output.wire(kept.session), "inbox": kept.inbox}
        write(output.as_json(line) + "\n")
        written += 1
    return written


async def _each(db: SessionsDB, ids: list[str], *, tree: bool) -> AsyncIterator[str]:
    """These sessions, each once; with ``tree`` each with all below it, the root first."""
    seen: set[str] = set()
    for id in ids:
        below = await db.broker.list(root=id, include_ended=True) if tree else []
        for one in (id, *sorted(session.id for session in below)):
            if one not in seen:
                seen.add(one)
                yield one


async def _every_id(db: SessionsDB) -> AsyncIterator[str]:
    """Every id once, page by page, also when sessions become active meanwhile and so come up
    again further on."""
    seen: set[str] = set()
    last: SessionSummary | None = None
    while page := await db.broker.list(include_ended=True, limit=PAGE, after=last):
        for session in page:
            if session.id not in seen:
                seen.add(session.id)
                yield session.id
        last = page[-1]


@contextlib.contextmanager
def _replace_file(file: Path) -> Iterator[Write]:
    """Write a file as a whole or not at all; what is not a regular file is written to directly."""
    special = file.exists() and not stat.S_ISREG(file.stat().st_mode)
    target = file if special else file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with target.open("w", encoding="ascii", newline="\n") as stream:
            yield stream.write
        if not special:
            target.replace(file)
    except BaseException:
        if not special:
            target.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on standard error if that is a terminal: what moves it on, and what prints above it."""
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield (lambda _: None), output.note
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("importing"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("import", total=total)
        yield (
            lambda end: bar.update(task, completed=end),
            lambda text: bar.console.print(text, soft_wrap=True),
        )
