"""The pages of ``sessionsdb serve``: what a browser gets, and what its forms do."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from html.parser import HTMLParser

import httpx2
import pytest

from sessionsdb import Question, Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.admin import tokens
from sessionsdb.admin.tokens import Rights
from sessionsdb.reports.queries import read_sessions
from sessionsdb.web import application
from sessionsdb.web.api.access import COOKIE
from sessionsdb.web.pages import code_colours
from sessionsdb.web.pages.code_colours import LANGUAGES, shared_time
from sessionsdb.web.pages.images import image_of
from sessionsdb.web.pages.message_html import message_html
from sessionsdb.web.pages.rendering import duration, session_url
from tests.support.loop_share import loop_share
from tests.support.served import Sent, events_of, serving

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> \u202eevil \x1b[31mred"
OWN_FORM = {"Origin": "http://127.0.0.1:8700"}


@pytest.fixture
def kind() -> str:
    """The pages call the verbs, which other tests run on both databases."""
    return "sqlite"


@pytest.fixture
async def browser(db: SessionsDB) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_for(db) as client:
        yield client


def client_for(db: SessionsDB, *, require_token: bool = False) -> httpx2.AsyncClient:
    app = application(db, require_token=require_token)
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8700", headers=OWN_FORM
    )


async def answering(turn: Turn) -> Reply:
    if turn.answer is None and "ask" in turn.prompt:
        return Reply("which?", ask=Question(prompt=HOSTILE, data={"<b>": "<i>"}))
    if "die" in turn.prompt:
        raise ValueError("a <b>bold</b> fault")
    return Reply("```python\nprint('hi')\n```")


async def filled(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="web", peer=HOSTILE, metadata={"<b>": HOSTILE})
    await db.store.append("chat", [{"role": "user", "content": HOSTILE}])
    await db.broker.send("chat", "hello", author=HOSTILE)
    await db.broker.register("asker", channel="web", peer="p")
    await db.broker.send("asker", "please ask")
    await db.broker.register("dying", channel="web", peer="p")
    await db.broker.send("dying", "die " + HOSTILE)
    await db.broker.spawn("chat", SpawnRequest(prompt=HOSTILE))
    await db.broker.schedule("chat", HOSTILE, at=datetime(2099, 1, 1, tzinfo=UTC))
    await db.worker(answering, max_attempts=1).run_until_idle()
    await rich(db)


async def rich(db: SessionsDB) -> None:
    """Make sessions whose optional fields are all set, with messages that have all of theirs."""
    await db.broker.fork("chat", new_id="fork-of-chat")
    await db.broker.update(
        "fork-of-chat", model=HOSTILE, system=HOSTILE, tools=["read"], metadata={"a": HOSTILE}
    )
    await db.broker.end("fork-of-chat", reason=HOSTILE)
    await db.broker.register("waiting-chat", channel="web", peer="p", parent="chat")
    await db.broker.send("waiting-chat", "hi", author=HOSTILE, sender="chat", metadata={"a": 1})


class Tags(HTMLParser):
    """The sources of scripts, and the names of all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str | None] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))


PAGES = [
    "/",
    "/sessions",
    "/sessions?channel=web&peer=p",
    "/sessions/chat",
    "/sessions/chat?before=2",
    "/sessions/chat/messages/1",
    "/sessions/fork-of-chat",
    "/sessions/fork-of-chat/messages/1",
    "/sessions/waiting-chat",
    "/sessions/waiting-chat/inbox/1",
    "/sessions/dying/inbox/1",
    "/sessions/chat/tree",
    "/questions",
    "/schedules",
    "/dead-letters",
    "/reports",
    *(f"/reports/{name}" for name in ("sessions", "turns", "activity", "latency", "inbox", "tree")),
    "/search?query=hello",
    "/search?query=%3Cscript%3E",
    "/login",
]


