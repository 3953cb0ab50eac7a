"""The session tools, as a model and its host call them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    LeaseLost,
    Limits,
    Receipt,
    SessionMessage,
    SessionsDB,
    Turn,
)
from sessionsdb.handlers import echo
from sessionsdb.tools import SessionsTool, ToolContext
from sessionsdb.tools.rendering import (
    MESSAGE_CHARACTERS,
    METADATA_CHARACTERS,
    RESULT_CHARACTERS,
    show_message,
    shown_characters,
)
from tests.support.tools import (
    call,
    call_ok,
    call_refused,
    definitions,
    register_sessions,
    running_worker,
)
from tests.support.turns import claim, commit
from tests.support.waiting import until
from tests.support.work import running


@pytest.fixture
async def tool(db: SessionsDB) -> SessionsTool:
    await register_sessions(db, "me")
    return SessionsTool(db.broker, "me")


# ---- definitions for the host and the model ------------------------------------------------------


def test_tools_that_act_on_other_sessions_need_approval_and_read_only_tools_do_not() -> None:
    tools = {d.name: d for d in definitions()}
    assert {name for name, d in tools.items() if d.requires_approval} == {
        "sessions_send",
        "sessions_spawn",
        "sessions_schedule",
        "sessions_unschedule",
        "sessions_cancel",
        "sessions_end",
    }
    assert {name for name, d in tools.items() if not d.requires_approval} == {
        "sessions_list",
        "sessions_history",
        "sessions_search",
        "sessions_status",
        "sessions_wait",
    }
    assert {name for name, d in tools.items() if d.destructive} == {
        "sessions_unschedule",
        "sessions_cancel",
        "sessions_end",
    }
    assert all(d.read_only is not d.requires_approval for d in tools.values())


def test_each_description_says_when_to_use_the_tool_and_each_argument_is_described() -> None:
    for definition in definitions():
        assert "Use it" in definition.description
        for schema in (definition.input_schema, definition.output_schema):
            assert schema["type"] == "object"
            assert "$ref" not in str(schema)
            assert "anyOf" not in str(schema)
        for argument in definition.input_schema["properties"].values():
            assert argument["description"]
    required = {d.name: d.input_schema["required"] for d in definitions()}
    assert required == {
        "sessions_list": [],
        "sessions_history": ["session_id"],
        "sessions_search": ["query"],
        "sessions_send": ["session_id", "text"],
        "sessions_spawn": ["prompt"],
        "sessions_status": ["receipts"],
        "sessions_wait": ["receipts"],
        "sessions_schedule": ["text"],
        "sessions_unschedule": ["schedule_id"],
        "sessions_cancel": ["session_id"],
        "sessions_end": ["session_id"],
    }


# ---- errors are results --------------------------------------------------------------------------


ERRORS: list[tuple[str, Any, str]] = [
    ("sessions_history", {}, "sessions_history requires a non-empty `session_id`"),
    ("sessions_history", {"session_id": ""}, "requires a non-empty `session_id`"),
    ("sessions_send", {"text": "x"}, "sessions_send requires a non-empty `session_id`"),
    ("sessions_send", {"session_id": "a"}, "sessions_send requires a non-empty `text`"),
    ("sessions_send", {"session_id": "a", "text": None}, "requires a non-empty `text`"),
    ("sessions_spawn", {"prompt": ""}, "sessions_spawn requires a non-empty `prompt`"),
    ("sessions_schedule", {"cron": "* * * * *"}, "requires a non-empty `text`"),
    ("sessions_schedule", {"text": "x"}, "give exactly one of at and cron"),
    ("sessions_schedule", {"text": "x", "at": "noon"}, "at is no time in ISO 8601"),
    ("sessions_schedule", {"text": "x", "at": "2020-01-01T00:00"}, "is not later than now"),
    ("sessions_schedule", {"text": "x", "at": "2100-01-01T00:00", "tz": "Mars/X"}, "no time zone"),
    ("sessions_schedule", {"text": "x", "cron": "* *"}, "has 2 fields"),
    ("sessions_unschedule", {}, "sessions_unschedule requires a non-empty `schedule_id`"),
    ("sessions_unschedule", {"schedule_id": "x"}, "session me has no schedule x"),
    ("sessions_cancel", {}, "sessions_cancel requires a non-empty `session_id`"),
    ("sessions_end", {}, "sessions_end requires a non-empty `session_id`"),
    ("sessions_dance", {}, "Unknown sessions tool: sessions_dance"),
    ("sessions_history", {"session_id": 5}, "Invalid sessions_history input: session_id: "),
    ("sessions_history", {"session_id": "me", "limit": -1}, "Invalid sessions_history input"),
    ("sessions_history", ["me"], "Invalid sessions_history input: it must be a JSON object"),
    ("sessions_list", {"namespace": "x"}, "Invalid sessions_list input: namespace: "),
    ("sessions_list", {"cursor": "x"}, "Invalid sessions_list input: cursor "),
    ("sessions_wait", {"receipts": []}, "Invalid sessions_wait input: receipts: "),
    ("sessions_send", {"session_id": "no", "text": "x"}, "sessions_send failed: unknown se"),
    ("sessions_history", {"session_id": "\x00"}, "sessions_history failed: session id "),
]


async def test_an_error_is_a_result_that_names_the_mistake(tool: SessionsTool) -> None:
    for name, input, text in ERRORS:
        result = await tool.execute("call-7", name, input)
        assert result.is_error
        assert result.tool_use_id == "call-7"
        assert text in result.content


async def test_a_message_to_the_own_session_is_refused_with_the_reason_and_the_next_step(
    tool: SessionsTool, db: SessionsDB
) -> None:
    told = await call_refused(tool, "sessions_send", session_id="me", text="hello")
    assert "recurse" in told
    assert "sessions_spawn" in told
    assert (await db.broker.get("me")).pending == 0


async def test_a_spawn_without_a_known_caller_says_how_the_host_names_it(db: SessionsDB) -> None:
    for visibility in ("tree", "namespace"):
        tool = SessionsTool(db.broker, visibility=visibility)
        told = await call_refused(tool, "sessions_spawn", prompt="hello")
        assert 'context.metadata["session_id"]' in told
        assert "current_session_id" in told


async def test_the_context_overrides_the_constructors_session(
    tool: SessionsTool, db: SessionsDB
) -> None:
    await register_sessions(db, "other")
    context = ToolContext(metadata={"session_id": "other"})
    result = await tool.execute("1", "sessions_spawn", {"prompt": "hi"}, context)
    assert result.structured is not None
    assert (await db.broker.get(result.structured["id"])).parent == "other"
    # An empty one says nothing.
    empty = ToolContext(metadata={"session_id": ""})
    result = await tool.execute("1", "sessions_spawn", {"prompt": "hi"}, empty)
    assert result.structured is not None
    assert (await db.broker.get(result.structured["id"])).parent == "me"


def test_an_unknown_visibility_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="visibility"):
        SessionsTool(None, visibility="world")


# ---- list and history ----------------------------------------------------------------------------


async def test_a_list_is_read_to_its_end_by_its_cursor(db: SessionsDB, tool: SessionsTool) -> None:
    for number in range(7):
        await register_sessions(db, f"child-{number}", parent="me")
    seen, cursor = [], None
    while True:
        page = await call_ok(tool, "sessions_list", limit=3, cursor=cursor)
        assert page["scope"] == "tree"
        seen += [session["id"] for session in page["sessions"]]
        cursor = page.get("next_cursor")
        assert page["truncated"] is (cursor is not None)
        if cursor is None:
            break
    assert seen == ["me", *(f"child-{number}" for number in range(7))]


async def test_a_list_may_begin_with_the_newest_and_its_cursor_keeps_the_order(
    db: SessionsDB, tool: SessionsTool
) -> None:
    for number in range(5):
        await register_sessions(db, f"child-{number}", parent="me")
    first = await call_ok(tool, "sessions_list", limit=2, newest_first=True)
    assert [session["id"] for session in first["sessions"]] == ["child-4", "child-3"]
    cursor = first["next_cursor"]
    second = await call_ok(tool, "sessions_list", limit=2, cursor=cursor)
    assert [session["id"] for session in second["sessions"]] == ["child-2", "child-1"]
    last = await call_ok(tool, "sessions_list", limit=9, cursor=second["next_cursor"])
    assert [session["id"] for session in last["sessions"]] == ["child-0", "me"]
    assert last["truncated"] is False


async def test_history_is_newest_last_and_its_cursors_reach_the_rest(
    db: SessionsDB, tool: SessionsTool
) -> None:
    await db.store.append("me", [{"role": "user", "content": f"m{n}"} for n in range(120)])
    page = await call_ok(tool, "sessions_history", session_id="me")
    assert [m["content"] for m in page["messages"]] == [f"m{n}" for n in range(70, 120)]
    assert (page["scope"], page["truncated"]) == ("tree", True)
    page = await call_ok(tool, "sessions_history", session_id="me", before=page["next_before"])
    assert [m["content"] for m in page["messages"]] == [f"m{n}" for n in range(20, 70)]
    page = await call_ok(tool, "sessions_history", session_id="me", before=page["next_before"])
    assert [m["content"] for m in page["messages"]] == [f"m{n}" for n in range(20)]
    assert page["truncated"] is False
    assert "next_before" not in page
    page = await call_ok(tool, "sessions_history", session_id="me", after=118, limit=1)
    assert [m["content"] for m in page["messages"]] == ["m118"]
    page = await call_ok(tool, "sessions_history", session_id="me", after=page["next_after"])
    assert [m["content"] for m in page["messages"]] == ["m119"]
    page = await call_ok(tool, "sessions_history", session_id="me", limit=0)
    assert (page["messages"], page["truncated"]) == ([], True)


async def test_history_returns_at_most_500_messages(db: SessionsDB, tool: SessionsTool) -> None:
    await db.store.append("me", [{"role": "user", "content": str(n)} for n in range(600)])
    page = await call_ok(tool, "sessions_history", session_id="me", limit=100_000)
    assert [m["content"] for m in page["messages"]] == [str(n) for n in range(100, 600)]
    assert page["truncated"] is True


async def test_a_long_message_is_cut_with_a_note_and_its_rest_can_be_read(
    db: SessionsDB, tool: SessionsTool
) -> None:
    text = "".join(f"{n:06} " for n in range(1_500))
    await db.store.append("me", [{"role": "assistant", "content": text}])
    page = await call_ok(tool, "sessions_history", session_id="me")
    [message] = page["messages"]
    assert page["truncated"] is True
    assert f"cut: characters 0 to {MESSAGE_CHARACTERS} of {len(text)}" in message["note"]
    read = message["content"]
    while "next_offset" in message:
        page = await call_ok(
            tool,
            "sessions_history",
            session_id="me",
            message=message["seq"],
            offset=message["next_offset"],
        )
        [message] = page["messages"]
        read += message["content"]
    assert read == text
    assert page["truncated"] is False


async def test_many_long_messages_end_where_a_result_is_full(
    db: SessionsDB, tool: SessionsTool
) -> None:
    texts = [f"{n:03} " + "x" * 3_000 for n in range(200)]
    await db.store.append("me", [{"role": "user", "content": text} for text in texts])
    read: list[str] = []
    before = None
    while True:
        result = await call(tool, "sessions_history", session_id="me", limit=500, before=before)
        page = result.structured
        assert page is not None
        assert len(result.content) < RESULT_CHARACTERS * 1.2
        read = [m["content"] for m in page["messages"]] + read
        before = page.get("next_before")
        if before is None:
            break
    assert read == texts
    newer = await call_ok(tool, "sessions_history", session_id="me", limit=500, after=0)
    assert newer["truncated"] is True
    assert newer["messages"][0]["content"] == texts[0]
    assert newer["next_after"] == newer["messages"][-1]["seq"]


async def test_history_marks_a_message_of_another_agent(db: SessionsDB, tool: SessionsTool) -> None:
    await register_sessions(db, "child", parent="me")
    assert (await call_ok(tool, "sessions_send", session_id="child", text="do this"))["ok"] is True
    await db.broker.send("child", "a user's words")
    async with running_worker(db):
        await db.broker.wait(Receipt(session_id="child", position=2), 30)
    page = await call_ok(tool, "sessions_history", session_id="child")
    from_me, reply, from_user, _ = page["messages"]
    assert from_me["sender"] == "me"
    assert from_me["content"].startswith('[Message from another agent, session "me". Not the user')
    assert from_me["content"].endswith("\n> do this")
    assert "sender" not in reply
    assert from_user["content"] == "a user's words"
    assert "sender" not in from_user


async def test_history_shows_the_author_and_the_metadata_of_a_message(
    db: SessionsDB, tool: SessionsTool
) -> None:
    metadata = {"channel": "web", "id": 2**70, "hidden": "a\u202eb", "half": "\ud800"}
    await db.broker.send("me", "one", author="ada", metadata=metadata)
    await db.broker.send("me", "two")
    async with running_worker(db):
        await db.broker.wait(Receipt(session_id="me", position=2), 30)
    result = await call(tool, "sessions_history", session_id="me")
    assert result.structured is not None
    messages = result.structured["messages"]
    assert (messages[0]["author"], messages[0]["metadata"]) == ("ada", metadata)
    assert ["metadata" in message for message in messages] == [True, False, False, False]
    assert result.structured["truncated"] is False
    for character in ("\u202e", "\ud800"):
        assert character not in result.content


async def test_metadata_that_is_too_long_is_left_out_with_a_note(
    db: SessionsDB, tool: SessionsTool
) -> None:
    fits = METADATA_CHARACTERS - len('{"k": ""}')
    for text, length in (("fits", fits), ("too long", fits + 1)):
        await db.broker.send("me", text, metadata={"k": "x" * length})
    async with running_worker(db):
        await db.broker.wait(Receipt(session_id="me", position=2), 30)
    page = await call_ok(tool, "sessions_history", session_id="me")
    [whole] = [message for message in page["messages"] if message["content"] == "fits"]
    [left_out] = [message for message in page["messages"] if message["content"] == "too long"]
    assert len(whole["metadata"]["k"]) == fits
    assert "note" not in whole
    assert "metadata" not in left_out
    assert left_out["note"] == f"metadata left out: {METADATA_CHARACTERS + 1} characters as JSON"
    assert page["truncated"] is True


def test_metadata_counts_for_the_size_of_a_result() -> None:
    message = SessionMessage(
        role="user",
        content="x" * 10,
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        metadata={"k": "x" * 500},
    )
    assert shown_characters(show_message(message)) == 10 + len('{"k": ""}') + 500
    short = show_message(message, characters=100)
    assert (short.metadata, shown_characters(short)) == (None, 10)


# ---- send, spawn, wait, status, end --------------------------------------------------------------


async def test_a_send_and_its_repetition_return_the_same_receipt(
    db: SessionsDB, tool: SessionsTool
) -> None:
    await register_sessions(db, "child", parent="me")
    answer = await call_ok(
        tool, "sessions_send", session_id="child", text="hi", idempotency_key="k"
    )
    assert answer == {
        "scope": "tree",
        "truncated": False,
        "ok": True,
        "session_id": "child",
        "position": 1,
        "duplicate": False,
    }
    again = await call_ok(tool, "sessions_send", session_id="child", text="hi", idempotency_key="k")
    assert again == answer | {"duplicate": True}
    # The same key of somebody else is another key.
    await register_sessions(db, "sister", parent="me")
    other = SessionsTool(db.broker, "sister")
    answer = await call_ok(
        other, "sessions_send", session_id="child", text="hi", idempotency_key="k"
    )
    assert (answer["position"], answer["duplicate"]) == (2, False)


async def test_a_spawn_waits_for_the_first_reply(db: SessionsDB, tool: SessionsTool) -> None:
    async with running_worker(db):
        answer = await call_ok(tool, "sessions_spawn", prompt="hello", wait_for_first_reply=True)
    assert answer["first_reply"]["content"] == "echo: hello"
    assert answer["status"] == "done"
    child = await db.broker.get(answer["id"])
    assert (child.parent, child.channel) == ("me", "spawned")


async def test_a_child_reports_unless_the_model_or_the_host_says_otherwise(
    db: SessionsDB, tool: SessionsTool
) -> None:
    quiet = SessionsTool(db.broker, "me", report_spawns=False)
    spawned = [
        await call_ok(tool, "sessions_spawn", prompt="by default"),
        await call_ok(tool, "sessions_spawn", prompt="not this one", report=False),
        await call_ok(quiet, "sessions_spawn", prompt="not for this host"),
        await call_ok(quiet, "sessions_spawn", prompt="but this one", report=True),
    ]
    await db.worker(echo).run_until_idle()
    reports = [entry for entry in await db.store.entries("me") if entry.sender is not None]
    assert {one.sender for one in reports} == {spawned[0]["id"], spawned[3]["id"]}
    assert [(one.metadata or {})["report"] for one in reports] == ["reply", "reply"]
    child = SessionsTool(db.broker, spawned[0]["id"], visibility="tree")
    listed = {one["id"]: one for one in (await call_ok(child, "sessions_list"))["sessions"]}
    assert listed[spawned[0]["id"]]["parent"] == "me"


async def test_a_spawn_inherits_the_settings_that_are_left_out(
    db: SessionsDB, tool: SessionsTool
) -> None:
    await db.broker.update("me", model="large", system="be good", tools=["read", "write"])
    plain = await call_ok(tool, "sessions_spawn", prompt="hello")
    child = await db.broker.get(plain["id"])
    assert child.settings == (await db.broker.get("me")).settings
    own = await call_ok(tool, "sessions_spawn", prompt="hello", model="small", tools=["read"])
    child = await db.broker.get(own["id"])
    assert (child.model, child.system, child.tools) == ("small", "be good", ["read"])
    told = await call_refused(tool, "sessions_spawn", prompt="hello", tools=["shell"])
    assert told.startswith("sessions_spawn failed: session me may not spawn: tools ['shell']")


async def test_a_child_works_on_after_the_timeout_of_a_wait(
    db: SessionsDB, tool: SessionsTool
) -> None:
    answer = await call_ok(
        tool, "sessions_spawn", prompt="hello", wait_for_first_reply=True, wait_timeout_secs=0.05
    )
    assert answer["status"] == "pending"
    assert "sessions_wait" in answer["note"]
    assert "first_reply" not in answer
    async with running_worker(db):
        found = await call_ok(tool, "sessions_wait", receipts=[answer["receipt"]])
    assert found["complete"] is True
    assert found["outcomes"][0]["reply"]["content"] == "echo: hello"


async def test_a_call_waits_no_longer_than_its_host_allows(db: SessionsDB) -> None:
    await register_sessions(db, "me")
    tool = SessionsTool(db.broker, "me", max_wait_secs=0.05)
    async with asyncio.timeout(10):
        answer = await call_ok(
            tool,
            "sessions_spawn",
            prompt="hello",
            wait_for_first_reply=True,
            wait_timeout_secs=10_000,
        )
        assert answer["status"] == "pending"
        found = await call_ok(
            tool, "sessions_wait", receipts=[answer["receipt"]], timeout_secs=10_000
        )
    assert found["complete"] is False
    assert found["outcomes"][0]["status"] == "pending"


async def test_waiting_for_any_returns_with_the_first(db: SessionsDB, tool: SessionsTool) -> None:
    let_go = asyncio.Event()

    async def handler(turn: Turn) -> str:
        if turn.text == "slow":
            await let_go.wait()
        return f"done: {turn.text}"

    async with running_worker(db, handler):
        slow = (await call_ok(tool, "sessions_spawn", prompt="slow"))["receipt"]
        fast = (await call_ok(tool, "sessions_spawn", prompt="fast"))["receipt"]
        found = await call_ok(tool, "sessions_wait", receipts=[slow, fast, fast], mode="any")
        assert found["complete"] is True
        assert found["outcomes"][0]["status"] in ("pending", "running")
        assert [o["reply"]["content"] for o in found["outcomes"][1:]] == ["done: fast"] * 2
        let_go.set()
        found = await call_ok(tool, "sessions_wait", receipts=[slow, fast])
    assert [o["status"] for o in found["outcomes"]] == ["done", "done"]


async def test_status_returns_every_final_status(db: SessionsDB, tool: SessionsTool) -> None:
    async def handler(turn: Turn) -> str:
        if turn.text == "bad":
            raise RuntimeError("it broke")
        return "x" * 5_000

    receipts = [
        (await call_ok(tool, "sessions_spawn", prompt=text))["receipt"] for text in ("good", "bad")
    ]
    await db.worker(handler, max_attempts=1).run_until_idle()
    ended = (await call_ok(tool, "sessions_spawn", prompt="ended"))["receipt"]
    waiting = (await call_ok(tool, "sessions_spawn", prompt="waiting"))["receipt"]
    assert (await call_ok(tool, "sessions_end", session_id=ended["session_id"]))["ended"] == 1
    found = await call_ok(tool, "sessions_status", receipts=[*receipts, ended, waiting])
    good, bad, cancelled, pending = found["outcomes"]
    assert found["truncated"] is True
    assert good["reply"]["next_offset"] == MESSAGE_CHARACTERS
    assert bad["status"] == "dead"
    assert bad["error"] == "RuntimeError: it broke"
    assert cancelled["status"] == "cancelled"
    assert pending["status"] == "pending"
    told = await call_refused(
        tool, "sessions_status", receipts=[{"session_id": "me", "position": 99}]
    )
    assert told.startswith("sessions_status failed: unknown receipt: message 99 of session me")


async def test_a_caller_cancels_one_message_or_all_that_runs_below_it(
    db: SessionsDB, tool: SessionsTool
) -> None:
    await register_sessions(db, "child", parent="me")
    for text in "abc":
        await db.broker.send("child", text)
    answer = await call_ok(tool, "sessions_cancel", session_id="child")
    assert (answer["outcomes"], answer["truncated"]) == ([], False)
    answer = await call_ok(tool, "sessions_cancel", session_id="child", position=2)
    assert [(one["position"], one["status"]) for one in answer["outcomes"]] == [(2, "cancelled")]
    [lease] = await claim(db)
    answer = await call_ok(tool, "sessions_cancel", session_id="child")
    assert [(one["position"], one["status"]) for one in answer["outcomes"]] == [(1, "cancelled")]
    with pytest.raises(LeaseLost):
        await commit(db, lease, "too late")
    [lease] = await claim(db)
    assert lease.positions == [3]
    await commit(db, lease, "done")
    answer = await call_ok(tool, "sessions_cancel", session_id="child", position=3)
    assert [one["status"] for one in answer["outcomes"]] == ["done"]
    told = await call_refused(tool, "sessions_cancel", session_id="child", position=9)
    assert "unknown receipt: message 9 of session child" in told


async def test_what_a_cancel_tells_of_many_messages_is_bounded(
    db: SessionsDB, tool: SessionsTool, database: Database
) -> None:
    await register_sessions(db, "child", parent="me")
    for n in range(60):
        await db.broker.send("child", f"message {n}")

    async def handler(turn: Turn) -> None:
        turn.stream("x" * 20_000)
        await asyncio.Event().wait()

    async with running(db, handler, batch=1_000):
        await until(lambda: database.value("SELECT count(*) FROM pieces"))
        result = await tool.execute("1", "sessions_cancel", {"session_id": "child"})
    assert not result.is_error
    assert len(result.content) < RESULT_CHARACTERS * 1.5
    answer = result.structured
    assert [one["position"] for one in answer["outcomes"]] == list(range(1, 51))
    assert {one["status"] for one in answer["outcomes"]} == {"cancelled"}
    assert answer["truncated"] is True
    assert answer["note"] == "60 messages were cancelled; the first 50 are shown"


async def test_a_caller_can_cancel_only_below_its_own_session(
    db: SessionsDB, tool: SessionsTool
) -> None:
    await register_sessions(db, "child", parent="me")
    await register_sessions(db, "sister", parent="me")
    for visibility in ("tree", "namespace"):
        below = SessionsTool(db.broker, "child", visibility=visibility)
        for target in ("me", "child", "sister"):
            receipt = await db.broker.send(target, "a")
            for extra in ({}, {"position": receipt.position}):
                told = await call_refused(below, "sessions_cancel", session_id=target, **extra)
                assert "not below your own session child" in told
            assert (await db.broker.outcome(receipt)).status == "pending"
    host = SessionsTool(db.broker, visibility="namespace")
    answer = await call_ok(host, "sessions_cancel", session_id="me", position=1)
    assert answer["outcomes"][0]["status"] == "cancelled"


async def test_a_caller_can_end_only_sessions_below_its_own(
    db: SessionsDB, tool: SessionsTool
) -> None:
    await register_sessions(db, "child", parent="me")
    await register_sessions(db, "grandchild", parent="child")
    below = SessionsTool(db.broker, "grandchild")
    await register_sessions(db, "sister", parent="me")
    await register_sessions(db, "stranger")
    everywhere = SessionsTool(db.broker, "grandchild", visibility="namespace")
    for caller, target in (
        *((below, id) for id in ("grandchild", "child", "me", "sister")),
        *((everywhere, id) for id in ("grandchild", "child", "me", "sister", "stranger")),
    ):
        for subtree in (False, True):
            told = await call_refused(caller, "sessions_end", session_id=target, subtree=subtree)
            assert "not below your own session" in told
            assert (await db.broker.get(target)).ended_at is None
    answer = await call_ok(tool, "sessions_end", session_id="child", subtree=True, reason="enough")
    assert answer["ended"] == 2
    told = await call_refused(tool, "sessions_send", session_id="child", text="hi")
    assert told.startswith("sessions_send failed: session has ended: child")
    listed = await call_ok(tool, "sessions_list", include_ended=True)
    assert len(listed["sessions"]) == 4
    host = SessionsTool(db.broker, visibility="namespace")
    assert (await call_ok(host, "sessions_end", session_id="stranger"))["ended"] == 1


async def test_sessions_that_would_wait_for_each_other_get_an_error(
    db: SessionsDB, tool: SessionsTool
) -> None:
    """A child sends a question to the parent that waits for it, and waits for the answer."""
    told: list[str] = []

    async def handler(turn: Turn) -> str:
        own = SessionsTool(db.broker, turn.session.id)
        if turn.text == "begin":
            answer = await call_ok(
                own, "sessions_spawn", prompt="ask me", wait_for_first_reply=True
            )
            return str(answer["first_reply"]["content"])
        if turn.session.id == "me":
            return "too late"
        asked = await call_ok(own, "sessions_send", session_id="me", text="which one?")
        receipt = {"session_id": "me", "position": asked["position"]}
        told.append(await call_refused(own, "sessions_wait", receipts=[receipt]))
        return "the first one, I guess"

    receipt = await db.broker.send("me", "begin")
    async with running_worker(db, handler):
        outcome = await db.broker.wait(receipt, 30)
    assert outcome.reply is not None
    assert outcome.reply.content == "the first one, I guess"
    assert told[0].startswith("sessions_wait failed: session spawn-")
    assert "can't wait for session me: me waits for spawn-" in told[0]


async def test_a_chain_of_sends_is_refused_beyond_its_limit(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(hops=1)) as db:
        await register_sessions(db, "a", "b")
        told: list[str] = []

        async def handler(turn: Turn) -> str:
            own = SessionsTool(db.broker, turn.session.id, visibility="namespace")
            other = "b" if turn.session.id == "a" else "a"
            result = await call(own, "sessions_send", session_id=other, text="you do it")
            told.extend([result.content] if result.is_error else [])
            return "passed on"

        await db.broker.send("a", "do it")
        await db.worker(handler).run_until_idle()
    [refusal] = told
    assert refusal.startswith("sessions_send failed: message from session b to session a refused")


async def test_a_cancelled_call_cancels_nothing_but_its_wait(
    db: SessionsDB, tool: SessionsTool
) -> None:
    begun = asyncio.Event()
    told: list[str] = []

    async def progress(waited: float, most: float, what: str) -> None:
        told.append(what)
        begun.set()

    calling = asyncio.create_task(
        tool.execute(
            "1",
            "sessions_spawn",
            {"prompt": "hello", "wait_for_first_reply": True},
            ToolContext(progress=progress),
        )
    )
    await begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    [child] = [s.id for s in await db.broker.list(parent="me")]
    assert child in told[0]
    async with running_worker(db):
        found = await call_ok(
            tool, "sessions_wait", receipts=[{"session_id": child, "position": 1}]
        )
    assert found["outcomes"][0]["status"] == "done"


async def test_a_wait_reports_the_reply_while_it_is_streamed(
    db: SessionsDB, tool: SessionsTool
) -> None:
    reported = asyncio.Event()
    texts: list[str] = []

    async def progress(waited: float, most: float, text: str) -> None:
        texts.append(text)
        if "In the north" in text:
            reported.set()

    async def handler(turn: Turn) -> str:
        turn.stream("In the")
        turn.stream(" north\n of ")
        await reported.wait()
        return "In the north of Italy."

    spawned = await call_ok(tool, "sessions_spawn", prompt="Where?")
    async with running_worker(db, handler):
        result = await tool.execute(
            "1",
            "sessions_wait",
            {"receipts": [spawned["receipt"]]},
            ToolContext(progress=progress),
        )
    assert not result.is_error
    [shown] = [text for text in texts if "In the north" in text][:1]
    assert shown == f"0 of 1 finished; {spawned['receipt']['session_id']}: …In the north of"
