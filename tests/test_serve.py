"""sessionsdb serve: the verbs over HTTP, and who may call them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from sqlalchemy import event, text

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    Question,
    Reply,
    SessionsDB,
    SpawnRequest,
    StorageError,
    Turn,
    UnknownSession,
)
from sessionsdb.admin import tokens
from sessionsdb.engine.storage_errors import DataDamaged, StatementRefused
from sessionsdb.events import IdleEvent
from sessionsdb.http import health
from sessionsdb.operations import follow_cursor
from sessionsdb.operations.follow_cursor import Place, prefix_of
from sessionsdb.types import SessionId
from sessionsdb.web import application, body_size, bounds
from sessionsdb.web.api import events, problems, tree_cursor
from sessionsdb.web.api.bodies import MAX_MESSAGES
from sessionsdb.web.api.tree_cursor import TreePlace
from tests.support.loop_share import loop_share
from tests.support.served import API, Sent, client_of, events_of, serving
from tests.support.waiting import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ODD_ID = "a/b%c d?é"
ODD_PATH = "/sessions/a%2Fb%25c%20d%3F%C3%A9"
FAITHFUL = {"role": "user", "content": "x \ud800 \0", "n": 2**200, "": [None, {"\udfff": ""}]}


@pytest.fixture
async def client(db: SessionsDB) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(db) as client:
        yield client


def body_of(response: httpx2.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def problem_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    problem = body_of(response, status)
    assert problem["status"] == status
    assert {"type", "title", "detail"} <= set(problem)
    return dict(problem)


@pytest.mark.parametrize("error", [StorageError, StatementRefused, DataDamaged])
def test_a_problem_has_the_name_of_a_public_error(error: type[StorageError]) -> None:
    body = json.loads(problems.problem_of(error("secret")).body)
    assert body["type"] == "urn:sessionsdb:storage-error"
    assert "secret" not in str(body)


async def answering(turn: Turn) -> Reply:
    if turn.answer is None and "ask" in turn.prompt:
        return Reply("which?", ask=Question(prompt="Which one?"))
    if "die" in turn.prompt:
        raise RuntimeError("died")
    return Reply(f"re: {turn.prompt}")


# ---- the verbs -----------------------------------------------------------------------------------


async def test_a_message_is_scheduled_and_unscheduled(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    body = {"message": "hello", "cron": "0 9 * * *", "tz": "Europe/Berlin", "name": "daily"}
    made = body_of(await client.post("/sessions/chat/schedules", json=body), 201)
    again = body_of(await client.post("/sessions/chat/schedules", json=body), 201)
    assert again["id"] == made["id"]
    listed = body_of(await client.get("/schedules", params={"session": "chat"}))["schedules"]
    assert [one["id"] for one in listed] == [made["id"]]
    naive = await client.post(
        "/sessions/chat/schedules", json={"message": "x", "at": "2026-01-31T12:00:00"}
    )
    assert "time zone" in problem_of(naive, 400)["detail"]
    both = {"message": "x", "cron": "0 9 * * *", "at": "2026-01-31T12:00:00Z"}
    problem_of(await client.post("/sessions/chat/schedules", json=both), 400)
    assert (await client.delete(f"/schedules/{made['id']}")).status_code == 204
    problem_of(await client.delete(f"/schedules/{made['id']}"), 404)
    assert await db.broker.schedules() == []


async def test_the_life_of_a_session(client: httpx2.AsyncClient, db: SessionsDB) -> None:
    made = body_of(
        await client.post("/sessions", json={"id": ODD_ID, "channel": "web", "peer": "ada"}), 201
    )
    assert made == (await db.broker.get(ODD_ID)).summary.model_dump(mode="json")
    changed = await client.patch(ODD_PATH, json={"model": "m", "metadata": {"a": 1}})
    assert (body_of(changed)["model"], body_of(changed)["metadata"]) == ("m", {"a": 1})
    assert "model" not in body_of(await client.patch(ODD_PATH, json={"model": None}))
    fork = body_of(await client.post(f"{ODD_PATH}/fork", json={"new_id": "copy"}), 201)
    assert fork["id"] == "copy"
    page = body_of(await client.get("/sessions", params={"limit": 1}))
    assert [one["id"] for one in page["sessions"]] == [ODD_ID]
    rest = body_of(await client.get("/sessions", params={"after": page["next"], "details": True}))
    assert [one["id"] for one in rest["sessions"]] == ["copy"]
    assert "next" not in rest
    assert rest["sessions"][0]["forked_from"]
    assert len(body_of(await client.get("/records"))["sessions"]) == 2
    assert body_of(await client.post(f"{ODD_PATH}/end", json={"reason": "x"})) == {"ended": 1}
    assert body_of(await client.get(ODD_PATH))["end_reason"] == "x"
    assert "ended_at" not in body_of(await client.post(f"{ODD_PATH}/reopen"))
    assert (await client.delete(ODD_PATH)).status_code == 204
    assert problem_of(await client.get(ODD_PATH), 404)["session_id"] == ODD_ID


async def test_transcripts_are_faithful_and_versioned(client: httpx2.AsyncClient) -> None:
    path = "/sessions/chat/transcript"
    # httpx would refuse to send a lone surrogate, so the JSON is in ASCII.
    send = {"content": json.dumps({"messages": [FAITHFUL]}), "headers": JSON}
    made = await client.put(path, **send)
    assert body_of(made) == {"version": 1}
    assert made.headers["etag"] == '"1"'
    loaded = await client.get(path)
    assert json.loads(loaded.text) == {"messages": [FAITHFUL], "version": 1}
    assert (await client.get(path, headers={"If-None-Match": '"1"'})).status_code == 304
    more = {"messages": [{"role": "user", "content": "two"}], "keys": ["k"]}
    appended = await client.post(path, json=more, headers={"If-Match": loaded.headers["etag"]})
    assert body_of(appended) == {"version": 2}
    refused = await client.post(path, json=more | {"keys": None}, headers={"If-Match": '"1"'})
    assert problem_of(refused, 412)["actual"] == 2
    fresh = await client.put(path, json={"messages": []}, headers={"If-None-Match": "*"})
    assert problem_of(fresh, 412)["expected"] == 0
    assert body_of(await client.get("/entries", params={"key": "k"}))["seq"] == 2
    assert len(body_of(await client.get("/sessions/chat/entries"))["entries"]) == 2
    edited = await client.patch(path, json={"keep_through": 1, "append": more["messages"]})
    assert body_of(edited)["appended"] == [3]
    replaced = await client.put(f"{path}/3", json={"role": "user", "content": "three"})
    assert body_of(replaced)["version"] == int(replaced.headers["etag"].strip('"'))
    shown = body_of(await client.get("/sessions/chat/history"))["messages"]
    assert [one["content"] for one in shown][-1] == "three"
    popped = body_of(await client.post(f"{path}/pop", json={"count": 1}))
    assert popped == {"messages": [{"role": "user", "content": "three"}]}
    cut = await client.delete(path, params={"keep_through": 0})
    assert body_of(cut)["version"] > 4
    state = await client.patch("/sessions/chat/state", json={"changes": {"a": [1]}})
    assert body_of(state) == {"values": {"a": [1]}, "version": 1}
    stale = {"changes": {"a": None}}
    told = await client.patch("/sessions/chat/state", json=stale, headers={"If-Match": '"9"'})
    assert problem_of(told, 412)["type"] == "urn:sessionsdb:version-conflict"
    assert body_of(await client.get("/sessions/chat/state"))["values"] == {"a": [1]}


JSON = {"Content-Type": "application/json"}


async def test_messages_are_sent_handled_and_stopped(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.broker.register("chat", channel="web", peer="ada")
    key = {"Idempotency-Key": "once"}
    sent = await client.post("/sessions/chat/inbox", json={"message": "one"}, headers=key)
    again = await client.post("/sessions/chat/inbox", json={"message": "one"}, headers=key)
    assert body_of(again, 202) == body_of(sent, 202) | {"duplicate": True}
    other = await client.post("/sessions/chat/inbox", json={"message": "two"}, headers=key)
    assert problem_of(other, 422)["key"] == "once"
    await client.post(
        "/sessions/chat/inbox", json={"message": {"role": "user", "content": "ask"}, "author": "a"}
    )
    await client.post("/sessions/chat/inbox", json={"message": "die"})
    child = body_of(await client.post("/sessions/chat/children", json={"prompt": "go"}), 201)
    waiting = body_of(await client.get("/sessions/chat/inbox", params={"limit": 2}))
    assert (len(waiting["outcomes"]), waiting["next"]) == (2, 2)
    worker = db.worker(answering, max_attempts=1)
    running = asyncio.create_task(worker.run())
    try:
        done = await client.get("/sessions/chat/inbox/1", params={"wait": 30})
        assert body_of(done)["reply"]["content"] == "re: one"
        first = body_of(await client.get(f"/sessions/{child['id']}/inbox/1", params={"wait": 30}))
        assert first["status"] == "done"

        async def asked() -> Any:
            return body_of(await client.get("/questions"))["questions"]

        [question] = await until(asked)
        given = await client.post(f"/questions/{question['id']}/answer", json={"message": "a"})
        assert body_of(given, 202)["session_id"] == "chat"
        died = body_of(await client.get("/sessions/chat/inbox/3", params={"wait": 30}))
        assert died["status"] == "dead"
    finally:
        await worker.stop()
        await running
    [dead] = body_of(await client.get("/dead-letters"))["outcomes"]
    assert dead["receipt"]["position"] == 3
    assert (await client.post("/sessions/chat/inbox/3/requeue")).status_code == 204
    assert body_of(await client.post("/dead-letters/requeue", json={})) == {"requeued": 0}
    assert body_of(await client.delete("/sessions/chat/inbox/3"))["status"] == "cancelled"
    assert body_of(await client.post("/sessions/chat/interrupt", json={})) == {"outcomes": []}
    await db.index_search()
    hits = body_of(await client.get("/search", params={"query": "re one", "limit": 1}))
    assert hits["hits"][0]["snippet"] == "re: one"


async def test_export_and_import_stream_lines(client: httpx2.AsyncClient, db: SessionsDB) -> None:
    await db.store.save("a", [FAITHFUL])
    await db.store.save("b", [])
    exported = await client.get("/export")
    lines = exported.text.splitlines()
    assert [json.loads(line)["session_id"] for line in lines] == ["a", "b"]
    target = db.in_namespace("target")
    async with client_of(target) as other:
        parts = [*(f"{line}\n" for line in lines), "no JSON\n", lines[0]]

        async def body() -> AsyncIterator[bytes]:
            for part in parts:
                for start in range(0, len(part), 10):
                    yield part[start : start + 10].encode()

        lines_type = {"Content-Type": "application/jsonl"}
        answered = await other.post("/import", content=body(), headers=lines_type)
        verdicts = [json.loads(line) for line in answered.text.splitlines()]
        assert [one.get("verdict") for one in verdicts] == ["saved", "saved", None, "unchanged"]
        assert "refused" in verdicts[2]
        assert problem_of(await other.post("/import", json={}), 415)
    assert await target.store.load("a") == [FAITHFUL]


OPTIONAL_BODIES = (
    "/sessions/a/interrupt",
    "/sessions/a/fork",
    "/sessions/a/end",
    "/sessions/a/transcript/pop",
    "/dead-letters/requeue",
)
"""The calls whose bodies have no required field."""


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("path", OPTIONAL_BODIES)
async def test_a_body_without_required_fields_may_be_left_out(
    client: httpx2.AsyncClient, db: SessionsDB, path: str
) -> None:
    await db.store.save("a", MESSAGES["messages"])
    # A missing body has no type. The others are wrong, and a browser sends some of their types.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    text = {"Content-Type": "text/plain"}
    for wrong, headers in (
        ("[]", JSON),  # null is no body in older versions of FastAPI
        ("{", JSON),
        ('{"x": 1}', JSON),
        ("{}", {}),
        ("{}", text),
        ("subtree=true", form),
    ):
        refused = await client.post(path, content=wrong, headers=headers)
        assert problem_of(refused, 422)["detail"].startswith("body"), (wrong, headers)
    assert (await db.broker.get("a")).summary.message_count == 1
    assert (await client.post(path, headers=JSON)).is_success
    assert (await client.post(path)).is_success
    assert (await client.post(path, json={})).is_success


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_document_says_which_bodies_are_optional(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    document = body_of(await client.get("/openapi.json"))
    optional = set()
    for path, operations in document["paths"].items():
        body = operations.get("post", {}).get("requestBody", {"required": True})
        if not body.get("required", False):
            [content] = body["content"].values()
            name = content["schema"]["$ref"].rpartition("/")[2]
            assert "required" not in document["components"]["schemas"][name]
            optional.add(path.removeprefix(API).replace("{id}", "a"))
    assert optional == set(OPTIONAL_BODIES)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_every_error_is_a_problem_with_the_sentence_of_the_error(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    told = problem_of(await client.get("/sessions/none"), 404)
    assert told == {
        "type": "urn:sessionsdb:unknown-session",
        "title": "Unknown session",
        "status": 404,
        "detail": "unknown session: none",
        "session_id": "none",
    }
    assert problem_of(await client.get("/nothing"), 404)["title"] == "Unknown path"
    assert problem_of(await client.post("/sessions/none"), 405)
    assert "query.limit" in problem_of(await client.get("/sessions?limit=x"), 422)["detail"]
    for path in ("/sessions?limit=1001", "/records?limit=-1", "/sessions/a/inbox/1?wait=61"):
        assert problem_of(await client.get(path), 422)
    registration = {"id": "a", "channel": "c", "peer": "p"}
    assert problem_of(await client.post("/sessions", json=registration | {"x": 1}), 422)
    assert problem_of(await client.post("/sessions", content="{", headers=JSON), 422)
    assert problem_of(await client.post("/sessions", content=b"\xff", headers=JSON), 400)
    text = {"Content-Type": "text/plain"}
    plain = await client.post("/sessions", content=json.dumps(registration), headers=text)
    assert problem_of(plain, 422)
    await client.post("/sessions", json=registration)
    assert problem_of(await client.post("/sessions", json=registration), 409)["session_id"] == "a"
    assert problem_of(await client.post("/sessions/a/inbox", json={"message": ""}), 400)
    number = {"append": [], "keep_through": False}  # no 0
    assert problem_of(await client.patch("/sessions/a/transcript", json=number), 422)
    nan = '{"message": {"role": "user", "content": "x", "n": NaN}}'
    assert problem_of(await client.post("/sessions/a/inbox", content=nan, headers=JSON), 400)
    assert problem_of(await client.get("/sessions?after=x"), 400)
    assert problem_of(await client.get("/sessions?active_since=2026-01-01T00:00:00"), 400)
    assert problem_of(await client.get("/sessions/a/events?after=x"), 400)
    assert problem_of(await client.get("/sessions/none/events"), 404)
    bad = {"If-Match": "1"}
    assert problem_of(await client.put("/sessions/a/transcript", json=MESSAGES, headers=bad), 400)
    await db.store.append("a", [{"role": "user", "content": "x"}])
    assert problem_of(await client.get("/search?query=x"), 503)["title"] == "Search unavailable"
    await db.broker.end("a")
    assert problem_of(await client.post("/sessions/a/inbox", json={"message": "x"}), 409)


MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_document_has_every_route_and_every_error(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    document = body_of(await client.get("/openapi.json"))
    assert document["openapi"].startswith("3.1")
    assert len(document["paths"]) >= 25
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    references = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references <= set(document["components"]["schemas"])
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["responses"]["default"]["content"].keys() == {
                "application/problem+json"
            }
            assert operation["description"]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_each_path_has_the_methods_of_the_document_and_no_others(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    """A path may have the form of another one: ``/transcript/pop`` and ``/transcript/{seq}``."""
    for path, operations in body_of(await client.get("/openapi.json"))["paths"].items():
        url = re.sub(r"\{(\w+)\}", lambda name: "1" if name[1] in NUMBERS else "a", path)
        methods = {name.upper() for name in operations}
        for method in {"OPTIONS", "TRACE", "DELETE", "PATCH", "POST", "PUT"} - methods:
            refused = await client.request(method, url.removeprefix("/api/v1"))
            assert problem_of(refused, 405)["title"] == "Method not allowed", (method, path)
            assert set(refused.headers["allow"].split(", ")) == methods, (method, path)


NUMBERS = ("seq", "position")


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/sessions/a/transcript/x", 404),
        ("/sessions/a/transcript/-1", 404),
        ("/sessions/a/transcript/0", 422),
        (f"/sessions/a/transcript/{2**63}", 422),
        ("/sessions/a/transcript/" + "9" * 5_000, 422),
        ("/sessions/a/inbox/x", 404),
        ("/sessions/a/inbox/" + "9" * 5_000, 422),
    ],
)
async def test_a_number_in_a_path_is_checked(
    client: httpx2.AsyncClient, path: str, status: int
) -> None:
    method = "GET" if "inbox" in path else "PUT"
    answered = await client.request(method, path, json={"role": "user", "content": "x"})
    assert problem_of(answered, status)


# ---- access --------------------------------------------------------------------------------------


async def test_a_token_opens_one_namespace_with_its_rights(db: SessionsDB) -> None:
    other = db.in_namespace("other")
    await db.store.save("ours", [])
    await other.store.save("theirs", [])
    made = {rights: await tokens.create(other, rights, rights=rights) for rights in tokens.RIGHTS}
    async with client_of(db, require_token=True) as client:

        async def status(method: str, path: str, rights: tokens.Rights, **given: Any) -> int:
            headers = {"Authorization": f"Bearer {made[rights].secret}"}
            answered = await client.request(method, path, headers=headers, **given)
            return int(answered.status_code)

        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}):
            refused = await client.get("/sessions", headers=headers)
            assert problem_of(refused, 401)["title"] == "Unauthorized"
            assert refused.headers["www-authenticate"].startswith("Bearer")
        assert await status("GET", "/sessions/theirs", "read") == 200
        assert await status("GET", "/sessions/ours", "admin") == 404
        assert await status("PUT", "/sessions/new/transcript", "read", json=MESSAGES) == 403
        assert await status("PUT", "/sessions/new/transcript", "write", json=MESSAGES) == 200
        assert await status("DELETE", "/sessions/new", "write") == 403
        assert await status("DELETE", "/sessions/new", "admin") == 204
        assert await tokens.revoke(db, made["read"].token.id) is False  # of another namespace
        assert await tokens.revoke(other, made["read"].token.id) is True
        assert await status("GET", "/sessions/theirs", "read") == 401
    assert (await db.broker.list(include_ended=True))[0].id == "ours"


async def test_a_body_is_not_read_before_the_token_is_checked(db: SessionsDB) -> None:
    reader = await tokens.create(db, "reader", rights="read")
    app = application(db, host="0.0.0.0")
    for authorization, status in (
        (None, 401),
        ("Bearer x", 401),
        (f"Bearer {reader.secret}", 403),
    ):
        headers = [(b"host", b"x"), (b"content-type", b"application/json")]
        if authorization is not None:
            headers.append((b"authorization", authorization.encode()))
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body is read")

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        path = f"{API}/sessions/a/transcript"
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "headers": headers,
            "client": ("192.0.2.1", 1),
            "server": ("x", 80),
        }
        await app(scope, receive, send)
        assert sent[0]["status"] == status


async def test_secrets_are_stored_nowhere_and_expire(db: SessionsDB, database: Database) -> None:
    made = await tokens.create(db, "ci", expires_in=3_600)
    rows = await database.query("SELECT * FROM tokens")
    assert made.secret not in str(rows)
    assert await tokens.find(db, made.secret) == made.token
    assert await tokens.list_all(db) == [made.token]
    early = "2020-01-01 00:00:00.000000" + ("+00" if database.kind == "postgresql" else "")
    await database.query(f"UPDATE tokens SET expires_at = '{early}'")
    assert await tokens.find(db, made.secret) is None
    assert await tokens.find(db, "é") is None
    for name, options in (("", {}), ("x", {"rights": "root"}), ("x", {"expires_in": 1e300})):
        with pytest.raises(InvalidArgument):
            await tokens.create(db, name, **options)


@pytest.mark.parametrize(
    ("path", "require_token"),
    [("/api/v1/sessions/a", False), ("/api/v1/sessions/a", True), ("/sessions/a", False)],
)
async def test_the_application_opens_its_handle_at_the_first_request_and_leaves_it_open(
    db: SessionsDB, database: Database, path: str, require_token: bool
) -> None:
    await db.store.save("a", [])
    headers = {"Authorization": f"Bearer {(await tokens.create(db, 'a')).secret}"}
    handle = SessionsDB(database.url)
    transport = httpx2.ASGITransport(application(handle, require_token=require_token))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answered = await client.get(path, headers=headers)
        assert answered.status_code == 200, answered.text
        assert await handle.store.load("a") == []
        await handle.close()
        closed = await client.get("/api/v1/sessions/a", headers=headers)
    assert problem_of(closed, 503)["type"] == "urn:sessionsdb:database-closed"


async def test_a_damaged_value_is_an_error_of_the_server_with_its_remedy(
    client: httpx2.AsyncClient, db: SessionsDB, database: Database
) -> None:
    await db.store.save("a", [])
    await database.query("UPDATE sessions SET metadata = '{'")
    problem = problem_of(await client.get("/sessions/a"), 500)
    assert problem["type"] == "urn:sessionsdb:damaged-value"
    assert "doctor --values" in problem["detail"]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_pages_of_other_hosts_and_origins_are_refused(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ):
        assert problem_of(await client.get("/sessions", headers=headers), status)
    own = str(client.base_url.copy_with(path="")).rstrip("/")
    answered = await client.get(
        "/sessions", headers={"Origin": own, "Sec-Fetch-Site": "same-origin"}
    )
    assert body_of(answered) == {"sessions": []}
    assert answered.headers["content-security-policy"].startswith("default-src 'none'")
    async with client_of(db, allowed_hosts=["agents.example"]) as named:
        assert body_of(await named.get("/sessions", headers={"Host": "agents.example:443"}))
    with pytest.raises(InvalidArgument, match="no name of a host"):
        application(db, allowed_hosts=["x:1"])


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_another_address_needs_a_token(db: SessionsDB) -> None:
    async with (
        serving(db, host="0.0.0.0") as url,
        httpx2.AsyncClient(base_url=url.replace("0.0.0.0", "127.0.0.1")) as client,
    ):
        assert problem_of(await client.get("/api/v1/sessions"), 401)
        assert (await client.get("/health")).json() == {"status": "ok"}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_one_question_about_its_health_serves_all_while_the_database_hangs(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DATABASE_SECONDS", 1.0)
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.9)
    questions: list[str] = []

    def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
        questions.append(statement)

    async with serving(db) as url, httpx2.AsyncClient(base_url=url) as client:
        async with db.engine.connect() as connection, connection.begin():
            await connection.execute(text("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE"))
            event.listen(db.engine.sync_engine, "before_cursor_execute", count)
            answers = await asyncio.gather(*(client.get("/health") for _ in range(4)))
            event.remove(db.engine.sync_engine, "before_cursor_execute", count)
        assert {answer.status_code for answer in answers} == {503}
        assert len([sql for sql in questions if "FROM sessions" in sql]) == 1


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_bodies_requests_and_times_have_bounds(
    client: httpx2.AsyncClient, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_size, "MAX_BODY_BYTES", 1_000)
    large = json.dumps({"messages": [{"role": "user", "content": "x" * 1_000}]})
    path = "/sessions/a/transcript"
    assert problem_of(await client.put(path, content=large, headers=JSON), 413)

    async def chunked() -> AsyncIterator[bytes]:
        yield large.encode()

    assert problem_of(await client.put(path, content=chunked(), headers=JSON), 413)
    assert await db.store.version("a") is None
    receipt = await prepared(db)
    monkeypatch.setattr(bounds, "REQUEST_SECONDS", 0.05)
    late = await client.get(f"/sessions/chat/inbox/{receipt}", params={"wait": 30})
    assert problem_of(late, 504)["title"] == "Timeout"
    monkeypatch.setattr(bounds, "MAX_REQUESTS", 0)
    async with client_of(db) as full:
        refused = await full.get("/sessions")
        assert (await full.get(str(full.base_url.copy_with(path="/health")))).status_code == 200
    assert problem_of(refused, 503)["title"] == "Too many requests"
    assert refused.headers["retry-after"] == "5"


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_one_caller_does_not_fill_the_server(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read token opened every stream and every wait that a server has room for."""
    monkeypatch.setattr(bounds, "MAX_REQUESTS", 6)
    monkeypatch.setattr(bounds, "MAX_STREAMS", 6)
    receipt = await prepared(db)
    secrets = [(await tokens.create(db, name, rights="read")).secret for name in ("a", "b")]
    mine, theirs = ({"Authorization": f"Bearer {secret}"} for secret in secrets)
    waiting = f"/sessions/chat/inbox/{receipt}?wait=30"
    async with (
        client_of(db, require_token=True) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        for headers in (mine, theirs):
            assert body_of(await client.get("/sessions", headers=headers))
        waits = [asyncio.create_task(client.get(waiting, headers=mine)) for _ in range(4)]
        done, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        assert [problem_of(one.result(), 429)["title"] for one in done] == ["Too many at once"]
        assert body_of(await client.get("/sessions", headers=theirs))
        for _ in range(3):
            path = "/sessions/chat/events"
            stream = await stack.enter_async_context(client.stream("GET", path, headers=mine))
            assert stream.status_code == 200
        async with client.stream("GET", path, headers=mine) as stream:
            assert stream.status_code == 429
        async with client.stream("GET", path, headers=theirs) as stream:
            assert stream.status_code == 200
        # A wait whose client goes ends at once, and its place is free.
        for one in left:
            one.cancel()
        await asyncio.wait(left)

        async def has_place() -> bool:
            return (await client.get("/sessions", headers=mine)).status_code == 200

        await until(has_place)


HOSTILE_MESSAGE = {"role": "user", "content": [{}] * 30_000}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/sessions/chat/transcript", {"messages": [HOSTILE_MESSAGE]}),
        ("PUT", "/sessions/chat/transcript", {"messages": [{}] * 10_000}),
        ("POST", "/sessions/chat/transcript", {"messages": [HOSTILE_MESSAGE]}),
        ("PATCH", "/sessions/chat/transcript", {"append": [HOSTILE_MESSAGE]}),
        ("PUT", "/sessions/chat/transcript/1", HOSTILE_MESSAGE),
        ("POST", "/sessions/chat/inbox", {"message": HOSTILE_MESSAGE}),
        ("POST", "/sessions/chat/children", {"prompt": HOSTILE_MESSAGE}),
        ("POST", "/sessions/chat/schedules", {"message": HOSTILE_MESSAGE, "cron": "0 9 * * *"}),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_hostile_message_is_encoded_beside_the_event_loop(
    client: httpx2.AsyncClient, db: SessionsDB, method: str, path: str, body: Any
) -> None:
    """A megabyte of empty blocks takes 14 s to render. Nobody else was answered meanwhile."""
    await prepared(db)
    await db.store.append("chat", [{"role": "user", "content": "hello"}])
    assert (await client.get("/sessions/chat/transcript")).status_code == 200
    with loop_share() as share:
        written = await client.request(method, path, json=body, timeout=60)
    assert written.status_code in (200, 201, 202)
    assert share() < 0.6  # 0.1 to 0.3 in a thread, 0.9 to 1 on the event loop
    if "messages" in body:
        saved = body_of(await client.get("/sessions/chat/transcript"))["messages"]
        assert saved[-len(body["messages"]) :] == body["messages"]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize(
    ("method", "path", "body", "header"),
    [
        ("POST", "/sessions/chat/transcript", {"messages": []}, "Idempotency-Key"),
        ("POST", "/sessions/chat/fork", {}, "Idempotency-Key"),
        ("POST", "/sessions/chat/inbox", {"message": "x"}, "If-Match"),
        ("PATCH", "/sessions/chat", {"model": "m"}, "If-Match"),
        ("DELETE", "/sessions/chat", None, "If-Match"),
        ("POST", "/sessions", {"id": "b", "channel": "web", "peer": "p"}, "If-None-Match"),
    ],
)
async def test_a_header_that_a_call_does_not_take_is_refused(
    client: httpx2.AsyncClient, db: SessionsDB, method: str, path: str, body: Any, header: str
) -> None:
    """It was ignored: the session was deleted at another version, the messages were added twice."""
    await prepared(db)
    before = await db.broker.get("chat")
    refused = await client.request(method, path, json=body, headers={header: '"7"'})
    assert header in problem_of(refused, 400)["detail"]
    assert await db.broker.get("chat") == before
    assert [one.id for one in await db.broker.list()] == ["chat"]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_request_has_a_bounded_number_of_messages(client: httpx2.AsyncClient) -> None:
    path = "/sessions/chat/transcript"
    many = [{}] * (MAX_MESSAGES + 1)
    for method, body in (
        ("PUT", {"messages": many}),
        ("POST", {"messages": many}),
        ("PATCH", {"append": many}),
    ):
        refused = problem_of(await client.request(method, path, json=body), 422)
        assert str(MAX_MESSAGES) in refused["detail"]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("id", ["%FF", "%%46%46", "%C3%28", "a%"])
async def test_a_path_that_is_no_utf_8_is_refused(
    client: httpx2.AsyncClient, db: SessionsDB, id: str
) -> None:
    """``%FF`` made a session of another name, and ``%%46%46`` failed with 500."""
    host, port = client.base_url.host, client.base_url.port
    for method in ("GET", "PUT"):
        body = '{"messages": []}'
        request = (
            f"{method} /api/v1/sessions/{id}/transcript HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}"
        )
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert await db.broker.list() == []


async def test_the_next_page_of_questions_follows_a_deleted_one(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    async def asking(turn: Turn) -> Reply:
        return Reply("which?", ask=Question(prompt="which?"))

    for id in ("a", "b", "c"):
        await db.broker.register(id, channel="web", peer="ada")
        await db.broker.send(id, "hello")
        await db.worker(asking).run_until_idle()
    first = body_of(await client.get("/questions", params={"limit": 1}))
    [question] = first["questions"]
    by_id = body_of(await client.get("/questions", params={"after": question["id"]}))
    await db.store.delete(question["session_id"])
    rest = body_of(await client.get("/questions", params={"after": first["next"]}))
    assert [one["session_id"] for one in rest["questions"]] == ["b", "c"]
    assert rest == by_id
    assert problem_of(await client.get("/questions", params={"after": "nonsense"}), 400)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_document_needs_a_token_where_all_does(db: SessionsDB) -> None:
    made = await tokens.create(db, "reader", rights="read")
    async with client_of(db, require_token=True) as client:
        assert problem_of(await client.get("/openapi.json"), 401)
        headers = {"Authorization": f"Bearer {made.secret}"}
        assert body_of(await client.get("/openapi.json", headers=headers))["openapi"]


async def prepared(db: SessionsDB) -> int:
    await db.broker.register("chat", channel="web", peer="ada")
    return (await db.broker.send("chat", "hello")).position


# ---- server-sent events --------------------------------------------------------------------------


async def test_events_are_sent_and_resumed(client: httpx2.AsyncClient, db: SessionsDB) -> None:
    await prepared(db)
    seen: list[Sent] = []
    async with client.stream("GET", "/sessions/chat/events", params={"after": "start"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        sending = events_of(stream)
        await take_until(sending, "queued", seen)
    assert seen[-1].data["message"]["content"] == "hello"
    await db.worker(answering).run_until_idle()
    last = {"Last-Event-ID": str(seen[-1].id)}
    async with client.stream("GET", "/sessions/chat/events", headers=last) as stream:
        await take_until(events_of(stream), "idle", seen)
    contents = [one.data["message"]["content"] for one in seen if one.type == "message"]
    assert contents == ["hello", "re: hello"]
    assert all(one.id == one.data["cursor"] for one in seen)
    subtree = {"subtree": "true", "after": json.dumps({"chat": seen[0].id})}
    async with client.stream("GET", "/sessions/chat/events", params=subtree) as stream:
        told = await take_until(events_of(stream), "message", [])
    assert told.data["message"]["content"] == "hello"
    for place in ("{", "t1.", "t1.x", "t1.eJw", f"{told.id}x"):
        bad = {"subtree": "true", "after": place}
        assert problem_of(await client.get("/sessions/chat/events", params=bad), 400)
    await db.store.save("elsewhere", [])
    bad = {"subtree": "true", "after": str(told.id)}
    refused = await client.get("/sessions/elsewhere/events", params=bad)
    assert problem_of(refused, 400)["title"] == "Invalid cursor"


async def test_events_of_a_tree_are_resumed_in_all_its_sessions(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    """Also in a session that was spawned while no one listened. A deleted one is forgotten."""
    await db.broker.register("lead", channel="web", peer="ada")
    children = [
        (await db.broker.spawn("lead", SpawnRequest(prompt=f"child {number}"))).id
        for number in range(3)
    ]
    await db.worker(answering).run_until_idle()
    seen: list[Sent] = []
    path = "/sessions/lead/events"
    async with client.stream("GET", path, params={"subtree": "true"}) as stream:
        sending = events_of(stream)
        while not seen or seen[-1].id is None:  # the place in each session is known then
            await take_until(sending, "idle", seen)
        assert {one.data["session_id"] for one in seen} == {"lead", *children}
        await db.store.append(children[0], [{"role": "user", "content": "one"}])
        last = await take_until(sending, "message", seen)
    await db.store.append(children[0], [{"role": "user", "content": "two"}])
    await db.store.append(children[1], [{"role": "user", "content": "three"}])
    await db.store.delete(children[2])
    late = (await db.broker.spawn(children[1], SpawnRequest(prompt="four"))).id
    await db.worker(answering).run_until_idle()
    again: list[Sent] = []
    headers = {"Last-Event-ID": str(last.id)}
    async with client.stream("GET", path, params={"subtree": "true"}, headers=headers) as stream:
        sending = events_of(stream)
        for _ in range(4):
            await take_until(sending, "message", again)
    told = [(one.data["session_id"], text_of(one)) for one in again if one.type == "message"]
    assert sorted(told) == sorted(
        [(children[0], "two"), (children[1], "three"), (late, "four"), (late, "re: four")]
    )


def text_of(event: Sent) -> str:
    return str(event.data["message"]["content"])


def test_the_place_in_a_large_tree_fits_into_a_header_and_is_told_once_a_second() -> None:
    now = [0.0]
    tree = TreePlace({}, clock=lambda: now[0])
    told = []
    for number in range(tree_cursor.MAX_SESSIONS):
        place = Place(hashlib.sha256(b"%d" % number).hexdigest()[:16], *range(10**6, 10**6 + 13))
        cursor = follow_cursor.encode(prefix_of(("default", f"s{number}")), place)
        event = IdleEvent(session_id=SessionId(f"s{number}"), at=NOW, cursor=cursor)
        told.append(tree.after(event))
    assert [one is not None for one in told] == [True] * 20 + [False] * 180
    now[0] += 1
    last = tree.after(event)
    assert last is not None
    assert len(last) < 12_000


async def take_until(sending: AsyncIterator[Sent | str], type: str, seen: list[Sent]) -> Sent:
    async with asyncio.timeout(60):
        async for one in sending:
            if isinstance(one, Sent):
                seen.append(one)
                if one.type == type:
                    return one
    raise AssertionError(f"no event {type} in {seen}")


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_heartbeats_check_the_token_again(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.02)
    await prepared(db)
    made = await tokens.create(db, "listener")
    headers = {"Authorization": f"Bearer {made.secret}"}
    async with (
        client_of(db, require_token=True) as client,
        client.stream("GET", "/sessions/chat/events", headers=headers) as stream,
        asyncio.timeout(60),
    ):
        async for one in events_of(stream):
            if one == "heartbeat":
                await tokens.revoke(db, made.token.id)
        # The stream has ended, because the token is gone.


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_stream_whose_events_never_pause_ends_when_its_token_is_revoked(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    await prepared(db)
    made = await tokens.create(db, "listener")
    headers = {"Authorization": f"Bearer {made.secret}"}

    async def write() -> None:
        while True:
            await db.store.append("chat", [{"role": "user", "content": "more"}])

    writing = asyncio.create_task(write())
    async with (
        client_of(db, require_token=True) as client,
        client.stream("GET", "/sessions/chat/events", headers=headers) as stream,
        asyncio.timeout(60),
    ):
        sending = events_of(stream)
        await anext(sending)
        await tokens.revoke(db, made.token.id)
        async for _ in sending:
            pass
        # The stream has ended, because the token is gone.
    assert not writing.done()
    writing.cancel()


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_deleted_session_ends_its_streams_and_a_gone_client_leaves_nothing(
    client: httpx2.AsyncClient, db: SessionsDB
) -> None:
    before = asyncio.all_tasks()
    await prepared(db)
    async with client.stream("GET", "/sessions/chat/events") as stream:
        sending = events_of(stream)
        await anext(sending)
        await db.store.delete("chat")
        await take_until(sending, "deleted", [])
        with contextlib.suppress(StopAsyncIteration):
            assert await anext(sending) is None

    await prepared(db)
    async with client.stream("GET", "/sessions/chat/events") as stream:
        await anext(events_of(stream))

    def all_gone() -> bool:
        names = {str(task.get_coro()) for task in asyncio.all_tasks() - before}
        return not any("follow" in name or "asend" in name or "_stream" in name for name in names)

    await until(all_gone)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_many_listeners_share_one_server(db: SessionsDB) -> None:
    await prepared(db)
    async with serving(db) as url:
        host, port = url.removeprefix("http://").split(":")
        request = f"GET /api/v1/sessions/chat/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
        streams = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
        try:
            for _, writer in streams:
                writer.write(request.encode())
            async with asyncio.timeout(60):
                for reader, _ in streams:
                    await reader.readuntil(b"\n\n")
                await db.broker.end("chat")
                for reader, _ in streams:
                    await reader.readuntil(b"event: ended")
        finally:
            for _, writer in streams:
                writer.close()


async def test_the_start_of_a_subtree_reads_no_settings(db: SessionsDB) -> None:
    await db.broker.register("root", channel="c", peer="p", system="x" * 1_000_000)
    for _ in range(20):
        await db.broker.spawn("root", SpawnRequest(prompt="go"))
    tracemalloc.start()
    try:
        assert len(await tree_cursor.sessions_from_now(db, "root")) == 21
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5_000_000
    with pytest.raises(UnknownSession):
        await tree_cursor.sessions_from_now(db, "unknown")
