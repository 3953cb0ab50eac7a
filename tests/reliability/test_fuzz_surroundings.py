"""Bad input around the broker and the store: opening a database, values, workers and handlers,
tools for models, reports, and the functions of operators."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, MCPError
from pydantic import BaseModel, ValidationError

import sessionsdb
from devtools.databases import Database
from sessionsdb import (
    Backoff,
    Edit,
    InvalidArgument,
    Limits,
    ListOptions,
    Reply,
    SessionsDB,
    SessionsDBError,
    StorageError,
    Turn,
    Worker,
    handlers,
    reports,
)
from sessionsdb.admin import backup, doctor, purge, session_export, status
from sessionsdb.mcp import Caller
from sessionsdb.mcp.server import SessionsServer
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.tools import SessionsTool, ToolContext
from tests.reliability.command_lines import urls
from tests.reliability.field import Field, opened
from tests.reliability.fuzzing import fuzzed
from tests.reliability.hostile_values import (
    Failing,
    Hostility,
    anything,
    floats,
    json_values,
    made,
    moments,
    scalars,
    storable_texts,
    texts,
    whole_numbers,
)
from tests.reliability.test_fuzz_verbs import (
    HOSTILE,
    PARAMETERS,
    assert_helpful,
    built,
    ids,
    names,
    plain,
)
from tests.support import messages
from tests.support.tools import definitions

MOMENT = 0.2
"""Seconds for a worker whose options may let it run for ever."""


@pytest.fixture
async def field(database: Database) -> AsyncIterator[Field]:
    async with opened(database) as field:
        yield field


def arguments(
    callable_: Any, likely: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments by name for a call of the package: likely values, and some arbitrary ones."""
    parameters = [p for p in inspect.signature(callable_).parameters.values() if p.name != "self"]
    missing = {p.name for p in parameters} - set(likely)
    assert not missing, f"{callable_} takes {missing}: say what is likely for them"
    whole = st.fixed_dictionaries(
        {p.name: likely[p.name] for p in parameters if p.default is p.empty},
        optional={p.name: likely[p.name] for p in parameters if p.default is not p.empty},
    )
    wrong = st.dictionaries(
        st.sampled_from([p.name for p in parameters]), anything, min_size=1, max_size=2
    )
    return whole | st.tuples(whole, wrong).map(lambda drawn: drawn[0] | drawn[1])


# ---- opening a database --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.jsonl").write_bytes(b"no database")
    return tmp_path


limits = st.builds(Limits) | st.fixed_dictionaries(
    dict.fromkeys(Limits.model_fields, whole_numbers | anything)
).map(lambda fields: Limits.model_construct(**fields))

OPENING: dict[str, st.SearchStrategy[Any]] = {
    "url": st.sampled_from(("sqlite://", "sqlite:///ours.db")) | urls,
    "namespace": names,
    "migrate": st.none() | st.booleans(),
    "limits": st.builds(Limits),
    "durability": st.sampled_from(["full", "normal"]),
    "transaction_pooler": st.booleans(),
    "schema": st.none() | names,
    "read_url": st.none() | urls,
    "clock": st.none(),
}


@fuzzed(30)
@given(drawn=arguments(SessionsDB, OPENING), wrong_limits=st.none() | limits)
async def test_a_database_opens_or_says_why_not(
    folder: Path, drawn: dict[str, Any], wrong_limits: Limits | None
) -> None:
    given_ = {name: made(value) for name, value in drawn.items()}
    if wrong_limits is not None:
        fields = {name: made(value) for name, value in vars(wrong_limits).items()}
        given_["limits"] = Limits.model_construct(**fields)
    try:
        async with SessionsDB(**given_) as db:
            assert db.namespace == plain(given_.get("namespace", "default"))
            assert db.limits == given_.get("limits", Limits())
            await db.store.append("s", [])
            await db.broker.send("s", "hello")
            assert await db.store.load("s") == []
    except SessionsDBError as error:
        assert_helpful(error)


