"""A table of ASCII for a pipe or a file, laid out as rich lays it out where no line is too long."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

GAP = 2
"""Columns of the terminal between two columns of a table."""


def plain_table(
    columns: Mapping[str, Sequence[str]], *, right: Collection[str] = (), width: int
) -> str | None:
    """Return a table as text. ``None`` if a line is longer than ``width`` or not in ASCII.

    ``columns``: the cells of each column by its header. ``right``: the columns of numbers, which
    are aligned on the right.
    """
    cells = [[header, *column] for header, column in columns.items()]
    if not all(cell.isascii() for column in cells for cell in column):
        return None  # the width of other characters is rich's business
    aligned = [_aligned(column, on_right=column[0] in right) for column in cells]
    lines = [(" " * GAP).join(row) for row in zip(*aligned, strict=True)]
    return None if len(lines[0]) > width else "\n".join(lines)


def _aligned(column: Sequence[str], *, on_right: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) if on_right else cell.ljust(width) for cell in column]
