"""The demo fits one screen, and its output is true."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import CommandLine


def test_the_demo_fits_one_screen_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    cli = CommandLine(f"sqlite:///{tmp_path}/mine.db")
    shown = cli.program("demo", env={"TMPDIR": str(folder)}, cwd=tmp_path).ok()
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert len(lines) <= 45
    assert max(len(line) for line in lines if str(folder) not in line) <= 100
    assert shown.stderr == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_the_demo_shows_what_the_package_is_for(tmp_path: Path) -> None:
    shown = CommandLine(f"sqlite:///{tmp_path}/mine.db")("demo").ok().stdout
    for promised in (
        "-> message 1, a duplicate",
        "is in the middle of its turn: kill -9  -> dead",
        "└── spawn-",
        "spawned/spawned-by-weekend  2 messages  idle",
        "weekend  cli/you  6 messages  idle",
        "Your weekend: flights: Friday 18:05, 89 EUR; hotels: a room",
        "SELECT status",
    ):
        assert promised in shown
    proof = [line.split() for line in shown.splitlines() if line.startswith("done ")]
    assert proof == [["done", "1", "4", "2", "261"], ["done", "2", "1", "1", "29"]]
