"""Links of other sites to the pages, as in a chat or a mail, in a real browser."""

from __future__ import annotations

from playwright.sync_api import Page, Route, expect

from sessionsdb.sync import SessionsDB
from tests.browser.served import Served

OTHER_SITE = "http://chat.example/"


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
