"""The turn that a handler gets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.attribution import attributed, was_spawned_by
from sessionsdb.messages.codec import (
    Message,
    StoredMessage,
    decode,
    encode_data,
)
from sessionsdb.messages.extra import extra_fields
from sessionsdb.messages.json_text import replace_unstorable
from sessionsdb.operations import question_rows
from sessionsdb.operations.entries import load_newest
from sessionsdb.operations.history_page import HistoryPage
from sessionsdb.operations.inbox_types import NO_USAGE, Chain, Commit, Delivery, Usage
from sessionsdb.operations.question_rows import asked_question, encode_question
from sessionsdb.operations.spawning import check_hops
from sessionsdb.operations.state import ScopeKey
from sessionsdb.operations.turn_commit import Staged
from sessionsdb.protocols import SessionBroker
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.requests import edit_request, send_request, spawn_request
from sessionsdb.telemetry.spans import current_trace
from sessionsdb.types import (
    DEFAULT_HISTORY_LIMIT,
    Answer,
    Edit,
    Receipt,
    SessionDetails,
    SessionId,
    SessionMessage,
    Settings,
    SpawnRequest,
    StateScope,
    StoppedBy,
)
from sessionsdb.worker.incoming import Incoming
from sessionsdb.worker.leases import HeldLease
from sessionsdb.worker.reply import encode_result, place_messages
from sessionsdb.worker.streaming import StreamLane, TurnStream
from sessionsdb.worker.turn_state import TurnState

MAX_DATA_BYTES = 65_536
"""The largest piece of data, as JSON in UTF-8."""


class Turn:
    """One run of the handler for one session, over one or more messages of its inbox.

    The turn commits in one transaction. The messages and the reply enter the transcript, and the
    inbox messages are done. Staged sends and spawns are made, and changed state is stored. A turn
    that fails or loses its lease writes none of them.
    """

    namespace: str
    """The namespace of the session."""
    attempt: int
    """1 on the first try."""
    broker: SessionBroker
    """The broker of the session's namespace, for tools that a handler gives to its model.

    A send or spawn through it is made at once, by itself. It is not staged: it stays made when the
    turn fails, and is made again when the turn is run again. Give it an idempotency key, such as
    one of ``receipts``. ``Turn.send`` and ``Turn.spawn`` are made with the commit.
    """
    staged: list[Staged]
    """The changes that the commit will make, in order."""
    answer: Answer | None = None
    """What became of a question that a turn of this session has asked. ``None`` in all other turns.

    - ``"answered"``: this turn is the turn of the answer, and ``messages`` has nothing else.
    - ``"expired"``: the same for the expiry. The one message is a notice of the author
      ``sessionsdb``, which does not enter the transcript.
    - ``"withdrawn"``: ``interrupt`` withdrew the question, or ``cancel`` its answer. The first turn
      that commits after it sees that, whatever its messages are. Only the turn of another answer
      leaves it to the next one.
    """

    # Of the class, so that a turn that uses none of them sets none.
    _state: TurnState | None = None
    _stream: TurnStream | None = None
    _incoming: Incoming | None = None
    _joined: Mapping[int, Delivery] = MappingProxyType({})
    _takes_pieces = True
    used = NO_USAGE
    """The tokens that ``usage`` was told of."""

    def __init__(
        self,
        database: OpenDatabase,
        worker_id: str,
        held: HeldLease,
        broker: SessionBroker,
        lane: StreamLane,
    ) -> None:
        lease = held.lease
        self._database = database
        self._worker_id = worker_id
        self._held = held
        self._lane = lane
        self.broker = broker
        self.namespace = lease.namespace
        self._lease = lease
        self.attempt = lease.deliveries[0].attempt
        self.staged = []

    # The session and the messages are made when a handler first reads them: 4 µs each.
    @cached_property
    def session(self) -> SessionDetails:
        """The session at the moment its messages were claimed."""
        return self._lease.session

    @cached_property
    def messages(self) -> list[SessionMessage]:
        """The messages of this turn in the order of the inbox.

        One, unless the worker's ``batch`` is more, or ``take_incoming`` let others join. Their
        ``seq`` is ``None``, because they enter the transcript with the reply.
        """
        return [_incoming_message(delivery) for delivery in self._lease.deliveries]

    @cached_property
    def inputs(self) -> list[Message]:
        """The messages of this turn as they were sent, whole. ``inputs[i]`` is ``messages[i]``.

        A text is ``{"role": "user", "content": text}``. Author and metadata stand in ``messages``.
        """
        return [decode(*delivery.message) for delivery in self._lease.deliveries]

    @cached_property
    def senders(self) -> list[SessionId | None]:
        """For each message the id of the session that sent it, or ``None`` for a user's message."""
        return [message.sender for message in self.messages]

    @cached_property
    def receipts(self) -> list[Receipt]:
        """For each message its receipt, which is the same on every attempt.

        A receipt can serve as an idempotency key for an effect outside of the database. So the
        effect happens once, although the handler runs more than once.
        """
        return [
            Receipt.from_fields(
                session_id=self._lease.session_id, position=one.position, duplicate=False
            )
            for one in self._lease.deliveries
        ]

    @property
    def _chain(self) -> Chain:
        """The chain of sends that the staged messages continue."""
        return self._lease.chain.next(self._lease.session_id)

    @property
    def stopped_by(self) -> StoppedBy | None:
        """Why the handler is cancelled: ``"cancel"``, ``"interrupt"``, ``"end"`` (of the session,
        or its deletion) or ``"lease"`` (this worker lost it). It is set before the cancellation, to
        be read in ``except CancelledError``. ``None`` while nothing was stopped, and if the worker
        itself stops: then the turn is run again without a counted attempt.
        """
        return self._held.stopped_by

    @property
    def settings(self) -> Settings:
        """The session's model, system prompt and tools."""
        return self.session.settings

    @property
    def text(self) -> str:
        """The text of the messages. Several messages are joined with blank lines."""
        return "\n\n".join(message.content for message in self.messages)

    @property
    def prompt(self) -> str:
        """The text of the messages for a model to read.

        As ``text``, but a message of another session is marked as another agent's words, so that
        the model does not take it for the user's. See ``attributed``. The task of a spawned session
        is its first message, from its parent. It is not marked: the session is there to obey it.
        """
        return "\n\n".join(map(self._prompt_of, self._lease.deliveries, self.messages))

    def _prompt_of(self, delivery: Delivery, message: SessionMessage) -> str:
        is_first = delivery.position == 1 and message.sender is not None
        if is_first and was_spawned_by(self.session, str(message.sender)):
            return message.content
        return attributed(message)

    async def history(self, limit: int | None = None) -> list[SessionMessage]:
        """Return the newest messages of the transcript, rendered as text, newest last.

        At most ``limit`` messages, 50 by default. The transcript does not yet contain
        ``turn.messages``.
        """
        limit = DEFAULT_HISTORY_LIMIT if limit is None else validation.integer(limit, "limit")
        return await self._database.read_page(
            HistoryPage(self.namespace, self._lease.session_id, limit)
        )

    async def transcript(self, limit: int | None = None) -> list[Message]:
        """Return the transcript as the messages that were stored, newest last.

        With ``limit`` only the newest ones, which costs as much as it returns. The transcript does
        not yet contain ``turn.messages``, nor the changes of ``edit``.
        """
        if limit is not None:
            return await self._database.read(
                partial(
                    load_newest,
                    namespace=self.namespace,
                    session_id=self._lease.session_id,
                    limit=validation.integer(limit, "limit"),
                )
            )
        return await self._database.transcript_loads.load(self._lease.key) or []

    async def state(self, scope: StateScope = "session") -> dict[str, Any]:
        """Return the state of a scope as a dict that the handler may change.

        The database is read at the first call for each scope. Later calls return the same dict. The
        commit of the turn merges the keys whose JSON has changed since then, and removes deleted
        keys and keys that are ``None``. Other keys are left as they are. If two turns at the same
        time change the same key of a shared scope, the last commit wins. A turn that fails stores
        nothing, and the next attempt reads again. See ``SessionStore.state`` for the scopes.

        Raises ``InvalidArgument`` for another scope. The turn fails if a value is not JSON, or if
        the state is larger than ``Limits.state_bytes``.
        """
        self._state = self._state or TurnState(self._database, self._lease)
        return await self._state.values(validation.state_scope(scope))

    async def take_incoming(self, limit: int | None = None) -> list[SessionMessage]:
        """Let messages that wait in the inbox join this turn, and return them in order.

        At most ``limit`` messages. The list is empty if none wait. A message that was tried before
        does not join, nor do messages behind it. ``messages``, ``inputs``, ``senders`` and
        ``receipts`` have the joined ones too from then on, and the commit of the turn answers them.
        ``attempt`` is still the one of the messages that the turn began with: only those bear its
        failure. If the turn does not commit, joined messages wait again, as if they had not joined.

        A returned message stands in the transcript where the handler puts it in the list that it
        returns. Otherwise it stands behind the first messages, and before the replies.

        Raises ``LeaseLost`` after the handler has returned, and when the lease is lost. A call that
        is cancelled loses no message: the next call returns those that have joined, and without one
        they wait again.
        """
        limit = validation.optional_integer(limit, "limit")
        messages = self.messages  # made before the lease has the joined ones too
        self._incoming = self._incoming or Incoming(self._database, self._worker_id, self._held)
        taken = await self._incoming.take(limit)
        arrived = [_incoming_message(delivery) for delivery in taken]
        messages += arrived
        for cached in ("inputs", "senders", "receipts"):
            vars(self).pop(cached, None)
        self._joined = {**self._joined, **{id(m): d for m, d in zip(arrived, taken, strict=True)}}
        return arrived

    def usage(self, *, input_tokens: int | None = None, output_tokens: int | None = None) -> None:
        """Count tokens that this run has used. Several calls add up.

        They are kept with the last message of the turn, for the reports, also when the attempt
        fails, is run again, or is stopped. The tokens of several attempts add up. At the commit a
        number of the ``Reply`` takes the place of the sum that was counted here. A run whose lease
        is lost or released keeps none. Raises ``InvalidArgument``.
        """
        given = (("input_tokens", input_tokens), ("output_tokens", output_tokens))
        more = [
            validation.optional_integer(tokens, name, maximum=validation.MAX_TOKENS)
            for name, tokens in given
        ]
        self.used = Usage(
            *(
                before if tokens is None else (before or 0) + tokens
                for before, tokens in zip(self.used, more, strict=True)
            )
        )

    def stream(self, text: str) -> None:
        """Show followers of the session a piece of the reply's text, before the turn commits.

        Returns at once: the worker writes the pieces of all its turns together, at most every 50
        ms. Pieces are no part of the transcript. The handler still returns its whole reply. NUL and
        lone surrogates are shown as U+FFFD. So are the halves of a pair that two calls share.

        Never raises for size. Text above ``Limits.stream_bytes`` in this run is dropped, and one
        piece of data of the kind ``cut`` says so. After the handler has returned, or when the lease
        is lost, it has no effect. Raises ``InvalidArgument`` if ``text`` is not a string. Call it
        in the event loop of the worker.
        """
        text = replace_unstorable(validation.streamed_text(text))
        if (stream := self._stream or self._open_stream()) is not None:
            stream.add_text(text)

    def emit(self, kind: str, data: Any = None) -> None:
        """Show followers of the session data beside the text, such as progress or a tool call.

        ``kind``: 1 to 64 characters. ``data``: any JSON value of at most 65,536 bytes. It keeps its
        place among the pieces of ``stream``, and is written with them. Above 8 MiB of data in this
        run data is dropped, and one piece of the kind ``cut`` says so. Raises ``InvalidArgument``
        for the kind and ``InvalidMessage`` for the data.
        """
        kind = validation.kind(kind)
        encoded = encode_data(data, max_bytes=MAX_DATA_BYTES)
        if (stream := self._stream or self._open_stream()) is not None:
            stream.add_data(kind, encoded)

    def _open_stream(self) -> TurnStream | None:
        if self._stream is None and self._takes_pieces:
            self._stream = self._lane.open(self._lease)
        return self._stream

    def send(
        self,
        id: str,
        message: str | Message,
        *,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Stage a message to another session of this namespace. The commit of the turn sends it.

        ``message`` is a text, or one JSON message of the role ``user``. ``author`` and ``metadata``
        are the same as in ``SessionBroker.send``.

        If the session is unknown or ended then, or its inbox is full, the turn fails and is tried
        again. Raises ``InvalidSessionId``, ``InvalidMessage`` and ``HopLimitReached`` at once.
        """
        request = send_request(
            self.namespace,
            id,
            message,
            self._database.limits,
            self._lease.session_id,
            chain=self._chain,
            trace=current_trace(),
            author=author,
            metadata=metadata,
        )
        check_hops(self._chain, self._database.limits, request.session_id, self._lease.session_id)
        self.staged.append(request)

    def edit(self, edit: Edit) -> None:
        """Stage a change of this session's own transcript. The commit of the turn makes it.

        The edit changes the transcript that the turn began with. ``turn.messages`` and the reply
        come behind the messages that it appends. Several edits are made in their order. If its
        ``expected_version`` or ``expected_tail`` is not met then, the turn fails with
        ``VersionConflict`` and is tried again. Raises ``InvalidMessage`` and ``InvalidArgument`` at
        once.

        Verbs of ``SessionStore`` that remove or replace messages of this session refuse to do so
        inside its handler: the turn would not commit.
        """
        request = edit_request(self.namespace, self._lease.session_id, edit, self._database.limits)
        self.staged.append(request._replace(create=False))

    def spawn(self, request: SpawnRequest) -> SessionId:
        """Stage a child of this session, and return its id. The commit of the turn creates it.

        If the child is refused then (``SpawnDenied``), the turn fails. A turn can't wait for the
        child's reply: let the child send it to this session. Raises ``InvalidArgument``,
        ``InvalidMessage`` and ``HopLimitReached`` at once.
        """
        request = validation.spawn_request(request)
        if request.wait_for_first_reply:
            raise InvalidArgument(
                "a turn can't wait for a child that is made when the turn commits; "
                "leave wait_for_first_reply out, and have the child send its result back"
            )
        spawn = spawn_request(
            self.namespace,
            self._lease.session_id,
            request,
            self._database.limits,
            trace=current_trace(),
        )
        check_hops(self._chain, self._database.limits, spawn.session_id, self._lease.session_id)
        self.staged.append(spawn)
        return SessionId(spawn.session_id)


async def scope_state(turn: Turn, key: ScopeKey) -> dict[str, Any]:
    """Return the state of any scope of the namespace, as ``Turn.state`` does for its scopes."""
    turn._state = turn._state or TurnState(turn._database, turn._lease)
    return await turn._state.values_of(key)


def end_stream(turn: Turn) -> None:
    """Take no more pieces of a turn."""
    turn._takes_pieces = False
    if turn._stream is not None:
        turn._stream.close()


def stream_of(turn: Turn) -> TurnStream | None:
    """Return the stream of a turn, ``None`` if it has not streamed."""
    return turn._stream


def has_taken_incoming(turn: Turn) -> bool:
    """Return whether ``take_incoming`` was called, also if the call was cancelled."""
    return turn._incoming is not None


async def give_back_unseen(turn: Turn) -> None:
    """Give back the messages of a ``take_incoming`` that was cancelled, before the commit."""
    if turn._incoming is not None:
        await turn._incoming.give_back_unseen()


def build_commit(turn: Turn, answer: Any) -> Commit:
    """Return the commit for the answer of the handler. Raises ``InvalidMessage``."""
    max_bytes = turn._database.limits.message_bytes
    replies, reply = encode_result(answer, max_bytes=max_bytes, joined=turn._joined)
    notice = None
    if turn.answer is not None and turn.answer.status == "expired":
        notice = turn._lease.deliveries[0].position
    messages, beside = place_messages(turn._lease.deliveries, replies, notice)
    if reply.ask is not None:
        turn.staged.append(encode_question(reply.ask, max_bytes=max_bytes))
    used = turn.used
    return Commit(
        turn._lease,
        messages,
        model=reply.model,
        input_tokens=used.input_tokens if reply.input_tokens is None else reply.input_tokens,
        output_tokens=(used.output_tokens if reply.output_tokens is None else reply.output_tokens),
        beside=beside,
    )


async def read_answer(turn: Turn) -> None:
    """Read what became of the question that the turn is about."""
    lease = turn._lease
    row = await turn._database.read(partial(question_rows.read_of_turn, lease=lease))
    if row is None:
        return
    index = next((i for i, one in enumerate(lease.deliveries) if one.answers is not None), None)
    message = None
    if row.status == "answered" and index is not None:
        message = turn.messages[index]
    turn.answer = Answer.from_fields(
        status=row.status,
        question=asked_question(row),
        message=message,
        author=None if message is None else message.author,
    )


def stage_state(turn: Turn) -> None:
    """Stage the changes of the state, when the handler has returned. Raises ``InvalidArgument``."""
    if turn._state is not None:
        turn.staged += turn._state.updates()


def _incoming_message(delivery: Delivery) -> SessionMessage:
    message = delivery.message
    return SessionMessage.from_fields(
        role=message.role,
        content=message.content if message.payload is None else _exact_text(message),
        timestamp=delivery.enqueued_at,
        seq=None,
        sender=None if delivery.sender is None else SessionId(delivery.sender),
        **extra_fields(delivery.extra),
    )


def _exact_text(message: StoredMessage) -> str:
    """Return the text that was sent, or the rendering of a message of another form.

    The column holds no NUL and no lone surrogate. The payload of such a text does.
    """
    given = decode(*message)
    if given.keys() == {"role", "content"} and isinstance(given["content"], str):
        return given["content"]
    return message.content
