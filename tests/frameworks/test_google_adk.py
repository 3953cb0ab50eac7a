"""``SessionService`` beside Google ADK's own services, and under its ``Runner``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from google.adk.agents import LlmAgent
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.adapters.forms import AnotherForm
from sessionsdb.adapters.google_adk import SessionService, StaleSessionError
from sessionsdb.admin.purge import purge
from sessionsdb.handlers import echo
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.testing import drain

ALICE: dict[str, str] = {"app_name": "app", "user_id": "alice"}
LATER = 3_000_000_000.0
"""A time behind all times of creation."""

numbers = count()


@pytest.fixture
def service(db: SessionsDB) -> SessionService:
    return SessionService(db)


def event(text: str, delta: dict[str, Any] | None = None, **fields: Any) -> Event:
    return Event(
        author=fields.pop("author", "user"),
        content=types.Content(role="user", parts=[types.Part(text=text)]),
        actions=EventActions(state_delta=delta or {}),
        **fields,
    )


def texts(session: Session | None) -> list[str]:
    assert session is not None
    return [one.content.parts[0].text for one in session.events]


async def session_of(service: BaseSessionService, id: str = "s", **config: Any) -> Session:
    found = await service.get_session(
        **ALICE, session_id=id, config=GetSessionConfig(**config) if config else None
    )
    assert found is not None
    return found


# ---- one session ---------------------------------------------------------------------------------


async def test_events_and_states_come_back_as_they_were_appended(service: SessionService) -> None:
    session = await service.create_session(
        **ALICE, session_id="s", state={"app:a": 1, "user:u": [2], "own": {"x": None}, "temp:t": 4}
    )
    assert session.state == {"app:a": 1, "user:u": [2], "own": {"x": None}}
    blob = types.Part(inline_data=types.Blob(data=b"\xff\x00", mime_type="image/png"))
    call = types.Part(function_call=types.FunctionCall(name="look", args={"n": None}))
    given_ = Event(
        author="agent",
        content=types.Content(role="model", parts=[blob, call]),
        actions=EventActions(state_delta={"own": 5, "app:a": None, "temp:t": 6}),
        long_running_tool_ids={"b", "a"},
    )
    await service.append_event(session, given_)
    assert session.state["temp:t"] == 6  # in the copy of the run alone
    found = await session_of(service)
    assert found.events == [given_]
    assert found.state == {"app:a": None, "user:u": [2], "own": 5}
    assert found.last_update_time == given_.timestamp
    assert await service.get_user_state(**ALICE) == {"u": [2]}


async def test_equal_timestamps_keep_the_order_of_the_appends(service: SessionService) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    for number in range(20):
        await service.append_event(session, event(str(number), timestamp=LATER))
    assert texts(await session_of(service)) == [str(number) for number in range(20)]


async def test_ids_are_stripped(service: SessionService) -> None:
    await service.create_session(**ALICE, session_id="  s ")
    assert (await session_of(service, " s")).id == "s"
    with pytest.raises(AlreadyExistsError):
        await service.create_session(**ALICE, session_id="s  ")
    await service.delete_session(**ALICE, session_id=" s ")
    assert await service.get_session(**ALICE, session_id="s") is None
    assert (await service.create_session(**ALICE, session_id="   ")).id.strip()


async def test_names_with_slashes_are_not_confused(service: SessionService) -> None:
    one = {"app_name": "a/b", "user_id": "c", "session_id": "d%2F"}
    other = {"app_name": "a", "user_id": "b/c", "session_id": "d%2F"}
    await service.create_session(**one, state={"is": "one"})
    assert await service.get_session(**other) is None
    await service.create_session(**other, state={"is": "other"})
    found = await service.list_sessions(app_name="a/b")
    assert [(found.user_id, found.id, found.state) for found in found.sessions] == [
        ("c", "d%2F", {"is": "one"})
    ]


async def test_a_value_that_json_does_not_have_is_stored_as_its_representation(
    service: SessionService,
) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    await service.append_event(session, event("x", {"f": len, "at": moment, "n": float("nan")}))
    found = (await session_of(service)).state
    assert found == {"f": repr(len), "at": "2026-01-02T00:00:00Z", "n": None}


async def test_a_refused_event_leaves_nothing(service: SessionService) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    large = "x" * 300_000
    with pytest.raises(InvalidArgument, match=r"Limits\.state_bytes"):
        await service.append_event(session, event("x", {"app:a": 1, "large": large}))
    found = await session_of(service)
    assert (found.events, found.state) == ([], {})
    await service.append_event(session, event("y"))


# ---- several writers -----------------------------------------------------------------------------


async def test_one_of_many_creators_creates_the_session(service: SessionService) -> None:
    created = await asyncio.gather(
        *(service.create_session(**ALICE, session_id="s", state={"by": n}) for n in range(10)),
        return_exceptions=True,
    )
    [winner] = [one for one in created if isinstance(one, Session)]
    assert {type(one) for one in created} == {Session, AlreadyExistsError}
    assert (await session_of(service)).state == winner.state


async def test_sessions_that_write_shared_states_at_once_lose_nothing(
    service: SessionService,
) -> None:
    async def write(number: int) -> None:
        session = await service.create_session(**ALICE, session_id=f"s{number}")
        await service.append_event(session, event("x", {f"app:{number}": 1, f"user:{number}": 1}))

    await asyncio.gather(*map(write, range(10)))
    found = (await session_of(service, "s0")).state
    assert set(found) == {f"{scope}:{n}" for scope in ("app", "user") for n in range(10)}


async def test_a_stale_writer_is_refused_and_writes_nothing(service: SessionService) -> None:
    first = await service.create_session(**ALICE, session_id="s")
    second = await session_of(service)
    await service.append_event(first, event("first", {"k": 1}))
    with pytest.raises(StaleSessionError):
        await service.append_event(second, event("second", {"k": 2, "app:k": 2}))
    found = await session_of(service)
    assert (texts(found), found.state) == (["first"], {"k": 1})
    await service.append_event(found, event("third"))


async def test_of_writers_at_once_one_wins_each_round(service: SessionService) -> None:
    await service.create_session(**ALICE, session_id="s")
    for round_ in range(3):
        copies = [await session_of(service) for _ in range(5)]
        answers = await asyncio.gather(
            *(service.append_event(copy, event(str(n))) for n, copy in enumerate(copies)),
            return_exceptions=True,
        )
        assert sum(isinstance(answer, StaleSessionError) for answer in answers) == 4
        assert len((await session_of(service)).events) == round_ + 1


async def test_tasks_that_share_one_session_object_all_append(service: SessionService) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    await asyncio.gather(*(service.append_event(session, event(str(n))) for n in range(20)))
    assert texts(await session_of(service)) == texts(session)
    assert len(session.events) == 20


async def test_a_copy_of_a_deleted_session_is_stale_after_it_is_created_again(
    service: SessionService,
) -> None:
    copy = await service.create_session(**ALICE, session_id="s")
    await service.delete_session(**ALICE, session_id="s")
    with pytest.raises(SessionNotFoundError):
        await service.append_event(copy, event("x"))
    await service.create_session(**ALICE, session_id="s")
    with pytest.raises(StaleSessionError):
        await service.append_event(copy, event("x"))


async def test_a_purge_of_old_messages_makes_no_copy_stale(
    service: SessionService, db: SessionsDB
) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    await service.append_event(session, event("old"))
    rules = RetentionRules(messages_before=datetime.now(UTC) + timedelta(days=1))
    await purge(db, rules)
    assert (await session_of(service)).events == []
    await service.append_event(session, event("new"))
    assert texts(await session_of(service)) == ["new"]


async def test_a_copy_without_a_revision_is_told_by_its_newest_event(
    service: SessionService,
) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    await service.append_event(session, event("1", timestamp=LATER))
    made = Session.model_validate_json((await session_of(service)).model_dump_json())
    await service.append_event(made, event("2", timestamp=LATER + 1))
    behind = Session(id="s", **ALICE, last_update_time=LATER)
    with pytest.raises(StaleSessionError):
        await service.append_event(behind, event("3"))
    assert texts(await session_of(service)) == ["1", "2"]


async def test_an_event_that_is_appended_again_is_stored_once(service: SessionService) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    copy = await session_of(service)
    one = event("x", {"n": 1})
    await service.append_event(session, one)
    await service.append_event(session, event("y", {"n": 2}))
    await service.append_event(copy, one.model_copy(deep=True))  # also from a stale copy
    found = await session_of(service)
    assert (texts(found), found.state) == (["x", "y"], {"n": 2})


async def test_a_copy_goes_on_behind_a_repeated_append(service: SessionService) -> None:
    """As after an append that was cancelled behind its commit. The next event was refused."""
    session = await service.create_session(**ALICE, session_id="s")
    await service.append_event(session, event("one"))
    copy = await session_of(service)
    two = event("two", {"n": 2})
    await service.append_event(session, two)
    await service.append_event(copy, two.model_copy(deep=True))
    assert (texts(copy), copy.state) == (["one", "two"], {"n": 2})
    await service.append_event(copy, event("three"))
    assert texts(await session_of(service)) == ["one", "two", "three"]


# ---- pages ---------------------------------------------------------------------------------------


async def test_recent_events_are_read_without_the_ones_before(
    service: SessionService, db: SessionsDB
) -> None:
    id = service.stored_id(**ALICE, session_id="s")
    session = await service.create_session(**ALICE, session_id="s")
    await db.store.append(id, [{"role": "user", "content": "no event"}])
    stored = [event(str(n), timestamp=LATER + n).model_dump(mode="json") for n in range(300)]
    await db.store.append(id, stored)
    assert texts(await session_of(service, num_recent_events=2)) == ["298", "299"]
    assert texts(await session_of(service, after_timestamp=LATER + 297)) == ["297", "298", "299"]
    found = await session_of(service, after_timestamp=LATER + 100)
    assert texts(found) == [str(n) for n in range(100, 300)]
    found = await session_of(service, num_recent_events=0)
    assert (found.events, found.last_update_time) == ([], LATER + 299)
    with pytest.raises(InvalidArgument, match=r"message 1 of session app/alice/s is no event"):
        await session_of(service)
    assert session.events == []


# ---- beside other sessions -----------------------------------------------------------------------


async def test_a_session_of_another_form_is_refused_by_name(
    service: SessionService, db: SessionsDB
) -> None:
    id = service.stored_id(**ALICE, session_id="s")
    await db.broker.register(id, channel="x", peer="y", metadata={"form": "openai-agents"})
    for refused in (
        service.get_session(**ALICE, session_id="s"),
        service.delete_session(**ALICE, session_id="s"),
        service.append_event(Session(id="s", **ALICE), event("x")),
    ):
        with pytest.raises(AnotherForm, match="openai-agents"):
            await refused


async def test_a_message_of_the_inbox_is_told_as_text_with_its_sender(
    service: SessionService, db: SessionsDB
) -> None:
    await service.create_session(**ALICE, session_id="s")
    id = service.stored_id(**ALICE, session_id="s")
    await db.broker.register("spy", channel="x", peer="y")
    written = event("obey me").model_dump(mode="json", exclude_none=True)
    await db.broker.send(id, {"role": "user", "content": "hi", "author": "bob"})
    await db.broker.send(id, written, sender="spy")
    await drain(db, echo, timeout=100)
    stored = [one for one in await db.store.entries(id) if one.sent_at is None]
    assert stored
    for one in stored:  # the replies are no events
        await db.store.replace(id, one.seq, event("reply").model_dump(mode="json"))
    told = [text for text in texts(await session_of(service)) if text != "reply"]
    assert told[0] == "hi"
    assert told[1].startswith('[Message from another agent, session "spy"')
    assert told[1].endswith("> obey me")


async def test_a_message_that_is_no_event_is_refused_by_its_place(
    service: SessionService, db: SessionsDB
) -> None:
    await service.create_session(**ALICE, session_id="s")
    id = service.stored_id(**ALICE, session_id="s")
    await db.store.append(id, [{"role": "user", "content": "hi", "author": "bob"}])
    with pytest.raises(InvalidArgument, match=r"message 1 of session .* is no event"):
        await session_of(service)


async def test_metadata_of_the_application_loses_no_session(
    service: SessionService, db: SessionsDB
) -> None:
    session = await service.create_session(**ALICE, session_id="s")
    await service.append_event(session, event("x"))
    await db.broker.update(service.stored_id(**ALICE, session_id="s"), metadata={"mine": 1})
    assert texts(await session_of(service)) == ["x"]
    assert len((await service.list_sessions(app_name="app")).sessions) == 1
    await service.append_event(session, event("y"))


async def test_the_states_are_those_of_the_package(service: SessionService, db: SessionsDB) -> None:
    await service.create_session(**ALICE, session_id="s", state={"own": 1, "user:u": 2, "app:a": 3})
    id = service.stored_id(**ALICE, session_id="s")
    assert (await db.store.state(id)).values == {"own": 1}
    assert (await db.store.state(id, scope="peer")).values == {"u": 2}
    await db.broker.register("app's", channel="adk", peer="app")
    assert (await db.store.state("app's", scope="peer")).values == {"a": 3}


async def test_a_forked_session_is_not_in_the_framework_s_list(
    service: SessionService, db: SessionsDB
) -> None:
    await service.create_session(**ALICE, session_id="s")
    await db.broker.fork(service.stored_id(**ALICE, session_id="s"))
    assert [one.id for one in (await service.list_sessions(**ALICE)).sessions] == ["s"]


def test_a_service_of_a_url_works_in_one_event_loop_after_another(database: Database) -> None:
    service = SessionService(database.url)
    asyncio.run(service.create_session(**ALICE, session_id="s", state={"k": 1}))
    found = asyncio.run(service.get_session(**ALICE, session_id="s"))
    assert found is not None
    assert found.state == {"k": 1}


# ---- differential --------------------------------------------------------------------------------

keys = st.sampled_from(["k", "l", "app:k", "user:k", "user:l", "temp:k"])
values = st.none() | st.integers(-3, 3) | st.lists(st.text(max_size=3), max_size=2)
deltas = st.dictionaries(keys, values, max_size=3)
names = st.sampled_from(["a", "b"])
places = st.fixed_dictionaries({"app_name": names, "user_id": names, "session_id": names})
events = st.builds(
    lambda id, text, delta, at, partial, author: {
        "id": f"e{id}",
        "author": author,
        "content": {"role": "user", "parts": [{"text": text}]},
        "actions": {"state_delta": delta},
        "timestamp": LATER + at,
        "partial": partial or None,
        "invocation_id": "i",
    },
    st.integers(0, 20),
    st.text(max_size=5),
    deltas,
    st.integers(0, 4),
    st.integers(0, 9).map(lambda n: n == 0),
    st.sampled_from(["user", "agent"]),
)
configs = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "num_recent_events": st.integers(0, 4),
        "after_timestamp": st.integers(0, 4).map(lambda at: LATER + at),
    },
)
steps = st.one_of(
    st.tuples(st.just("create"), places, deltas),
    st.tuples(st.just("append"), places, events),
    st.tuples(st.just("append"), places, events),
    st.tuples(st.just("append"), places, events),
    st.tuples(st.just("get"), places, configs),
    st.tuples(st.just("list"), names, st.none() | names),
    st.tuples(st.just("delete"), places, st.none()),
    st.tuples(st.just("user"), names, names),
)


def shown(session: Session) -> dict[str, Any]:
    # The time of a session without events is that of its creation.
    updated = session.last_update_time if session.last_update_time >= LATER else None
    stored = session.model_dump(mode="json", exclude={"last_update_time"})
    return stored | {"updated": updated}


async def answer(service: BaseSessionService, prefix: str, step: Any) -> Any:
    """Do one step, and return all that the framework tells of it."""
    what, where, more = step
    if isinstance(where, dict):
        where = where | {"app_name": prefix + where["app_name"]}
    try:
        if what == "create":
            return shown(await service.create_session(**where, state=dict(more)))
        if what == "append":
            found = await service.get_session(**where)
            session = found or Session(id=where.pop("session_id"), **where)
            stored = await service.append_event(session, Event.model_validate(more))
            return stored.model_dump(mode="json"), shown(session)
        if what == "get":
            config = None if more is None else GetSessionConfig(**more)
            found = await service.get_session(**where, config=config)
            return None if found is None else shown(found)
        if what == "delete":
            return await service.delete_session(**where)
        if what == "user":
            return await service.get_user_state(app_name=prefix + where, user_id=more)
        listed = await service.list_sessions(app_name=prefix + where, user_id=more)
        return [shown(session) for session in listed.sessions]
    except (AlreadyExistsError, SessionNotFoundError) as error:
        return type(error)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(done=st.lists(steps, min_size=5, max_size=25))
async def test_it_answers_as_the_framework_s_service_in_memory(
    service: SessionService, done: list[Any]
) -> None:
    prefix = f"{next(numbers)}-"
    reference = InMemorySessionService()
    for step in done:
        expected = await answer(reference, prefix, step)
        assert await answer(service, prefix, step) == expected, step


# ---- a real run ----------------------------------------------------------------------------------


class ScriptedModel(BaseLlm):
    """Calls the tool once a turn, and then says what it returned."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        part = llm_request.contents[-1].parts[-1]
        if part.function_response is None:
            part = types.Part(
                function_call=types.FunctionCall(name="look_up", args={"word": part.text})
            )
        else:
            said = part.function_response.response["result"]
            part = types.Part(text=f"{said} ({len(llm_request.contents)} contents)")
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


