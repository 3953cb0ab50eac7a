"""Tool calls that a person approves, for agents that run their tools in a handler.

``ToolApprovals`` finds the tool calls in a model's message, runs those that need no approval, and
turns the others into a question to a person. The turn of the answer runs what was approved. Results
stand directly behind the message with the calls, as providers demand. It knows the messages of
OpenAI's chat completions and of Anthropic.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple

from sessionsdb.errors import SessionsDBError
from sessionsdb.messages.tool_values import bounded_texts, parsed_arguments
from sessionsdb.runtime import current_turn
from sessionsdb.types import Answer, Question
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.turn_entries import insert_behind, seq_of

Message = dict[str, Any]

YES = frozenset(("yes", "y", "ok", "okay", "approve", "approved", "allow"))
"""The words with which an answer approves calls."""

SHOWN_CHARACTERS = 400
"""The arguments of a call are shown up to this length in the prompt of a question. ``data`` has
them whole."""

_BESIDE_BYTES = 100
"""The bytes of a message beside the text of one result and the id of its call."""

EXPIRED = "Not run: the question to a person expired without an answer."
WITHDRAWN = "No result: the question to a person was withdrawn, or its answer was stopped."
UNFINISHED = "No result: the turn that should have run this call did not finish."


class ToolCall(NamedTuple):
    """A tool call of a model's message."""

    id: str
    """The id that the model gave the call. It is the same on every attempt, so it can serve as an
    idempotency key for the effect of the tool."""
    name: str
    arguments: Any
    """The arguments as JSON values. A text if the model wrote no JSON. It is a text, too, if a
    question can't hold the values: NaN, half of a surrogate pair, or more than 200 levels."""


class ToolResult(NamedTuple):
    """The result of a tool call, as text for the model."""

    content: str
    is_error: bool = False


