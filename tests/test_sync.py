"""The blocking handle, as threads, web applications, prefork servers and notebooks use it."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB as AsyncSessionsDB
from sessionsdb import SpawnRequest, Turn, UnknownSession
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.protocols import SessionBroker, SessionStore
from sessionsdb.sync import BlockingSessionBroker, BlockingSessionStore, SessionsDB

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def db(database: Database) -> Iterator[SessionsDB]:
    with SessionsDB(database.url) as db:
        yield db


def public(cls: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(value)
    }


@pytest.mark.parametrize(
    ("blocking", "protocol"),
    [(BlockingSessionStore, SessionStore), (BlockingSessionBroker, SessionBroker)],
)
def test_every_verb_has_a_blocking_form_with_its_parameters(blocking: type, protocol: type) -> None:
    ours, theirs = public(blocking), public(protocol)
    assert ours.keys() == theirs.keys()
    for name, verb in ours.items():
        parameters = inspect.signature(verb).parameters
        assert parameters == inspect.signature(theirs[name]).parameters, name
        assert verb.__doc__, name
        assert not inspect.iscoroutinefunction(verb), name


def test_a_handle_takes_the_same_arguments() -> None:
    ours = inspect.signature(SessionsDB).parameters
    theirs = inspect.signature(AsyncSessionsDB).parameters
    assert list(ours) == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in ours)


def test_the_verbs_answer_as_the_asynchronous_ones(db: SessionsDB) -> None:
    db.broker.register("chat", channel="web", peer="ann")
    assert db.store.append("chat", HELLO) == 2
    assert db.store.load("chat") == HELLO
    receipt = db.broker.send("chat", "and you?")
    assert db.broker.outcome(receipt).status == "pending"
    assert [summary.id for summary in db.broker.list(channel="web")] == ["chat"]
    child = db.broker.spawn("chat", SpawnRequest(prompt="look it up"))
    assert db.broker.get(child.id).parent == "chat"
    with pytest.raises(UnknownSession):
        db.broker.get("nobody")


def test_namespaces_share_the_thread_and_nothing_else(db: SessionsDB) -> None:
    other = db.in_namespace("acme")
    other.store.save("chat", HELLO)
    assert other.namespace == "acme"
    assert db.store.load("chat") is None
    assert other.store.load("chat") == HELLO


def test_many_threads_use_one_handle(db: SessionsDB) -> None:
    with ThreadPoolExecutor(16) as threads:
        versions = list(threads.map(lambda _: db.store.append("chat", HELLO), range(64)))
    assert sorted(versions) == list(range(1, 65))
    assert len(db.store.load("chat") or []) == 64


def test_a_handle_opens_at_its_first_use_in_many_threads_at_once(database: Database) -> None:
    db = SessionsDB(database.url)
    barrier = threading.Barrier(8)

    def use(_: int) -> int:
        barrier.wait()
        return db.store.append("chat", HELLO)

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(use, range(8))) == list(range(1, 9))
    db.close()


def test_a_closed_handle_says_so_and_opens_again(database: Database) -> None:
    db = SessionsDB(database.url)
    db.store.save("chat", HELLO)
    db.close()
    db.close()
    with pytest.raises(SessionsDBError, match=r"open it again with `db\.open\(\)`"):
        db.store.load("chat")
    with db:
        assert db.store.load("chat") == HELLO
    names = [thread.name for thread in threading.enumerate()]
    assert "sessionsdb" not in names


def test_threads_may_close_and_open_a_handle_at_once(tmp_path: Path) -> None:
    for _ in range(30):
        db = SessionsDB(f"sqlite:///{tmp_path}/agents.db")
        db.open()
        barrier = threading.Barrier(4, timeout=30)

        def change(what: Callable[[], object], barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            what()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(change, [db.close, db.close, db.open, db.close]))
        with db:
            assert db.broker.list() == []


NO_DESCRIPTORS = """
import os, resource, sys
from sessionsdb import StorageError
from sessionsdb.sync import SessionsDB

