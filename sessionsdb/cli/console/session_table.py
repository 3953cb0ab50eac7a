"""A page of sessions as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sessionsdb import SessionSummary
from sessionsdb.cli.console import output
from sessionsdb.cli.console.plain_table import GAP, plain_table
from sessionsdb.cli.console.short_ids import short_ids

if TYPE_CHECKING:
    from rich.table import Table

MIN_CUT_WIDTH = 8
"""A peer or a channel is cut to no fewer columns than this."""

HEADERS = ("session", "channel", "peer", "messages", "last active (UTC)", "parent")
CUT_FIRST = ("peer", "channel")
"""The columns that make room for the others. An id stays whole, because people copy it."""


def print_sessions(sessions: Sequence[SessionSummary]) -> None:
    """Print the sessions as a table: on a terminal with short ids, and cut to its width."""
    if output.is_plain():
        cells = _cells(sessions, short=False)
        table = plain_table(cells, right=("messages",), width=output.PIPE_WIDTH)
        if table is not None:
            output.print_plain(table)
            return
    console = output.console()
    console.print(session_table(sessions, console.width, short=console.is_terminal))


def _cells(sessions: Sequence[SessionSummary], *, short: bool) -> dict[str, list[str]]:
    """Return the cells of each column. With ``short`` the ids are cut for people."""
    ids = [id for session in sessions for id in (session.id, session.parent or "")]
    shown = short_ids(ids) if short else {}
    cells = {
        "session": [shown.get(one.id, one.id) for one in sessions],
        "channel": [one.channel for one in sessions],
        "peer": [one.peer for one in sessions],
        "messages": [str(one.message_count) for one in sessions],
        "last active (UTC)": [output.format_time(one.last_active) for one in sessions],
        "parent": [shown.get(one.parent or "", one.parent or "") for one in sessions],
    }
    return {name: [output.cell_text(text) for text in column] for name, column in cells.items()}


def session_table(sessions: Sequence[SessionSummary], width: int, *, short: bool) -> Table:
    """Return the sessions as a table of at most ``width`` columns.

    A long peer or channel is cut with an ellipsis.
    """
    from rich.table import Table  # which output into a pipe does not need
    from rich.text import Text

    cells = {
        name: [Text(text) for text in column]
        for name, column in _cells(sessions, short=short).items()
    }
    widths = {
        name: max(len(name), *(cell.cell_len for cell in column)) for name, column in cells.items()
    }
    for name in CUT_FIRST:
        excess = sum(widths.values()) + GAP * (len(HEADERS) - 1) - width
        widths[name] = min(widths[name], max(MIN_CUT_WIDTH, widths[name] - excess))
        for cell in cells[name]:
            cell.truncate(widths[name], overflow="ellipsis")
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in HEADERS:
        is_id = name in ("session", "parent")
        table.add_column(
            name,
            justify="right" if name == "messages" else "left",
            overflow="fold",
            no_wrap=not is_id,
        )
    for row in zip(*(cells[name] for name in HEADERS), strict=True):
        table.add_row(*row)
    return table
