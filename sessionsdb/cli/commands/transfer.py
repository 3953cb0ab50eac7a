"""Commands that move transcripts: import, export."""

from __future__ import annotations

import contextlib
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

from sessionsdb import SessionsDB, SessionSummary, UnknownSession, output_file
from sessionsdb.admin.session_export import export_session, shared_states
from sessionsdb.admin.transcript_import import ImportSummary, RefusedLine, save_all
from sessionsdb.cli.console import output
from sessionsdb.cli.console.input_lines import open_lines
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id
from sessionsdb.engine import urls

MEBIBYTE = 1024 * 1024
PAGE = 500

Write = Callable[[str], object]


@with_database
async def import_transcripts(
    db: SessionsDB,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file. - reads standard input.")],
    max_line_mib: Annotated[
        int,
        typer.Option(
            "--max-line-mib",
            metavar="N",
            min=1,
            help="Refuse a line of more MiB. The longest line decides the memory used.",
        ),
    ] = 64,
    json_: AsJson = False,
) -> None:
    """Save transcripts from JSON lines.

    Each line is one session: {"session_id": "…", "messages": [{…}, …]}.
    Other keys are ignored. The messages of the line replace the transcript,
    and a missing session is created. A line of 'export --full' restores a
    missing session with all its data, and its place in a tree if its parent
    exists. If two lines have the same session, the later one wins. A byte
    order mark at the start of a line is ignored. Input that is compressed, in
    UTF-16, or one JSON document is refused, with the command that converts it.

    A line that can't be saved is reported on standard error with its number
    and the reason. The other lines are saved, and the exit code is 1. A
    second run changes nothing, so run it again after an interruption.

    Examples:

        sessionsdb import transcripts.jsonl
        zcat transcripts.jsonl.gz | sessionsdb import - --json
    """
    max_line = max_line_mib * MEBIBYTE
    summary = ImportSummary()
    with open_lines(file) as source, _progress(source.size) as (advance_to, warn):
        async for line, verdict in save_all(db, source.lines(max_line), max_line=max_line):
            summary.count(verdict)
            advance_to(line.end)
            if isinstance(verdict, RefusedLine):
                hint = "; --max-line-mib raises the limit" if line.text is None else ""
                warn(f"line {line.number}: {output.one_line(str(verdict))}{hint}")
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
        typer.Option("--session", metavar="ID", help="Only this session. Repeat it for several."),
    ] = None,
    tree: Annotated[
        bool,
        typer.Option("--tree", help="With --session: include all sessions below it."),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Add all other data of each session: settings, state, inbox, times, senders. "
            "Without --session also the states that sessions share. import restores all of it.",
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write to this file. An existing file is replaced when the export is complete, "
            "and keeps its mode. Only you can read a new file. Default: standard output.",
        ),
    ] = None,
) -> None:
    """Write transcripts as JSON lines, the form that import reads.

    Each line is one session, read when its line is written. Ended sessions
    are included. The messages equal the saved ones to the last character.

    Examples:

        sessionsdb export > transcripts.jsonl
        sessionsdb export --session chat-1 --session chat-2
        sessionsdb export --session chat-1 --tree --full --output request.jsonl
        sessionsdb export --output backup.jsonl
    """
    if tree and not session:
        raise typer.BadParameter("--tree needs --session.")
    ids = _given_ids(db, session, tree=tree) if session else _all_ids(db)
    strict = bool(session)
    if file is None:
        await _write_transcripts(db, ids, output.stdout_writer(), strict=strict, full=full)
        return
    with output_file.replace_file(
        file, mode=output_file.PRIVATE, database=urls.file_of(db.engine.url)
    ) as stream:

        def write(line: str) -> object:
            return stream.write(line.encode("ascii"))

        written = await _write_transcripts(db, ids, write, strict=strict, full=full)
    output.say(f"exported: {output.quantity(written, 'session')}")


async def _write_transcripts(
    db: SessionsDB, ids: AsyncIterator[str], write: Write, *, strict: bool, full: bool
) -> int:
    written = 0
    async for id in ids:
        line = await _line(db, id, full=full)
        if line is None:
            if strict:
                raise UnknownSession(id)
            continue  # deleted after it was listed
        write(output.as_json(line) + "\n")
        written += 1
    if full and not strict:
        async for shared in shared_states(db):
            write(output.as_json({"shared_state": shared}) + "\n")
    return written


async def _line(db: SessionsDB, id: str, *, full: bool) -> dict[str, Any] | None:
    """Return the line of a session, ``None`` for an unknown one."""
    if not full:
        messages = await db.store.load(id)
        return None if messages is None else {"session_id": id, "messages": messages}
    try:
        exported = await export_session(db, id)
    except UnknownSession:
        return None
    return {
        "session_id": id,
        "messages": exported.messages,
        "session": output.wire_form(exported.session),
        "inbox": exported.inbox,
        "stored": exported.stored,
    }


async def _given_ids(db: SessionsDB, ids: list[str], *, tree: bool) -> AsyncIterator[str]:
    """Yield each id once. With ``tree`` the ids of the sessions below it follow."""
    seen: set[str] = set()
    for given in ids:
        id = await whole_id(db, given)
        below = await db.broker.list(root=id, include_ended=True) if tree else []
        for one in (id, *sorted(session.id for session in below)):
            if one not in seen:
                seen.add(one)
                yield one


async def _all_ids(db: SessionsDB) -> AsyncIterator[str]:
    """Yield the id of every session once, page by page."""
    # A session that becomes active during the export appears again on a later page.
    seen: set[str] = set()
    last: SessionSummary | None = None
    while page := await db.broker.list(include_ended=True, limit=PAGE, after=last):
        for session in page:
            if session.id not in seen:
                seen.add(session.id)
                yield session.id
        last = page[-1]


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """Show a bar if standard error is a terminal.

    Yields a function that sets the number of bytes that are done, and a function that prints a
    line above the bar.
    """
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