db = SessionsDB(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    db.broker.list()
except StorageError as error:
    print("refused" if "no event loop" in str(error) else error)
for one in taken:
    os.close(one)
print(db.broker.list())
db.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_handle_whose_loop_can_not_start_says_so_and_works_later(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, f"sqlite:///{tmp_path}/agents.db"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert answer.stdout.split() == ["refused", "[]"], answer.stderr


def test_a_wait_that_is_under_way_when_the_handle_closes_says_so(database: Database) -> None:
    db = SessionsDB(database.url)
    db.broker.register("chat", channel="web", peer="ann")
    receipt = db.broker.send("chat", "hello")
    events = db.broker.follow("chat")
    next(events)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(db.broker.wait, receipt)
        # The wait is submitted to the loop before the close, or meets a closed handle.
        while not waiting.running():
            pass
        db.close()
        with pytest.raises(SessionsDBError):
            waiting.result(30)


def test_a_session_is_followed_from_a_thread(db: SessionsDB) -> None:
    db.store.append("chat", HELLO)
    events = db.broker.follow("chat", after="start")
    first = next(events)
    assert first.type == "message"
    assert first.message.content == "hello"
    db.store.append("chat", [{"role": "assistant", "content": "hi"}])
    told = next(event for event in events if event.type == "message")
    assert told.message.content == "hi"
    events.close()


def test_a_worker_answers_what_a_blocking_handle_sent(database: Database, db: SessionsDB) -> None:
    db.broker.register("chat", channel="web", peer="ann")
    receipt = db.broker.send("chat", "hello")

    async def answer(turn: Turn) -> str:
        return f"you said {turn.prompt}"

    async def work() -> None:
        async with AsyncSessionsDB(database.url) as handle:
            await handle.worker(answer).run_until_idle()

    asyncio.run(work())
    reply = db.broker.wait(receipt, timeout=30).reply
    assert reply is not None
    assert reply.content == "you said hello"


async def test_a_notebook_whose_loop_runs_can_use_it(db: SessionsDB) -> None:
    db.store.save("chat", HELLO)
    assert db.store.load("chat") == HELLO


def test_asyncio_run_twice_with_one_handle(db: SessionsDB) -> None:
    async def use() -> int:
        return db.store.append("chat", HELLO)

    assert [asyncio.run(use()), asyncio.run(use())] == [1, 2]


def test_a_call_inside_of_its_own_loop_is_refused(db: SessionsDB) -> None:
    """A wait of the loop's thread for the loop would never end."""

    class Tools(list[str]):
        def __iter__(self) -> Iterator[str]:
            db.store.load("chat")
            return super().__iter__()

    with pytest.raises(SessionsDBError, match="can't be read: its SessionsDBError"):
        db.broker.register("chat", channel="web", peer="ann", tools=Tools(["search"]))


def test_an_engine_of_another_loop_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="url must be a text"):
        SessionsDB(object())


# ---- web applications ----------------------------------------------------------------------------


def test_flask_views_use_a_handle_of_the_module(database: Database) -> None:
    import flask

    app = flask.Flask("shop")
    db = SessionsDB(database.url)

    @app.post("/chats/<id>")
    def append(id: str) -> dict[str, int]:
        return {"version": db.store.append(id, [flask.request.get_json()])}

    client = app.test_client()
    assert client.post("/chats/a", json=HELLO[0]).get_json() == {"version": 1}
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: app.test_client().post("/chats/a", json=HELLO[0]), range(4)))
    assert db.store.version("a") == 5
    db.close()


DJANGO = """
import json, sys
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], SECRET_KEY="x")
import django
django.setup()
from django.http import JsonResponse
from django.test import AsyncClient, Client
from django.urls import path
from sessionsdb.sync import SessionsDB

db = SessionsDB(sys.argv[1])

def append(request, id):
    return JsonResponse({"version": db.store.append(id, [json.loads(request.body)])})

urlpatterns = [path("chats/<id>", append)]
body = {"data": '{"role": "user", "content": "hi"}', "content_type": "application/json"}
print(Client().post("/chats/a", **body).json())
import asyncio
print(asyncio.run(AsyncClient().post("/chats/a", **body)).json())
db.close()
"""

PREFORK = """
import multiprocessing, sys
from sessionsdb import HandleOpenedElsewhere
from sessionsdb.sync import SessionsDB

unopened, opened = SessionsDB(sys.argv[1]), SessionsDB(sys.argv[1])
opened.store.append("chat", [{"role": "user", "content": "parent"}])

def work(number):
    unopened.store.append("chat", [{"role": "user", "content": f"child {number}"}])
    try:
        opened.store.load("chat")
    except HandleOpenedElsewhere as error:
        return "before a fork" in str(error)

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, range(6)))
    print(len(opened.store.load("chat")))
    opened.close()
"""

NEVER_CLOSED = """
import sys
from sessionsdb.sync import SessionsDB

db = SessionsDB(sys.argv[1])
print(db.store.append("chat", [{"role": "user", "content": "hi"}]))
follower = db.broker.follow("chat")
next(follower)
"""

