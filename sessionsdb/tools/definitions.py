"""The definitions of the tools for a model. Each description says when to use the tool."""

from __future__ import annotations

from typing import NamedTuple

from sessionsdb.tools import inputs, outputs
from sessionsdb.tools.schemas import plain_schema
from sessionsdb.tools.values import ToolDefinition

LIST = "sessions_list"
HISTORY = "sessions_history"
SEARCH = "sessions_search"
SEND = "sessions_send"
SPAWN = "sessions_spawn"
STATUS = "sessions_status"
WAIT = "sessions_wait"
SCHEDULE = "sessions_schedule"
UNSCHEDULE = "sessions_unschedule"
CANCEL = "sessions_cancel"
END = "sessions_end"


class _Effects(NamedTuple):
    """The effects of a tool, as hints for a host and for an MCP client."""

    requires_approval: bool
    read_only: bool
    destructive: bool
    idempotent: bool


_READS = _Effects(requires_approval=False, read_only=True, destructive=False, idempotent=True)
_ADDS = _Effects(requires_approval=True, read_only=False, destructive=False, idempotent=False)
_ENDS = _Effects(requires_approval=True, read_only=False, destructive=True, idempotent=True)


def _definition(
    name: str,
    title: str,
    description: str,
    input_model: type[inputs.Input],
    output_model: type[outputs.Output],
    effects: _Effects,
) -> ToolDefinition:
    return ToolDefinition(
        name=name,
        title=title,
        description=description,
        input_schema=plain_schema(input_model),
        output_schema=plain_schema(output_model),
        **effects._asdict(),
    )


DEFINITIONS: tuple[ToolDefinition, ...] = (
    _definition(
        LIST,
        "List sessions",
        "List the sessions that you can see. By default these are your own session and the other "
        "sessions of its tree. Use it to find the id of a session "
        "before you read its history or send a message to it. Each session is listed with its "
        "channel, its peer, the number of its messages and the time of its last activity.",
        inputs.ListInput,
        outputs.ListOutput,
        _READS,
    ),
    _definition(
        HISTORY,
        "Read a session's history",
        "Read the latest messages of a session, newest last. Use it to learn the progress of a "
        "session that you spawned, or to read a conversation before you send a message to it. Long "
        "messages are cut, and the cut says how to read the rest. Pass next_before as before to "
        "read older messages.",
        inputs.HistoryInput,
        outputs.HistoryOutput,
        _READS,
    ),
    _definition(
        SEARCH,
        "Search messages",
        "Find messages by their words in the sessions that you can see. By default these are your "
        "own session and the other sessions of its tree. Use it to find out what was said about "
        "something, and in which session. The newest messages are first, each with a part of its "
        "text. Read the messages around one with sessions_history. What was said in the last "
        "seconds may be missing.",
        inputs.SearchInput,
        outputs.SearchOutput,
        _READS,
    ),
    _definition(
        SEND,
        "Send a message to a session",
        "Put a message into the inbox of another session. The agent of that session answers later. "
        "Use it to ask or tell an existing session something, for example to give more work to a "
        "session that you spawned. It returns a receipt at once, without an answer. Pass the "
        "receipt to sessions_wait to get the answer. You can't send to your own session.",
        inputs.SendInput,
        outputs.SendOutput,
        _ADDS,
    ),
    _definition(
        SPAWN,
        "Spawn a session",
        "Start a new session below yours with a task of its own. Use it for separate work: "
        "research, a long job, or several tasks at the same time. Without wait_for_first_reply it "
        "returns a receipt at once, and by default the first answer comes to you later as a "
        "message. To run several tasks, spawn several sessions this way and finish your turn: each "
        "answer starts a turn of yours. If you need the answers in this turn, pass all receipts to "
        "sessions_wait. If a wait ends before the answer, the new session works on: wait again "
        "with its receipt.",
        inputs.SpawnInput,
        outputs.SpawnOutput,
        _ADDS,
    ),
    _definition(
        STATUS,
        "Look at the status of messages",
        "Look at the status of messages that you sent and of prompts that you spawned sessions "
        "with, without a wait. The status is pending, running, done with the reply, dead with the "
        "error, or cancelled. Use it to check on other sessions between your own steps.",
        inputs.StatusInput,
        outputs.StatusOutput,
        _READS,
    ),
    _definition(
        WAIT,
        "Wait for answers",
        "Wait until all of several messages, or any one of them, are finished, and return their "
        "replies. Use it when you can't go on without an answer. If the time ends first, the "
        "unfinished messages are pending or running. The work on them goes on, and you can wait "
        "for them again. You can't wait for a session that waits for you.",
        inputs.WaitInput,
        outputs.WaitOutput,
        _READS,
    ),
    _definition(
        SCHEDULE,
        "Schedule a message",
        "Send a message to your own session or to another one later: once, or again and again by a "
        "cron expression. Use it for a reminder, for work that must wait, or for regular work such "
        "as a nightly summary. The message starts a turn of that session, which sees "
        "that you sent it. Without session_id it is your own session. To send a message now use "
        "sessions_send. A name replaces the schedule of that name in the same session, if you may "
        "delete it.",
        inputs.ScheduleInput,
        outputs.ScheduleOutput,
        _ADDS,
    ),
    _definition(
        UNSCHEDULE,
        "Delete a schedule",
        "Delete a message that is scheduled for later, in your own session or in one below it, or "
        "one that you scheduled in another session. Messages that it has sent stay. Use it when a "
        "reminder or regular work is no longer needed.",
        inputs.UnscheduleInput,
        outputs.UnscheduleOutput,
        _ENDS,
    ),
    _definition(
        CANCEL,
        "Cancel messages of a session",
        "Stop work of a session below yours, and keep the session. With position only that message "
        "is cancelled, whether it waits or runs. Without position all messages that the session is "
        "working on now are cancelled, and those that wait are handled next. The part of an answer "
        "that is there already stays in the history. Use it for work that is no longer needed or "
        "goes the wrong way. A message that is finished stays as it is.",
        inputs.CancelInput,
        outputs.CancelOutput,
        _ENDS,
    ),
    _definition(
        END,
        "End a session",
        "End a session below yours for good. It accepts no more messages, and its unfinished work "
        "is cancelled. Its history stays. Use it for a session that you spawned when its work is "
        "done or no longer needed. You can't undo it.",
        inputs.EndInput,
        outputs.EndOutput,
        _ENDS,
    ),
)
