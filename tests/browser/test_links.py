"""Links of other sites to the pages, as in a chat or a mail, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from sessionsdb.sync import SessionsDB
from tests.browser.served import Served

OTHER_SITE = "http://chat.example/"


@pytest.fixture
def locked(db: SessionsDB, tmp_path: Path) -> Iterator[Served]:
    """A server that asks for a token."""
    served = Served(tmp_path, "--require-token")
    yield served
    served.close()


def show_on_another_site(page: Page, html: str) -> None:
    """Open a page of another site."""

    def answer(route: Route) -> None:
        route.fulfill(body=html, content_type="text/html")

    page.route(f"{OTHER_SITE}**", answer)
    page.goto(OTHER_SITE)


def follow_link(page: Page, url: str) -> None:
    show_on_another_site(page, f'<a href="{url}">look at this</a>')
    page.get_by_role("link", name="look at this").click()


def test_a_link_of_another_site_opens_the_page(page: Page, served: Served, db: SessionsDB) -> None:
    db.store.append("chat", [{"role": "user", "content": "hello"}])
    follow_link(page, f"{served.url}/sessions/chat")
    expect(page.locator("#transcript .message")).to_contain_text("hello")
    page.reload()
    expect(page.locator("#transcript .message")).to_contain_text("hello")


def test_a_link_leads_over_the_login_to_its_page_and_is_followed_at_once_later(
    page: Page, locked: Served
) -> None:
    follow_link(page, f"{locked.url}/sessions/chat")
    page.get_by_label("Token").fill(locked.make_token())
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{locked.url}/sessions/chat")
    expect(page.locator("h1")).to_contain_text("chat")
    follow_link(page, f"{locked.url}/sessions")
    expect(page.locator("h1")).to_contain_text("Sessions")


def test_another_site_sends_no_form_and_shows_no_page_in_a_frame(
    page: Page, served: Served, db: SessionsDB
) -> None:
    end = f"{served.url}/sessions/chat/end"
    form = f'<form method="post" action="{end}"><button>Win a prize</button></form>'
    show_on_another_site(page, f'{form}<iframe src="{served.url}/sessions/chat"></iframe>')
    assert "chat" not in page.frames[1].content()
    page.get_by_role("button", name="Win a prize").click()
    expect(page.locator("main")).to_contain_text("another origin")
    assert db.broker.get("chat").ended_at is None
