"""The parts of the chat that need no database: lines, replies, the screen."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest

from sessionsdb import Event, Receipt, SessionId, SessionMessage
from sessionsdb.cli.chat.message_lines import MessageLines
from sessionsdb.cli.chat.screen import Screen
from sessionsdb.cli.console.plain_console import PlainConsole
from sessionsdb.cli.console.shown_reply import ShownReply
from sessionsdb.events import (
    DataEvent,
    DeltaEvent,
    MessageEvent,
    QueuedEvent,
    ResetEvent,
    TurnEvent,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
RED = "\x1b[31m"


# ---- lines of a message --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["a", "b"], ["a", "b"]),
        (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
        (['"""', "a", "", "b", '"""', "c"], ["a\n\nb", "c"]),
        (['"""a', 'b"""'], ["a\nb"]),
        (['"""a"""', "b"], ["a", "b"]),
        (['"""', "a\\", '"""'], ["a\\"]),
        (["", "  ", "a"], ["a"]),
        (["\\", "", "a"], ["a"]),
        (["pasted\nlines", "a"], ["pasted\nlines", "a"]),
        (['say """', "a"], ['say """', "a"]),
    ],
)
def test_a_message_is_a_line_unless_the_user_goes_on(lines: list[str], messages: list[str]) -> None:
    reader = MessageLines()
    assert [text for line in lines if (text := reader.add(line)) is not None] == messages
    assert not reader.is_open


def test_a_message_that_the_end_of_input_cuts_off_is_kept() -> None:
    reader = MessageLines()
    assert reader.add('"""a') is None
    assert reader.is_open
    assert reader.end() == "a"
    assert reader.end() is None


# ---- pieces and messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "messages", "rests"),
    [
        ([], ["Rome"], ["Rome"]),
        (["Ro", "me"], ["Rome"], [""]),
        (["Ro"], ["Rome"], ["me"]),
        (["Rome \n"], ["Rome"], [""]),
        (["Look.", "Five."], ["Look.\n[tool_use]", "Five."], ["\n[tool_use]", ""]),
        (["Look.Fi"], ["Look.", "Five."], ["", "ve."]),
        (["Rome"], ["Paris"], [None]),
        (["Rome"], ["Romania"], [None]),
        (["Rome"], ["Paris", "Oslo"], [None, "Oslo"]),
    ],
)  # fmt: skip
def test_the_rest_of_a_message_is_what_was_not_streamed(
    pieces: list[str], messages: list[str], rests: list[str | None]
) -> None:
    reply = ShownReply()
    for piece in pieces:
        reply.add_piece(piece)
    assert [reply.rest_of(message) for message in messages] == rests


# ---- the screen ----------------------------------------------------------------------------------


def event(type_: Any, **fields: Any) -> Event:
    made: Event = type_(session_id=SessionId("chat"), at=NOW, cursor="c", **fields)
    return made


def turn(status: str, *positions: int, **fields: Any) -> Event:
    receipts = [Receipt(session_id=SessionId("chat"), position=one) for one in positions]
    return event(TurnEvent, status=status, run=7, receipts=receipts, **{"attempt": 1, **fields})


def delta(text: str) -> Event:
    return event(DeltaEvent, run=7, offset=0, text=text)


def message(role: str, content: str, **fields: Any) -> SessionMessage:
    return SessionMessage(role=role, content=content, timestamp=NOW, **fields)


def written(role: str, content: str, seq: int = 1, **fields: Any) -> Event:
    return event(MessageEvent, message=message(role, content, seq=seq, **fields))


def shown(*events: Event, typed: str | None = None, width: int = 80) -> str:
    """Return the screen after these events, the user's message at position 1."""
    console = PlainConsole(width=width, file=io.StringIO(), force_terminal=False)
    screen = Screen(console)
    if typed is not None:
        screen.sent(typed)
    for one in events:
        screen.show(one, own=[1])
    return console.file.getvalue()


def test_a_reply_is_shown_once() -> None:
    begin = (turn("started", 1), delta("Ro"), delta("me"))
    end = (written("user", "capital?"), written("assistant", "Rome", 2), turn("done", 1))
    assert shown(*begin, *end, typed="capital?") == "assistant\nRome\n"
    assert shown(turn("started", 1), *end, typed="capital?") == "assistant\nRome\n"


