"""The scope of a caller: its own session, its tree or the namespace, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.databases import Database
from sessionsdb import Limits, SearchHit, SessionsDB
from sessionsdb.protocols import SessionBroker
from sessionsdb.tools import SessionsTool, ToolContext, ToolResult
from sessionsdb.tools.scope import Visibility
from tests.support.tools import call_ok, call_refused, definitions, register_sessions

SAYING = {"elsewhere", "elsewhere-child"}
MESSAGE = [{"role": "user", "content": "SECRET"}]


@pytest.fixture
async def forest(db: SessionsDB) -> SessionsDB:
    """Two trees in one namespace, and sessions of another namespace, one with an equal id."""
    await register_sessions(db, "root", "elsewhere")
    await register_sessions(db, "me", "sister", parent="root")
    await register_sessions(db, "child", parent="me")
    await register_sessions(db, "elsewhere-child", parent="elsewhere")
    other = db.in_namespace("other")
    await register_sessions(other, "me", "theirs")
    await other.store.append("theirs", MESSAGE)
    for id in ("elsewhere", "elsewhere-child"):
        await db.store.append(id, MESSAGE)
        await db.broker.send(id, "SECRET")
    await db.index_search()
    return db


@pytest.mark.parametrize(
    ("visibility", "seen"),
    [
        ("self", ["me"]),
        ("below", ["me", "child"]),
        ("tree", ["root", "me", "sister", "child"]),
        ("namespace", ["root", "elsewhere", "me", "sister", "child", "elsewhere-child"]),
    ],
)
async def test_every_tool_sees_the_same_sessions(
    forest: SessionsDB, visibility: Visibility, seen: Sequence[str]
) -> None:
    tool = SessionsTool(forest.broker, "me", visibility=visibility)
    listed = await call_ok(tool, "sessions_list")
    assert {session["id"] for session in listed["sessions"]} == set(seen)
    assert listed["scope"] == visibility
    found = await call_ok(tool, "sessions_search", query="secret")
    assert {hit["session_id"] for hit in found["messages"]} == SAYING & set(seen)
    everyone = ["root", "elsewhere", "me", "sister", "child", "elsewhere-child", "theirs", "nobody"]
    for id in everyone:
        receipt = {"session_id": id, "position": 77}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("sessions_history", {"session_id": id}),
            ("sessions_history", {"session_id": id, "message": 1}),
            ("sessions_send", {"session_id": id, "text": "hi"}),
            ("sessions_status", {"receipts": [receipt]}),
            ("sessions_wait", {"receipts": [receipt], "timeout_secs": 0}),
            ("sessions_schedule", {"session_id": id, "text": "hi", "cron": "0 0 1 1 *"}),
            ("sessions_unschedule", {"session_id": id, "schedule_id": "none"}),
            ("sessions_cancel", {"session_id": id}),
            ("sessions_cancel", {"session_id": id, "position": 77}),
            ("sessions_end", {"session_id": id}),
        ]
        for name, input in calls:
            result = await tool.execute("1", name, input)
            unknown = f"{name} failed: unknown session: {id}"
            if id in seen:
                assert result.content != unknown
            else:
                assert (result.is_error, result.content) == (True, unknown)


class CountingBroker:
    """A broker that counts its searches."""

    def __init__(self, broker: SessionBroker) -> None:
        self._broker = broker
        self.searches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def search(self, query: str, **options: Any) -> list[SearchHit]:
        self.searches += 1
        return await self._broker.search(query, **options)


async def test_a_search_of_the_own_session_reads_the_hits_below_it_in_large_pages(
    forest: SessionsDB,
) -> None:
    await forest.store.append("me", MESSAGE * 3)
    await forest.store.append("child", MESSAGE * 250)
    await forest.index_search()
    broker: Any = CountingBroker(forest.broker)
    tool = SessionsTool(broker, "me", visibility="self")
    for limit in (0, 1, 3):
        broker.searches = 0
        found = await call_ok(tool, "sessions_search", query="secret", limit=limit)
        assert [hit["session_id"] for hit in found["messages"]] == ["me"] * limit
        assert found["truncated"] is (limit < 3)
        assert broker.searches <= 3
    first = await call_ok(tool, "sessions_search", query="secret", limit=2)
    rest = await call_ok(tool, "sessions_search", query="secret", cursor=first["next_cursor"])
    assert [hit["seq"] for hit in first["messages"] + rest["messages"]] == [3, 2, 1]
    assert rest["truncated"] is False


async def test_a_session_outside_and_one_that_does_not_exist_get_the_same_answer(
    forest: SessionsDB,
) -> None:
    tool = SessionsTool(forest.broker, "me")
    for name, extra in (("sessions_history", {}), ("sessions_send", {"text": "x"})):
        answers = {
            (await call_refused(tool, name, session_id=id, **extra)).replace(id, "ID")
            for id in ("elsewhere", "theirs", "nobody")
        }
        assert answers == {f"{name} failed: unknown session: ID"}


async def test_without_a_caller_nothing_is_in_scope_unless_the_host_chose_the_namespace(
    forest: SessionsDB,
) -> None:
    for visibility in ("self", "below", "tree"):
        closed = SessionsTool(forest.broker, visibility=visibility)
        assert "the caller's session is not known" in await call_refused(closed, "sessions_list")
        told = await call_refused(closed, "sessions_history", session_id="root")
        assert "the host must set" in told
    opened = SessionsTool(forest.broker, visibility="namespace")
    assert len((await call_ok(opened, "sessions_list"))["sessions"]) == 6
    sent = await call_ok(opened, "sessions_send", session_id="root", text="by the host")
    assert sent["ok"] is True


async def test_a_caller_that_does_not_exist_sees_nothing(forest: SessionsDB) -> None:
    tool = SessionsTool(forest.broker, "theirs")
    assert (
        await call_refused(tool, "sessions_list") == "sessions_list failed: unknown session: theirs"
    )


async def test_a_cursor_shows_no_session_outside_the_scope(forest: SessionsDB) -> None:
    tool = SessionsTool(forest.broker, "me")
    inside = {"root", "me", "sister", "child"}
    for id in ("elsewhere", "nobody", "me"):
        page = await call_ok(tool, "sessions_list", cursor=f"2000-01-01T00:00:00+00:00 {id}")
        assert {session["id"] for session in page["sessions"]} == inside


# ---- arbitrary input -----------------------------------------------------------------------------

IDS = ["me", "child", "sister", "root", "elsewhere", "elsewhere-child", "theirs", "other", ""]
NAMES = [definition.name for definition in definitions()]
ARGUMENTS = sorted(
    {argument for definition in definitions() for argument in definition.input_schema["properties"]}
    | {"namespace", "sender", "parent", "metadata", "visibility", "scope"}
)
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20) | st.just(
    "\ud800 half"
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-2, max_value=3)
    | st.just(10**400)
    | st.floats()
    | texts
    | st.sampled_from(IDS)
    | st.sampled_from(["any", "all", "2000-01-01T00:00:00+00:00 elsewhere", "0001-01-01 x"])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
receipts = st.lists(
    st.fixed_dictionaries(
        {"session_id": st.sampled_from(IDS) | json_values, "position": json_values}
    ),
    max_size=3,
)
likely = st.dictionaries(st.sampled_from(ARGUMENTS), json_values | receipts, max_size=6)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "session_id": st.sampled_from(IDS),
    "text": texts,
    "prompt": texts,
    "query": st.sampled_from(["secret", "SEC* -x"]) | texts,
    "receipts": st.lists(
        st.fixed_dictionaries({"session_id": st.sampled_from(IDS), "position": st.integers(1, 3)}),
        min_size=1,
        max_size=3,
    ),
    "mode": st.sampled_from(["any", "all"]),
    "limit": st.integers(0, 600),
    "before": st.integers(),
    "after": st.integers(),
    "message": st.integers(-1, 3),
    "offset": st.integers(0, 10),
    "subtree": st.booleans(),
    "tools": st.lists(texts, max_size=2),
    "wait_for_first_reply": st.booleans(),
    "idempotency_key": texts,
    "schedule_id": texts,
    "cron": st.just("0 9 * * *"),
    "at": st.just("2100-01-01T00:00"),
    "tz": st.just("Europe/Berlin"),
}
"""Valid values that may name sessions outside the scope."""


@st.composite
def aimed(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a call of a tool with its own arguments, most of them valid."""
    definition = draw(st.sampled_from(definitions()))
    required = definition.input_schema["required"]
    others = set(definition.input_schema["properties"]) - set(required)
    return definition.name, draw(
        st.fixed_dictionaries(
            {name: GOOD[name] for name in required},
            optional={name: GOOD.get(name, scalars) | scalars for name in sorted(others)},
        )
    )


