"""Tool calls that a person approves: results stand behind their calls, whatever becomes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Answer, Edit, Limits, Question, Reply, SessionMessage, SessionsDB, Turn
from sessionsdb.approvals import (
    ModelCallLimit,
    ToolApprovals,
    ToolCall,
    describe_calls,
    question_data,
    result_ids,
    says_yes,
    tool_calls,
)
from tests.support.turns import claim
from tests.support.work import SOON
from tests.test_questions import expire

Message = dict[str, Any]
CALLS = (("c1", "delete", {"path": "a"}), ("c2", "look", {"path": "b"}))


def openai(text: str = "", calls: Any = ()) -> Message:
    made = [
        {"id": id, "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
        for id, n, a in calls
    ]
    return {"role": "assistant", "content": text} | ({"tool_calls": made} if made else {})


def anthropic(text: str = "", calls: Any = ()) -> Message:
    blocks = [{"type": "tool_use", "id": id, "name": n, "input": a} for id, n, a in calls]
    return {"role": "assistant", "content": [{"type": "text", "text": text or "-"}, *blocks]}


FORMS = {"openai": openai, "anthropic": anthropic}


def check(transcript: list[Message], form: str) -> None:
    """Check the rules of a provider: all results stand directly behind their calls, once each."""
    index = 0
    while index < len(transcript):
        message = transcript[index]
        assert not result_ids(message), "a result without its call"
        calls = [call.id for call in tool_calls(message)]
        index += 1
        if not calls:
            continue
        if form == "anthropic":
            assert transcript[index]["role"] == "user"
            found = result_ids(transcript[index])
            assert transcript[index]["content"][0]["type"] == "tool_result"
            index += 1
        else:
            behind = transcript[index : index + len(calls)]
            assert [one["role"] for one in behind] == ["tool"] * len(calls)
            found = [id for one in behind for id in result_ids(one)]
            index += len(calls)
        assert sorted(found) == sorted(calls)


class Agent:
    """A model that calls tools at ``go``, and that checks each conversation that it gets."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.ran: list[str] = []
        self.broken = False
        self.tools = ToolApprovals(self.run, requires_approval={"delete"})

    async def run(self, call: ToolCall) -> str:
        self.ran.append(call.id)
        if call.arguments == {"path": "broken"}:
            raise OSError("no such file")
        return f"{call.name} done"

    async def model(self, conversation: list[Message]) -> Message:
        check(conversation, self.form)
        if self.broken:
            raise RuntimeError("the model is away")
        last = conversation[-1]
        calls = CALLS if last.get("content") == "go" else ()
        return FORMS[self.form]("" if calls else "finished", calls)

    async def __call__(self, turn: Turn) -> Reply:
        return await self.tools.run_turn(turn, self.model)

    async def work(self, db: SessionsDB, max_attempts: int = 1) -> None:
        await db.worker(self, retry=SOON, max_attempts=max_attempts).run_until_idle()

    async def whole(self, db: SessionsDB) -> list[Message]:
        """Return the transcript, which has a result for each call."""
        transcript = await db.store.load("chat") or []
        check(transcript, self.form)
        return transcript

    async def results(self, db: SessionsDB) -> list[str]:
        found = []
        for message in await self.whole(db):
            if message["role"] == "tool":
                found.append(message["content"])
            elif result_ids(message):
                found += [block["content"] for block in message["content"]]
        return found


@pytest.fixture(params=FORMS)
def agent(request: pytest.FixtureRequest) -> Agent:
    return Agent(request.param)


async def asked(db: SessionsDB, agent: Agent) -> str:
    """Let the model ask for its tools, and return the id of the question."""
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "go")
    await agent.work(db)
    [question] = await db.broker.questions()
    assert question.prompt == 'Run delete {"path": "a"}?'
    assert [call["id"] for call in question.data["tool_calls"]] == ["c1", "c2"]
    assert agent.ran == []
    return question.id


async def test_an_approved_call_is_run(db: SessionsDB, agent: Agent) -> None:
    question = await asked(db, agent)
    await db.broker.send("chat", "and then?")
    await db.broker.answer(question, "yes", author="ada")
    await agent.work(db)
    assert agent.ran == ["c1", "c2"]
    assert await agent.results(db) == ["delete done", "look done"]
    texts = [one["content"] for one in await agent.whole(db) if one["role"] == "user"]
    assert [text for text in texts if isinstance(text, str)] == ["go", "yes", "and then?"]


