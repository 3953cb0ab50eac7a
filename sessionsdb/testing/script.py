"""A handler that answers from a script, in the place of an agent with a model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.messages.codec import Message
from sessionsdb.types import Question, SessionMessage, SpawnRequest
from sessionsdb.untrusted_values import short_repr
from sessionsdb.worker.handler import HandlerResult
from sessionsdb.worker.reply import Reply
from sessionsdb.worker.turn import Turn


class ScriptEnded(SessionsDBError):
    """The handler was called more often than its script has steps."""

    def __init__(self, session_id: str, text: str) -> None:
        super().__init__(
            f"the script has no step left for session {session_id}, which was sent "
            f"{short_repr(text)}; add a step, or send less"
        )
        self.session_id = session_id


@dataclass(frozen=True)
class Step:
    """One run of a ``ScriptedHandler``. The fields are used in this order."""

    stream: Sequence[str] = ()
    """The pieces that are streamed. Without a ``reply`` they are the reply, joined."""
    emit: Sequence[tuple[str, Any]] = ()
    """The kinds and the data that are shown to followers."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Values that are merged into the state of the session. ``None`` removes a key."""
    send: Sequence[tuple[str, str | Message]] = ()
    """The ids and the messages that are staged."""
    spawn: Sequence[SpawnRequest] = ()
    """The children that are staged."""
    wait: asyncio.Event | None = None
    """The run stands still until this event is set, for tests that stop or steer it."""
    error: BaseException | None = None
    """The exception that the run fails with."""
    reply: str | Message | list[Message] | list[Message | SessionMessage] | Reply | None = None
    """The reply, as a handler returns it."""
    ask: Question | None = None
    """A question to a person, asked by the commit."""


class ScriptedHandler:
    """A handler that takes one step of its script for each run, in order.

    ::

        handler = ScriptedHandler("Hello.", TimeoutError("the model is away"), "Here I am.")
        await drain(db, handler)
        handler.check_finished()

    A step is a ``Step``, a reply as a handler returns it, or ``None`` for no reply. With an
    exception the attempt fails. A ``Question`` is asked without a reply. A repeated attempt takes
    the next step. ``sessions`` has a script of their own for some sessions, by id. All other
    sessions share ``steps``.
    """

    def __init__(self, *steps: Any, sessions: Mapping[str, Sequence[Any]] | None = None) -> None:
        self.turns: list[Turn] = []
        """The turn of each run, in the order in which they began."""
        self._steps = deque(map(_step, steps))
        self._of_sessions = {
            id: deque(map(_step, script)) for id, script in (sessions or {}).items()
        }

    @property
    def texts(self) -> list[str]:
        """The text of each run's messages, in the order in which the runs began."""
        return [turn.text for turn in self.turns]

    @property
    def steps_left(self) -> int:
        """How many steps were not taken."""
        return len(self._steps) + sum(map(len, self._of_sessions.values()))

    def check_finished(self) -> None:
        """Raise ``AssertionError`` if a step was not taken."""
        if self.steps_left:
            raise AssertionError(
                f"{self.steps_left} steps of the script were not taken; the handler ran "
                f"{len(self.turns)} times, with {short_repr(self.texts)}"
            )

    async def __call__(self, turn: Turn) -> HandlerResult:
        """Run the next step. Raises ``ScriptEnded`` if there is none."""
        self.turns.append(turn)
        steps = self._of_sessions.get(turn.session.id, self._steps)
        if not steps:
            raise ScriptEnded(turn.session.id, turn.text)
        return await _run(steps.popleft(), turn)


async def _run(step: Step, turn: Turn) -> HandlerResult:
    for text in step.stream:
        turn.stream(text)
    for kind, data in step.emit:
        turn.emit(kind, data)
    if step.state:
        (await turn.state()).update(step.state)
    for id, message in step.send:
        turn.send(id, message)
    for request in step.spawn:
        turn.spawn(request)
    if step.wait is not None:
        await step.wait.wait()
    if step.error is not None:
        raise step.error
    reply = step.reply
    if reply is None and step.stream:
        reply = "".join(step.stream)
    if step.ask is None or isinstance(reply, Reply):
        return reply
    return Reply(reply, ask=step.ask)


def _step(given: Any) -> Step:
    if isinstance(given, Step):
        if isinstance(given.reply, Reply) and given.ask is not None:
            raise InvalidArgument("a step with a Reply asks by Reply(ask=…), not by Step(ask=…)")
        return given
    if isinstance(given, BaseException):
        return Step(error=given)
    if isinstance(given, Question):
        return Step(ask=given)
    if given is None or isinstance(given, str | dict | list | Reply):
        return Step(reply=given)
    raise InvalidArgument(
        "a step of a script is a Step, a reply, an exception, a Question or None, not "
        f"{short_repr(given)}"
    )
