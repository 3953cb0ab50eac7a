"""The lines of the command follow, event by event."""

from __future__ import annotations

import pytest

from sessionsdb import Event, Receipt
from sessionsdb.cli.console.event_printer import EventPrinter
from sessionsdb.events import DataEvent, MessageEvent, QueuedEvent, ResetEvent
from sessionsdb.types import SessionId
from tests.test_cli_chat_parts import RED, delta, event, message, turn, written


def printed(capsys: pytest.CaptureFixture[str], *events: Event, tree: bool = False) -> list[str]:
    printer = EventPrinter(tree=tree)
    for one in events:
        printer.print(one)
    printer.close()
    return capsys.readouterr().out.splitlines()


def queued(text: str) -> Event:
    receipt = Receipt(session_id=SessionId("chat"), position=1)
    return event(QueuedEvent, receipt=receipt, message=message("user", text))


def test_a_message_shows_its_sender_and_its_author(capsys: pytest.CaptureFixture[str]) -> None:
    from_agent = message("user", "Found it.", sender=SessionId("lead\x1b[2J"), author="Ada\nBo")
    receipt = Receipt(session_id=SessionId("chat"), position=1)
    assert printed(
        capsys,
        event(QueuedEvent, receipt=receipt, message=from_agent),
        event(MessageEvent, message=from_agent),
        written("user", "Thanks.", author="Ada"),
    ) == [
        r"* queued from lead\x1b[2J by Ada\nBo: Found it.",
        r"user from lead\x1b[2J by Ada\nBo: Found it.",
        "user by Ada: Thanks.",
    ]


ATLAS = event(DataEvent, run=7, kind="tool", data={"name": "atlas"})
DATA = '* tool: {"name":"atlas"}'


def test_a_reply_with_data_in_its_midst_is_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(
        capsys,
        queued("Where?"),
        turn("started", 1),
        delta("In "),
        ATLAS,
        delta("Ita"),
        written("user", "Where?"),
        written("assistant", "In Italy.", 2),
        turn("done", 1),
    ) == [
        "* queued: Where?",
        "* turn started",
        "assistant: In ",
        DATA,
        "assistant: Italy.",
        "* turn done",
    ]


def test_a_reply_that_ends_with_data_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    events = (turn("started", 1), delta("In Italy."), ATLAS, written("assistant", "In Italy."))
    assert printed(capsys, *events) == ["* turn started", "assistant: In Italy.", DATA]


def test_a_reply_that_is_not_the_streamed_one_is_printed_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for between in ([], [event(ResetEvent, run=7), turn("failed", 1), turn("started", 1)]):
        lines = printed(capsys, delta("Paris"), *between, written("assistant", "Rome"))
        assert lines[0] == "assistant: Paris"
        assert lines[-1] == "assistant: Rome"


def test_several_messages_that_were_streamed_as_one_text_are_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages = (written("assistant", "Look."), written("assistant", "Five.", 2))
    assert printed(capsys, delta("Look.Five."), *messages) == ["assistant: Look.Five."]


def test_a_stopped_reply_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = written("assistant", "In It", interrupted=True)
    assert printed(capsys, delta("In It"), stopped) == ["assistant: In It", "(stopped here)"]
    assert printed(capsys, stopped) == ["assistant: In It", "(stopped here)"]
    assert printed(capsys, stopped, tree=True)[-1] == "[chat] (stopped here)"


def test_data_takes_one_line_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    long = event(DataEvent, run=7, kind="tool", data={"query": "word " * 100})
    for tree in (False, True):
        [line] = printed(capsys, long, tree=tree)
        assert len(line) == 60
        assert line.endswith("…")


def test_data_without_a_value_is_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, event(DataEvent, run=7, kind="p")) == ["* p"]


def test_an_error_is_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = f"ValueError: no {RED}\nTraceback (most recent call last)\n"
    assert printed(capsys, turn("failed", 1, error=error)) == [
        "* turn failed: ValueError: no \\x1b[31m"
    ]
