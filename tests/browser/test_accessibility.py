"""Each page is checked by axe-core: names, roles, labels, contrast, in light and in dark, on a wide
and on a narrow screen. No page scrolls sideways.

``SESSIONSDB_TEST_AXE`` is the path of its ``axe.min.js``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from sessionsdb import Receipt, SpawnRequest
from sessionsdb.sync import SessionsDB
from tests.browser.served import Served

PAGES = [
    "/",
    "/sessions",
    "/sessions/chat",
    "/sessions/asker",
    "/sessions/ended",
    "/sessions/chat/messages/2",
    "/sessions/dying/inbox/1",
    "/sessions/chat/tree",
    "/questions",
    "/schedules",
    "/dead-letters",
    "/reports",
    *(f"/reports/{name}" for name in ("sessions", "turns", "activity", "latency", "inbox", "tree")),
    "/search",
    "/search?query=hello",
    "/sessions/nobody",
    "/login",
]

CODE = """Look:

```python
class A(B):
    # A comment
    def f(self, x=1.5):
        \"\"\"Text.\"\"\"
        return [None, True, "text", print(x)] and not x
```
"""

WIDTHS = (1280, 360)
WORD = "w" * 400
"""No line has room for it."""

THINKING = {"type": "thinking", "thinking": "The user greets."}
SERIOUS = ("serious", "critical")


@pytest.fixture(params=["light", "dark"])
def scheme_page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page in one colour scheme. Without motion: a message that fades in has no contrast yet."""
    page = browser.new_page(color_scheme=request.param, reduced_motion="reduce")
    yield page
    page.close()


def fill(db: SessionsDB) -> None:
    """Give every page something to show."""
    broker = db.broker
    answer = {"role": "assistant", "content": [THINKING, {"type": "text", "text": CODE}]}
    called = {"role": "tool", "content": "a result", "tool_call_id": "1"}
    messages = [{"role": "user", "content": "hello"}, answer, called]
    db.store.append("chat", [*messages, {"role": "system", "content": "Be kind."}])
    for id in ("asker", "dying", "ended"):
        broker.register(id, channel="web", peer="ann", metadata={"a": 1})
    broker.end("ended", reason="done")
    broker.register(WORD, channel=WORD[:100], peer=WORD)
    db.store.append(WORD, [{"role": "user", "content": f"hello {WORD}"}])
    broker.schedule(WORD, WORD, at=datetime(2099, 1, 1, tzinfo=UTC))
    child = broker.spawn("chat", SpawnRequest(prompt="help"))
    broker.wait(Receipt(session_id=child.id, position=1), timeout=60)
    broker.wait(broker.send("asker", "please ask", author="ann"), timeout=60)
    broker.send("asker", "behind the question")
    broker.wait(broker.send("dying", f"die {WORD}"), timeout=60)


def faults(page: Page) -> list[str]:
    """Return the serious faults, each with the first element that has it."""
    # Evaluated by the browser's own protocol, which the Content-Security-Policy does not hold.
    page.evaluate(Path(os.environ["SESSIONSDB_TEST_AXE"]).read_text())
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"]
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"][:1]
    ]


def test_axe_finds_no_serious_fault_on_any_page_and_no_page_scrolls_sideways(
    scheme_page: Page, served: Served, db: SessionsDB
) -> None:
    fill(db)
    found: list[str] = []
    for path in (*PAGES, f"/sessions/{WORD}"):
        scheme_page.goto(served.url + path)
        scheme_page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        for width in WIDTHS:
            scheme_page.set_viewport_size({"width": width, "height": 740})
            found += [f"{path} at {width}: {one}" for one in faults(scheme_page)]
            if scheme_page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{path} at {width}: it scrolls sideways")
    assert found == [], "\n".join(found)


def test_axe_finds_no_serious_fault_while_a_reply_streams_and_in_the_list_of_keys(
    scheme_page: Page, served: Served, db: SessionsDB
) -> None:
    db.broker.send("chat", "endless")
    scheme_page.goto(f"{served.url}/sessions/chat")
    expect(scheme_page.locator("#reply .text")).to_contain_text("word5")
    assert faults(scheme_page) == []
    scheme_page.keyboard.press("?")
    expect(scheme_page.get_by_role("dialog")).to_be_visible()
    assert faults(scheme_page) == []


def test_axe_finds_a_fault_that_is_there(scheme_page: Page, served: Served) -> None:
    scheme_page.goto(served.url)
    scheme_page.evaluate("document.querySelector('main').innerHTML = '<input><a href=\"/\"></a>'")
    assert any(fault.startswith("label: ") for fault in faults(scheme_page))
