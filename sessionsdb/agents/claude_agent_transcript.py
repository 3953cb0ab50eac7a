"""The transcript of a session as the entries that Claude Code reads and writes.

The program gets a store of this turn alone. It is filled from the transcript, and collects the new
entries. The commit of the turn stores them. So a turn that loses its lease stores none of them, and
the next attempt begins with the same memory.

Entries form a chain by ``uuid`` and ``parentUuid``. The entry of a user's message is not stored:
the message stands in the transcript as it was sent. The entry is made of it again, with the uuid
that the next entry names as its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from claude_agent_sdk.types import SessionKey, SessionStoreEntry

from sessionsdb.agents.told import is_by_model, told_text
from sessionsdb.approvals import Message
from sessionsdb.messages.rendering import render_role
from sessionsdb.types import SessionDetails, TranscriptEntry

Entry = dict[str, Any]

_DEFERRED = "hook_deferred_tool"
"""The type of the attachment that stands behind a call that waits."""

_COMMON = ("cwd", "entrypoint", "gitBranch", "isSidechain", "sessionId", "userType", "version")
"""The fields that all entries of a turn share."""


class TurnStore:
    """The session store of one turn: the entries before it, and the new ones.

    It follows the SDK's protocol ``SessionStore``. The transcripts of subagents are not kept.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries
        self.appended: list[Entry] = []

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        if not key.get("subpath"):
            self.appended += entries

    async def load(self, key: SessionKey) -> list[Any] | None:
        return None if key.get("subpath") else self._entries or None


def native_id(session: SessionDetails) -> str:
    """Return the id under which the program knows the session."""
    return str(_uuid(session))


def remembered(session: SessionDetails, entries: Iterable[TranscriptEntry]) -> list[Entry]:
    """Return the entries of a transcript, from the first one of a user on.

    Words of other agents are marked, and a message of another form is told as text. A message that
    the program has not read is left out: the words of a person who approved a call.
    """
    chain = _Chain(session)
    for entry in entries:
        chain.add(entry)
    chain.end_group()
    return chain.entries


def new_messages(entries: Iterable[Entry], prompt: str | None) -> list[Message]:
    """Return the new entries to store, without that of the prompt.

    Entries without a uuid are records of the program, which are no part of the conversation.
    """
    kept: list[Message] = []
    is_asked = prompt is not None
    for entry in entries:
        if not entry.get("uuid") or entry.get("isSidechain"):
            continue
        if is_asked and entry.get("type") == "user" and _said(entry) == prompt:
            is_asked = False
            continue
        kept.append(entry)
    return kept


def deferred_calls(entries: Sequence[Entry]) -> set[str]:
    """Return the ids of the calls that wait at the end of a transcript.

    The program goes on with such a call by itself. Results of other calls may stand behind it.
    """
    calls = set()
    for entry in reversed(entries):
        attachment = entry.get("attachment")
        if render_role(entry) not in ("system", "tool"):
            break
        if isinstance(attachment, dict) and attachment.get("type") == _DEFERRED:
            calls.add(str(attachment.get("toolUseID")))
    return calls


class _Chain:
    """Builds the entries of a transcript in their order."""

    def __init__(self, session: SessionDetails) -> None:
        self.entries: list[Entry] = []
        self._session = session
        self._id = native_id(session)
        self._known: set[str] = set()
        self._others: list[TranscriptEntry] = []
        """Messages that the program did not write. The entries behind them tell what they are."""
        self._group: list[Entry] = []
        """The entries of the program behind them."""

    def add(self, entry: TranscriptEntry) -> None:
        if entry.sender is None and _is_entry(entry.message):
            self._group.append(entry.message)
            return
        if self._group:
            self.end_group()
        self._others.append(entry)

    def end_group(self) -> None:
        """Add the messages and the entries behind them."""
        prompt: list[TranscriptEntry] = []
        while self._group and self._others and self._role(self._others[-1]) == "user":
            prompt.insert(0, self._others.pop())
        for other in self._others:
            self._tell(other)
        at = self._missing() if prompt else None
        for index, entry in enumerate(self._group):
            if index == at:
                self._prompt(prompt, entry)
            # Entries whose beginning was cut off by the limit of the memory are left out.
            if self.entries or render_role(entry) == "user":
                self._append({**entry, "parentUuid": self._parent(entry.get("parentUuid"))})
        self._others, self._group = [], []

    def _missing(self) -> int | None:
        """Return the place of the entry whose parent is the prompt. Without one the program has
        not read the prompt."""
        known = self._known | {entry["uuid"] for entry in self._group}
        for index, entry in enumerate(self._group):
            if (parent := entry.get("parentUuid")) is not None and parent not in known:
                return index
        return None

    def _prompt(self, prompt: list[TranscriptEntry], following: Entry) -> None:
        common = {key: following[key] for key in _COMMON if key in following}
        text = "\n\n".join(told_text(self._session, entry) for entry in prompt)
        uuid = following["parentUuid"]
        self._append(self._entry(prompt[-1], "user", text, uuid) | common)

    def _tell(self, entry: TranscriptEntry) -> None:
        role, text = self._role(entry), told_text(self._session, entry)
        if text and (self.entries or role == "user"):
            self._append(self._entry(entry, role, text, None))

    def _entry(self, entry: TranscriptEntry, role: str, text: str, uuid: str | None) -> Entry:
        content: Any = {"role": role, "content": text}
        if role == "assistant":
            content = {
                "id": f"msg_{entry.seq}",
                "type": "message",
                "role": role,
                "model": "<synthetic>",
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},
            }
        return {
            "type": role,
            "uuid": uuid or str(_uuid(self._session, str(entry.seq))),
            "parentUuid": self._parent(None),
            "isSidechain": False,
            "userType": "external",
            "timestamp": (entry.sent_at or entry.created_at).isoformat(),
            "message": content,
        }

    def _append(self, entry: Entry) -> None:
        self.entries.append({**entry, "sessionId": self._id})
        self._known.add(entry["uuid"])

    def _parent(self, given: str | None) -> str | None:
        if given in self._known:
            return given
        return self.entries[-1]["uuid"] if self.entries else None

    def _role(self, entry: TranscriptEntry) -> str:
        return "assistant" if entry.sender is None and is_by_model(entry) else "user"


def _is_entry(message: Message) -> bool:
    parent = message.get("parentUuid")
    return (
        isinstance(message.get("uuid"), str)
        and "type" in message
        and (parent is None or isinstance(parent, str))
    )


def _said(entry: Entry) -> str | None:
    message = entry.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and len(content) == 1 and content[0].get("type") == "text":
        content = content[0].get("text")
    return content if isinstance(content, str) else None


def _uuid(session: SessionDetails, name: str = "") -> UUID:
    return uuid5(NAMESPACE_URL, f"sessionsdb:{session.id}:{name}")
