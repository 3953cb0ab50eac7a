"""The pages in a real browser, as a person uses them: ``make test-browser``.

Needs a Chromium. ``SESSIONSDB_TEST_BROWSER`` is its path.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, Route, expect

from sessionsdb import SpawnRequest
from sessionsdb.sync import SessionsDB
from tests.browser.served import Served


def send(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def messages(page: Page) -> object:
    return page.locator("#transcript > .message")


def test_a_message_is_sent_and_its_reply_streams_in(
    page: Page, served: Served, tmp_path: Path
) -> None:
    page.goto(f"{served.url}/sessions/chat")
    send(page, "slowly")
    expect(page.locator("#reply .text")).to_contain_text("one two")
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#running li")).to_contain_text("slowly")
    expect(page.get_by_label("Message")).to_be_focused()
    (tmp_path / "go").touch()
    expect(messages(page)).to_have_count(2)
    expect(page.locator("#transcript .assistant .text")).to_have_text("one two three four")
    expect(page.locator("#reply")).to_be_hidden()
    expect(page.locator("#running li")).to_have_count(0)
    expect(page.locator("#state")).to_have_text("idle")
    expect(page.get_by_role("button", name="Interrupt the turn")).to_be_hidden()


def test_a_turn_is_interrupted(page: Page, served: Served) -> None:
    page.goto(f"{served.url}/sessions/chat")
    send(page, "endless")
    expect(page.locator("#reply .text")).to_contain_text("word5")
    page.get_by_role("button", name="Interrupt the turn").click()
    expect(page.locator("#transcript .assistant .state")).to_have_text("stopped")
    expect(page.locator("#transcript .assistant .text")).to_contain_text("word5")
    expect(page.locator("#state")).to_have_text("idle")


def test_a_question_is_answered(page: Page, served: Served) -> None:
    page.goto(f"{served.url}/sessions/chat")
    send(page, "please ask")
    expect(page.locator(".question .text")).to_have_text("Delete the file?")
    expect(page.get_by_role("button", name="Withdraw the question")).to_be_visible()
    page.get_by_label("Answer").fill("yes, please")
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("#transcript .message").last).to_contain_text("you said yes, please")
    page.goto(f"{served.url}/questions")
    expect(page.locator("main")).to_contain_text("No agent waits for an answer")


def test_an_answer_that_is_being_written_survives_the_first_event(
    page: Page, served: Served, db: SessionsDB
) -> None:
    db.broker.send("chat", "please ask")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/live?*", hold)
    page.goto(f"{served.url}/sessions/chat")
    while not page.locator(".question").count():  # The worker has not asked yet.
        page.reload()
    page.get_by_label("Answer").fill("yes, please")
    with page.expect_response("**/live?*"):
        held[-1].continue_()
    db.broker.send("chat", "behind it")
    expect(page.locator("#waiting li")).to_have_count(1)
    expect(page.get_by_label("Answer")).to_have_value("yes, please")


def test_the_page_of_an_ended_session_stays(page: Page, served: Served, db: SessionsDB) -> None:
    db.broker.end("chat")
    page.goto(f"{served.url}/sessions/chat")
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    page.evaluate(
        """() => new Promise((done) => {
            const source = new EventSource(document.getElementById("live").dataset.url);
            source.addEventListener("ended", () => { source.close(); done(); });
        })"""
    )
    page.reload()
    assert len(loads) == 1
    expect(page.locator("#state")).to_have_text("ended")


def test_a_dead_letter_is_requeued(
    page: Page, served: Served, db: SessionsDB, tmp_path: Path
) -> None:
    receipt = db.broker.send("chat", "die")
    db.broker.wait(receipt, timeout=30)
    page.goto(f"{served.url}/dead-letters")
    expect(page.locator("main")).to_contain_text("the disk is full")
    (tmp_path / "mended").touch()
    page.get_by_role("button", name="Requeue", exact=True).click()
    expect(page.locator("main")).to_contain_text("No message has died")
    page.goto(f"{served.url}/sessions/chat")
    expect(page.locator("#transcript .assistant .text")).to_have_text("one two three four")


def test_a_lost_connection_comes_back_without_loss(
    page: Page, served: Served, db: SessionsDB
) -> None:
    with page.expect_response("**/live?*"):
        page.goto(f"{served.url}/sessions/chat")
    with page.expect_response("**/live?*"):  # The page that comes back is connected, too.
        send(page, "first")
    expect(messages(page)).to_have_count(2)

    def meanwhile() -> None:
        expect(page.locator("#lost")).to_be_visible()
        db.broker.wait(db.broker.send("chat", "second"), timeout=30)

    served.restart_server(meanwhile)
    expect(page.locator("#lost")).to_be_hidden()
    expect(messages(page)).to_have_count(4)
    ids = page.locator("#transcript > .message").evaluate_all("all => all.map(one => one.id)")
    assert ids == ["m-1", "m-2", "m-3", "m-4"]


def test_the_page_of_a_tree_comes_back_after_a_lost_connection(
    page: Page, served: Served, db: SessionsDB
) -> None:
    page.goto(f"{served.url}/sessions/chat/tree")
    expect(page.locator("#tree li")).to_have_count(1)

    def meanwhile() -> None:
        with page.expect_event("requestfailed"):
            db.broker.spawn("chat", SpawnRequest(prompt="hello"))

    served.restart_server(meanwhile)
    expect(page.locator("#tree li")).to_have_count(2)


def test_the_page_of_a_session_that_ends_shows_it_and_stays(
    page: Page, served: Served, db: SessionsDB
) -> None:
    visits: list[str] = []
    page.on("framenavigated", lambda frame: visits.append(frame.url))
    with page.expect_response("**/live?*"):
        page.goto(f"{served.url}/sessions/chat")
    with page.expect_response("**/live?*"):
        db.broker.end("chat", reason="done")
    expect(page.locator("#state")).to_have_text("ended")
    before = len(visits)
    for _ in range(3):  # The page had the event before each of these streams has it.
        page.evaluate(
            """() => new Promise((seen) => {
                const source = new EventSource("/sessions/chat/live?after=start");
                source.addEventListener("ended", () => { source.close(); seen(); });
            })"""
        )
    assert len(visits) == before


def test_a_hostile_transcript_does_nothing(page: Page, served: Served, db: SessionsDB) -> None:
    hostile = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    db.store.append("chat", [{"role": "user", "content": hostile + "x" * 1_000_000}])
    page.goto(f"{served.url}/sessions/chat")
    db.broker.wait(db.broker.send("chat", hostile, author=hostile), timeout=30)
    expect(messages(page)).to_have_count(3)
    assert "owned" not in page.title()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_keys_lead_to_the_pages(page: Page, served: Served) -> None:
    page.goto(served.url)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("q")
    expect(page).to_have_url(f"{served.url}/questions")
    page.goto(f"{served.url}/sessions/chat")
    page.keyboard.press("m")
    expect(page.get_by_label("Message")).to_be_focused()


def test_a_page_that_is_loaded_again_keeps_the_focus(
    page: Page, served: Served, db: SessionsDB
) -> None:
    page.goto(served.url)
    link = page.get_by_role("link", name="chat", exact=True)
    link.focus()
    db.broker.register("another", channel="web", peer="bob")
    expect(page.get_by_role("link", name="another")).to_be_visible()
    expect(link).to_be_focused()


def test_a_page_whose_login_ends_leads_to_the_login(page: Page, locked: Served, token: str) -> None:
    """Its lists went away, and nothing said why."""
    page.goto(locked.url)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#now")).to_be_visible()
    page.context.clear_cookies()
    expect(page).to_have_url(f"{locked.url}/login?back=%2F")
    expect(page.get_by_label("Token")).to_be_visible()