@fuzzed(10)
@given(name=names | anything)
async def test_a_namespace_is_a_handle_or_refused(field: Field, name: Any) -> None:
    db = await field.prepared()
    try:
        other = db.in_namespace(made(name))
    except InvalidArgument as error:
        assert_helpful(error)
    else:
        assert other.namespace == plain(made(name))
        assert await other.store.version("nobody") is None


@fuzzed(20)
@given(after=anything | st.dictionaries(ids, whole_numbers | anything, max_size=3))
async def test_a_handle_on_a_standby_reads_or_is_refused(field: Field, after: Any) -> None:
    db = await field.prepared()
    try:
        standby = db.on_standby(after=made(after))
    except InvalidArgument as error:
        assert_helpful(error)
    else:
        assert await standby.store.list_paginated(ListOptions(limit=1)) is not None


# ---- values --------------------------------------------------------------------------------------

VALUES = {
    name: found
    for name in sessionsdb.__all__
    if inspect.isclass(found := getattr(sessionsdb, name))
    and issubclass(found, BaseModel)
    and found is not Edit  # the call that takes it checks its fields
}


@pytest.mark.parametrize("name", sorted(VALUES))
@fuzzed(10)
@given(data=st.data())
def test_a_value_is_made_or_refused_and_goes_over_the_wire(name: str, data: st.DataObject) -> None:
    model = VALUES[name]
    fields = data.draw(st.dictionaries(st.sampled_from(sorted(model.model_fields)), anything))
    try:
        value = model(**{field: made(item) for field, item in fields.items()})
    except ValidationError:
        return
    assert json.loads(json.dumps(value.model_dump(mode="json"))) is not None


@fuzzed(30)
@given(
    drawn=arguments(
        Backoff, dict.fromkeys(("first", "factor", "most", "jitter"), floats | whole_numbers)
        | {"rng": st.nothing()},
    ),
    attempt=st.integers(1, 10**6),
)  # fmt: skip
def test_a_backoff_is_a_time_to_wait_or_refused(drawn: dict[str, Any], attempt: int) -> None:
    try:
        backoff = Backoff(**{name: made(value) for name, value in drawn.items()})
    except InvalidArgument as error:
        assert_helpful(error)
        return
    assert 0 <= backoff.delay(attempt) <= backoff.most


@fuzzed(30)
@given(drawn=arguments(Reply, dict.fromkeys(inspect.signature(Reply).parameters, anything)))
def test_a_reply_is_made_or_refused(drawn: dict[str, Any]) -> None:
    try:
        Reply(**{name: made(value) for name, value in drawn.items()})
    except InvalidArgument as error:
        assert_helpful(error)


# ---- workers -------------------------------------------------------------------------------------

WORKER: dict[str, st.SearchStrategy[Any]] = {
    "handler": st.just(handlers.echo),
    "concurrency": whole_numbers,
    "batch": whole_numbers,
    "lease_seconds": floats,
    "poll_interval": floats,
    "max_attempts": whole_numbers,
    "retry": st.none() | st.builds(Backoff),
    "turn_timeout": st.none() | floats,
    "name": st.none() | storable_texts,
    "namespaces": st.none() | st.lists(names, max_size=2),
    "index_search": st.booleans(),
}


@fuzzed(10)
@given(drawn=arguments(SessionsDB.worker, WORKER), grace=st.just(0.0) | floats | anything)
async def test_a_worker_works_or_refuses_its_options(
    field: Field, caplog: pytest.LogCaptureFixture, drawn: dict[str, Any], grace: Any
) -> None:
    db = await field.prepared()
    before = await field.others(db, also_here=False)
    caplog.clear()
    try:
        worker = db.worker(**{name: made(value) for name, value in drawn.items()})
    except InvalidArgument as error:
        assert_helpful(error)
        return
    await _briefly(worker, grace)
    assert "unforeseen" not in caplog.text
    if plain_text(drawn.get("namespaces")) == "*":
        return  # it was asked to serve everybody
    assert await field.others(db, also_here=False) == before


