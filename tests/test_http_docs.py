"""The calls of docs/http.md work, and have the answers that the page shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx2
import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.web.api.app import PREFIX
from tests.support.served import Sent, events_of, serving

PAGE = (Path(__file__).parents[1] / "docs" / "http.md").read_text()
SECTIONS = re.findall(r"^```bash\n(.*?)^```$\n*(?:^```json\n(.*?)^```$)?", PAGE, re.M | re.S)


@pytest.fixture
def kind() -> str:
    return "sqlite"


async def reply(turn: Turn) -> str:
    return "hi"


async def run(client: httpx2.AsyncClient, command: str, api: str) -> str:
    """Run a curl command, as far as the page uses curl."""
    words = shlex.split(command.replace("$API", api))
    assert words.pop(0) == "curl"
    method, url, headers, body = None, "", {}, None
    while words:
        word = words.pop(0)
        if word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-X":
            method = words.pop(0)
        elif word in ("-d", "--json"):
            body = words.pop(0)
            if word == "--json":
                headers["Content-Type"] = "application/json"
        elif word == "-N":
            async with client.stream("GET", words.pop(0)) as stream:
                event = await anext(events_of(stream))
                assert isinstance(event, Sent)
                assert event.type == "message"
            return ""
        else:
            url = word
    method = method or ("GET" if body is None else "POST")
    answered = await client.request(method, url, headers=headers, content=body)
    return answered.text


def is_like(shown: Any, found: Any) -> bool:
    """Whether an answer has the form that the page shows, where … stands for anything."""
    if shown == "…":
        return True
    if isinstance(shown, dict) and isinstance(found, dict):
        return shown.keys() == found.keys() and all(is_like(shown[k], found[k]) for k in shown)
    if isinstance(shown, list) and isinstance(found, list):
        return len(shown) == len(found) and all(map(is_like, shown, found))
    return bool(shown == found)


async def test_the_calls_have_the_answers_of_the_page(db: SessionsDB, database: Database) -> None:
    assert len(SECTIONS) >= 8
    async with serving(db) as url, httpx2.AsyncClient(timeout=60) as client:
        for commands, shown in SECTIONS:
            for command in commands.strip().splitlines():
                answer = await run(client, command, url + PREFIX)
                await db.worker(reply).run_until_idle()
            if shown:
                assert is_like(json.loads(shown), json.loads(answer)), answer


async def test_the_page_names_every_path(db: SessionsDB, database: Database) -> None:
    async with serving(db) as url, httpx2.AsyncClient(timeout=60) as client:
        paths = (await client.get(f"{url}{PREFIX}/openapi.json")).json()["paths"]
    for path in paths:
        assert path.removeprefix(PREFIX).removeprefix("/sessions/{id}") in PAGE, path


ROW = re.compile(r"^\| `([A-Z]+ /\S+)` \|(.*)\|(.*)\|(.*)\|$", re.M)


def arguments(document: dict[str, Any], operation: dict[str, Any]) -> list[set[str]]:
    """The required fields of the body, the optional ones, and the parameters of the query."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    body = document["components"]["schemas"][name] if name else {}
    required = set(body.get("required", ()))
    query = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"}
    return [required, set(body.get("properties", ())) - required, query]


async def test_the_page_has_the_arguments_of_every_write(
    db: SessionsDB, database: Database
) -> None:
    async with serving(db) as url, httpx2.AsyncClient(timeout=60) as client:
        document = (await client.get(f"{url}{PREFIX}/openapi.json")).json()
    shown = {
        call: [set(re.findall(r"`(\w+)`", cell)) for cell in cells]
        for call, *cells in ROW.findall(PAGE)
    }
    found = {
        f"{method.upper()} {path.removeprefix(PREFIX)}": arguments(document, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "get"
    }
    whole = "PUT /sessions/{id}/transcript/{seq}"  # its body is a message
    assert shown == {call: has for call, has in found.items() if any(has) or call == whole}
