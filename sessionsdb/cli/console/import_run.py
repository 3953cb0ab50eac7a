"""Import one input: lines of sessions one by one, or a file of another program as a whole."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.admin.foreign_import import parse_document, read_document, save_conversations
from sessionsdb.admin.transcript_import import ImportSummary, RefusedLine, save_all
from sessionsdb.cli.console import foreign_input, output
from sessionsdb.cli.console.import_files import ImportFile
from sessionsdb.cli.console.input_lines import LineSource, open_lines
from sessionsdb.messages.formats.form import Conversation, Document, Form


class ImportOptions(NamedTuple):
    form: Form | None
    """The form of all files. ``None``: it is recognised."""
    only_sessions: bool
    """Whether all files are lines of sessions."""
    id: str | None
    max_line: int
    max_file: int
    max_message: int | None
    """The size of a message of another program. ``None``: ``Limits.message_bytes``."""


OBJECTS_BEFORE_COLLECTION = 20_000
"""An import has thousands of messages on their way, and few cycles. With the 700 of Python 3.11,
100,000 messages take 0.60 s instead of 0.57 s."""


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage less often during the block."""
    before = gc.get_threshold()
    gc.set_threshold(max(OBJECTS_BEFORE_COLLECTION, before[0]), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def import_file(
    db: SessionsDB, file: ImportFile, options: ImportOptions, summary: ImportSummary
) -> bool:
    """Import an input, and count its sessions in ``summary``.

    Returns false if it was found in a folder and is of no known form. Raises ``InvalidArgument``,
    ``OSError``, and ``StorageError`` when the database fails.
    """
    if file.events:
        return await _import_events(db, file, options, summary)
    with open_lines(file.path) as source:
        beginning = await source.beginning(options.max_line)
        is_ours = options.only_sessions or (options.form is None and beginning == "sessions")
        if not is_ours and (options.form is not None or beginning in ("foreign", "document")):
            text = b""
            try:
                text = await source.whole(options.max_file)
                if await _import_foreign(db, file, text, options, summary):
                    return True
            except InvalidArgument as error:
                if not file.in_folder:
                    raise InvalidArgument(f"{shown_path(file)} {error}") from None
                _refuse(file, str(error), summary)
                return True
            source.push_back(text)
        if file.in_folder and not is_ours:
            output.note(f"{shown_path(file)} is of no known form, and is passed over")
            return False
        await _import_sessions(db, source, options, summary)
        return True


def _refuse(file: ImportFile, reason: str, summary: ImportSummary) -> None:
    summary.count(RefusedLine(reason))
    output.note(f"{shown_path(file)}: {output.one_line(reason)}")


async def _import_sessions(
    db: SessionsDB, source: LineSource, options: ImportOptions, summary: ImportSummary
) -> None:
    with progress(source.size) as (advance_to, warn):
        lines = source.lines(options.max_line)
        async for line, verdict in save_all(db, lines, max_line=options.max_line):
            summary.count(verdict)
            advance_to(line.end)
            if isinstance(verdict, RefusedLine):
                hint = "; --max-line-mib raises the limit" if line.text is None else ""
                warn(f"line {line.number}: {output.one_line(str(verdict))}{hint}")


async def _import_foreign(
    db: SessionsDB, file: ImportFile, text: bytes, options: ImportOptions, summary: ImportSummary
) -> bool:
    """Import the text of a file. Return false if it is of no known form.

    Raises ``InvalidArgument`` if it can't be read as the form that was given.
    """
    try:
        document, bad_lines = parse_document(file.name, text)
    except InvalidArgument:
        if options.form is None:
            return False
        raise
    if options.form is None and all(map(foreign_input.is_of_sessions, document.values)):
        return False
    if not await _save_document(db, file, document, options, summary):
        return False
    for number, reason in bad_lines:
        _refuse(file, f"line {number}: {reason}", summary)
    return True


async def _import_events(
    db: SessionsDB, file: ImportFile, options: ImportOptions, summary: ImportSummary
) -> bool:
    """Import a folder of files that hold one event each."""
    values = []
    for path in file.events:
        with open_lines(path) as source:
            await source.beginning(options.max_line)
            text = await source.whole(options.max_file)
        try:
            values.extend(parse_document(file.name, text)[0].values)
        except InvalidArgument as error:
            _refuse(file._replace(path=path), str(error), summary)
    document = Document(file.name, values, True)
    if not await _save_document(db, file, document, options, summary):
        output.note(f"{shown_path(file)} is of no known form, and is passed over")
        return False
    return True


async def _save_document(
    db: SessionsDB,
    file: ImportFile,
    document: Document,
    options: ImportOptions,
    summary: ImportSummary,
) -> bool:
    found = read_document(document, form=options.form, id=options.id)
    if found is None:
        return False
    form, conversations = found
    most = options.max_message or db.limits.message_bytes
    async for conversation, verdict in save_conversations(db, conversations, max_message=most):
        summary.count(verdict)
        if isinstance(verdict, RefusedLine):
            output.note(f"{shown_path(file)}: session {conversation.id}: {verdict}")
    left_out = [one for one in conversations if one.left_out]
    output.note(f"{shown_path(file)}: {form.title}, {_described(conversations)}")
    for one in left_out:
        output.note(f"{shown_path(file)}: {_left_out(one)}")
    for key, count in _other_lists(conversations).items():
        records = output.quantity(count, "record")
        output.note(f"{shown_path(file)}: left out the list {output.one_line(key)}, {records}")
    return True


def _described(conversations: list[Conversation]) -> str:
    count = output.quantity(sum(len(one.messages) for one in conversations), "message")
    if len(conversations) == 1:
        return f"session {conversations[0].id}, {count}"
    return f"{output.quantity(len(conversations), 'session')}, {count}"


def _left_out(conversation: Conversation) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(conversation.left_out.items()))
    return f"left out what is no message: {output.one_line(kinds)}"


def _other_lists(conversations: list[Conversation]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in conversations:
        found.update(one.other_lists)
    return found


def shown_path(file: ImportFile) -> str:
    """Return the name of an input for a message."""
    return output.one_line(foreign_input.shown(file.path))


@contextlib.contextmanager
def progress(total: int | None) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
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
