"""Bad input: a call does its work or raises an error of the package.

The test finds methods and parameters in the package. A new one is fuzzed too, or the test names the
information that it needs.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.databases import Database
from sessionsdb import (
    Edit,
    ListOptions,
    Receipt,
    SessionBroker,
    SessionId,
    SessionsDB,
    SessionsDBError,
    SessionStore,
    SessionSummary,
    SpawnRequest,
    StorageError,
)
from sessionsdb.types import CatchUp, StateScope, WhenBusy
from tests.reliability.field import IDS, Field, opened
from tests.reliability.fuzzing import fuzzed
from tests.reliability.hostile_values import (
    LONG,
    NO_NUMBERS,
    SPECIAL,
    SQL,
    UNSTORABLE,
    Made,
    anything,
    json_values,
    made,
    moments,
    storable_texts,
    texts,
    whole_numbers,
)
from tests.support import messages

TOO_LONG = 20.0
"""Seconds after which a call has failed."""


# ---- arguments of calls --------------------------------------------------------------------------

ids = st.sampled_from(IDS) | storable_texts
names = storable_texts.filter(bool)


class Constructed(NamedTuple):
    """A value that was made without validation by pydantic."""

    model: type[Any]
    fields: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.model.__name__}.model_construct(**{self.fields!r})"


def constructed(kind: type[Any], /, **likely: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of ``kind`` with likely fields, of which one is arbitrary or missing."""
    assert set(likely) == set(kind.model_fields), f"{kind.__name__} has other fields"
    whole = st.fixed_dictionaries(likely)
    wrong = st.tuples(whole, st.sampled_from(sorted(likely)), anything).map(
        lambda drawn: drawn[0] | {drawn[1]: drawn[2]}
    )
    holed = st.tuples(whole, st.sampled_from(sorted(likely))).map(
        lambda drawn: {name: value for name, value in drawn[0].items() if name != drawn[1]}
    )
    return st.one_of(whole, wrong, holed).map(lambda fields: Constructed(kind, fields))


receipts = constructed(
    Receipt, session_id=ids, position=st.integers(1, 3) | whole_numbers, duplicate=st.booleans()
)
summaries = constructed(
    SessionSummary,
    id=ids,
    channel=texts,
    peer=texts,
    created_at=moments,
    last_active=moments,
    message_count=whole_numbers,
    parent=st.none() | ids,
)
tool_names = st.lists(names, max_size=3)
transcripts = st.lists(messages.messages, max_size=3) | st.lists(
    st.sampled_from(sorted(messages.HOSTILE)).map(messages.HOSTILE.__getitem__), max_size=2
)

PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "id": ids,
    "parent": st.just("chat") | st.none() | ids,
    "root": ids,
    "messages": transcripts,
    "expected_version": st.none() | st.integers(0, 3),
    "options": constructed(
        ListOptions, offset=whole_numbers, limit=st.none() | st.integers(0, 9) | whole_numbers
    ),
    "children": st.sampled_from(["detach", "cascade", "refuse"]),
    "query": texts | st.sampled_from(['"a b" -c d*', "hello"]),
    "channel": names,
    "peer": storable_texts,
    "model": st.none() | storable_texts,
    "system": st.none() | storable_texts,
    "tools": st.none() | tool_names,
    "at": st.none() | whole_numbers,
    "new_id": st.none() | st.just("new") | ids,
    "details": st.booleans(),
    "scope": st.sampled_from(get_args(StateScope)),
    "changes": st.dictionaries(texts, json_values, max_size=3),
    "metadata": st.none() | st.dictionaries(texts, json_values, max_size=3),
    "exist_ok": st.booleans(),
    "active_since": st.none() | moments,
    "include_ended": st.booleans(),
    "newest_first": st.booleans(),
    "limit": st.none() | whole_numbers,
    "after": st.none() | summaries | ids,
    "before": st.none() | whole_numbers,
    "max_bytes": st.none() | whole_numbers,
    "since": st.none() | moments,
    "error": st.none() | storable_texts,
    "question_id": ids | st.just("chat:1") | st.just("asking:1") | texts,
    "message": names | messages.messages,
    "sender": st.none() | ids,
    "author": st.none() | names,
    "when_busy": st.sampled_from(get_args(WhenBusy)),
    "keep_partial": st.booleans(),
    "keys": st.none() | st.lists(st.none() | names, max_size=3),
    "key": names,
    "create": st.booleans(),
    "count": st.integers(0, 3) | whole_numbers,
    "seq": st.integers(0, 3) | whole_numbers,
    "keep_through": st.integers(0, 3) | whole_numbers,
    "edit": constructed(
        Edit,
        append=transcripts,
        keys=st.none() | st.lists(st.none() | names, max_size=3),
        keep_through=st.none() | st.integers(0, 3),
        expected_version=st.none() | st.integers(0, 3),
        expected_tail=st.none() | st.lists(st.integers(0, 3), max_size=3),
        state=st.none()
        | st.dictionaries(
            st.sampled_from(get_args(StateScope)),
            st.dictionaries(texts, json_values, max_size=3),
        ),
        metadata=st.none() | st.dictionaries(texts, json_values, max_size=3),
        create=st.booleans(),
    ),
    "cron": st.none() | st.sampled_from(["* * * * *", "0 9 * * MON-FRI", "30 2 29 2 *"]) | texts,
    "tz": st.sampled_from(["UTC", "Europe/Berlin"]) | texts,
    "name": st.none() | st.just("n") | names,
    "catch_up": st.sampled_from(get_args(CatchUp)),
    "schedule_id": names,
    "idempotency_key": st.none() | st.just("k") | names,
    "connection": st.none(),
    "request": constructed(
        SpawnRequest,
        prompt=names | messages.messages,
        author=st.none() | names,
        metadata=st.none() | st.dictionaries(texts, json_values, max_size=3),
        model=st.none() | storable_texts,
        system=st.none() | storable_texts,
        tools=st.none() | tool_names,
        wait_for_first_reply=st.booleans(),
        wait_timeout_secs=st.floats(0, 0.01),
        report=st.sampled_from(("none", "each")),
    ),
    "receipt": receipts,
    "timeout": st.floats(0, 0.01),
    "waiter": st.none() | ids,
    "subtree": st.booleans(),
    "reason": st.none() | storable_texts,
}
"""The likely values of a parameter, by name."""

