"""A foreign form: how its records are told, their role and text, and how a file of it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sessionsdb.messages.message_text import message_role, message_text

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Document:
    """The parsed content of a file."""

    name: str
    """The name of the file without its folder and its suffixes. The id of a session comes from it,
    if the file holds none."""
    values: list[Any]
    """The value of each line of JSON lines, or the one value of a JSON document."""
    is_lines: bool


@dataclass(frozen=True)
class Conversation:
    """The transcript of one session, as a file holds it."""

    id: str | None
    """The id that the file gives to it."""
    messages: list[Any]
    """The records as they are in the file, oldest first."""
    times: list[datetime | None]
    """For each message when it was said, in UTC."""
    parent: str | None = None
    """The id of the conversation whose agent started this one, or of which this is a branch."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many records are no messages, by their type."""
    other_lists: Mapping[str, int] = field(default_factory=dict)
    """The lists of the file's object that are not imported, and how many records they have."""


def system_message(prompt: Any) -> dict[str, Any]:
    """Return a system prompt, which is a text or blocks, as a message."""
    return {"role": "system", "content": [prompt] if isinstance(prompt, dict) else prompt}


@dataclass(frozen=True)
class Form:
    """A foreign form of messages."""

    name: str
    """The name for ``--format``, in small letters."""
    title: str
    """The name for people."""
    recognise: Callable[[Record], bool]
    """Return whether a record is of this form."""
    aliases: tuple[str, ...] = ()
    """Other names for ``--format``."""
    keys: tuple[str, ...] = ()
    """Keys of which each record has at least one. Only for records that hold a message, or are told
    by no role: the others are messages themselves, and are shown as messages."""
    role: Callable[[Record], str] = message_role
    text: Callable[[Record], str] = message_text
    lists: tuple[str, ...] = ("messages",)
    """Keys of an object that hold the list of its records, the best one first."""
    joined: Mapping[str, str] = field(default_factory=dict)
    """Those of them whose lists follow each other in one conversation. One that is a text is a
    message of this role."""
    system: Callable[[Any], Record] = system_message
    """Return the message for a system prompt that stands beside such a list."""
    ids: tuple[str, ...] = ("session_id", "sessionId", "conversation_id", "id")
    """Keys of such an object that hold the id of the conversation."""
    times: tuple[str, ...] = ("timestamp", "created_at", "createdAt", "created", "time", "date")
    """Keys of a record that hold its time."""
    read: Callable[[Form, Document], list[Conversation]] | None = None
    """Read a file in another way than ``reading.read_conversations``."""