INTERRUPTED = """
import os, signal, sys, threading
from sessionsdb.sync import SessionsDB

signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
db = SessionsDB(sys.argv[1])
db.broker.register("chat", channel="web", peer="ann")
receipt = db.broker.send("chat", "hi")
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    db.broker.wait(receipt)
except KeyboardInterrupt:
    print("interrupted", db.broker.outcome(receipt).status)
db.close()
"""


INTERRUPTED_FOLLOWER = """
import os, signal, sys, threading
from sessionsdb.sync import SessionsDB

signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
db = SessionsDB(sys.argv[1])
db.broker.register("chat", channel="web", peer="ann")
events = db.broker.follow("chat")
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    for event in events:
        pass
except KeyboardInterrupt:
    events.close()
    print("interrupted", next(events, "ended"), db.broker.get("chat").id)
db.close()
"""

# The collector runs where a call holds the lock of the handle, and in the thread of the loop.
COLLECTED = """
import asyncio, gc, sys, threading
from sessionsdb.sync import SessionsDB

db = SessionsDB(sys.argv[1])
db.store.append("chat", [{"role": "user", "content": "hi"}])

def drop_followers():
    for _ in range(3):
        events = db.broker.follow("chat", after="start")
        next(events)
        cycle = [events]
        cycle.append(cycle)

def collect(frame, event, argument):
    if frame.f_code.co_name == "_started":
        gc.collect()

gc.disable()
drop_followers()
sys.setprofile(collect)
print(db.store.version("chat"))
sys.setprofile(None)

class Tools(list):
    def __iter__(self):
        gc.collect()
        return super().__iter__()

drop_followers()
db.broker.register("other", channel="web", peer="ann", tools=Tools(["search"]))
print([summary.id for summary in db.broker.list()])
db.close()
"""


# A profiler that closes the handle stands for a handler of signals. It can come before and after
# each call of a function.
CLOSED_BY_A_HANDLER = """
import gc, sys, threading
from sessionsdb import SessionsDBError
from sessionsdb.sync import SessionsDB

def is_interrupted(db, use, number, raises):
    steps = 0
    def step(frame, event, argument):
        nonlocal steps
        if event == "c_call":
            return  # the step before it is the same moment
        if raises and not frame.f_code.co_filename.endswith("loop_thread.py"):
            return  # an error inside of Python's own locks leaves them locked
        steps += 1
        if steps == number:
            sys.setprofile(None)
            db.close()
            if raises:
                raise SystemExit
    sys.setprofile(step)
    try:
        use()
    except SessionsDBError as error:
        assert "this handle was closed" in str(error), error
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    return steps >= number

def use_interrupted(use, is_open, number, raises):
    db = SessionsDB(sys.argv[1])
    if is_open:
        db.open()
    was_interrupted = is_interrupted(db, lambda: use(db), number, raises)
    with db:
        assert db.store.version("chat") == 1
    for thread in threading.enumerate():
        if thread.name == "sessionsdb":
            thread.join(30)
            assert not thread.is_alive()
    return was_interrupted

def read(db):
    return db.store.version("chat")

with SessionsDB(sys.argv[1]) as db:
    db.store.append("chat", [{"role": "user", "content": "hi"}])
gc.disable()
for use, is_open in ((read, False), (read, True), (SessionsDB.close, True)):
    for raises in (False, True):
        number = 1
        while use_interrupted(use, is_open, number, raises):
            number += 1
        print(number > 5)
"""


def test_a_handler_of_signals_may_close_the_handle_at_any_step_of_a_call(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_BY_A_HANDLER, f"sqlite:///{tmp_path}/agents.db"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["True"] * 6, done.stderr


def run(program: str, database: Database) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, database.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


CASES: dict[str, tuple[str, list[str]]] = {
    "django": (DJANGO, ["{'version': 1}", "{'version': 2}"]),
    "prefork": (PREFORK, [str([True] * 6), "7"]),
    "never closed": (NEVER_CLOSED, ["1"]),
    "ctrl-c": (INTERRUPTED, ["interrupted pending"]),
    "ctrl-c while it follows": (INTERRUPTED_FOLLOWER, ["interrupted ended chat"]),
    "collected followers": (COLLECTED, ["1", "['chat', 'other']"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_of_its_own(case: str, database: Database) -> None:
    program, printed = CASES[case]
    assert run(program, database) == printed