OF_A_VERB: dict[str, st.SearchStrategy[Any]] = {
    "broker.history.after": st.none() | whole_numbers,
    "broker.inbox.after": st.none() | whole_numbers | receipts,
    "store.entries.after": st.none() | whole_numbers,
    "store.find.id": st.none() | ids,
    "store.replace.message": messages.messages,
    "broker.schedule.at": st.none() | moments,
    "broker.schedules.id": st.none() | ids,
    "broker.register.id": st.just("new") | ids,
    "broker.questions.id": st.none() | ids,
    "broker.questions.after": st.none() | st.just("chat:1") | texts,
    "broker.dead_letters.id": st.none() | ids,
    "broker.requeue_all.id": st.none() | ids,
}
"""The parameters whose name has another meaning."""

WAITING = ("broker.wait", "broker.spawn")
"""The calls that may wait for their timeout, which is a valid answer."""

PATIENCE = 0.02
"""Seconds for these calls."""


class Verb(NamedTuple):
    name: str
    signature: inspect.Signature

    def is_for_all(self, arguments: dict[str, Any]) -> bool:
        """Whether the call may change every session of the namespace."""
        return self.name == "broker.requeue_all" and arguments.get("id") is None

    @property
    def face(self) -> str:
        return self.name.partition(".")[0]

    def likely(self, parameter: str) -> st.SearchStrategy[Any]:
        found = OF_A_VERB.get(f"{self.name}.{parameter}", PARAMETERS.get(parameter))
        assert found is not None, f"{self.name} takes {parameter}: say above what is likely for it"
        return found

    def calls(self) -> st.SearchStrategy[dict[str, Any]]:
        """Likely arguments, and some arbitrary ones."""
        parameters = [p for p in self.signature.parameters.values() if p.name != "self"]
        needed = {p.name: self.likely(p.name) for p in parameters if p.default is p.empty}
        optional = {p.name: self.likely(p.name) for p in parameters if p.default is not p.empty}
        whole = st.fixed_dictionaries(needed, optional=optional)
        every = [p.name for p in parameters]
        if not every:
            return whole
        wrong = st.dictionaries(st.sampled_from(every), anything, min_size=1, max_size=2)
        return whole | st.tuples(whole, wrong).map(lambda drawn: drawn[0] | drawn[1])


def verbs() -> list[Verb]:
    faces = {"store": SessionStore, "broker": SessionBroker}
    return [
        Verb(f"{face}.{name}", inspect.signature(method))
        for face, protocol in faces.items()
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    ]


def built(value: Any) -> Any:
    """A drawn argument in the form of the call."""
    if isinstance(value, Constructed):
        fields = {name: built(field) for name, field in value.fields.items()}
        return value.model.model_construct(**fields)
    return made(value)


# ---- how a call may end --------------------------------------------------------------------------


class Answer(NamedTuple):
    """The result of a call, or the error of the package."""

    value: Any = None
    error: SessionsDBError | None = None


