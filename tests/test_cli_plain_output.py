"""Into a pipe, tables and texts are printed without rich, and look as rich prints them."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from uuid import UUID

import pytest

from sessionsdb import SessionId, SessionMessage, SessionSummary
from sessionsdb.cli.commands.transcripts import _print_styled, heading, print_messages
from sessionsdb.cli.console import output
from sessionsdb.cli.console.plain_console import PlainConsole
from sessionsdb.cli.console.session_table import print_sessions, session_table

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)

TEXTS = (
    *("", " ", "plain", "two words  ", "  before", "[bold]no markup[/bold]", "{x} %s \\n"),
    *(
        "two\nlines\n",
        "a\ttab",
        "\x1b[31mred\x07\r\x00",
        "日本語 wide",
        "👩‍👩‍👧 e\u0301 \u200b",
        "x" * 900,
    ),
)


def shown_by_rich(sessions: list[SessionSummary]) -> str:
    console = PlainConsole(file=io.StringIO(), markup=False, emoji=False, highlight=False)
    console.width = output.PIPE_WIDTH
    console.print(session_table(sessions, console.width, short=False))
    shown: str = console.file.getvalue()
    return shown


@pytest.fixture(autouse=True)
def no_forced_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_list_in_a_pipe_looks_as_rich_prints_it(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = [
        SessionSummary(
            id=SessionId(id),
            channel=text,
            peer=text[::-1],
            created_at=NOW,
            last_active=NOW,
            message_count=count,
            parent=None if count else SessionId(text),
        )
        for id, count in (("chat-1", 0), (text or "x", 12_345))
    ]
    print_sessions(sessions)
    assert capsys.readouterr().out == shown_by_rich(sessions)


@pytest.mark.parametrize("text", TEXTS)
def test_a_history_in_a_pipe_looks_as_rich_prints_it(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [
        SessionMessage(role=text or "user", content=text, timestamp=NOW, seq=1),
        SessionMessage(role="assistant", content=text, timestamp=NOW, interrupted=True),
        SessionMessage(
            role="user", content="x", timestamp=NOW, sender=SessionId(text), author=text
        ),
    ]
    print_messages(messages)
    plain = capsys.readouterr().out
    _print_styled(messages)
    assert plain == capsys.readouterr().out


def test_a_heading_shows_the_sender_and_the_author(capsys: pytest.CaptureFixture[str]) -> None:
    message = SessionMessage(
        role="user", content="hi", timestamp=NOW, seq=1, sender=SessionId("lead"), author="A\tda"
    )
    print_messages([message])
    line = r"#1 user  2026-01-31 09:00:00 UTC  from lead  by A\tda"
    assert capsys.readouterr().out == f"{line}\nhi\n"
    assert heading(message).plain == line


def test_a_heading_that_is_too_wide_keeps_the_sender_on_a_line_of_its_own() -> None:
    sender = SessionId(f"spawn-{UUID(int=0)}")
    message = SessionMessage(role="user", content="", timestamp=NOW, sender=sender, author="Ada")
    lines = heading(message, 80).plain.splitlines()
    assert lines == ["user  2026-01-31 09:00:00 UTC", f"    from {sender}  by Ada"]


def test_colours_that_are_forced_come_through_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_messages([SessionMessage(role="user", content="hello", timestamp=NOW, seq=1)])
    assert "\x1b[1;32muser" in capsys.readouterr().out