def plain_text(value: Any) -> str | None:
    return str.__str__(value) if isinstance(value, str) else None


async def _briefly(worker: Worker, grace: Any = 0.0) -> None:
    """Let a worker run until it is idle, or for a moment."""
    running = asyncio.create_task(worker.run_until_idle())
    await asyncio.wait((running,), timeout=MOMENT)
    try:
        async with asyncio.timeout(MOMENT):
            await worker.stop(made(grace))
    except InvalidArgument as error:
        assert_helpful(error)
    except TimeoutError:
        pass  # a long grace
    async with asyncio.timeout(20):
        await worker.stop(0)
        await running


answers = (
    st.none()
    | texts
    | messages.messages
    | st.lists(messages.messages, max_size=3)
    | anything
    | st.fixed_dictionaries(
        {"messages": texts | messages.messages | anything},
        optional={
            "model": st.none() | texts,
            "input_tokens": st.none() | whole_numbers,
            "output_tokens": st.none() | whole_numbers,
        },
    ).map(lambda fields: ("reply", fields))
)


@fuzzed(30)
@given(answer=answers)
async def test_what_a_handler_returns_is_committed_or_a_failed_attempt(
    field: Field, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    db = await field.prepared()
    receipt = await db.broker.send("child", "hello")
    caplog.clear()

    async def handler(turn: Turn) -> Any:
        if turn.session.id != "child":
            return None
        if type(answer) is tuple:
            return Reply(**{name: made(value) for name, value in answer[1].items()})
        return made(answer)

    async with asyncio.timeout(20):
        await db.worker(handler, max_attempts=1).run_until_idle()
    assert "unforeseen" not in caplog.text
    outcome = await db.broker.outcome(receipt)
    if outcome.status == "done":
        assert await db.store.load("child") is not None
    else:
        assert outcome.status == "dead"
        assert "Invalid" in (outcome.error or ""), outcome.error
    assert len(await reports.read(db, "turns")) == 2


ERRORS = (
    *(Hostility("x"), asyncio.CancelledError(), asyncio.CancelledError("own"), StopIteration(1)),
    *(StopAsyncIteration(), TimeoutError(), MemoryError(), RecursionError()),
    *(ExceptionGroup("g", [ValueError("\ud800"), ExceptionGroup("h", [KeyError("\x00")])]),),
    *(Exception("x" * 1_000_000), Exception("\x00\ud800\x1b[2J"), Exception(b"\xff"), Exception()),
    *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "r"), StorageError("of another database")),
    sessionsdb.LeaseLost("not ours"),
)


class Unspeakable(Exception):
    __str__ = __repr__ = lambda self: Failing().no_such_thing


