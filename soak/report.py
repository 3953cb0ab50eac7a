"""The figures, for people: tables on the terminal, and the form of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table

from soak.figures import ANSWERS, Figures

SHOWN = 50
"""How many violations are shown one by one."""


def tables(figures: Figures) -> RenderableType:
    """The tables of one database."""
    operations = Table("operation", title=f"{figures.kind}: calls")
    for answer in ANSWERS:
        operations.add_column(answer, justify="right")
    for op, answers in figures.operations.items():
        operations.add_row(op, *(f"{answers[answer]:,}" for answer in ANSWERS))
    return Group(
        operations,
        _pairs(f"{figures.kind}: faults", figures.faults),
        _pairs(f"{figures.kind}: what came of it", _outcome(figures)),
        *_violations(figures),
    )


def _outcome(figures: Figures) -> dict[str, object]:
    return {
        "calls": figures.calls,
        **{f"turns {name}": count for name, count in figures.turns.items()},
        **{f"messages {status}": count for status, count in figures.messages.items()},
        **{f"rows of {table}": count for table, count in figures.rows.items()},
        "processes killed and replaced": figures.deaths,
        "faults that another was in the way of": figures.hindered,
        "pairs of leases compared": figures.leases_compared,
        "turns overtaken by the next lease": figures.overtaken,
        "drained after": "never" if figures.drained is None else f"{figures.drained} s",
        "seconds in all": figures.seconds,
        "violations": len(figures.violations),
    }


def _pairs(title: str, pairs: dict[str, int] | dict[str, object]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in pairs.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def _violations(figures: Figures) -> list[RenderableType]:
    if not figures.violations:
        return []
    table = Table("rule", "session", "found", title=f"{figures.kind}: violations")
    for violation in figures.violations[:SHOWN]:
        table.add_row(violation.rule, violation.session, violation.text)
    return [table]


def markdown(runs: Sequence[Figures]) -> str:
    """Two Markdown tables, results and faults, with a column for each database."""
    head = ["", *(figures.kind for figures in runs)]
    outcome = [
        ["seconds of the run", *(f"{figures.seconds:,.0f}" for figures in runs)],
        ["calls", *(f"{figures.calls:,}" for figures in runs)],
        ["of which refused", *(_sum(figures, "refused") for figures in runs)],
        ["of which failed", *(_sum(figures, "failed") for figures in runs)],
        [
            "of which unanswered, the caller died",
            *(_sum(figures, "unanswered") for figures in runs),
        ],
        ["turns begun", *(f"{figures.turns['begun']:,}" for figures in runs)],
        *(
            [f"messages {status}", *(f"{figures.messages.get(status, 0):,}" for figures in runs)]
            for status in ("done", "dead", "cancelled")
        ),
        ["rows of transcripts", *(f"{figures.rows['messages']:,}" for figures in runs)],
        ["pairs of leases compared", *(f"{figures.leases_compared:,}" for figures in runs)],
        ["turns overtaken by the next lease", *(f"{figures.overtaken:,}" for figures in runs)],
        ["processes killed and replaced", *(f"{figures.deaths:,}" for figures in runs)],
        ["drained after", *(f"{figures.drained} s" for figures in runs)],
        ["**violations**", *(f"**{len(figures.violations)}**" for figures in runs)],
    ]
    kinds = sorted({kind for figures in runs for kind in figures.faults})
    faults = [
        [
            kind,
            *(f"{figures.faults[kind]:,}" if kind in figures.faults else "–" for figures in runs),
        ]
        for kind in kinds
    ]
    faults.append(["all", *(f"{sum(figures.faults.values()):,}" for figures in runs)])
    return _table(head, outcome) + "\n" + _table(["fault", *head[1:]], faults)


def _sum(figures: Figures, answer: str) -> str:
    return f"{sum(answers[answer] for answers in figures.operations.values()):,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(runs: Sequence[Figures], console: Console) -> None:
    for figures in runs:
        console.print(tables(figures))