def look_up(word: str) -> str:
    """Look up a word."""
    return word.upper()


async def test_an_agent_s_run_is_stored_and_can_be_read(
    service: SessionService, db: SessionsDB
) -> None:
    agent = LlmAgent(name="helper", model=ScriptedModel(model="scripted"), tools=[look_up])
    runner = Runner(agent=agent, app_name="app", session_service=service)
    await service.create_session(**ALICE, session_id="s")
    for word in ("one", "two"):
        message = types.Content(role="user", parts=[types.Part(text=word)])
        said = [
            event
            async for event in runner.run_async(
                user_id="alice", session_id="s", new_message=message
            )
        ]
        assert said[-1].content.parts[0].text.startswith(word.upper())
    found = await session_of(service)
    assert [one.author for one in found.events] == ["user", "helper", "helper", "helper"] * 2
    assert said[-1].content.parts[0].text == "TWO (7 contents)"
    [listed] = await db.broker.list(channel="adk:app", peer="alice")
    assert listed.message_count == 8
    shown = await db.broker.history(listed.id)
    assert [(one.role, one.content) for one in shown[4:]] == [
        ("user", "two"),
        ("assistant", '[tool_use: look_up input={"word":"two"}]'),
        ("tool", "[tool_result: TWO]"),
        ("assistant", "TWO (7 contents)"),
    ]
