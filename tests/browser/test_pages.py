"""The pages in a real browser, as a person uses them: ``make test-browser``.

Needs a Chromium. ``SESSIONSDB_TEST_BROWSER`` is its path.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect, sync_playwright

from sessionsdb.sync import SessionsDB

expect.set_options(timeout=20_000)

AGENT = """
import asyncio
from pathlib import Path
from sessionsdb import Question, Reply

async def handle(turn):
    if turn.answer is not None:
        return f"you said {turn.answer.message.content}"
    if "ask" in turn.prompt:
        return Reply("let me ask", ask=Question(prompt="Delete the file?"))
    if "die" in turn.prompt and not Path("mended").exists():
        raise ValueError("the disk is full")
    if "endless" in turn.prompt:
        for number in range(100_000):
            turn.stream(f"word{number} ")
            await asyncio.sleep(0.02)
    turn.stream("one two ")
    while "slowly" in turn.prompt and not Path("go").exists():
        await asyncio.sleep(0.02)
    return "one two three four"
"""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SessionsDB]:
    with SessionsDB(f"sqlite:///{tmp_path / 'sessions.db'}") as db:
        db.broker.register("chat", channel="web", peer="ann")
        yield db


class Served:
    """A server and a worker, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database = f"sqlite:///{folder / 'sessions.db'}"
        (folder / "agent.py").write_text(AGENT)
        self.worker = self._run(
            "worker", "agent:handle", "--max-attempts", "1", "--poll", "0.2", "--grace", "0"
        )
        self.server = self._run("serve", "--port", "0")
        try:
            self.url = self._address()
        except BaseException:
            self.close()
            raise
        self._port = self.url.rpartition(":")[2]

    def _run(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sessionsdb", "--url", self._database, *words],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _address(self) -> str:
        assert self.server.stdout is not None
        lines = []
        for line in self.server.stdout:
            if "http://" in line:
                return "http://" + line.split("http://")[1].split()[0]
            lines.append(line)
        raise AssertionError(f"the server did not start: {''.join(lines)}")

    def restart_server(self, between: object = None) -> None:
        """Stop the server, call ``between``, and start it on the same port."""
        kill(self.server)
        if callable(between):
            between()
        self.server = self._run("serve", "--port", self._port)
        self._address()

    def close(self) -> None:
        kill(self.server)
        kill(self.worker)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process, also one that was killed before."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def served(db: SessionsDB, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ["SESSIONSDB_TEST_BROWSER"], args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: object) -> Iterator[Page]:
    """A page whose scripts must not fail."""
    page: Page = browser.new_page()  # type: ignore[attr-defined]
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    page.close()
    assert problems == []


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
    (tmp_path / "go").touch()
    expect(messages(page)).to_have_count(2)  # type: ignore[arg-type]
    expect(page.locator("#transcript .assistant .text")).to_have_text("one two three four")
    expect(page.locator("#reply")).to_be_hidden()
    expect(page.locator("#state")).to_have_text("idle")


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
    expect(messages(page)).to_have_count(2)  # type: ignore[arg-type]

    def meanwhile() -> None:
        expect(page.locator("#lost")).to_be_visible()
        db.broker.wait(db.broker.send("chat", "second"), timeout=30)

    served.restart_server(meanwhile)
    expect(page.locator("#lost")).to_be_hidden()
    expect(messages(page)).to_have_count(4)  # type: ignore[arg-type]
    ids = page.locator("#transcript > .message").evaluate_all("all => all.map(one => one.id)")
    assert ids == ["m-1", "m-2", "m-3", "m-4"]


def test_a_hostile_transcript_does_nothing(page: Page, served: Served, db: SessionsDB) -> None:
    hostile = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    db.store.append("chat", [{"role": "user", "content": hostile + "x" * 1_000_000}])
    page.goto(f"{served.url}/sessions/chat")
    db.broker.wait(db.broker.send("chat", hostile, author=hostile), timeout=30)
    expect(messages(page)).to_have_count(3)  # type: ignore[arg-type]
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
