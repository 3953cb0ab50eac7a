"""Pictures of the first day: labels at the data, a marker for each percentile, a legend."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from devtools.databases import Database
from sessionsdb import Reply, SessionsDB, Turn
from sessionsdb.reports import queries
from sessionsdb.reports.catalogue import REPORTS
from sessionsdb.reports.pictures import PAINTERS, hours
from sessionsdb.reports.pictures.hours import by_hour
from sessionsdb.reports.queries import Report
from sessionsdb.schema import inbox

pytest.importorskip("matplotlib", reason="the pictures need the extra reports")


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


# ---- hours of the first two days -----------------------------------------------------------------


async def answer(turn: Turn) -> Reply:
    return Reply("done", input_tokens=100, output_tokens=10)


async def set_finished(db: SessionsDB, position: int, time: datetime) -> None:
    """Move an answered message to another time, waited for one second."""
    changed = (
        update(inbox)
        .where(inbox.c.position == position)
        .values(
            enqueued_at=time - timedelta(seconds=2),
            claimed_at=time - timedelta(seconds=1),
            finished_at=time,
        )
    )
    async with db.engine.begin() as connection:
        await connection.execute(changed)


async def test_two_days_are_drawn_by_hour_and_three_by_day(database: Database) -> None:
    noon = datetime(2026, 1, 30, 12, 20, tzinfo=UTC)
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="web", peer="")
        for _ in range(3):
            await db.broker.send("chat", "hello")
        await db.worker(answer).run_until_idle()
        for position, later in ((1, 0), (2, 1), (3, 26)):
            await set_finished(db, position, noon + timedelta(hours=later))
        begin = noon.replace(minute=0)
        latency = await by_hour(db, await queries.read(db, "latency"))
        assert [(row["day"] - begin) // timedelta(hours=1) for row in latency.dicts()] == [0, 1, 26]
        assert [row["wait_p95"] for row in latency.dicts()] == pytest.approx([1, 1, 1])
        assert [row["total_p50"] for row in latency.dicts()] == pytest.approx([2, 2, 2])
        # The transcript was written today, so activity has more days than two.
        activity = await queries.read(db, "activity")
        assert await by_hour(db, activity) == activity
        await set_finished(db, 3, noon + timedelta(days=2))
        latency = await queries.read(db, "latency")
        assert await by_hour(db, latency) == latency


async def test_the_activity_of_the_first_day_has_hours(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="web", peer="")
        for _ in range(4):
            await db.broker.send("chat", "hello")
        await db.worker(answer, batch=2, concurrency=1).run_until_idle()
        days = await queries.read(db, "activity")
        rows = (await by_hour(db, days)).dicts()
        for name in ("turns", "messages", "input_tokens", "output_tokens"):
            assert sum(row[name] for row in rows) == sum(row[name] for row in days.dicts())
        assert all(isinstance(row["day"], datetime) and row["channel"] == "web" for row in rows)
        tree = await queries.read(db, "tree")
        assert await by_hour(db, tree) == tree
        monkeypatch.setattr(hours, "MAX_MESSAGES", 3)
        assert await by_hour(db, days) == days


def test_hours_have_their_time_and_each_day_its_date() -> None:
    first = datetime(2026, 1, 30, 22, tzinfo=UTC)
    *_, axis = painted(
        "activity", {"day": first}, {"day": first + timedelta(hours=3), "channel": "mail"}
    ).axes
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert shown == ["22:00\n2026-01-30", "23:00", "00:00\n2026-01-31", "01:00"]
    assert axis.get_figure().get_suptitle() == "Activity by hour, 2026-01-30 to 2026-01-31 (UTC)"


def test_the_labels_of_equal_percentiles_stand_apart() -> None:
    wait, _ = painted("latency", {}).axes
    places = {text.xyann for text in wait.texts}
    assert len(places) == 3


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0081, "8.1 ms"), (0.9994, "999 ms"), (0.9997, "1 s"), (59.99, "1 min")]
)
def test_a_label_of_a_duration_has_three_digits_and_no_exponent(seconds: float, text: str) -> None:
    figure = painted("latency", {"wait_p50": seconds})
    assert f"p50 {text}" in texts(figure.axes[0])