def test_a_reply_that_is_not_what_was_streamed_is_shown_whole() -> None:
    assert shown(
        turn("started", 1), delta("Paris"), written("assistant", "Rome"), turn("done", 1)
    ) == ("assistant\nParis\nassistant\nRome\n")


def test_an_escape_sequence_is_shown_and_not_obeyed_also_when_pieces_split_it() -> None:
    for cut in range(1, len(RED)):
        text = shown(turn("started", 1), delta(RED[:cut]), delta(RED[cut:]), delta("\r\u202e"))
        assert text == "assistant\n\\x1b[31m\\x0d\\u202e"


@pytest.mark.parametrize(
    "hostile",
    [
        event(DataEvent, run=7, kind=f"k{RED}", data={"a": f"{RED}\n"}),
        turn("failed", 1, error=f"E: {RED}\nline"),
        turn("dead", 1, error=f"E: {RED}\nline"),
        written("tool", f"{RED}\n"),
        written("user", RED, sender=SessionId(f"s{RED}\n")),
        written("user", RED, author=RED),
    ],
    ids=lambda one: one.type,
)
def test_no_text_of_a_session_reaches_the_terminal_as_it_is(hostile: Event) -> None:
    for events in ([hostile], [turn("started", 1), hostile]):
        assert "\x1b" not in shown(*events)
        assert "\\x1b[31m" in shown(*events) or "\\u001b[31m" in shown(*events)


def test_data_and_results_of_tools_take_one_line_of_the_terminal() -> None:
    long = "word " * 100
    lines = shown(
        turn("started", 1),
        delta("Let me look."),
        event(DataEvent, run=7, kind="tool", data={"query": long}),
        written("assistant", "Let me look.\n[tool_use: search input={}]"),
        written("user", f"[tool_result: {long}]"),
        written("assistant", "Five."),
        turn("done", 1),
    ).splitlines()
    assert [line[:20] for line in lines] == [
        "assistant",
        "Let me look.",
        '[tool {"query":"word',
        "",
        "[tool_use: search in",
        "[user] [tool_result:",
        "Five.",
    ]
    assert max(map(len, lines)) <= 80


def test_messages_of_others_are_shown_when_their_turn_begins_and_only_once() -> None:
    receipt = Receipt(session_id=SessionId("chat"), position=2)
    text = shown(
        event(QueuedEvent, receipt=receipt, message=message("user", "hi", sender="child")),
        turn("started", 2),
        delta("Hello"),
        written("user", "hi", sender="child"),
        written("assistant", "Hello", 2),
        turn("done", 2),
    )
    assert text == "user  2026-01-31 12:00:00 UTC  from child\nhi\nassistant\nHello\n"


def test_void_pieces_are_said_to_be_void_and_the_next_run_begins_anew() -> None:
    text = shown(
        turn("started", 1),
        delta("Ro"),
        event(ResetEvent, run=7),
        turn("failed", 1, error="ValueError: no\ntraceback", retry_at=NOW),
        turn("started", 1, attempt=2),
        delta("Rome"),
        written("assistant", "Rome", 2),
        turn("done", 1),
    )
    assert text == (
        "assistant\nRo\n(this part of the reply is void)\nattempt 1 failed: ValueError: no\n"
        "the next attempt is in 0 s\nassistant\nRome\n"
    )


def test_another_attempt_that_fails_has_no_heading() -> None:
    text = shown(
        turn("started", 1),
        turn("failed", 1, error="E: no"),
        turn("started", 1, attempt=2),
        turn("failed", 1, error="E: no", attempt=2),
        turn("started", 1, attempt=3),
        written("user", "capital?"),
        written("assistant", "Rome", 2),
        turn("done", 1),
        typed="capital?",
    )
    assert text == (
        "assistant\nattempt 1 failed: E: no\nattempt 2 failed: E: no\nassistant\nRome\n"
    )


def test_a_dead_message_names_the_command_that_tries_it_again() -> None:
    text = shown(turn("started", 1), turn("dead", 1, error="ValueError: no", attempt=5))
    assert "dead after 5 attempts: ValueError: no\n" in text
    assert "sessionsdb requeue chat 1\n" in text


def test_the_prompt_makes_room_for_what_comes() -> None:
    console = PlainConsole(width=80, file=io.StringIO(), force_terminal=False)
    screen = Screen(console)
    screen.show_prompt()
    screen.show_prompt()
    screen.show(turn("started", 2))
    assert console.file.getvalue() == "\n> \r  \rassistant\n"