@pytest.mark.parametrize("error", [*ERRORS, Unspeakable()], ids=lambda error: type(error).__name__)
async def test_every_error_of_a_handler_is_recorded(
    field: Field, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    db = await field.prepared()
    receipt = await db.broker.send("child", "hello")

    async def handler(turn: Turn) -> None:
        if turn.session.id == "child":
            raise error

    async with asyncio.timeout(20):
        await db.worker(handler, max_attempts=1).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("dead", 1)
    assert outcome.error
    assert "unforeseen" not in caplog.text


TURN: dict[str, st.SearchStrategy[Any]] = {
    "id": ids,
    "text": texts,
    "request": PARAMETERS["request"],
    "limit": st.none() | whole_numbers,
    "message": PARAMETERS["message"],
    "author": PARAMETERS["author"],
    "metadata": PARAMETERS["metadata"],
    "edit": PARAMETERS["edit"],
    "scope": PARAMETERS["scope"],
    "kind": names,
    "data": json_values,
    "input_tokens": st.none() | whole_numbers,
    "output_tokens": st.none() | whole_numbers,
}


REFUSALS = ("Unknown", "Ended", "Denied", "Invalid", "Conflict")
"""Parts of the names of errors with which a commit refuses a staged change."""


def turn_verbs() -> list[str]:
    return [
        name
        for name, member in inspect.getmembers(Turn, inspect.isfunction)
        if not name.startswith("_")
    ]


@pytest.mark.parametrize("verb", turn_verbs())
@fuzzed(10)
@given(data=st.data())
async def test_a_call_on_a_turn_is_done_or_refused(
    field: Field, caplog: pytest.LogCaptureFixture, verb: str, data: st.DataObject
) -> None:
    method = getattr(Turn, verb)
    drawn = (
        data.draw(arguments(method, TURN)) if len(inspect.signature(method).parameters) > 1 else {}
    )
    db = await field.prepared()
    before = await field.others(db, also_here=False)
    receipt = await db.broker.send("child", "hello")
    caplog.clear()
    refused: list[Exception] = []
    staged: list[Any] = []

    async def handler(turn: Turn) -> None:
        if turn.session.id != "child" or turn.receipts != [receipt]:
            return
        try:
            answer = getattr(turn, verb)(**{name: built(value) for name, value in drawn.items()})
            if inspect.isawaitable(answer):
                await answer
        except Exception as error:
            refused.append(error)
        staged.extend(turn.staged)

    async with asyncio.timeout(20):
        await db.worker(handler, max_attempts=1).run_until_idle()
    for error in refused:
        assert isinstance(error, SessionsDBError), error
        assert not isinstance(error, StorageError), error
        assert_helpful(error)
        assert not staged
    assert "unforeseen" not in caplog.text
    outcome = await db.broker.outcome(receipt)
    assert outcome.status in ("done", "dead")
    if outcome.status == "dead":  # a staged message was refused
        assert staged
        assert any(name in str(outcome.error) for name in REFUSALS)
    assert await field.others(db, also_here=False) == before


# ---- tools for models, and MCP -------------------------------------------------------------------

TOOLS = {definition.name: definition for definition in definitions()}

TOOL: dict[str, st.SearchStrategy[Any]] = {
    "session_id": ids,
    "cursor": st.just("2000-01-01T00:00:00+00:00 chat") | texts,
    "text": texts,
    "prompt": texts,
    "receipts": st.lists(
        st.fixed_dictionaries({"session_id": ids, "position": st.integers(1, 3)}), max_size=3
    ),
}


@st.composite
def tool_inputs(draw: st.DrawFn, name: str, *, wild: bool) -> dict[str, Any]:
    """An input of a tool by its own schema, with some arbitrary parts."""
    schema = TOOLS[name].input_schema
    properties = schema["properties"]
    other = json_values | anything if wild else json_values
    return draw(
        st.fixed_dictionaries(
            {one: TOOL.get(one, other) | other for one in schema.get("required", ())},
            optional={
                one: TOOL.get(one, scalars) | other
                for one in properties
                if one not in schema.get("required", ())
            },
        )
    )


@pytest.mark.parametrize("name", sorted(TOOLS))
@fuzzed(4)
@given(data=st.data())
async def test_a_tool_answers_any_input_of_a_host(
    field: Field, caplog: pytest.LogCaptureFixture, name: str, data: st.DataObject
) -> None:
    input = data.draw(tool_inputs(name, wild=True) | anything)
    metadata = data.draw(st.just({}) | st.just({"session_id": "chat"}) | anything)
    db = await field.prepared()
    before = await field.others(db)
    caplog.clear()
    tool = SessionsTool(db.broker, "chat", max_wait_secs=0.01)
    context = ToolContext(metadata=made(metadata))
    result = await tool.execute("call", name, _all_made(input), context)
    assert result.content.encode()
    assert "unforeseen" not in caplog.text, caplog.text
    assert "unexpected" not in result.content
    assert await field.others(db) == before


@pytest.mark.parametrize("name", sorted(TOOLS))
async def test_no_value_in_any_place_of_a_tools_input_is_unforeseen(
    field: Field, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    db = await field.prepared()
    before = await field.others(db)
    caplog.clear()
    tool = SessionsTool(db.broker, "chat", max_wait_secs=0.001)
    needed = {one: SIMPLE_INPUT[one] for one in TOOLS[name].input_schema.get("required", ())}
    for hostile in HOSTILE:
        inputs = [made(hostile)]
        inputs += [needed | {one: made(hostile)} for one in TOOLS[name].input_schema["properties"]]
        for input in inputs:
            result = await tool.execute("call", name, input)
            assert "unexpected" not in result.content, (hostile, caplog.text)
    assert await field.others(db) == before


SIMPLE_INPUT: dict[str, Any] = {
    "session_id": "child",
    "text": "hello",
    "prompt": "go",
    "receipts": [{"session_id": "chat", "position": 1}],
    "query": "hello",
    "schedule_id": "schedule-1",
}


def _all_made(value: Any) -> Any:
    if type(value) is dict:
        return {key: _all_made(item) for key, item in value.items()}
    return made(value)


@fuzzed(30)
@given(
    drawn=arguments(
        SessionsTool,
        {
            "broker": st.none(),
            "current_session_id": st.none() | ids,
            "visibility": st.sampled_from(["self", "tree", "namespace"]),
            "max_wait_secs": floats,
            "report_spawns": st.booleans(),
        },
    ),
    name=st.sampled_from(sorted(TOOLS)) | anything,
    context=st.none() | anything,
)
async def test_a_tool_is_made_or_refused(
    field: Field, drawn: dict[str, Any], name: Any, context: Any
) -> None:
    given_ = {key: made(value) for key, value in drawn.items()}
    given_["broker"] = (await field.prepared()).broker
    try:
        tool = SessionsTool(**given_)
    except InvalidArgument as error:
        assert_helpful(error)
        return
    result = await tool.execute("call", made(name), {}, made(context))
    assert "unexpected" not in result.content
    assert result.content.encode()


URIS = texts.map(lambda text: f"sessionsdb://sessions/{text}") | st.sampled_from(
    (
        *("sessionsdb://sessions/chat", "sessionsdb://sessions/%ff", "x:y", "", "a b"),
        *("sessionsdb://sessions/chat?before=x", "sessionsdb://sessions/chat?before=-1"),
        *("sessionsdb://sessions/..%2f..%2fetc", "sessionsdb://sessions/%00", "file:///x"),
        "sessionsdb://sessions/chat?before=" + "9" * 5_000,
    )
)


@pytest.mark.parametrize("name", sorted(TOOLS))
@fuzzed(4)
@given(data=st.data())
async def test_a_tool_answers_any_input_of_a_client(
    field: Field, caplog: pytest.LogCaptureFixture, name: str, data: st.DataObject
) -> None:
    """Calls over the client of the SDK in memory, whose messages are JSON."""
    input = data.draw(tool_inputs(name, wild=False).filter(_is_on_the_wire))
    uri = data.draw(URIS.filter(_is_on_the_wire))
    cursor = data.draw(st.none() | texts.filter(_is_on_the_wire))
    db = await field.prepared()
    before = await field.others(db)
    caplog.clear()
    server = SessionsServer(db, lambda _context: Caller(session="chat"), max_wait_secs=0.01)
    async with Client(server.build()) as client:
        result = await client.call_tool(name, input)
        for content in result.content:
            assert "unexpected" not in content.text
        with contextlib.suppress(MCPError):  # an answer, too
            await client.read_resource(uri)
        with contextlib.suppress(MCPError):
            await client.list_resources(cursor=cursor)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], caplog.text
    assert await field.others(db) == before


def _is_on_the_wire(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return True


# ---- reports, and the functions of operators -----------------------------------------------------


@fuzzed(30)
@given(
    drawn=arguments(
        reports.read,
        {
            "db": st.none(),
            "name": st.sampled_from([view.report for view in reports.VIEWS]),
            "since": st.none() | moments,
            "channel": st.none() | storable_texts,
            "limit": st.none() | whole_numbers,
        },
    )
)
async def test_a_report_is_read_or_refused(field: Field, drawn: dict[str, Any]) -> None:
    given_ = {name: made(value) for name, value in drawn.items()}
    db = await field.prepared()
    if given_["db"] is None:
        given_["db"] = db
    try:
        read = await reports.read(**given_)
        given_["namespace"] = given_.pop("db").namespace
        for dialect in ("sqlite", "postgresql"):
            assert reports.as_sql(reports.query(**given_), dialect)
    except InvalidArgument as error:
        assert_helpful(error)
    else:
        assert all(row["namespace"] == db.namespace for row in read.dicts())


@fuzzed(30)
@given(text=texts | anything, now=st.none() | moments | anything)
def test_a_time_since_when_is_read_or_refused(text: Any, now: Any) -> None:
    try:
        assert reports.parse_since(made(text), made(now)).utcoffset() is not None
    except InvalidArgument as error:
        assert_helpful(error)


@fuzzed(8)
@given(
    turns=whole_numbers,
    everywhere=st.booleans(),
    before=st.lists(st.none() | moments, min_size=3, max_size=3),
    channel=st.none() | storable_texts,
    children=st.sampled_from(["detach", "cascade", "refuse"]),
    id=ids,
)
async def test_an_operator_looks_counts_and_checks(
    field: Field, folder: Path, turns: int, everywhere: bool, before: list[Any],
    channel: str | None, children: Any, id: str,
) -> None:  # fmt: skip
    db = await field.prepared()
    others = await field.others(db)
    rules = RetentionRules(
        *(made(one) for one in before), db.namespace, channel, dead=True, children=children
    )
    try:
        await status.read_status(db, all_namespaces=everywhere, limit=turns)
        await purge.count(db, rules)
        await session_export.export_session(db, id)
    except SessionsDBError as error:
        assert_helpful(error)
    assert (await doctor.examine(db, fix=True)).findings is not None
    assert await field.others(db) == others


PATHS = st.sampled_from(
    ("ours.db", "input.jsonl", ".", "", "new/x", "x" * 300, "caf\udce9", "a\nb")
)


@fuzzed(30)
@given(source=PATHS, target=PATHS, overwrite=st.booleans())
async def test_a_copy_is_made_or_refused(
    folder: Path, source: str, target: str, overwrite: bool
) -> None:
    async with SessionsDB("sqlite:///ours.db"):
        pass
    with contextlib.suppress(SessionsDBError, OSError):
        await backup.backup(folder / source, folder / target, overwrite=overwrite)
    async with SessionsDB("sqlite:///ours.db") as db:
        assert await db.store.list() == []
    assert not [name for name in os.listdir(folder) if ".part" in name]


# ---- nothing is left out -------------------------------------------------------------------------

ELSEWHERE = {
    "SessionStore": "test_fuzz_verbs",
    "SessionBroker": "test_fuzz_verbs",
    "SessionsDB": "opened above",
    "Worker": "made above, by SessionsDB.worker",
    "Turn": "what it can be asked for, above",
    "Reply": "returned above",
    "Backoff": "made above",
    "Edit": "test_fuzz_verbs",
}
NO_INPUT = {"Event": "a type", "Handler": "a type", "Retry": "a protocol", "SessionId": "a type"}


def test_every_public_name_is_fuzzed() -> None:
    errors = {
        name
        for name in sessionsdb.__all__
        if inspect.isclass(found := getattr(sessionsdb, name))
        and issubclass(found, SessionsDBError)
    }
    known = errors | set(VALUES) | set(ELSEWHERE) | set(NO_INPUT)
    assert known == set(sessionsdb.__all__)


def test_every_verb_of_a_worker_and_a_handle_is_fuzzed() -> None:
    assert _verbs(Worker) == {"run", "run_until_idle", "stop"}
    verbs = {"in_namespace", "on_standby", "worker", "index_search", "open", "close"}
    assert _verbs(SessionsDB) == verbs
    assert set(reports.__all__) == {
        *("VIEWS", "Column", "Report", "View"),  # no input
        *("as_sql", "parse_since", "query", "read"),
    }


def _verbs(owner: type) -> set[str]:
    return {
        name
        for name, _ in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_")
    }
