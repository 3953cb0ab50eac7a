"""Draw reports as pictures with matplotlib: activity, latency and the tree.

matplotlib comes with the extra ``sessionsdb[plot]`` and is imported when a picture is drawn.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sessionsdb import InvalidArgument, SessionsDBError, output_file
from sessionsdb.reports.pictures.activity import draw_activity
from sessionsdb.reports.pictures.latency import draw_latency
from sessionsdb.reports.pictures.tree import draw_tree
from sessionsdb.reports.queries import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")

PAINTERS: dict[str, Callable[[Figure, Report], None]] = {
    "activity": draw_activity,
    "latency": draw_latency,
    "tree": draw_tree,
}

_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a name of a user is a character
    "svg.hashsalt": "sessionsdb",  # makes the file of one report the same every time
}


class PlotLibraryMissing(SessionsDBError):
    def __init__(self) -> None:
        super().__init__(
            'pictures need matplotlib; install it with: pip install "sessionsdb[plot]"'
        )


def draw(report: Report, file: Path) -> None:
    """Write the report as a picture, in SVG or PNG by the suffix of the file.

    An existing file keeps its mode. Raises ``InvalidArgument`` for a report without a picture or
    without rows, for another suffix, and for a file that is a database. Raises
    ``PlotLibraryMissing``, and ``OSError`` if the file can't be written.
    """
    format = file.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        raise InvalidArgument(f"{file}: a picture is written as .svg or .png")
    paint = PAINTERS.get(report.view.report)
    if paint is None:
        raise InvalidArgument(
            f"the report {report.view.report!r} has no picture; {', '.join(PAINTERS)} have"
        )
    if not report.rows:
        raise InvalidArgument("there is nothing to draw: the report is empty")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotLibraryMissing from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a character that the font lacks
        figure = Figure(layout="constrained")
        paint(figure, report)
        metadata = {"Date": None} if format == "svg" else None
        picture = io.BytesIO()
        figure.savefig(picture, format=format, dpi=150, metadata=metadata)
    with output_file.replace_file(file, mode=output_file.PUBLIC) as stream:
        stream.write(picture.getbuffer())
