"""Messages to columns and back, without a database."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings

from sessionsdb import InvalidArgument, InvalidMessage, validation
from sessionsdb.messages.codec import (
    MAX_DEPTH,
    StoredMessage,
    decode,
    encode,
    encode_all,
    encode_text,
)
from sessionsdb.untrusted_values import short_repr
from tests.support.messages import HOSTILE, messages, nested

MEGABYTE = 1_048_576


def columns_of(message: Any, max_bytes: int = MEGABYTE) -> StoredMessage:
    return encode(message, max_bytes=max_bytes)


def content_of(message: dict[str, Any]) -> str:
    return columns_of(message).content


def exact_json(value: Any) -> str:
    """Return JSON, which differs for 1, true and 1.0, and for another order of keys."""
    return json.dumps(value)


def assert_faithful(message: dict[str, Any]) -> None:
    row = columns_of(message)
    again = decode(*row)
    assert again == message
    assert exact_json(again) == exact_json(message)
    assert again is not message
    for column in row:
        if column is not None:
            assert "\x00" not in column
            column.encode()  # a lone surrogate would fail here, as in the database
    if row.payload is not None:
        json.loads(row.payload)  # JSON to anybody, not only to us


# ---- back as it was ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=400)
@given(messages)
def test_whatever_json_can_say_comes_back_equal_and_renders(message: dict[str, Any]) -> None:
    assert_faithful(message)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_come_back_equal_and_render(name: str) -> None:
    assert_faithful(HOSTILE[name])


def test_two_lone_surrogates_do_not_become_one_character() -> None:
    halves, whole = {"content": "\ud83d\ude00"}, {"content": "😀"}
    assert decode(*columns_of(halves)) == halves
    assert decode(*columns_of(whole)) == whole
    assert halves != whole


def test_a_payload_that_another_program_escaped_is_read_as_json_says() -> None:
    payload = json.dumps({"content": "😀"})
    assert "\\ud83d\\ude00" in payload
    assert decode("assistant", "😀", payload) == {"content": "😀"}


def test_a_decoded_message_is_a_new_object() -> None:
    row = columns_of({"role": "user", "content": [{"type": "text", "text": "a"}]})
    first = decode(*row)
    first["content"][0]["text"] = "changed"
    assert decode(*row)["content"][0]["text"] == "a"


def test_a_message_of_the_maximum_depth_can_be_decoded_in_a_deep_stack() -> None:
    row = columns_of(nested(MAX_DEPTH))

    def read_from(depth: int) -> dict[str, Any]:
        return read_from(depth - 1) if depth else decode(*row)

    assert read_from(400) == nested(MAX_DEPTH)


def test_tuples_and_subclasses_of_json_types_are_stored_as_json() -> None:
    class Color(StrEnum):
        RED = "red"

    message = {"role": "user", "content": Color.RED, "list": (1, (2,))}
    assert decode(*columns_of(message)) == {"role": "user", "content": "red", "list": [1, [2]]}


# ---- the payload ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "hello"},
        {"role": "anything", "content": ""},
        {"role": "assistant", "content": 'many\nlines\twith "quotes" \\ and \U0001f600'},
    ],
)
def test_a_plain_message_is_stored_without_a_payload(message: dict[str, Any]) -> None:
    assert columns_of(message) == (message["role"], message["content"], None)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "hello", "role": "user"},  # another order of keys
        {"role": "user", "content": "hello", "name": "ann"},
        {"role": "user", "content": ["hello"]},
        {"role": "user", "content": None},
        {"role": "user"},
        {"role": "", "content": "hello"},
        {"role": "user", "content": "\x00"},
    ],
)
def test_any_other_message_is_stored_with_a_payload(message: dict[str, Any]) -> None:
    assert columns_of(message).payload is not None
    assert list(decode(*columns_of(message))) == list(message)


def test_a_payload_keeps_characters_outside_ascii_readable() -> None:
    assert columns_of({"role": "user", "content": ["é中😀"]}).payload == (
        '{"role":"user","content":["é中😀"]}'
    )


# ---- rendering -----------------------------------------------------------------------------------

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "book", "arguments": '{"to": "HNL"}'},
}

RENDERINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (message, role, content)
    "text": ({"role": "user", "content": "hi"}, "user", "hi"),
    "a role of the caller's": ({"role": "developer", "content": "hi"}, "developer", "hi"),
    "no content": ({"role": "user", "content": None}, "user", ""),
    "only a role": ({"role": "user"}, "user", ""),
    "a number": ({"role": "user", "content": 1.5}, "user", "1.5"),
    "an unknown object": ({"x": 1}, "assistant", '{"x":1}'),
    "an unknown object with a role": ({"role": "user", "x": 1}, "user", '{"role":"user","x":1}'),
    # OpenAI chat completions
    "tool_calls": (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        "assistant",
        '[tool_use: book input={"to": "HNL"}]',
    ),
    "text and tool_calls": (
        {"role": "assistant", "content": "On it.", "tool_calls": [CALL, CALL]},
        "assistant",
        'On it.\n[tool_use: book input={"to": "HNL"}]\n[tool_use: book input={"to": "HNL"}]',
    ),
    "tool_calls without content": (
        {"role": "assistant", "tool_calls": [CALL]},
        "assistant",
        '[tool_use: book input={"to": "HNL"}]',
    ),
    "a custom tool call": (
        {
            "role": "assistant",
            "tool_calls": [{"type": "custom", "custom": {"name": "sh", "input": "ls"}}],
        },
        "assistant",
        "[tool_use: sh input=ls]",
    ),
    "function_call of old": (
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        "assistant",
        "[tool_use: f input={}]",
    ),
    "a tool's answer": (
        {"role": "tool", "tool_call_id": "c1", "name": "book", "content": "booked"},
        "tool",
        "booked",
    ),
    "a refusal": (
        {"role": "assistant", "content": None, "refusal": "I can't."},
        "assistant",
        "I can't.",
    ),
    "text and image": (
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        "user",
        "look:\n[image]",
    ),
    # OpenAI responses
    "function_call": (
        {"type": "function_call", "call_id": "1", "name": "book", "arguments": '{"a":1}'},
        "assistant",
        '[tool_use: book input={"a":1}]',
    ),
    "function_call_output": (
        {"type": "function_call_output", "call_id": "1", "output": "booked"},
        "tool",
        "[tool_result: booked]",
    ),
    "function_call_output in blocks": (
        {
            "type": "function_call_output",
            "output": [{"type": "input_text", "text": "booked"}, {"type": "input_image"}],
        },
        "tool",
        "[tool_result: booked\n[image]]",
    ),
    "reasoning": (
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "Hm."}]},
        "assistant",
        "",
    ),
    "reasoning without a summary": (
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        "assistant",
        "",
    ),
    "a response's message": (
        {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Hello."},
                {"type": "refusal", "refusal": "No."},
            ],
        },
        "assistant",
        "Hello.\nNo.",
    ),
    # Anthropic
    "tool_use": (
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Which?", "signature": "…"},
                {"type": "text", "text": "I book."},
                {"type": "tool_use", "id": "t", "name": "book", "input": {"to": "HNL", "n": 1}},
            ],
        },
        "assistant",
        'I book.\n[tool_use: book input={"to":"HNL","n":1}]',
    ),
    "tool_result": (
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": "booked"}],
        },
        "user",
        "[tool_result: booked]",
    ),
    "tool_result in blocks": (
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "a"}, {"type": "image", "source": {}}],
                }
            ],
        },
        "user",
        "[tool_result: a\n[image]]",
    ),
    "tool_error": (
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "full", "is_error": True}
            ],
        },
        "user",
        "[tool_error: full]",
    ),
    "a tool_result on its own": (
        {"type": "tool_result", "tool_use_id": "t", "content": "booked"},
        "tool",
        "[tool_result: booked]",
    ),
    "a tool_result without content": (
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        "user",
        "[tool_result: ]",
    ),
    "a search the server made": (
        {
            "role": "assistant",
            "content": [
                {"type": "server_tool_use", "name": "web_search", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "content": [{"type": "text", "text": "found"}]},
            ],
        },
        "assistant",
        '[tool_use: web_search input={"query":"q"}]\n[tool_result: found]',
    ),
    "image": (
        {"role": "user", "content": [{"type": "image", "source": {"data": "AAAA"}}]},
        "user",
        "[image]",
    ),
    "an unknown block": (
        {"role": "user", "content": [{"type": "document", "source": {"data": "AAAA"}}]},
        "user",
        "[document]",
    ),
    # Gemini
    "parts": (
        {
            "role": "model",
            "parts": [
                {"text": "I book."},
                {"functionCall": {"name": "book", "args": {"to": "HNL"}}},
                {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
            ],
        },
        "model",
        'I book.\n[tool_use: book input={"to":"HNL"}]\n[image]',
    ),
    "a function_response": (
        {
            "role": "user",
            "parts": [{"function_response": {"name": "book", "response": {"ok": True}}}],
        },
        "user",
        '[tool_result: {"ok":true}]',
    ),
    # LangChain
    "human": ({"type": "human", "content": "hi"}, "user", "hi"),
    "ai": (
        {
            "type": "ai",
            "content": "",
            "tool_calls": [{"name": "f", "args": {"a": 1}, "id": "1", "type": "tool_call"}],
        },
        "assistant",
        '[tool_use: f input={"a":1}]',
    ),
    "tool": ({"type": "tool", "content": "done", "tool_call_id": "1"}, "tool", "done"),
}


@pytest.mark.parametrize("name", RENDERINGS)
def test_a_message_is_rendered_as_the_contract_says(name: str) -> None:
    message, role, content = RENDERINGS[name]
    row = columns_of(message)
    assert (row.role, row.content) == (role, content)


def test_unstorable_characters_are_replaced_in_the_content_only() -> None:
    message = {"role": "us\x00er", "content": ["a\x00b", "c\ud83d"]}
    row = columns_of(message)
    assert row.role == "us\ufffder"
    assert row.content == "a\ufffdb\nc\ufffd"
    assert decode(*row) == message


def test_nested_tool_results_are_rendered_as_json_below_a_depth() -> None:
    block: dict[str, Any] = {"type": "text", "text": "bottom"}
    for _ in range(60):
        block = {"type": "tool_result", "content": [block]}
    content = content_of({"role": "user", "content": [block]})
    assert content.startswith("[tool_result: [tool_result: ")
    assert '{"type":"tool_result"' in content
    assert "bottom" in content


# ---- refusals ------------------------------------------------------------------------------------


def circular_message() -> dict[str, Any]:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]
    return message


def exponential_message(levels: int) -> dict[str, Any]:
    """Return a message that is small in memory and has 2 ** levels values as JSON."""
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    return {"content": value}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, "must be a JSON object"),
        ("hello", "must be a JSON object"),
        ([{"role": "user"}], "must be a JSON object"),
        ({"content": float("nan")}, "not JSON"),
        ({"content": [float("inf")]}, "not JSON"),
        ({"content": b"bytes"}, "not JSON"),
        ({"content": {1, 2}}, "not JSON"),
        ({"content": object()}, "not JSON"),
        ({"content": {1: "a"}}, "a key of type int"),
        ({None: "a"}, "a key of type NoneType"),
        ({"content": [{("a", "b"): 1}]}, "a key of type tuple"),
        ({"content": {10**5000: 1}}, "a key of type int"),
        ({"content": 10**4300}, "not JSON.*4300 digits"),
        (nested(MAX_DEPTH + 1), "deeper than 256 levels"),
        (nested(100_000), "deeper than 256 levels"),
        (circular_message(), "holds itself"),
        (exponential_message(200), "the limit is 1048576"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_message_that_is_not_json_is_refused(message: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        columns_of(message)


@pytest.mark.parametrize(
    "make",
    [
        lambda text: {"role": "user", "content": text},
        lambda text: {"content": text, "role": "user"},
        lambda text: {"role": "user", "content": [{"type": "text", "text": text}]},
    ],
    ids=["plain", "payload", "blocks"],
)
@pytest.mark.parametrize("character", ["a", "é", "中", "😀", '"', "\n", "\x00", "\x01", "\ud83d"])
def test_the_limit_of_a_message_is_its_size_as_json_to_the_byte(make: Any, character: str) -> None:
    message = make(character * 100)
    as_json = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    size = len(as_json.replace("\ud83d", "\\uD83D").encode())
    assert decode(*columns_of(message, size)) == message
    with pytest.raises(InvalidMessage, match=f"is {size} bytes as JSON, the limit is {size - 1}"):
        columns_of(message, size - 1)


def test_the_error_names_the_index_of_the_refused_message() -> None:
    with pytest.raises(InvalidMessage, match=r"message 2: .*not JSON"):
        encode_all([{}, {}, {"a": b""}], max_bytes=MEGABYTE)


@pytest.mark.parametrize("given", [None, "text", {"role": "user"}, 5, iter(())])
def test_a_transcript_must_be_a_list(given: Any) -> None:
    with pytest.raises(InvalidMessage, match="messages must be a list of dicts"):
        encode_all(given, max_bytes=MEGABYTE)


@pytest.mark.parametrize(("text", "reason"), [("", "must not be empty"), (b"hi", "not bytes")])
def test_a_text_to_send_must_be_text(text: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        encode_text(text, field="text", max_bytes=MEGABYTE)


def test_a_text_to_send_becomes_a_users_message() -> None:
    row = encode_text("a\x00b", field="text", max_bytes=MEGABYTE)
    assert decode(*row) == {"role": "user", "content": "a\x00b"}


def test_an_invalid_message_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        columns_of({"a": b""})


@pytest.mark.parametrize("value", [object(), Exception(), memoryview(b"")])
def test_a_refused_value_has_the_right_article(value: Any) -> None:
    noun = type(value).__name__
    article = "a" if noun == "memoryview" else "an"
    assert short_repr(value) == f"{article} {noun}"
    with pytest.raises(InvalidArgument, match=f"must be an Edit, not {noun}"):
        validation.edit(value)
