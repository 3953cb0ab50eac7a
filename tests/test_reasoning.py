"""The reasoning of a model is kept, and never shown as its answer."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.messages.codec import encode
from sessionsdb.messages.reasoning import reasoning_text
from sessionsdb.messages.rendering import MAX_RENDERED_DEPTH
from sessionsdb.tools import SessionsTool
from tests.support.tools import call_ok

SECRET = "the user is naive"
ANSWER = "Booked."

BLOCKS: dict[str, dict[str, Any]] = {
    "thinking": {"type": "thinking", "thinking": SECRET, "signature": "s"},
    "thinking in parts": {"type": "thinking", "thinking": [{"type": "text", "text": SECRET}]},
    "redacted": {"type": "redacted_thinking", "data": SECRET},
    "reasoning": {"type": "reasoning", "text": SECRET},
    "reasoning item": {"type": "reasoning", "summary": [{"type": "summary_text", "text": SECRET}]},
    "reasoning_text": {"type": "reasoning_text", "text": SECRET},
    "redacted reasoning": {"type": "redacted-reasoning", "data": SECRET},
    "dotted": {"type": "reasoning.text", "text": SECRET},
    "camel case": {"type": "agentReasoning", "text": SECRET},
    "Gemini": {"text": SECRET, "thought": True},
    "Gemini's step": {"type": "thought", "summary": [{"type": "text", "text": SECRET}]},
    "Bedrock": {"reasoningContent": {"reasoningText": {"text": SECRET, "signature": "s"}}},
    "Bedrock redacted": {"reasoningContent": {"redactedContent": SECRET}, "text": None},
    "langchain": {"type": "reasoning_content", "reasoning_content": {"text": SECRET}},
    "pydantic-ai": {"part_kind": "thinking", "content": SECRET},
}


def _deep(block: dict[str, Any]) -> dict[str, Any]:
    for _ in range(MAX_RENDERED_DEPTH + 3):
        block = {"type": "tool_result", "content": [block, {"type": "text", "text": "x"}]}
    return block


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_the_text_of_a_message_has_no_reasoning(block: dict[str, Any]) -> None:
    answer = {"type": "text", "text": ANSWER}
    for message, text in (
        ({"role": "assistant", "content": [block, answer]}, ANSWER),
        ({"role": "assistant", "content": [answer, block]}, ANSWER),
        ({"role": "assistant", "content": [block]}, ""),
        ({"role": "assistant", "content": block}, ""),
        ({"role": "model", "parts": [block, {"text": ANSWER}]}, ANSWER),
        ({"role": "assistant", "content": {"parts": [block, {"text": ANSWER}]}}, ANSWER),
    ):
        assert encode(message, max_bytes=10**6).content == text
    for message in (
        {"role": "user", "content": [_deep(block)]},
        {"role": "model", "candidates": [{"content": {"parts": [block]}}]},
        {"role": "assistant", "content": {"unknown": {"form": [block]}}},
    ):
        assert SECRET not in encode(message, max_bytes=10**6).content


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "reasoning_content": SECRET},
        {"role": "assistant", "reasoning": SECRET, "content": None},
        {"role": "assistant", "thinking": SECRET},
        {"role": "assistant", "reasoning_details": [{"type": "reasoning.text", "text": SECRET}]},
        {"role": "assistant", "channel": "analysis", "content": SECRET},
        {"role": "reasoning", "content": SECRET},
        {"role": "thinking", "content": SECRET},
    ],
)
def test_a_message_of_reasoning_has_no_text(message: dict[str, Any]) -> None:
    stored = encode(message, max_bytes=10**6)
    assert stored.content == ""
    assert stored.payload is not None


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_people_can_read_reasoning_unless_it_is_encrypted(block: dict[str, Any]) -> None:
    text = "" if "edacted" in str(block) else SECRET
    answer = {"type": "text", "text": ANSWER}
    for message in (
        {"role": "assistant", "content": [block, answer]},
        {"role": "model", "parts": [block, {"text": ANSWER}]},
        {"role": "assistant", "content": {"unknown": {"form": [block]}}},
        {"type": "assistant", "message": {"role": "assistant", "content": [block]}},
        block,
    ):
        assert reasoning_text(message) == text


def test_parts_of_reasoning_are_in_order_and_once() -> None:
    details = [{"type": "reasoning.text", "text": text} for text in ("first", "second")]
    message = {
        "role": "assistant",
        "reasoning": "first",
        "reasoning_details": [*details, {"type": "reasoning.encrypted", "data": "x"}],
        "content": ANSWER,
    }
    assert reasoning_text(message) == "first\n\nsecond"
    assert reasoning_text({"role": "user", "content": SECRET}) == ""
    call = {"type": "tool_use", "name": "thinking", "input": {"thinking_blocks": "step 1"}}
    assert reasoning_text({"role": "assistant", "content": [call]}) == ""
    deep: Any = {"type": "thinking", "thinking": SECRET}
    for _ in range(5_000):
        deep = [deep]
    assert reasoning_text({"role": "assistant", "content": deep}) == ""


def test_the_words_of_a_tool_are_no_reasoning() -> None:
    call = {"type": "tool_use", "name": "sequential_thinking", "input": {"thought": "step 1"}}
    message = {"role": "assistant", "content": [call]}
    text = '[tool_use: sequential_thinking input={"thought":"step 1"}]'
    assert encode(message, max_bytes=10**6).content == text
    part = {"text": ANSWER, "thoughtSignature": "s", "thought": False}
    assert encode({"role": "model", "parts": [part]}, max_bytes=10**6).content == ANSWER


ITEM = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": SECRET}]}


@pytest.mark.parametrize(
    ("replies", "reply"),
    [
        ([{"role": "assistant", "content": ANSWER}, ITEM], ANSWER),
        ([ITEM, {"role": "assistant", "content": ANSWER}], ANSWER),
        ([{"role": "assistant", "content": [BLOCKS["thinking"], {"text": ANSWER}]}], ANSWER),
        (
            [
                {"role": "assistant", "content": ANSWER},
                {"role": "assistant", "content": [BLOCKS["Bedrock"]]},
            ],
            ANSWER,
        ),
        ([ITEM], None),
        ([{"role": "assistant", "content": ""}], ""),
    ],
)
async def test_reasoning_is_never_a_reply(
    database: Database, db: SessionsDB, replies: list[dict[str, Any]], reply: str | None
) -> None:
    async def handle(turn: Turn) -> list[dict[str, Any]]:
        return replies

    await db.broker.register("me", channel="c", peer="p")
    receipt = await db.broker.send("me", "go")
    await db.worker(handle).run_until_idle()
    for outcome in (await db.broker.outcome(receipt), await db.broker.wait(receipt, 5)):
        assert outcome.status == "done"
        assert (None if outcome.reply is None else outcome.reply.content) == reply
    tool = SessionsTool(db.broker, "me")
    results = [
        await call_ok(tool, "sessions_history", session_id="me"),
        await call_ok(tool, "sessions_status", receipts=[receipt.model_dump()]),
        await call_ok(tool, "sessions_wait", receipts=[receipt.model_dump()], timeout_secs=5),
    ]
    assert SECRET not in str(results)
    assert all(SECRET not in message.content for message in await db.broker.history("me"))
    assert await db.store.load("me") == [{"role": "user", "content": "go"}, *replies]