async def test_every_page_is_whole_and_escapes_what_strangers_wrote(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await filled(db)
    for path in PAGES:
        response = await browser.get(path)
        assert response.status_code == 200, path
        html = response.text
        assert html.rstrip().endswith("</html>"), path
        assert "<script>alert" not in html, path
        assert "<img src=x" not in html, path
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html), path
        found = Tags()
        found.feed(html)
        assert found.scripts, path
        assert all(source and source.startswith("/static/") for source in found.scripts), path
        assert not [name for name in found.attributes if name.startswith("on")], path
        assert "style" not in found.attributes, path
        policy = response.headers["content-security-policy"]
        assert "script-src 'self'" in policy, path
        assert "unsafe" not in policy, path


async def test_the_page_of_a_fork_names_its_source(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.store.append("team/chat", [{"role": "user", "content": "hello"}])
    made = await browser.post("/sessions/team%2Fchat/fork", data={"at": 1})
    html = (await browser.get(made.headers["location"])).text
    source = '<a href="/sessions/team%2Fchat"><bdi>team/chat</bdi></a> at message 1'
    assert source in html


async def test_every_page_of_an_empty_database_is_there(browser: httpx2.AsyncClient) -> None:
    for path in PAGES:
        if "chat" not in path:
            response = await browser.get(path)
            assert response.status_code == (404 if "dying" in path else 200), path


async def test_a_conversation_has_its_messages_in_order_with_code(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await filled(db)
    html = (await browser.get("/sessions/chat")).text
    places = [html.index(f'id="m-{seq}"') for seq in (1, 2, 3)]
    assert places == sorted(places)
    assert '<pre tabindex="0"><code><span class="nb">print</span>' in html
    assert "&lt;script&gt;" in html


async def test_a_page_of_hostile_code_does_not_hold_up_the_others(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    hostile = {"role": "user", "content": "```java\n<a " + "a\n" * 4_900 + "\n```"}
    await db.store.append("chat", [hostile] * 60)
    begin = time.process_time()
    html = (await browser.get("/sessions/chat")).text
    assert time.process_time() - begin < 3, "each block had the time of a page"
    assert html.count("a\n" * 4_800) == 60


async def test_a_long_message_is_cut_and_its_own_page_has_the_whole(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.store.append("chat", [{"role": "user", "content": "x" * 30_000 + "END"}])
    html = (await browser.get("/sessions/chat")).text
    assert "END" not in html
    assert "Show the whole message (30003 characters)" in html
    assert "END" in (await browser.get("/sessions/chat/messages/1")).text


THINKING = {"type": "thinking", "thinking": f"hm {HOSTILE}", "signature": "secret-signature"}


async def test_reasoning_is_folded_before_its_answer(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    answer = {"role": "assistant", "content": [THINKING, {"type": "text", "text": "so it is"}]}
    for number in range(25):
        await db.store.append("chat", [{"role": "user", "content": f"q{number}"}, answer])
    await db.store.append("chat", [{"role": "assistant", "content": "plain"}])
    html = (await browser.get("/sessions/chat")).text
    assert html.count('<details class="reasoning"><summary>Reasoning</summary>') == 25
    last = html[html.index('id="m-50"') : html.index('id="m-51"')]
    assert last.index("hm &lt;script&gt;") < last.index("so it is")
    assert "reasoning" not in html[html.index('id="m-49"') : html.index('id="m-50"')]
    assert "secret-signature" not in html
    one = (await browser.get("/sessions/chat/messages/50")).text
    assert one.index('<details class="reasoning">') < one.index("so it is")
    assert 'class="reasoning"' not in (await browser.get("/sessions/chat/messages/51")).text


async def test_reasoning_comes_live_with_its_message(db: SessionsDB) -> None:
    message = {"role": "assistant", "content": [THINKING, {"type": "text", "text": "so it is"}]}
    await db.store.append("chat", [message])
    async with (
        serving(db) as url,
        httpx2.AsyncClient(base_url=url, timeout=60) as browser,
        browser.stream("GET", "/sessions/chat/live?after=start") as response,
    ):
        async for event in events_of(response):
            if isinstance(event, Sent) and event.type == "message":
                break
    assert event.data["html"].index("hm &lt;script&gt;") < event.data["html"].index("so it is")


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
        {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
        {"image": {"format": "png", "source": {"bytes": PIXEL}}},
        {"type": "image", "base64": PIXEL, "mime_type": "image/png"},
    ],
    ids=["anthropic", "openai-chat", "openai-responses", "gemini", "bedrock", "langchain"],
)
async def test_an_image_in_a_message_is_shown(
    browser: httpx2.AsyncClient, db: SessionsDB, block: dict[str, object]
) -> None:
    text = {"text": "look"} if "type" not in block else {"type": "text", "text": "look"}
    await db.store.append("chat", [{"role": "user", "content": [text, block]}])
    for path in ("/sessions/chat", "/sessions/chat/messages/1"):
        assert '<img src="/sessions/chat/messages/1/images/1"' in (await browser.get(path)).text
    image = await browser.get("/sessions/chat/messages/1/images/1")
    assert image.headers["content-type"] == "image/png"
    assert image.content.startswith(b"\x89PNG")
    assert "sandbox" in image.headers["content-security-policy"]
    assert (await browser.get("/sessions/chat/messages/1/images/2")).status_code == 404


@pytest.mark.parametrize("data", ["PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==", "not base64", "", "a"])
def test_data_that_is_no_image_is_not_sent_as_one(data: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": data}
    assert image_of({"role": "user", "content": [{"type": "image", "source": source}]}, 1) is None


async def test_an_image_of_another_server_is_not_loaded(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    block = {"type": "image_url", "image_url": {"url": "https://spy.example/pixel.png"}}
    await db.store.append("chat", [{"role": "user", "content": [block]}])
    assert "<img" not in (await browser.get("/sessions/chat")).text


async def test_calls_and_results_of_tools_are_folded(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    call = {"type": "tool_use", "id": "1", "name": "<b>", "input": {"query": HOSTILE}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "12 <b>rows</b>"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]}
    await db.store.append("chat", [answer, {"role": "user", "content": [result]}])
    html = (await browser.get("/sessions/chat")).text
    assert '<details class="call"><summary>Calls <bdi><code>&lt;b&gt;</code></bdi>' in html
    assert "&#34;query&#34;: &#34;&lt;script&gt;" in html
    assert html.index("I look.") < html.index('<details class="call">')
    assert "<details><summary>Result of a tool" in html
    assert "<b>rows" not in html


async def test_the_message_of_a_dead_letter_is_shown(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await filled(db)
    for path in ("/dead-letters", "/sessions/dying/inbox/1"):
        assert "die &lt;script&gt;" in (await browser.get(path)).text, path
    assert 'href="/sessions/dying/inbox/1"' in (await browser.get("/sessions/dying")).text


async def test_the_sessions_of_a_report_are_links(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.broker.register("a/b", channel="web", peer="p")
    for name in ("sessions", "tree"):
        html = (await browser.get(f"/reports/{name}")).text
        assert 'href="/sessions/a%2Fb"' in html, name
        assert "What the columns mean" in html, name


async def test_a_search_finds_sessions_by_id_and_by_peer(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    for id, peer in (("a/1", "ann"), ("b/2", "ann"), ("ann", "bob")):
        await db.broker.register(id, channel="web", peer=peer)
    await db.broker.end("b/2")
    for query, ids in (("a/1", {"a/1"}), ("ann", {"a/1", "b/2", "ann"}), ("\x00", set())):
        html = (await browser.get("/search", params={"query": query})).text
        found = {id for id in ("a/1", "b/2", "ann") if f'href="{session_url(id)}"' in html}
        assert found == ids, query


# ---- forms ---------------------------------------------------------------------------------------


async def test_a_message_is_sent_from_the_page(browser: httpx2.AsyncClient, db: SessionsDB) -> None:
    await db.broker.register("a/b?c", channel="web", peer="p")
    url = "/sessions/a%2Fb%3Fc"
    response = await browser.post(f"{url}/send", data={"text": "hello", "author": "Ann"})
    assert (response.status_code, response.headers["location"]) == (303, url)
    [outcome] = await db.broker.inbox("a/b?c")
    assert outcome.message is not None
    assert (outcome.message.content, outcome.message.author) == ("hello", "Ann")
    assert "hello" in (await browser.get(url)).text


async def test_a_form_that_is_sent_twice_sends_one_message(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    [key] = re.findall(r'name="key" value="(\w+)"', (await browser.get("/sessions/chat")).text)
    for text in ("hello", "hello", "another"):  # The last one after a step back in the browser.
        form = {"text": text, "key": key}
        assert (await browser.post("/sessions/chat/send", data=form)).status_code == 303
    texts = [one.message.content for one in await db.broker.inbox("chat") if one.message]
    assert texts == ["hello", "another"]
    assert key not in (await browser.get("/sessions/chat")).text


async def test_a_question_is_answered_and_a_dead_letter_requeued(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await filled(db)
    [question] = await db.broker.questions()
    response = await browser.post(f"/questions/{question.id}/answer", data={"text": "the second"})
    assert response.status_code == 303
    assert await db.broker.questions() == []
    response = await browser.post("/dead-letters/requeue", data={"error": "ValueError"})
    assert response.status_code == 303
    assert await db.broker.dead_letters() == []


@pytest.mark.parametrize("id", ["team/chat", "a%2Fb", "a?b#c", "ä b"])
async def test_the_question_of_a_session_with_any_id_is_answered_on_its_page(
    browser: httpx2.AsyncClient, db: SessionsDB, id: str
) -> None:
    await db.broker.register(id, channel="web", peer="p")
    await db.broker.send(id, "please ask")
    await db.worker(answering).run_until_idle()
    [form] = re.findall('action="(/questions/[^"]*)"', (await browser.get("/questions")).text)
    assert (await browser.post(form, data={"text": "yes"})).status_code == 303
    assert await db.broker.questions() == []


async def test_all_messages_with_one_error_are_requeued_and_no_others(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    async def failing(turn: Turn) -> Reply:
        raise ValueError("wrong") if turn.prompt == "a" else RuntimeError("no ValueError: wrong")

    for text in ("a", "b"):
        await db.broker.register(text, channel="web", peer="p")
        await db.broker.send(text, text)
    await db.worker(failing, max_attempts=1).run_until_idle()
    await browser.post("/dead-letters/requeue", data={"error": "ValueError"})
    assert [one.receipt.session_id for one in await db.broker.dead_letters()] == ["b"]


async def test_a_message_that_waits_is_cancelled(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    receipt = await db.broker.send("chat", "hello")
    for path in ("/sessions/chat", "/sessions/chat/inbox/1"):
        assert 'action="/sessions/chat/inbox/1/cancel"' in (await browser.get(path)).text, path
    assert (await browser.post("/sessions/chat/inbox/1/cancel")).status_code == 303
    assert (await db.broker.outcome(receipt)).status == "cancelled"
    assert "/cancel" not in (await browser.get("/sessions/chat/inbox/1")).text


async def test_interrupt_end_reopen_and_fork(browser: httpx2.AsyncClient, db: SessionsDB) -> None:
    await filled(db)
    assert (await browser.post("/sessions/chat/interrupt")).status_code == 303
    fork = await browser.post("/sessions/chat/fork", data={"at": 1})
    assert fork.status_code == 303
    assert "fork-" in fork.headers["location"]
    assert (await browser.post("/sessions/chat/end")).status_code == 303
    assert (await db.broker.get("chat")).ended_at is not None
    refused = await browser.post("/sessions/chat/send", data={"text": "too late"})
    assert refused.status_code == 409
    assert "ended" in refused.text
    assert (await browser.post("/sessions/chat/reopen")).status_code == 303
    assert (await db.broker.get("chat")).ended_at is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
)
async def test_a_form_of_another_site_does_nothing(db: SessionsDB, headers: dict[str, str]) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    client = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(application(db)), base_url="http://127.0.0.1:8700"
    )
    async with client:
        response = await client.post("/sessions/chat/send", data={"text": "x"}, headers=headers)
    assert response.status_code == 403
    assert await db.broker.inbox("chat") == []


LINK = {
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}
"""What a browser sends for a link of another site that a person follows. It sends no origin."""


def stranger_for(db: SessionsDB, *, require_token: bool = False) -> httpx2.AsyncClient:
    app = application(db, require_token=require_token)
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8700", headers=LINK
    )


async def test_a_link_of_another_site_opens_each_page(db: SessionsDB) -> None:
    await filled(db)
    async with stranger_for(db) as browser:
        for path in PAGES:
            response = await browser.get(path)
            assert response.status_code == 200, path
            # The other site has no hold on the window that it opened.
            assert response.headers["cross-origin-opener-policy"] == "same-origin", path
        # A page of another host of the same site: chat.example.com and agents.example.com.
        assert (await browser.get("/", headers={"Sec-Fetch-Site": "same-site"})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/sessions/chat", {"Sec-Fetch-Dest": "iframe"}),
        ("GET", "/sessions/chat", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("GET", "/sessions/chat", {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}),
        ("GET", "/sessions/chat", {"Origin": "https://evil.example"}),
        ("GET", "/sessions/chat/live", {}),
        ("GET", "/api/v1/sessions", {}),
        ("GET", "/api/v1/sessions/chat/events", {}),
        ("GET", "/mcp", {}),
        ("POST", "/sessions/chat/end", {}),
        ("POST", "/login", {}),
    ],
)
async def test_another_site_gets_nothing_but_a_page_that_is_opened(
    db: SessionsDB, method: str, path: str, headers: dict[str, str]
) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    async with stranger_for(db) as browser:
        response = await browser.request(method, path, headers=headers)
    assert response.status_code == 403
    assert response.json()["title"] == "Foreign origin"
    assert (await db.broker.get("chat")).ended_at is None


async def test_a_link_of_another_site_leads_over_the_login_to_its_page(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    made = await tokens.create(db, "a person", rights="read")
    async with stranger_for(db, require_token=True) as browser:
        sent = await browser.get("/sessions/chat?before=3")
        form = await browser.get(sent.headers["location"])
        assert form.status_code == 200
        assert 'value="/sessions/chat?before=3"' in form.text
        login = {"token": made.secret, "back": "/sessions/chat?before=3"}
        own = {**OWN_FORM, "Sec-Fetch-Site": "same-origin"}
        into = await browser.post("/login", data=login, headers=own)
        assert into.headers["location"] == "/sessions/chat?before=3"
        # A browser sends a cookie with ``SameSite=Lax`` along with such a link.
        assert (await browser.get("/sessions/chat")).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"), [("/sessions/nobody", 404), ("/nowhere", 404), ("/sessions/%00", 400)]
)
async def test_an_error_is_a_page_for_a_browser_and_a_problem_for_a_script(
    browser: httpx2.AsyncClient, path: str, status: int
) -> None:
    problem = await browser.get(path)
    assert problem.headers["content-type"] == "application/problem+json"
    shown = await browser.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
    assert shown.status_code == problem.status_code == status
    assert shown.headers["content-type"].startswith("text/html")
    assert ("Not found" if status == 404 else "That did not work") in shown.text
    assert '<nav aria-label="Pages">' in shown.text
    api = await browser.get("/api/v1/sessions/nobody", headers={"Accept": "text/html"})
    assert api.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/", "GET"), ("/login", "GET, POST"), ("/static/page.js", "GET, HEAD")],
)
async def test_a_refused_method_names_those_of_the_page(
    browser: httpx2.AsyncClient, path: str, allowed: str
) -> None:
    refused = await browser.delete(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


# ---- access --------------------------------------------------------------------------------------


async def test_a_page_needs_a_token_and_keeps_it_in_a_cookie(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="web", peer="p")
    made = await tokens.create(db, "a person", rights="read")
    async with client_for(db, require_token=True) as browser:
        response = await browser.get("/sessions/chat?before=3")
        assert response.status_code == 303
        assert response.headers["location"] == "/login?back=%2Fsessions%2Fchat%3Fbefore%3D3"
        part = await browser.get("/", headers={"HX-Request": "true"})
        assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login?back=%2F")
        wrong = await browser.post("/login", data={"token": "sdb_wrong"})
        assert wrong.status_code == 401
        right = await browser.post("/login", data={"token": made.secret, "back": "/sessions"})
        assert (right.status_code, right.headers["location"]) == (303, "/sessions")
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        page = await browser.get("/sessions/chat")
        assert page.status_code == 200
        assert 'action="/sessions/chat/send"' not in page.text
        assert (await browser.post("/sessions/chat/send", data={"text": "x"})).status_code == 403
        assert (await browser.post("/logout")).status_code == 303
        assert (await browser.get("/")).status_code == 303


@pytest.mark.parametrize("back", ["https://evil.example", "//evil.example", "/\\evil.example"])
async def test_a_login_leads_to_no_other_host(db: SessionsDB, back: str) -> None:
    made = await tokens.create(db, "a person")
    async with client_for(db, require_token=True) as browser:
        response = await browser.post("/login", data={"token": made.secret, "back": back})
    assert response.headers["location"] == "/"


async def test_the_cookie_is_secure_behind_tls(db: SessionsDB) -> None:
    made = await tokens.create(db, "a person")
    app = application(db, require_token=True, allowed_hosts=["agents.example"])
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://agents.example"
    ) as browser:
        response = await browser.post(
            "/login", data={"token": made.secret}, headers={"Origin": "https://agents.example"}
        )
    assert "secure" in response.headers["set-cookie"].lower()


# ---- parts ---------------------------------------------------------------------------------------


def test_the_files_of_the_pages_are_local() -> None:
    from pathlib import Path

    from sessionsdb.web import pages

    folder = Path(pages.__file__).parent
    for file in [*folder.rglob("*.html"), *folder.rglob("*.css"), folder / "static" / "page.js"]:
        assert not re.search(r"(src|href|url|import)[=( \"']+(https?:)?//", file.read_text()), file
    assert (folder / "static" / "htmx.LICENSE.txt").exists()


def test_a_fence_is_no_way_to_write_markup() -> None:
    html = str(message_html("```html\n<script>x</script>\n```\nafter <b>"))
    assert "<script>" not in html
    assert "<b>" not in html
    assert '<pre tabindex="0"><code>' in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.25, "0.2 s"), (59, "59 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")],
)
def test_a_duration_has_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("rights", "has_form"), [("read", False), ("write", True)])
async def test_a_question_that_comes_live_has_a_form_for_those_who_may_answer(
    db: SessionsDB, rights: Rights, has_form: bool
) -> None:
    await filled(db)
    made = await tokens.create(db, "a person", rights=rights)
    async with (
        serving(db, require_token=True) as url,
        httpx2.AsyncClient(base_url=url, cookies={COOKIE: made.secret}, timeout=60) as browser,
        browser.stream("GET", "/sessions/asker/live?after=start") as response,
    ):
        async for event in events_of(response):
            if isinstance(event, Sent) and event.type == "turn" and event.data["status"] == "held":
                break
    assert "&lt;script&gt;" in event.data["html"]
    assert ("<form" in event.data["html"]) is has_form


def test_a_call_whose_arguments_are_cut_is_folded() -> None:
    html = str(message_html("I write.\n[tool_use: write input=" + "x" * 30_000))
    assert html.startswith('<p class="text">I write.</p><details class="call">')


def test_a_fence_without_an_end_is_code_to_the_end() -> None:
    html = str(message_html("look:\n  ```python\nprint(1)\n"))
    assert html.startswith('<p class="text">look:</p><pre tabindex="0"><code>')


def test_the_text_of_an_answer_has_links_code_and_bold_words() -> None:
    html = str(message_html("See https://a.example/b?c=1&d=2), `x < y` and **all** of 2**3**4."))
    rel = 'target="_blank" rel="noopener noreferrer nofollow"'
    link = "https://a.example/b?c=1&amp;d=2"
    assert f'<a href="{link}" {rel}>{link}</a>),' in html
    assert "<code>x &lt; y</code> and <strong>all</strong> of" in html


@pytest.mark.parametrize(
    "text",
    ["http://a\u202eb", "http://x.example/<script>", 'http://x" onclick="y', "javascript:x"],
)
def test_a_hostile_address_is_no_way_to_write_markup(text: str) -> None:
    html = str(message_html(text))
    assert "<script>" not in html
    assert "\u202e" not in html
    assert " onclick" not in html.replace("&#34; onclick", "")
    assert 'href="javascript' not in html


@pytest.mark.parametrize(
    "block",
    [
        "```autohotkey\n" + " \n" * 4_900,
        '```c\n"a"' + " " * 9_900 + '"b"',
        "```markdown\n~~~autohotkey\n" + " \n" * 4_800 + "~~~",
        "```python\n" + " \n" * 4_900,
        "```java\n<a " + "a\n" * 4_900,
        "```go\n" + '"\\' * 4_900,
    ],
)
def test_a_page_of_hostile_code_is_shown_in_a_limited_time(block: str) -> None:
    """Each took 0.8 to 40 s, and all pages of the process waited."""
    begin = time.process_time()
    with shared_time():
        shown = [str(message_html(block + "\n```\nbehind")) for _ in range(100)]
    assert time.process_time() - begin < 5
    assert all(len(one) > 9_000 and one.endswith('<p class="text">behind</p>') for one in shown)


@pytest.mark.parametrize(
    "part",
    [
        "```zz\nx\n```\n",
        "```\nx\n```\n",
        "```python\nx\n```\n",
        "[tool_use: a input=[]]\n",
        "`a`",
        "**a**",
        "http://a ",
        "\x1b",
        "\n",
    ],
)
def test_a_page_of_many_marks_is_shown_in_a_limited_time(part: str) -> None:
    """Each took 2 to 20 s, and all pages of the process waited. What is too much is plain."""
    text = (part * 20_000)[:19_999] + "\nthe end"
    begin = time.process_time()
    with shared_time():
        shown = [str(message_html(text, None)) for _ in range(100)]
    assert time.process_time() - begin < 2.5
    assert all("\nthe end</" in one or ">the end</" in one for one in shown)


async def test_a_hostile_page_is_made_beside_the_event_loop(
    browser: httpx2.AsyncClient, db: SessionsDB
) -> None:
    hostile = {"role": "user", "content": "`a`" * 6_000}
    await db.store.append("chat", [hostile] * 100)
    assert (await browser.get("/health")).status_code == 200
    with loop_share() as share:
        html = (await browser.get("/sessions/chat")).text
    assert html.count("`a`") > 100_000, "all of it has marks"
    assert share() < 0.6  # 0.1 in a thread, 1 on the event loop


def test_code_has_colours_in_the_known_languages_only() -> None:
    for language in sorted(LANGUAGES):
        html = str(message_html(f"```{language}\nx: 1 < 2\n```"))
        assert "&lt;" in html
    assert "<span" in str(message_html("```py\nprint(1)\n```"))
    for language in ("c", "nonsense", ""):
        html = str(message_html(f"```{language}\nint x = 1 < 2;\n```"))
        assert html == '<pre tabindex="0"><code>int x = 1 &lt; 2;</code></pre>'


def test_the_code_of_a_page_shares_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "```python\nprint(1)\n```"
    monkeypatch.setattr(code_colours, "PAGE_SECONDS", 0.0)
    assert "<span" not in str(message_html(text))
    monkeypatch.undo()
    with shared_time():
        assert "<span" in str(message_html(text))
        while "<span" in str(message_html(text)):
            pass  # until the time of the page is spent
        with shared_time():
            assert "<span" in str(message_html(text))  # another page
    assert "<span" in str(message_html(text))


@pytest.mark.parametrize(
    "text",
    ["```x\n", "[tool_use: a input=[[[]\n", "[tool_use: a input=", "**a ", "`", "http://a "],
)
def test_the_time_to_show_a_text_grows_with_its_length_only(text: str) -> None:
    """A text of a megabyte takes about a second. In its square it would take hours."""
    assert len(message_html(text * (1_000_000 // len(text)), None)) > 900_000


async def test_the_tokens_of_a_tree_are_read_for_its_sessions_only(db: SessionsDB) -> None:
    for id in ("a", "b", "c"):
        await db.broker.register(id, channel="c", peer="p")
    report = await read_sessions(db, {"a", "b", "unknown"})
    assert {row["session_id"] for row in report.dicts()} == {"a", "b"}
    assert (await read_sessions(db.in_namespace("other"), {"a"})).rows == []