async def answered(
    work: Callable[[], Coroutine[Any, Any, Any] | AsyncGenerator[Any, None]],
    *,
    waits: bool = False,
) -> Answer | None:
    """Make a call, or begin an iterator. ``None`` if it waits, and may.

    Every other error is raised, also an error of the database: bad input must be refused before it
    reaches the database.
    """
    try:
        async with asyncio.timeout(PATIENCE if waits else TOO_LONG):
            called = work()
            if isinstance(called, AsyncGenerator):
                async with aclosing(called) as events:
                    return Answer(await anext(events))
            return Answer(await called)
    except TimeoutError:
        if not waits:
            raise
        return None
    except StorageError:
        raise
    except SessionsDBError as error:
        assert_helpful(error)
        return Answer(error=error)


def assert_helpful(error: BaseException) -> None:
    """Assert that the text of an error is readable and not too long."""
    said = str(error)
    assert 10 < len(said) < 6_000, said[:200]
    assert " object at 0x" not in said, said


# ---- the store and the broker --------------------------------------------------------------------


@pytest.fixture
async def field(database: Database) -> AsyncIterator[Field]:
    async with opened(database) as field:
        yield field


@pytest.mark.parametrize("verb", verbs(), ids=lambda verb: verb.name)
@fuzzed(8)
@given(data=st.data())
async def test_a_verb_does_its_work_or_refuses(
    field: Field, verb: Verb, data: st.DataObject
) -> None:
    drawn = data.draw(verb.calls(), label=verb.name)
    db = await field.prepared()
    before = await field.others(db)
    method = getattr(getattr(db, verb.face), verb.name.partition(".")[2])
    given_ = {name: built(value) for name, value in drawn.items()}
    answer = await answered(lambda: method(**given_), waits=verb.name in WAITING)
    assert verb.is_for_all(given_) or await field.others(db) == before
    if answer is not None and answer.error is None and verb.name in READ_BACK:
        # Made again, because a generator is used up by now.
        again = {name: built(value) for name, value in drawn.items()}
        await READ_BACK[verb.name](db, again, answer)
    assert len(await db.store.list()) == len(await db.broker.list(include_ended=True))


# ---- each hostile value in each place ------------------------------------------------------------

SIMPLE: dict[str, Any] = {
    "changes": {"a": 1},
    "id": "chat",
    "parent": "chat",
    "messages": [{"role": "user", "content": "hello"}],
    "options": ListOptions(),
    "channel": "cli",
    "peer": "ada",
    "message": {"role": "user", "content": "hello"},
    "key": "k",
    "seq": 1,
    "keep_through": 1,
    "edit": Edit(),
    "request": SpawnRequest(prompt="go"),
    "receipt": Receipt(session_id=SessionId("chat"), position=1),
    "after": Receipt(session_id=SessionId("chat"), position=1),
    "schedule_id": "none",
    "query": "hello",
    "question_id": "chat:1",
}
"""The other arguments of a call."""

HOSTILE = [
    *(one for one in SPECIAL if "000" not in one.name),  # slow to make
    *(Made(f"{text[:20]!r}", lambda text=text: text) for text in (*UNSTORABLE, *LONG, *SQL)),
    *(Made(f"{n:.3g}", lambda n=n: n) for n in (-1, 0, 2**31, 2**63, 2**64, -(2**64))),
    *(Made(f"{x}", lambda x=x: x) for x in (*NO_NUMBERS, -1.0, 1e300, True, False)),
]

INSIDE: dict[str, Callable[[Any], Any]] = {
    "messages": lambda value: [{"role": value, "content": [{"type": "text", "text": value}]}],
    "message": lambda value: {"role": "user", "content": [{"type": "text", "text": value}]},
    "append": lambda value: [{"role": value, "content": [{"type": "text", "text": value}]}],
    "keys": lambda value: [value],
    "expected_tail": lambda value: [value],
    "state": lambda value: {"session": {"k": value}},
    "tools": lambda value: ["search", value],
    "metadata": lambda value: {"k": [value]},
}
"""The container of a hostile value, where a parameter is a container."""

MODELS = (Edit, ListOptions, SpawnRequest, Receipt, SessionSummary)


def places(verb: Verb) -> list[tuple[str, type[Any] | None, str]]:
    """The places of a value in a call: a parameter, or a field of one."""
    found: list[tuple[str, type[Any] | None, str]] = []
    for name, parameter in verb.signature.parameters.items():
        if name == "self":
            continue
        found.append((name, None, name))
        for model in MODELS:
            if re.search(rf"\b{model.__name__}\b", str(parameter.annotation)):
                found += [(name, model, field) for field in model.model_fields]
    return found


