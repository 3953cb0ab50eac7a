"""The demo is the first thing a newcomer sees: it fits one screen and tells the truth."""

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
        'db.store.load("chat-1") == messages  -> True',
        "-> message 1, a duplicate",
        "└── spawn-",
        "spawned-by-chat-1  0 messages  1 waiting",
        '[tool_use: search input={"n":3}]',
        "SELECT s.channel",
    ):
        assert promised in shown