async def test_a_denied_call_is_not_run_and_says_why(db: SessionsDB, agent: Agent) -> None:
    question = await asked(db, agent)
    await db.broker.answer(question, "no, keep the file")
    await agent.work(db)
    assert agent.ran == ["c2"]
    denied = "Not run: a person denied it, with the words: no, keep the file"
    assert await agent.results(db) == [denied, "look done"]


def same_ids(id: str | None) -> Message:
    """Return a message whose two calls have one id, or none, as some endpoints write them."""
    message = openai("", ((id, "delete", {"path": "a"}), (id, "look", {"path": "b"})))
    if id is None:
        for call in message["tool_calls"]:
            del call["id"]
    return message


class SameIds(Agent):
    """A model that gives both of its calls one id. The names of the tools that ran are kept."""

    def __init__(self, id: str | None) -> None:
        super().__init__("openai")
        self.id = id

    async def run(self, call: ToolCall) -> str:
        self.ran.append(call.name)
        return f"{call.name} done"

    async def model(self, conversation: list[Message]) -> Message:
        has_results = any(result_ids(one) for one in conversation)
        return openai("finished") if has_results else same_ids(self.id)


@pytest.mark.parametrize("id", ["a", "", None])
@pytest.mark.parametrize("text", ["no", "yes a", None])
async def test_a_denied_call_is_not_run_if_another_call_has_its_id(
    db: SessionsDB, database: Database, id: str | None, text: str | None
) -> None:
    agent = SameIds(id)
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "go")
    await agent.work(db)
    [question] = await db.broker.questions()
    if text is None:
        await expire(database)
    else:
        await db.broker.answer(question.id, text)
    await agent.work(db)
    assert agent.ran == []
    assert [text.partition(":")[0] for text in await agent.results(db)] == ["Not run", "Not run"]


@pytest.mark.parametrize("id", ["a", "", None])
async def test_calls_with_one_id_are_run_if_a_person_approves_all(
    db: SessionsDB, id: str | None
) -> None:
    agent = SameIds(id)
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "go")
    await agent.work(db)
    [question] = await db.broker.questions()
    await db.broker.answer(question.id, "yes")
    await agent.work(db)
    assert agent.ran == ["delete", "look"]
    assert await agent.results(db) == ["delete done", "look done"]


async def test_a_call_that_was_changed_after_the_question_is_not_run(
    db: SessionsDB, agent: Agent
) -> None:
    question = await asked(db, agent)
    [_, calls] = await db.store.entries("chat")
    changed = FORMS[agent.form]("", [("c1", "delete", {"path": "all"}), CALLS[1]])
    await db.store.edit("chat", Edit(keep_through=calls.seq - 1, append=[changed]))
    await db.broker.answer(question, "yes")
    await agent.work(db)
    assert agent.ran == ["c2"]
    assert (await agent.results(db))[0].startswith("No result: ")


async def test_an_expired_question_runs_nothing_that_needs_approval(
    db: SessionsDB, database: Database, agent: Agent
) -> None:
    await asked(db, agent)
    await expire(database)
    await agent.work(db)
    assert agent.ran == ["c2"]
    [first, _] = await agent.results(db)
    assert first == "Not run: the question to a person expired without an answer."
    assert [m["role"] for m in await agent.whole(db)][-1] == "assistant"


async def test_a_withdrawn_question_is_completed_by_the_next_turn(
    db: SessionsDB, agent: Agent
) -> None:
    await asked(db, agent)
    await db.broker.send("chat", "never mind", when_busy="interrupt")
    await agent.work(db)
    assert agent.ran == []
    assert len(await agent.results(db)) == 2


async def test_an_ended_session_is_completed_when_it_goes_on(db: SessionsDB, agent: Agent) -> None:
    await asked(db, agent)
    await db.broker.end("chat")
    await db.broker.reopen("chat")
    await db.broker.send("chat", "again")
    await agent.work(db)
    assert agent.ran == []
    assert len(await agent.results(db)) == 2


