"""A page of sessions as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from sessionsdb import SessionSummary
from sessionsdb.cli.console import output
from sessionsdb.cli.console.short_ids import short_ids

GAP = 2
"""Columns of the terminal between two columns of the table."""

MIN_CUT_WIDTH = 8
"""A peer or a channel is cut to no fewer columns than this."""

HEADERS = ("session", "channel", "peer", "messages", "last active (UTC)", "parent")
CUT_FIRST = ("peer", "channel")
"""The columns that make room for the others. An id stays whole, because people copy it."""


def session_table(sessions: Sequence[SessionSummary], width: int, *, short: bool) -> Table:
    """Return the sessions as a table of at most ``width`` columns.

    With ``short`` the ids are cut for people. A long peer or channel is cut with an ellipsis.
    """
    ids = [id for session in sessions for id in (session.id, session.parent or "")]
    shown = short_ids(ids) if short else {}
    cells = {
        "session": [output.cell(shown.get(one.id, one.id)) for one in sessions],
        "channel": [output.cell(one.channel) for one in sessions],
        "peer": [output.cell(one.peer) for one in sessions],
        "messages": [output.cell(str(one.message_count)) for one in sessions],
        "last active (UTC)": [output.cell(output.format_time(one.last_active)) for one in sessions],
        "parent": [output.cell(shown.get(one.parent or "", one.parent or "")) for one in sessions],
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
