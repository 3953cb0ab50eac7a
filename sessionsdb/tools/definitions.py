"""The tools, as a model is told of them: each description says when to use it."""

from __future__ import annotations

from typing import NamedTuple

from sessionsdb.tools import inputs, outputs
from sessionsdb.tools.schemas import plain_schema
from sessionsdb.tools.values import ToolDefinition

LIST = "sessions_list"
HISTORY = "sessions_history"
SEND = "sessions_send"
SPAWN = "sessions_spawn"
STATUS = "sessions_status"
WAIT = "sessions_wait"
END = "sessions_end"


class _Kind(NamedTuple):
    """What a host and a client are told about what a tool does."""

    requires_approval: bool
    read_only: bool
    destructive: bool
    idempotent: bool


_READING = _Kind(requires_approval=False, read_only=True, destructive=False, idempotent=True)
_ADDING = _Kind(requires_approval=True, read_only=False, destructive=False, idempotent=False)
_ENDING = _Kind(requires_approval=True, read_only=False, destructive=True, idempotent=True)


def _definition(
    name: str,
    title: str,
    description: str,
    takes: type[inputs.Input],
    returns: type[outputs.Output],
    kind: _Kind,
) -> ToolDefinition:
    return ToolDefinition(
        name=name,
        title=title,
        description=description,
        input_schema=plain_schema(takes),
        output_schema=plain_schema(returns),
        **kind._asdict(),
    )


DEFINITIONS: tuple[ToolDefinition, ...] = (
    _definition(
        LIST,
        "List sessions",
        "List the sessions you can see: your own, and those you or others around you have "
        "spawned. Use it to find out a session's id before you read its history or send to it. "
        "Each comes with where it is from, who is at its other end, how many messages it has and "
        "when it was last active.",
        inputs.ListInput,
        outputs.ListOutput,
        _READING,
    ),
    _definition(
        HISTORY,
        "Read a session's history",
        "Read the latest messages of a session, newest last. Use it to catch up on what a session "
        "you spawned has done, or to learn what was said in another one before you send to it. "
        "Long messages are cut and say how to read on; next_before leads to older messages.",
        inputs.HistoryInput,
        outputs.HistoryOutput,
        _READING,
    ),
    _definition(
        SEND,
        "Send a message to a session",
        "Put a message into another session's inbox; its agent will answer in its own time. Use "
        "it to tell or ask a session that exists something: to give one you spawned more to do, "
        "or to ask a colleague. Returns a receipt at once, without an answer: sessions_wait gets "
        "the answer. You can't send to your own session.",
        inputs.SendInput,
        outputs.SendOutput,
        _ADDING,
    ),
    _definition(
        SPAWN,
        "Spawn a session",
        "Start a new session below yours that works on a task of its own. Use it for work that "
        "can be done apart: research, a long job, several things at once. Without "
        "wait_for_first_reply it returns at once with a receipt for sessions_wait; spawn several "
        "this way and wait for all of them. If a wait ends before the answer is there, the new "
        "session works on: wait again with its receipt.",
        inputs.SpawnInput,
        outputs.SpawnOutput,
        _ADDING,
    ),
    _definition(
        STATUS,
        "Look at what became of messages",
        "Look at what has become of messages you sent or prompts you spawned with, without "
        "waiting: pending, running, done with the reply, dead with the error, or cancelled. Use it "
        "to check on work in between other things.",
        inputs.StatusInput,
        outputs.StatusOutput,
        _READING,
    ),
    _definition(
        WAIT,
        "Wait for answers",
        "Wait until all, or any one, of several messages are finished, and get their replies. Use "
        "it when you can't go on without an answer. If the time runs out first, those that are "
        "not finished are pending or running: they go on, and you can wait for them again. You "
        "can't wait for a session that waits for you.",
        inputs.WaitInput,
        outputs.WaitOutput,
        _READING,
    ),
    _definition(
        END,
        "End a session",
        "End a session for good: it takes no more messages, and what it is doing is cancelled. "
        "Its history stays. Use it for sessions you spawned whose work is done or no longer "
        "wanted. It can't be undone.",
        inputs.EndInput,
        outputs.EndOutput,
        _ENDING,
    ),
)