async def test_a_dead_answer_is_completed_by_the_next_turn(db: SessionsDB, agent: Agent) -> None:
    question = await asked(db, agent)
    agent.broken = True
    await db.broker.answer(question, "yes")
    await agent.work(db, max_attempts=2)
    assert agent.ran == ["c1", "c2", "c1", "c2"]  # an effect happens at least once
    agent.broken = False
    await db.broker.send("chat", "well?")
    await agent.work(db)
    assert (await agent.results(db))[0].startswith("No result: the turn that should have run")


@pytest.mark.parametrize("running", [False, True])
async def test_a_cancelled_answer_is_completed_by_the_next_turn(
    db: SessionsDB, agent: Agent, running: bool
) -> None:
    question = await asked(db, agent)
    answer = await db.broker.answer(question, "yes", author="ada")
    if running:  # the answer enters the transcript, behind the calls
        await claim(db)
    await db.broker.cancel(answer)
    await db.broker.send("chat", "well?")
    await agent.work(db)
    assert agent.ran == []
    assert len(await agent.results(db)) == 2
    texts = [one.content for one in await db.broker.history("chat") if one.role == "user"]
    assert ("yes" in texts) == running
    if running:  # the repair has moved the answer: the values beside it go along
        [entry] = [one for one in await db.store.entries("chat") if one.message["content"] == "yes"]
        assert (entry.author, entry.interrupted, entry.sent_at is None) == ("ada", False, False)


async def test_calls_far_back_in_a_long_transcript_get_their_results(
    db: SessionsDB, agent: Agent
) -> None:
    question = await asked(db, agent)
    behind = [{"role": "user", "content": f"message {n}"} for n in range(1_000)]
    await db.store.append("chat", behind)
    await db.broker.answer(question, "yes")
    await agent.work(db)
    assert agent.ran == ["c1", "c2"]
    assert await agent.results(db) == ["delete done", "look done"]
    plain = [one for one in await agent.whole(db) if str(one["content"]).startswith("message ")]
    assert plain == behind


@pytest.mark.parametrize("behind", [False, True])
async def test_messages_appended_while_an_approved_tool_runs_stand_behind_its_result(
    db: SessionsDB, agent: Agent, behind: bool
) -> None:
    question = await asked(db, agent)
    noted = [{"role": "user", "content": "before"}] if behind else []
    await db.store.append("chat", noted)
    while_running = {"role": "user", "content": "meanwhile"}

    async def run(call: ToolCall) -> str:
        if call.id == "c1":
            await db.store.append("chat", [while_running], keys=["note"])
        return await agent.run(call)

    agent.tools = ToolApprovals(run, requires_approval={"delete"})
    await db.broker.answer(question, "yes", author="ada")
    await agent.work(db)
    await db.broker.send("chat", "well?")
    await agent.work(db)
    assert agent.ran == ["c1", "c2"]
    assert await agent.results(db) == ["delete done", "look done"]
    texts = [one["content"] for one in await agent.whole(db) if isinstance(one["content"], str)]
    said = [text for text in texts if text in ("go", "before", "meanwhile", "yes", "well?")]
    assert said == ["go", *(["before"] if behind else []), "meanwhile", "yes", "well?"]
    found = await db.store.find("note", id="chat")
    assert found is not None
    assert found.message == while_running


async def test_an_error_of_a_tool_is_its_result(db: SessionsDB) -> None:
    agent = Agent("anthropic")
    [message] = await agent.tools.run_or_ask(anthropic("", [("c", "look", {"path": "broken"})]))
    assert message["content"] == [
        {
            "type": "tool_result",
            "tool_use_id": "c",
            "content": "Error: OSError: no such file",
            "is_error": True,
        }
    ]


@pytest.mark.parametrize(("result", "fails"), [("x", False), ("\0\n\N{ROCKET}", True)])
async def test_results_larger_than_a_message_are_cut(
    database: Database, agent: Agent, result: str, fails: bool
) -> None:
    async def run(call: ToolCall) -> str:
        agent.ran.append(call.id)
        text = result * 30_000 if call.id == "c1" else "short"
        if fails:
            raise OSError(text)
        return text

    agent.tools = ToolApprovals(run, requires_approval=())
    limits = Limits(message_bytes=20_000)
    async with SessionsDB(database.url, limits=limits) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        receipt = await db.broker.send("chat", "go")
        await agent.work(db)
        assert (await db.broker.outcome(receipt)).status == "done"
        assert agent.ran == ["c1", "c2"]
        [cut, whole] = await agent.results(db)
    assert result * 1_000 in cut
    assert cut.endswith("characters, more than a message of this session can hold.]")
    assert whole == ("Error: OSError: short" if fails else "short")