wild = st.tuples(st.sampled_from(NAMES) | texts, json_values | likely)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(call=aimed() | wild)
async def test_any_input_of_a_model_is_answered_and_reaches_nothing_outside_the_scope(
    forest: SessionsDB, database: Database, call: tuple[str, Any]
) -> None:
    tool = SessionsTool(forest.broker, "me", max_wait_secs=0.005)
    name, input = call
    result = await tool.execute("call", name, input, ToolContext())
    assert isinstance(result, ToolResult)
    assert result.content.encode()
    assert "SECRET" not in result.content
    assert "unforeseen" not in result.content
    assert "unexpected" not in result.content
    listed = (result.structured or {}).get("sessions", [])
    assert {session["id"] for session in listed} <= {
        *("root", "me", "sister", "child"),
        *(session["id"] for session in listed if session["id"].startswith("spawn-")),
    }
    untouched = await database.query(
        "SELECT s.namespace, s.id, m.tail, m.closed, s.message_count FROM sessions s "
        "JOIN mailboxes m ON m.namespace = s.namespace AND m.session_id = s.id "
        "WHERE s.namespace = 'other' OR s.id LIKE 'elsewhere%' ORDER BY 1, 2"
    )
    assert [(row[0], row[1], row[2], bool(row[3]), row[4]) for row in untouched] == [
        ("default", "elsewhere", 1, False, 1),
        ("default", "elsewhere-child", 1, False, 1),
        ("other", "me", 0, False, 0),
        ("other", "theirs", 0, False, 1),
    ]
    children = await database.value(
        "SELECT count(*) FROM sessions WHERE parent_id NOT IN ('root', 'me', 'elsewhere') "
    )
    assert children == 0


async def test_limits_hold_for_tools(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(children=1, pending=1)) as db:
        await register_sessions(db, "me")
        tool = SessionsTool(db.broker, "me")
        child = (await call_ok(tool, "sessions_spawn", prompt="hi"))["id"]
        assert "living children" in await call_refused(tool, "sessions_spawn", prompt="hi")
        assert "is full" in await call_refused(tool, "sessions_send", session_id=child, text="hi")
