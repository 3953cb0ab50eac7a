"""The commands questions and answer, and questions in a chat."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import OpenQuestion, Question, Reply, SessionsDB, Turn
from tests.support.command_line import CommandLine
from tests.support.terminal import CTRL_D, on_terminal
from tests.test_cli_chat import chat, session_of
from tests.test_cli_chat_parts import turn as turn_event
from tests.test_event_printer import printed

AGENT = """
from sessionsdb import Question, Reply

async def ask(turn):
    if turn.answer is not None:
        return f"{turn.answer.status}: {turn.text}"
    if turn.text == "ask":
        return Reply("Let me ask.", ask=Question(prompt="Delete it?\\n\\x1b[31mReally?"))
    return f"heard {turn.text}"
"""


def ask(url: str, **question: object) -> None:
    """Let the session ``chat-1`` ask a question, or go on behind its answer."""

    async def handler(turn: Turn) -> Reply:
        if turn.answer is None:
            return Reply("Let me ask.", ask=Question.model_validate(question))
        return Reply(f"heard {turn.text}")

    async def work() -> None:
        async with SessionsDB(url) as db:
            await db.worker(handler).run_until_idle()

    asyncio.run(work())


@pytest.fixture
def cli(database: Database) -> CommandLine:
    cli = CommandLine(database.url)
    cli("register", "chat-1").ok()
    assert cli("questions").ok().stderr == "no open questions\n"
    cli("send", "chat-1", "hello").ok()
    data = {"path": "/srv/" + "a" * 100}
    ask(database.url, prompt="Delete it?\nReally?", data=data, expires_in=3600)
    return cli


def test_questions_shows_what_is_asked_within_eighty_columns(cli: CommandLine) -> None:
    shown = cli("questions").ok().stdout.splitlines()
    assert shown[0] == "chat-1:1"
    assert shown[1].startswith("    asked ")
    assert ", expires " in shown[1]
    assert shown[2:4] == ["    Delete it?", "    Really?"]
    assert shown[4].startswith('    {"path":"/srv/aaa')
    assert shown[4].endswith("…")
    assert max(map(len, shown)) <= 80
    [question] = cli("questions", "chat-1", "--json").ok().json
    assert question["id"] == "chat-1:1"
    assert cli("questions", "--limit", "1").ok().stdout


def test_an_answer_is_stored_once(cli: CommandLine) -> None:
    answered = cli("answer", "chat-1:1", "yes", "--author", "ada").ok()
    assert answered.stdout == "answered: message 2 of session chat-1\n"
    again = cli("answer", "chat-1:1", "yes", "--author", "ada").ok()
    assert "answered before: nothing was added" in again.stdout
    refused = cli("answer", "chat-1:1", "no")
    assert (refused.code, refused.stdout) == (1, "")
    assert "question chat-1:1 is answered already" in refused.stderr
    assert "unknown question" in cli("answer", "chat-1:7", "no").stderr
    assert cli("answer", "chat-1:1", "yes", "--author", "ada", "--json").ok().json["duplicate"]
    ask(cli.url)
    texts = [one["content"] for one in cli("history", "chat-1", "--json").ok().json]
    assert texts == ["hello", "Let me ask.", "yes", "heard yes"]


def test_a_full_export_is_restored_with_its_question(cli: CommandLine, tmp_path: Path) -> None:
    before = cli("questions", "--json").ok().json
    file = str(tmp_path / "all.jsonl")
    cli("export", "--full", "--output", file).ok()
    cli("delete", "chat-1").ok()
    assert cli("questions", "--json").ok().json == []
    cli("import", file).ok()
    assert cli("questions", "--json").ok().json == before
    cli("answer", "chat-1:1", "yes").ok()


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_chat_shows_a_question_and_answers_it(database: Database, tmp_path: Path) -> None:
    (tmp_path / "asking_agent.py").write_text(AGENT)
    words = chat(CommandLine(database.url), "--agent", "asking_agent:ask")
    with on_terminal(words, folder=tmp_path) as terminal:
        session_of(terminal)
        terminal.type("ask\r")
        shown = terminal.read_until("the next message answers the question")
        assert "? Delete it?\n? \\x1b[31mReally?\n" in shown
        terminal.type("yes\r")
        terminal.read_until("answered: yes")
        terminal.type(CTRL_D)
        terminal.read_to_end()


def test_a_chat_in_a_pipe_shows_the_question(database: Database, tmp_path: Path) -> None:
    (tmp_path / "asking_agent.py").write_text(AGENT)
    cli = CommandLine(database.url)
    cli("register", "chat-1").ok()
    words = ("chat", "chat-1", "--agent", "asking_agent:ask")
    asked = cli.program(*words, input=b"ask", cwd=tmp_path).ok()
    question = "? Delete it?\n? \\x1b[31mReally?\n"
    assert asked.stdout == f"Let me ask.\n{question}"
    assert asked.stderr == "the next message answers question chat-1:1\n"
    # Who comes later sees what the first line answers.
    answered = cli.program(*words, input=b"yes\nthanks", cwd=tmp_path).ok()
    assert answered.stdout == f"{question}answered: yes\nheard thanks\n"
    assert answered.stderr == asked.stderr


def test_follow_prints_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    held = turn_event("held", 1)
    asked = OpenQuestion.model_validate(
        {
            "id": "chat 1:1",
            "session_id": "chat 1",
            "prompt": "Delete\nit?",
            "asked_at": held.at,
            "receipt": {"session_id": "chat 1", "position": 1},
        }
    )
    [line] = printed(capsys, held.model_copy(update={"question": asked}))
    assert line == "* asks a person: Delete it? (sessionsdb answer 'chat 1:1' TEXT)"
