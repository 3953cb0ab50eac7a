"""Links of other sites to the pages, as in a chat or a mail, in a real browser.

The other site is a server of its own on this machine. A page that a test makes up counts as a page
of the internet. Chromium keeps its frames from all local servers, also from one that allows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from playwright.sync_api import Page, expect

from sessionsdb.sync import SessionsDB
from tests.browser.served import Served


@contextmanager
def other_site(html: str) -> Iterator[str]:
    """Serve a page of another site, and give its address: ``localhost`` is not ``127.0.0.1``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def follow_link(page: Page, url: str) -> None:
    with other_site(f'<a href="{url}">look at this</a>') as site:
        page.goto(site)
        page.get_by_role("link", name="look at this").click()


def test_a_link_of_another_site_opens_the_page(page: Page, served: Served, db: SessionsDB) -> None:
    db.store.append("chat", [{"role": "user", "content": "hello"}])
    follow_link(page, f"{served.url}/sessions/chat")
    expect(page.locator("#transcript .message")).to_contain_text("hello")
    page.reload()
    expect(page.locator("#transcript .message")).to_contain_text("hello")


def test_a_link_leads_over_the_login_to_its_page_and_is_followed_at_once_later(
    page: Page, locked: Served, token: str
) -> None:
    follow_link(page, f"{locked.url}/sessions/chat")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{locked.url}/sessions/chat")
    expect(page.locator("h1")).to_contain_text("chat")
    follow_link(page, f"{locked.url}/sessions")
    expect(page.locator("h1")).to_contain_text("Sessions")


def test_another_site_sends_no_form_and_shows_no_page_in_a_frame(
    page: Page, served: Served, db: SessionsDB
) -> None:
    url = f"{served.url}/sessions/chat"
    form = f'<form method="post" action="{url}/end"><button>Win a prize</button></form>'
    with other_site(f'{form}<iframe src="{url}"></iframe>') as site:
        with page.expect_response(url) as framed:
            page.goto(site)
        assert framed.value.status == 403
        page.get_by_role("button", name="Win a prize").click()
        expect(page.locator("main")).to_contain_text("another origin")
    assert db.broker.get("chat").ended_at is None