@pytest.mark.parametrize("verb", verbs(), ids=lambda verb: verb.name)
async def test_no_value_in_any_place_comes_out_as_anything_but_an_answer(
    field: Field, verb: Verb
) -> None:
    for parameter, model, name in places(verb):
        db = await field.prepared()
        before = await field.others(db)
        method = getattr(getattr(db, verb.face), verb.name.partition(".")[2])
        whole = await _summary_of(db) if model is SessionSummary else SIMPLE.get(parameter)
        needed = {
            p.name: SIMPLE[p.name]
            for p in verb.signature.parameters.values()
            if p.name != "self"
            and (p.default is p.empty or (verb.is_for_all({}) and p.name == "id"))
        }
        for hostile, inside in itertools.product(HOSTILE, (False, True)):
            if inside and name not in INSIDE:
                continue
            given_ = dict(needed)
            value = INSIDE[name](made(hostile)) if inside else made(hostile)
            if model is not None:
                value = model.model_construct(**vars(whole) | {name: value})
            given_[parameter] = value
            if verb.is_for_all(given_):
                continue
            where = f"{verb.name}({parameter}: {name} = {hostile}, inside: {inside})"
            try:
                await answered(partial(method, **given_), waits=verb.name in WAITING)
            except Exception as error:
                raise AssertionError(f"{where} raised {type(error).__name__}") from error
        assert await field.others(db) == before, (verb.name, parameter)


async def _summary_of(db: SessionsDB) -> SessionSummary:
    return (await db.broker.get("chat")).summary


# ---- accepted values read back unchanged ---------------------------------------------------------


def plain(value: Any) -> Any:
    """The value after JSON."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in dict.items(value)}
    return [plain(item) for item in value]


async def _settings_read_back(db: SessionsDB, given: dict[str, Any], answer: Answer) -> None:
    found = await db.broker.get(plain(given["id"]))
    for name in ("channel", "peer", "model", "system", "tools", "metadata", "parent"):
        if name not in given or given[name] is ...:
            continue
        wanted = plain(given[name])
        if name == "metadata":
            wanted = wanted or {}
        assert json.dumps(getattr(found, name)) == json.dumps(wanted), name


async def _registration_reads_back(db: SessionsDB, given: dict[str, Any], answer: Answer) -> None:
    if plain(given["id"]) not in IDS:  # else it was there, and stays as it is
        await _settings_read_back(db, given, answer)


async def _transcript_reads_back(db: SessionsDB, given: dict[str, Any], answer: Answer) -> None:
    if plain(given.get("keys")):
        return  # messages whose keys are known are left out
    found = await db.store.load(plain(given["id"]))
    wanted = plain(given["messages"])
    assert found is not None
    assert json.dumps(found[len(found) - len(wanted) :]) == json.dumps(wanted)
    assert await db.store.version(plain(given["id"])) == answer.value


async def _text_reads_back(db: SessionsDB, given: dict[str, Any], answer: Answer) -> None:
    arrived: dict[int, Any] = {}

    async def handler(turn: Any) -> None:
        if turn.session.id == answer.value.session_id:
            arrived[turn.receipts[0].position] = turn.inputs[0]

    if not answer.value.duplicate:
        copy = db.worker(handler)
        await copy.run_until_idle()
        sent = plain(given["message"])
        if isinstance(sent, str):
            sent = {"role": "user", "content": sent}
        assert json.dumps(arrived[answer.value.position]) == json.dumps(sent)


async def _reason_reads_back(db: SessionsDB, given: dict[str, Any], answer: Answer) -> None:
    found = await db.broker.get(plain(given["id"]))
    assert found.ended_at is not None
    if answer.value:
        assert found.end_reason == plain(given.get("reason"))


async def _child_reads_back(db: SessionsDB, given: dict[str, Any], answer: Answer) -> None:
    child = await db.broker.get(answer.value.id)
    parent = await db.broker.get(plain(given["parent"]))
    for name in ("model", "system", "tools"):
        asked = plain(getattr(given["request"], name, None))
        assert getattr(child, name) == (getattr(parent, name) if asked is None else asked)


READ_BACK: dict[str, Callable[[SessionsDB, dict[str, Any], Answer], Coroutine[Any, Any, None]]] = {
    "store.save": _transcript_reads_back,
    "store.append": _transcript_reads_back,
    "broker.register": _registration_reads_back,
    "broker.update": _settings_read_back,
    "broker.send": _text_reads_back,
    "broker.spawn": _child_reads_back,
    "broker.end": _reason_reads_back,
}
