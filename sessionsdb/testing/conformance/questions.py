"""Rules of questions to people: questions, answer."""

from __future__ import annotations

from sessionsdb.errors import (
    QuestionAnswered,
    QuestionClosed,
    SessionBusy,
    UnknownQuestion,
    UnknownSession,
)
from sessionsdb.testing.conformance.checks import Part, Subject, equal, refused
from sessionsdb.types import OpenQuestion, Question

PART = Part("questions")


def asking(_id: str, text: str) -> str | Question:
    """Ask for messages that begin with ``ask``, and answer all others."""
    if text.startswith("ask"):
        return Question(prompt=f"{text}?", data={"choices": ["yes", "no"]})
    return f"echo: {text}"


async def _asked(subject: Subject, id: str = "s") -> OpenQuestion:
    await subject.broker.register(id, channel="cli", peer="ada")
    await subject.broker.send(id, "ask")
    await subject.run_turns(asking)
    [question] = await subject.broker.questions(id)
    return question


@PART.rule("A question that a turn asks is open, in questions, in get and in the outcome.")
async def a_question_is_open(subject: Subject) -> None:
    question = await _asked(subject)
    equal((question.session_id, question.prompt), ("s", "ask?"), "the question")
    equal(question.data, {"choices": ["yes", "no"]}, "the data")
    equal((await subject.broker.get("s")).held, question, "held of the session")
    outcome = await subject.broker.outcome(question.receipt)
    equal((outcome.status, outcome.question), ("done", question), "the outcome")
    equal(await subject.broker.questions(), [question], "the questions of all sessions")
    await refused(UnknownSession, subject.broker.questions("unknown"), "questions of an unknown id")


@PART.rule("Messages queue behind an open question, and the answer is handled before them.")
async def an_answer_comes_first(subject: Subject) -> None:
    question = await _asked(subject)
    await subject.broker.send("s", "waits")
    await subject.run_turns(asking)
    texts = [one.content for one in await subject.broker.history("s")]
    equal(texts, ["ask"], "the transcript while the question is open")
    await subject.broker.answer(question.id, "yes", author="alice")
    await subject.run_turns(asking)
    history = await subject.broker.history("s")
    expected = ["ask", "yes", "echo: yes", "waits", "echo: waits"]
    equal([one.content for one in history], expected, "the transcript")
    equal(history[1].author, "alice", "the author of the answer")
    equal(await subject.broker.questions(), [], "the open questions")


@PART.rule("An open question makes its session busy.")
async def an_open_question_is_busy(subject: Subject) -> None:
    await _asked(subject)
    call = subject.broker.send("s", "hi", when_busy="reject")
    await refused(SessionBusy, call, "send to a session with an open question")


@PART.rule("The same answer again returns the first receipt. Another one is refused.")
async def a_question_is_answered_once(subject: Subject) -> None:
    question = await _asked(subject)
    first = await subject.broker.answer(question.id, "yes")
    again = await subject.broker.answer(question.id, "yes")
    equal((again.position, again.duplicate), (first.position, True), "the second receipt")
    await refused(QuestionAnswered, subject.broker.answer(question.id, "no"), "another answer")
    await subject.run_turns(asking)
    texts = [one.content for one in await subject.broker.history("s")]
    equal(texts, ["ask", "yes", "echo: yes"], "the transcript")


@PART.rule("The end of a session closes its question.")
async def the_end_closes_a_question(subject: Subject) -> None:
    question = await _asked(subject)
    await subject.broker.end("s")
    equal(await subject.broker.questions(), [], "the open questions")
    await refused(QuestionClosed, subject.broker.answer(question.id, "yes"), "a late answer")


@PART.rule("interrupt withdraws an open question, and the session goes on.")
async def interrupt_withdraws_a_question(subject: Subject) -> None:
    question = await _asked(subject)
    await subject.broker.send("s", "next")
    await subject.broker.interrupt("s")
    await refused(QuestionClosed, subject.broker.answer(question.id, "yes"), "a late answer")
    await subject.run_turns(asking)
    texts = [one.content for one in await subject.broker.history("s")]
    equal(texts, ["ask", "next", "echo: next"], "the transcript")


@PART.rule("questions are listed oldest first, with limit and after.")
async def questions_have_pages(subject: Subject) -> None:
    asked = [await _asked(subject, id) for id in ("a", "b", "c")]
    equal(await subject.broker.questions(), asked, "all questions")
    equal(await subject.broker.questions(limit=1, after=asked[0]), [asked[1]], "a page")


@PART.rule("The id of no question raises UnknownQuestion.")
async def unknown_questions_are_refused(subject: Subject) -> None:
    await subject.broker.register("s", channel="cli", peer="ada")
    await refused(UnknownQuestion, subject.broker.answer("s:1", "yes"), "answer to no question")
