"""Pictures of the first day: labels at the data, a marker for each percentile, a legend."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from sessionsdb.reports.catalogue import REPORTS
from sessionsdb.reports.pictures import PAINTERS
from sessionsdb.reports.queries import Report

pytest.importorskip("matplotlib")


def painted(name: str, *given: dict[str, Any]) -> Any:
    """Return the figure of a report whose rows have the given values, and 1 elsewhere."""
    from matplotlib.figure import Figure

    view = REPORTS[name]
    values: dict[str, Any] = {"text": "web", "integer": 1, "seconds": 1.0, "day": date(2026, 1, 31)}
    rows = [
        tuple(row.get(column.name, values.get(column.kind)) for column in view.columns)
        for row in given
    ]
    figure = Figure(layout="constrained")
    PAINTERS[name](figure, Report(view, rows))
    return figure


def texts(axis: Any) -> set[str]:
    return {text.get_text() for text in axis.texts}


def test_the_bars_of_a_single_day_are_labelled() -> None:
    turns, messages, tokens = painted(
        "activity", {"turns": 8, "input_tokens": 11_199}, {"channel": "mail", "turns": 4}
    ).axes
    assert texts(turns) == {"web: 8", "mail: 4"}
    assert texts(messages) == {"web: 1", "mail: 1"}
    assert texts(tokens) == {"web: 11.2k", "mail: 2"}


def test_each_percentile_has_its_marker_and_the_channels_of_a_day_stand_apart() -> None:
    wait, _ = painted("latency", {"wait_p50": 0.5}, {"channel": "mail"}).axes
    assert len({line.get_marker() for line in wait.lines}) == 3
    assert len({line.get_xdata()[0] for line in wait.lines}) == 2
    assert {"p50 500 ms", "p99 1 s"} <= texts(wait)


def test_the_sizes_of_a_tree_are_explained() -> None:
    [axis] = painted("tree", {"depth": 0, "subtree_input_tokens": 999}).axes
    legend = axis.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["100 tokens", "1k tokens"]
    assert "all below" in legend.get_title().get_text()
