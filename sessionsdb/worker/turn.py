"""What a handler is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument, InvalidMessage
from sessionsdb.messages.attribution import attributed
from sessionsdb.messages.codec import Message, StoredMessage, decode, encode, encode_all
from sessionsdb.operations import transcripts
from sessionsdb.operations.history import HistoryPage
from sessionsdb.operations.inbox_types import Chain, Delivery, Lease, Send
from sessionsdb.operations.spawning import refuse_far
from sessionsdb.operations.tree import Spawn
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.requests import send_request, spawn_request
from sessionsdb.telemetry import spans
from sessionsdb.types import (
    DEFAULT_HISTORY_LIMIT,
    Receipt,
    SessionDetails,
    SessionId,
    SessionMessage,
    Settings,
    SpawnRequest,
)


@dataclass(frozen=True)
class Reply:
    """A turn's answer with its usage, which the reports sum up."""

    messages: str | Message | list[Message] | None = None
    """A string (one assistant message), a message, a list of messages, or ``None``."""
    model: str | None = None
    """The model that answered."""
    input_tokens: int | None = None
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", validation.optional_text(self.model, "model"))
        for name in ("input_tokens", "output_tokens"):
            tokens = validation.optional_integer(
                getattr(self, name), name, most=validation.MOST_TOKENS
            )
            object.__setattr__(self, name, tokens)


_NO_USAGE = Reply()

HandlerResult = str | Message | list[Message] | Reply | None
Handler = Callable[["Turn"], Awaitable[HandlerResult]]
"""The user's coroutine that runs a turn: the agent.

It may run more than once for the same messages (its outside effects are at-least-once); what it
returns is committed exactly once, or the exception it raises counts as a failed attempt.
"""


def handler_name(handler: Handler) -> str:
    """A handler as logs and errors name it."""
    name = getattr(handler, "__qualname__", None)
    return name if type(name) is str else type(handler).__name__


class Turn:
    """One run of the handler for one session, over one or more messages of its inbox.

    What it stages and what it returns come to be in one transaction, if and only if the turn
    commits: the transcript, the acknowledgement, the sends and the spawns.
    """

    session: SessionDetails
    """The session as it was when the turn began."""
    namespace: str
    """The namespace of the session."""
    messages: list[SessionMessage]
    """What arrived, in order; one message unless the worker's ``batch`` is more. They have no
    ``seq`` yet: they enter the transcript with the reply."""
    attempt: int
    """1 on the first try."""
    staged: list[Send | Spawn]
    """What ``send`` and ``spawn`` staged, in order."""

    def __init__(self, database: OpenDatabase, lease: Lease) -> None:
        self._database = database
        self.session = lease.session
        self.namespace = lease.namespace
        self.messages = [_incoming_messages(delivery) for delivery in lease.deliveries]
        self._lease = lease
        self.attempt = lease.deliveries[0].attempt
        self.staged = []

    @cached_property
    def senders(self) -> list[SessionId | None]:
        """For each message the session that sent it, or ``None`` where a user did."""
        return [message.sender for message in self.messages]

    @cached_property
    def receipts(self) -> list[Receipt]:
        """For each message its place in the inbox, the same on every attempt: with it an effect
        outside of the database can be given a key, and be made only once."""
        return [
            Receipt.from_fields(session_id=self.session.id, position=one.position, duplicate=False)
            for one in self._lease.deliveries
        ]

    @cached_property
    def _chain(self) -> Chain:
        """Where what this turn sends stands."""
        return self._lease.chain.next(self.session.id)

    @property
    def settings(self) -> Settings:
        """The session's model, system prompt and tools."""
        return self.session.settings

    @property
    def text(self) -> str:
        """The text of what arrived; several messages are joined with blank lines."""
        return "\n\n".join(message.content for message in self.messages)

    @property
    def prompt(self) -> str:
        """What arrived, for a model to read: as ``text``, with the messages of other sessions
        marked as another agent's words and not the user's. See ``attributed``."""
        return "\n\n".join(attributed(message) for message in self.messages)

    async def history(self, limit: int | None = None) -> list[SessionMessage]:
        """The last ``limit`` messages of the transcript so far (50 if ``None``), rendered as
        text, newest last, without ``turn.messages``."""
        wanted = DEFAULT_HISTORY_LIMIT if limit is None else validation.integer(limit, "limit")
        return await self._database.batched_calls.history(
            HistoryPage(self.namespace, self.session.id, wanted)
        )

    async def transcript(self) -> list[Message]:
        """The whole transcript so far as the messages that were stored, without
        ``turn.messages``."""
        stored = await self._database.read(
            partial(transcripts.load, namespace=self.namespace, session_id=self.session.id)
        )
        return stored or []

    def send(self, id: str, text: str) -> None:
        """Stage a message to another session of this namespace, sent when the turn commits.

        If it can't be sent then (unknown or ended session, full inbox) the turn fails, and is
        tried again. Raises ``InvalidSessionId``, ``InvalidMessage`` and ``HopLimitReached`` at
        once.
        """
        message = send_request(
            self.namespace,
            id,
            text,
            self._database.limits,
            self.session.id,
            chain=self._chain,
            trace=spans.current_trace(),
        )
        refuse_far(self._chain, self._database.limits, message.session_id, self.session.id)
        self.staged.append(message)

    def spawn(self, request: SpawnRequest) -> SessionId:
        """Stage a child of this session, made when the turn commits; its id.

        If it may not be made then (``SpawnDenied``) the turn fails. A turn can't wait for the
        reply: have the child send it to this session. Raises ``HopLimitReached`` at once.
        """
        request = validation.spawn_request(request)
        if request.wait_for_first_reply:
            raise InvalidArgument(
                "a turn can't wait for a child that is made when the turn commits; "
                "leave wait_for_first_reply out, and have the child send its result back"
            )
        spawn = spawn_request(
            self.namespace,
            self.session.id,
            request,
            self._database.limits,
            trace=spans.current_trace(),
        )
        refuse_far(self._chain, self._database.limits, spawn.session_id, self.session.id)
        self.staged.append(spawn)
        return SessionId(spawn.session_id)


def _incoming_messages(delivery: Delivery) -> SessionMessage:
    message = decode(*delivery.message)
    return SessionMessage.from_fields(
        role="user",
        content=message["content"],
        timestamp=delivery.enqueued_at,
        seq=None,
        sender=None if delivery.sender is None else SessionId(delivery.sender),
    )


def encode_result(answer: Any, *, max_bytes: int) -> tuple[list[StoredMessage], Reply]:
    """A handler's answer as rows, and its usage. Raises ``InvalidMessage``."""
    reply, given = (answer, answer.messages) if isinstance(answer, Reply) else (_NO_USAGE, answer)
    if given is None:
        return [], reply
    if isinstance(given, str):
        given = {"role": "assistant", "content": given}
    if isinstance(given, dict):
        return [encode(given, max_bytes=max_bytes)], reply
    if isinstance(given, list):
        return encode_all(given, max_bytes=max_bytes), reply
    raise InvalidMessage(
        "a handler must return a string, a dict, a list of dicts, a Reply or None, "
        f"not {type(given).__name__}"
    )