class ModelCallLimit(SessionsDBError):
    """The model asked for tools in every one of its calls, up to the limit of the turn."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the model still asks for tools after {limit} calls in one turn; raise "
            "max_model_calls, or tell the model to finish"
        )
        self.limit = limit


def tool_calls(message: Message) -> list[ToolCall]:
    """Return the tool calls of an assistant message, in their order."""
    if message.get("role") != "assistant":
        return []
    given = message.get("tool_calls")
    calls = [
        ToolCall(str(one.get("id")), str(one["function"].get("name")), _arguments(one["function"]))
        for one in (given if isinstance(given, list | tuple) else ())
        if isinstance(one, dict) and isinstance(one.get("function"), dict)
    ]
    return calls + [
        ToolCall(str(block.get("id")), str(block.get("name")), block.get("input"))
        for block in _blocks(message, "tool_use")
    ]


def result_ids(message: Message) -> list[str]:
    """Return the ids of the calls whose results a message has."""
    if message.get("role") == "tool":
        return [str(message.get("tool_call_id"))]
    return [str(block.get("tool_use_id")) for block in _blocks(message, "tool_result")]


def result_messages(
    message: Message, results: Sequence[tuple[ToolCall, ToolResult]]
) -> list[Message]:
    """Return the messages with the results of calls, in the form of the message with the calls.

    One message with the role ``tool`` for each call of OpenAI, one message of the user for all
    calls of Anthropic. Inside a handler, results larger than ``Limits.message_bytes`` are cut.
    """
    if not results:
        return []
    if not message.get("tool_calls"):
        blocks = []
        for call, result in _bounded(results):
            block = {"type": "tool_result", "tool_use_id": call.id, "content": result.content}
            blocks.append(block | ({"is_error": True} if result.is_error else {}))
        return [{"role": "user", "content": blocks}]
    return [
        {"role": "tool", "tool_call_id": call.id, "content": result.content}
        for one in results
        for call, result in _bounded([one])
    ]


def _bounded(results: Sequence[tuple[ToolCall, ToolResult]]) -> list[tuple[ToolCall, ToolResult]]:
    """Return results that fit into one message of the session together."""
    max_bytes = current_turn.message_bytes()
    if max_bytes is None:
        return [*results]
    beside = sum(_BESIDE_BYTES + len(json.dumps(call.id)) for call, _ in results)
    texts = bounded_texts([result.content for _, result in results], max_bytes - beside)
    return [
        (call, result._replace(content=text))
        for (call, result), text in zip(results, texts, strict=True)
    ]


def says_yes(answer: Answer, call: ToolCall) -> bool:
    """Return whether an answer approves a call.

    ``yes`` approves all calls of the question, ``yes ID ID`` the calls with these ids. An id that
    several calls have names none of them. Any other text denies, and the model reads it as the
    reason.
    """
    words = [] if answer.message is None else answer.message.content.split()
    if not words or words[0].lower().rstrip(".,!") not in YES:
        return False
    named = words[1:]
    return not named or (call.id in named and set(named) <= _named_ids(answer.question))


def refusal(
    answer: Answer, call: ToolCall, approves: Callable[[Answer, ToolCall], bool] = says_yes
) -> str | None:
    """Return why a call that a question asked about is not run, for the model to read.

    ``None`` if the answer approves the call.
    """
    if answer.status == "withdrawn":
        return WITHDRAWN
    if answer.status == "expired":
        return EXPIRED
    if approves(answer, call):
        return None
    text = "" if answer.message is None else answer.message.content
    return f"Not run: a person denied it, with the words: {text}"


def question_data(calls: Sequence[ToolCall], asked: Collection[ToolCall]) -> dict[str, Any]:
    """Return the data of a question: all calls of a message, and which of them were asked about."""
    return {
        "tool_calls": [
            {
                "id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "requires_approval": call in asked,
            }
            for call in calls
        ]
    }


def describe_calls(calls: Sequence[ToolCall]) -> str:
    """Return the prompt of a question about these calls: one line for each."""
    return "\n".join(f"Run {describe_call(call)}?" for call in calls)


def describe_call(call: ToolCall) -> str:
    """Return the name of the tool and the beginning of its arguments."""
    arguments = _text(call.arguments)
    if len(arguments) > SHOWN_CHARACTERS:
        arguments = f"{arguments[:SHOWN_CHARACTERS]}…"
    return f"{call.name} {arguments}"


class ToolApprovals:
    """Runs the tools of a model, some of them only when a person has approved.

    - ``run``: runs one call, and returns a text or a JSON value. An exception is told to the model
      as the result of the call. It may run more than once for a call, because a turn may.
    - ``requires_approval``: the names of the tools that need it, or a function of a call.
    - ``approves``: decides about a call by the answer. The default is ``says_yes``.
    - ``prompt``: the text of the question about the calls that need approval.
    - ``expires_in``, ``accept_message``: the same as in ``Question``.

    In any case the next turn of the session completes all results. A call that is not run gets a
    result that says so. Messages of users never stand between a call and its result.
    """

    def __init__(
        self,
        run: Callable[[ToolCall], Awaitable[Any]],
        *,
        requires_approval: Collection[str] | Callable[[ToolCall], bool],
        approves: Callable[[Answer, ToolCall], bool] = says_yes,
        prompt: Callable[[Sequence[ToolCall]], str] = describe_calls,
        expires_in: float | None = None,
        accept_message: bool = False,
    ) -> None:
        self._run = run
        self._required = requires_approval
        self._approves = approves
        self._prompt = prompt
        self._expires_in = expires_in
        self._accept_message = accept_message

    async def run_turn(
        self,
        turn: Turn,
        model: Callable[[list[Message]], Awaitable[Message]],
        *,
        max_model_calls: int = 50,
    ) -> Reply:
        """Run a whole turn of an agent: a handler may return its result.

        ``model`` gets the conversation, and returns the model's message. It is called until it asks
        for no tools, or until a person is to be asked. Raises ``ModelCallLimit``.
        """
        conversation = await self.resume(turn)
        said: list[Message] = []
        for _ in range(max_model_calls):
            message = await model(conversation + said)
            said.append(message)
            done = await self.run_or_ask(message)
            if isinstance(done, Question):
                return Reply(said, ask=done)
            if not done:
                return Reply(said)
            said += done
        raise ModelCallLimit(max_model_calls)

    async def resume(self, turn: Turn) -> list[Message]:
        """Complete the calls of the transcript that have no results, and return the conversation.

        Call it once, at the beginning of a turn. The results are staged. The commit of the turn
        inserts them behind their calls, in front of messages that were appended meanwhile. The
        conversation has the transcript, the results and the messages of the turn, without the
        notice of an expiry.
        """
        transcript = await turn.transcript()
        at = _last_calls(transcript)
        if at is not None:
            end = at + 1  # behind the results that are there
            while end < len(transcript) and result_ids(transcript[end]):
                end += 1
            done = {id for one in transcript[at + 1 : end] for id in result_ids(one)}
            calls = tool_calls(transcript[at])
            missing = [place for place, call in enumerate(calls) if call.id not in done]
            if missing:
                seq = await seq_of(turn, end - 1)
                results = [(calls[n], await self._late_result(turn, calls[n], n)) for n in missing]
                completed = result_messages(transcript[at], results)
                insert_behind(turn, seq, completed)
                transcript = transcript[:end] + completed + transcript[end:]
        expired = turn.answer is not None and turn.answer.status == "expired"
        return transcript + ([] if expired else turn.inputs)

    async def run_or_ask(self, message: Message) -> list[Message] | Question:
        """Run the calls of a model's message, and return the messages with their results.

        If a call needs approval, none is run, and the question to ask is returned: all results of a
        message stand together. The list is empty for a message without calls.
        """
        calls = tool_calls(message)
        asked = [call for call in calls if self._needs_approval(call)]
        if not asked:
            return result_messages(message, [(call, await self._result(call)) for call in calls])
        return Question(
            prompt=self._prompt(asked),
            data=question_data(calls, asked),
            expires_in=self._expires_in,
            accept_message=self._accept_message,
        )

    def _needs_approval(self, call: ToolCall) -> bool:
        if callable(self._required):
            return self._required(call)
        return call.name in self._required

    async def _result(self, call: ToolCall) -> ToolResult:
        try:
            return ToolResult(_text(await self._run(call)))
        except Exception as error:
            return ToolResult(f"Error: {type(error).__name__}: {error}", is_error=True)

    async def _late_result(self, turn: Turn, call: ToolCall, place: int) -> ToolResult:
        """Return the result of a call that a turn before has left open.

        ``place`` is that of the call in its message. A call runs only if the question was about the
        same one: the model may give several calls one id, or none.
        """
        answer = turn.answer
        if answer is None:
            return ToolResult(UNFINISHED, is_error=True)
        if answer.status == "withdrawn":
            return ToolResult(WITHDRAWN, is_error=True)
        asked = _calls_in(answer.question)
        if place >= len(asked) or _as_call(asked[place]) != call:
            return ToolResult(UNFINISHED, is_error=True)  # the question was about something else
        needs_approval = self._needs_approval(call) or any(
            one.get("requires_approval", True) for one in asked if _as_call(one).id == call.id
        )
        reason = refusal(answer, call, self._approves) if needs_approval else None
        if reason is not None:
            return ToolResult(reason, is_error=True)
        return await self._result(call)


def _last_calls(transcript: Sequence[Message]) -> int | None:
    """Return the place of the last message with tool calls."""
    for index in range(len(transcript) - 1, -1, -1):
        if tool_calls(transcript[index]):
            return index
    return None


def asked_calls(question: Question) -> dict[str, dict[str, Any]]:
    """Return the calls that a question is about, by their ids.

    Of several calls with one id it is one that requires approval, if any of them does.
    """
    calls: dict[str, dict[str, Any]] = {}
    for call in _calls_in(question):
        if call.get("requires_approval", True):
            calls[str(call.get("id"))] = call
        else:
            calls.setdefault(str(call.get("id")), call)
    return calls


def _calls_in(question: Question) -> list[dict[str, Any]]:
    """Return the calls that a question is about, in the order of the model's message."""
    data = question.data
    calls = data.get("tool_calls") if isinstance(data, dict) else None
    if not isinstance(calls, list):
        return []
    return [call for call in calls if isinstance(call, dict)]


def _as_call(asked: dict[str, Any]) -> ToolCall:
    return ToolCall(str(asked.get("id")), str(asked.get("name")), asked.get("arguments"))


def _named_ids(question: Question) -> set[str]:
    """Return the ids with which an answer can name a call. One of several calls is no name."""
    ids = [str(call.get("id")) for call in _calls_in(question)]
    return {id for id in ids if ids.count(id) == 1}


def _blocks(message: Message, kind: str) -> list[dict[str, Any]]:
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [one for one in content if isinstance(one, dict) and one.get("type") == kind]


def _arguments(function: dict[str, Any]) -> Any:
    return parsed_arguments(function.get("arguments"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
