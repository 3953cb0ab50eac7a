"""Commands that move transcripts: import, export."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sessionsdb import InvalidArgument, SessionsDB, SessionSummary, UnknownSession, output_file
from sessionsdb.admin.session_export import export_session, shared_states
from sessionsdb.admin.transcript_import import ImportSummary
from sessionsdb.cli.console import output
from sessionsdb.cli.console.import_files import input_files
from sessionsdb.cli.console.import_run import ImportOptions, import_file, rare_collections
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id
from sessionsdb.engine import urls
from sessionsdb.messages.formats.form import Form
from sessionsdb.messages.formats.registry import FORMS, form_named

MEBIBYTE = 1024 * 1024
PAGE = 500
SESSIONS = "sessions"
"""The name for --format of our own form."""
FORM_NAMES = ", ".join(form.name for form in FORMS)

Write = Callable[[str], object]


@with_database
async def import_transcripts(
    db: SessionsDB,
    file: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files or folders. - reads standard input."),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Read the files as this form: 'sessions' for the lines of export, or "
            f"{FORM_NAMES}. Default: the form is recognised.",
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="The id of the session, for one file of another program with one conversation.",
        ),
    ] = None,
    max_line_mib: Annotated[
        int,
        typer.Option(
            "--max-line-mib",
            metavar="N",
            min=1,
            help="Refuse a line of more MiB. The longest line decides the memory used.",
        ),
    ] = 64,
    max_file_mib: Annotated[
        int,
        typer.Option(
            "--max-file-mib",
            metavar="N",
            min=1,
            help="Refuse a file of another program of more MiB, decompressed. It is read into "
            "memory.",
        ),
    ] = 256,
    max_message_mib: Annotated[
        int | None,
        typer.Option(
            "--max-message-mib",
            metavar="N",
            min=1,
            help="Accept messages of another program of up to N MiB. Default: 1, the limit of a "
            "handle, which refuses to write larger ones again.",
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Save transcripts from files: of export, or of other programs.

    A line of export is one session: {"session_id": "…", "messages": [{…}, …]}.
    Other keys are ignored. The messages of the line replace the transcript,
    and a missing session is created. A line of 'export --full' restores a
    missing session with all its data, and its place in a tree if its parent
    exists. If the parent is below it, the session stays a root, and its line
    is reported too. If two lines have the same session, the later one wins. A
    byte order mark at the start of a line is ignored.

    A file of another program is known by its records. It is a session of
    Claude Code or Codex, messages of a model's API or of a framework, or a
    trajectory. It is JSON or JSON lines. Its records are saved as they are,
    with their times. The id is the file's own, else the name of the file.
    If a session has a part of them, the rest is appended. If it has other
    messages, the file is refused: no message of a session is ever removed.
    docs/formats.md has the forms. In a folder, all files that end in .json,
    .jsonl, .ndjson or .traj are read. Files of no known form are passed over.

    Files may be compressed with gzip. Input in UTF-16, or compressed in
    another way, is refused with the command that converts it.

    A line or a conversation that can't be saved is reported on standard error
    with the reason. The others are saved, and the exit code is 1. After an
    interruption run it again: what is saved already stays as it is.

    Examples:

        sessionsdb import transcripts.jsonl
        sessionsdb import ~/.claude/projects ~/.codex/sessions
        sessionsdb import chat.json --format openai-chat --id chat-1
    """
    known = _form(form)
    inputs = input_files(file)
    if id is not None and (len(inputs) > 1 or form == SESSIONS):
        raise typer.BadParameter("--id needs one file of another program.")
    options = ImportOptions(
        known,
        form == SESSIONS,
        id,
        max_line_mib * MEBIBYTE,
        max_file_mib * MEBIBYTE,
        None if max_message_mib is None else max_message_mib * MEBIBYTE,
    )
    summary = ImportSummary()
    passed_over = 0
    with rare_collections():
        for one in inputs:
            passed_over += not await import_file(db, one, options, summary)
    if passed_over == len(inputs):
        raise InvalidArgument("none of these files is of a known form; --format names it")
    if json_:
        output.print_json(asdict(summary))
    else:
        output.say(
            f"{summary.saved} saved, {summary.unchanged} unchanged, {summary.refused} refused"
        )
    if summary.refused:
        raise typer.Exit(1)


def _form(name: str | None) -> Form | None:
    if name is None or name == SESSIONS:
        return None
    if (form := form_named(name)) is None:
        raise typer.BadParameter(f"--format must be {SESSIONS}, {FORM_NAMES}.")
    return form


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