async def test_a_model_that_never_finishes_fails_the_turn(db: SessionsDB) -> None:
    agent = Agent("openai")

    async def model(_: list[Message]) -> Message:
        return openai("", [("c", "look", {})])

    async def handler(turn: Turn) -> Reply:
        return await agent.tools.run_turn(turn, model, max_model_calls=3)

    await db.broker.register("chat", channel="cli", peer="ada")
    receipt = await db.broker.send("chat", "go")
    await db.worker(handler, max_attempts=1).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert ModelCallLimit.__name__ in str(outcome.error)
    assert len(agent.ran) == 3
    assert await db.store.load("chat") == []


@pytest.mark.parametrize(
    ("text", "approved"),
    [
        ("yes", "c1 c2"), ("Yes.", "c1 c2"), ("ok", "c1 c2"), ("yes c1", "c1"),
        ("yes c1 c2", "c1 c2"), ("yes but not c1", ""), ("no", ""), ("yesterday", ""), (" ", ""),
    ],
)  # fmt: skip
def test_only_clear_words_approve(text: str, approved: str) -> None:
    data: Any = {"tool_calls": [{"id": "c1"}, {"id": "c2"}]}
    message = SessionMessage.model_construct(role="user", content=text)
    answer = Answer.model_construct(
        status="answered", question=Question(prompt="?", data=data), message=message
    )
    calls = [ToolCall(id, "delete", {}) for id in ("c1", "c2")]
    assert [one.id for one in calls if says_yes(answer, one)] == approved.split()


def test_a_long_call_is_shown_in_part() -> None:
    prompt = describe_calls([ToolCall("c", "write", {"text": "x" * 1_000}), ToolCall("d", "e", "")])
    assert len(prompt) < 450
    assert prompt.splitlines()[1] == "Run e ?"


@pytest.mark.parametrize("value", [5, True, "a", {"a": 1}, None])
def test_what_is_no_list_of_calls_holds_none(value: Any) -> None:
    message = {"role": "assistant", "content": "hi", "tool_calls": value}
    assert tool_calls(message) == []


ODD_ARGUMENTS = (
    ("{broken", "{broken"),
    ('{"a": NaN}', '{"a": NaN}'),
    ('{"a": 1e999}', '{"a": 1e999}'),
    ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'),
    ('{"a": "\ud83d"}', '{"a": "\ufffd"}'),
    (f"{'[' * 300}{']' * 300}", f"{'[' * 300}{']' * 300}"),
    ("[" * 100_000, "[" * 100_000),
    (f"{'9' * 5_000}", f"{'9' * 5_000}"),
)


@pytest.mark.parametrize(("given", "told"), ODD_ARGUMENTS, ids=range(len(ODD_ARGUMENTS)))
async def test_arguments_that_are_no_json_stay_text_and_can_be_asked_about(
    db: SessionsDB, given: str, told: str
) -> None:
    message = openai("", [("c", "look", {})])
    message["tool_calls"][0]["function"]["arguments"] = given
    assert tool_calls(message) == [ToolCall("c", "look", told)]
    ran = []

    async def run(call: ToolCall) -> str:
        ran.append(call.arguments)
        return "done"

    async def model(conversation: list[Message]) -> Message:
        return openai("finished") if len(ran) else message

    async def handler(turn: Turn) -> Reply:
        return await ToolApprovals(run, requires_approval={"look"}).run_turn(turn, model)

    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "go")
    await db.worker(handler, max_attempts=1).run_until_idle()
    [question] = await db.broker.questions()
    await db.broker.answer(question.id, "yes")
    await db.worker(handler, max_attempts=1).run_until_idle()
    assert ran == [told]


def test_arguments_of_the_deepest_nesting_are_values() -> None:
    message = openai("", [("c", "look", {})])
    message["tool_calls"][0]["function"]["arguments"] = "[" * 200 + "]" * 200
    [call] = tool_calls(message)
    assert isinstance(call.arguments, list)
    assert question_data([call], [call])
    Question(prompt="?", data=question_data([call], [call]))
    assert tool_calls({"role": "user", "content": "a"}) == []
