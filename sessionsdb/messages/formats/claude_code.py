"""The session files of Claude Code, and the messages of its SDK.

A line is a record: ``{"type": "user" | "assistant", "message": {…}, "uuid", "parentUuid", …}`` with
a message of Anthropic's API, ``{"type": "system", "subtype", "content"}``, ``{"type": "summary"}``,
or a record of the program itself. A file of today holds one session. Older files hold the sessions
of its sub-agents too, marked ``isSidechain``.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.messages.formats.reading import first_text, left_out, time_of
from sessionsdb.messages.message_text import message_role, message_text

_BOOKKEEPING = (
    *("file-history-snapshot", "file-history-delta", "queue-operation", "progress", "mode"),
    *("permission-mode", "last-prompt", "ai-title", "custom-title", "agent-name", "tag"),
    *("cost-state", "atis-latch", "pr-link", "attribution-snapshot", "content-replacement"),
    *("stream_event", "rate_limit_event", "worktree-state", "agent-color", "agent-setting"),
)
"""Types of records that nobody said. They are not imported, and the import counts them."""

_SESSION = ("sessionId", "session_id")


def recognise(record: Record) -> bool:
    kind = record.get("type")
    if not isinstance(kind, str):
        return False
    if kind in ("user", "assistant"):
        message = record.get("message")
        return isinstance(message, dict) and ("role" in message or "content" in message)
    if kind == "summary":
        return isinstance(record.get("summary"), str) and "leafUuid" in record
    if kind == "attachment":
        return isinstance(record.get("attachment"), dict)
    if kind == "result":
        return "session_id" in record and "subtype" in record
    if kind == "system":
        return "subtype" in record or bool(record.keys() & {"uuid", "parentUuid"})
    return kind in _BOOKKEEPING and "role" not in record


def role(record: Record) -> str:
    kind = record["type"]
    if kind in ("summary", "system", "attachment"):
        return "system"
    message = record.get("message")
    if not isinstance(message, dict):
        return "assistant" if kind == "result" else "system"
    content = message.get("content")
    if kind == "user" and isinstance(content, list) and content and all(map(_is_result, content)):
        return "tool"
    return message_role(message, unsaid=kind)


def _is_result(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_result"


def text(record: Record) -> str:
    kind = record["type"]
    message = record.get("message")
    if isinstance(message, dict):
        return message_text(message)
    if kind == "summary":
        return f"[summary: {record['summary']}]"
    if kind == "result":
        return content_text(record.get("result", record.get("errors")))
    if kind == "attachment":
        attachment = record["attachment"]
        name = first_text(attachment, ("type",)) or "attachment"
        shown = first_text(attachment, ("filename", "displayPath", "name", "prompt", "content"))
        return f"[{name}: {shown}]" if shown else f"[{name}]"
    subtype = first_text(record, ("subtype",)) or kind
    return content_text(record.get("content")) or f"[{subtype}]"


def read(form: Form, document: Document) -> list[Conversation]:
    """Return the conversation of the file, and those of its sidechains and abandoned branches.

    Sub-agents and branches become sessions of their own, below the session of the file.
    """
    values = document.values[0] if _is_array(document) else document.values
    said = [one for one in values if not _is_bookkeeping(one)]
    ignored = left_out(one.get("type") for one in values if _is_bookkeeping(one))
    id = _id_of_session(said, document.name)
    branches = _branches(said)
    main = [one for index, one in enumerate(said) if index not in branches]
    if not main:  # the file of a sub-agent
        agent = first_text(said[0], ("agentId",)) if said else None
        if not said:
            return []
        name, parent = (f"{id}/agent-{agent}", id) if agent else (document.name, None)
        return [_conversation(form, name, said, parent, ignored)]
    found = [_conversation(form, id, main, None, ignored)]
    by_root: dict[str, list[Any]] = {}
    for index, root in branches.items():
        by_root.setdefault(root, []).append(said[index])
    for root, records in by_root.items():
        found.append(_conversation(form, f"{id}/{root}", records, id, {}))
    return found


def _id_of_session(records: list[Any], name: str) -> str:
    """Return the id of the session of a file.

    The file of a resumed session begins with records of another session. It bears its own id.
    """
    ids = [id for one in records if (id := first_text(one, _SESSION))]
    own = name.rpartition("/")[2]
    return own if own in ids else next(iter(ids), name)


def _is_array(document: Document) -> bool:
    return len(document.values) == 1 and isinstance(document.values[0], list)


def _is_bookkeeping(record: Any) -> bool:
    return isinstance(record, dict) and record.get("type") in _BOOKKEEPING


def _conversation(
    form: Form, id: str, records: list[Any], parent: str | None, ignored: dict[str, int]
) -> Conversation:
    times = [time_of(form, one) for one in records]
    return Conversation(id, records, times, parent, ignored)


def _branches(records: list[Any]) -> dict[int, str]:
    """Return the records beside the main conversation: the index of each, and its branch.

    A sidechain is a branch. So is a prompt that was replaced by a later one with the same parent,
    with all records below it. Results of parallel calls also share a parent: they are no branch.
    """
    newest: dict[str, int] = {}
    for index, record in enumerate(records):
        if _is_prompt(record) and (parent := first_text(record, ("parentUuid",))):
            newest[parent] = index
    branch_of: dict[str, str] = {}
    found: dict[int, str] = {}
    for index, record in enumerate(records):
        uuid = first_text(record, ("uuid",)) or ""
        parent = first_text(record, ("parentUuid",)) or ""
        branch = branch_of.get(parent)
        if branch is None and isinstance(record, dict):
            if record.get("isSidechain") is True:
                name = first_text(record, ("agentId",)) or uuid[:8] or str(index)
                branch = f"agent-{name}"
            elif _is_prompt(record) and newest.get(parent, index) != index:
                branch = f"branch-{uuid[:8] or index}"
        if branch is not None:
            found[index] = branch
            if uuid:
                branch_of[uuid] = branch
    return found


def _is_prompt(record: Any) -> bool:
    if not isinstance(record, dict) or record.get("type") != "user":
        return False
    if record.get("isSidechain") is True or record.get("isMeta") is True:
        return False
    return recognise(record) and role(record) == "user"


FORM = Form(
    "claude-code",
    "Claude Code",
    recognise,
    aliases=("claude",),
    keys=("type",),
    role=role,
    text=text,
    ids=_SESSION,
    read=read,
)
