"""Values that pass through a mailbox: messages on their way in, leases, and results of turns."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sessionsdb.engine.clock import as_utc
from sessionsdb.errors import DamagedValue, HopLimitReached, IdempotencyConflict, SessionsDBError
from sessionsdb.messages.codec import StoredMessage, inbox_payload
from sessionsdb.operations.keys import Fence, SessionKey
from sessionsdb.operations.session_rows import SessionRow, session_details
from sessionsdb.operations.transcript_types import Attributes
from sessionsdb.types import Limits, Receipt, SessionDetails, SessionId

UNFINISHED = ("pending", "running")
"""The statuses of a message that is still to be handled."""

UNFINISHED_SQL = "('pending', 'running')"
"""The same for ``status IN …`` in the text of a statement."""


PROMPT_POSITION = 1
"""The place of the prompt in the inbox of a spawned session."""


class Chain(NamedTuple):
    """The place of a message in a chain of sends from session to session."""

    hops: int
    """How many sessions have passed it on: 0 for a message of a user."""
    origin: str | None
    """The first session that passed it on: the one that a user sent to, if a user did."""

    def next(self, sender: str) -> Chain:
        """Return the place of a message that ``sender`` sends while it handles this one."""
        return Chain(self.hops + 1, self.origin or sender)


USERS = Chain(0, None)
"""The place of a user's message."""


class Send(NamedTuple):
    """A message for a session's inbox."""

    namespace: str
    session_id: str
    message: StoredMessage
    fingerprint: str
    """With a key: a digest of the arguments. Without: an id of this write."""
    sender: str | None = None
    idempotency_key: str | None = None
    chain: Chain | None = None
    """With a sender: the place in a chain of sends. ``None``: the place is behind the messages that
    the sender is handling now."""
    trace: str | None = None
    """The ``traceparent`` of the send, if one is recorded."""
    extra: str | None = None
    """Author and metadata: see ``messages/extra.py``."""

    @property
    def needs_chain(self) -> bool:
        """Whether the place in a chain depends on the messages that the sender is handling."""
        return self.sender is not None and self.chain is None

    def chain_behind(self, running: Chain | None) -> Chain:
        """Return the place in a chain, given the furthest message that the sender is handling."""
        if self.sender is None:
            return USERS
        if self.chain is not None:
            return self.chain
        return (running or USERS).next(self.sender)

    def accepted(self, position: int, *, duplicate: bool = False) -> Receipt:
        """Return the receipt for the message at ``position``."""
        return Receipt.from_fields(
            session_id=SessionId(self.session_id), position=position, duplicate=duplicate
        )

    def known(self, position: int, *, same: bool) -> Receipt | IdempotencyConflict:
        """Return the answer to a key that the message at ``position`` has already.

        ``same``: whether the arguments are the same.
        """
        if same:
            return self.accepted(position, duplicate=True)
        return IdempotencyConflict(self.session_id, str(self.idempotency_key))

    def repeated(self, answer: Receipt | SessionsDBError) -> Receipt | SessionsDBError:
        """Return the answer to a repetition of an equal request that got ``answer``."""
        if isinstance(answer, SessionsDBError):
            return answer
        return self.accepted(answer.position, duplicate=True)

    def too_far(self, limits: Limits, origin: str | None) -> HopLimitReached:
        return HopLimitReached(self.session_id, str(self.sender), limits.hops, origin)

    def columns(self, chain: Chain) -> tuple[str | int | None, ...]:
        """Return the values of ``SENT_COLUMNS`` for this message. No hops are ``None``."""
        return (
            self.message.content,
            inbox_payload(self.message),
            self.sender,
            self.extra,
            chain.hops or None,
            chain.origin,
            self.trace,
            self.idempotency_key,
            self.fingerprint,
        )


SENT_COLUMNS = (
    "content",
    "payload",
    "sender",
    "extra",
    "hops",
    "origin",
    "trace",
    "idempotency_key",
    "fingerprint",
)
"""The columns of ``inbox`` that come from the sender, in the order of ``Send.columns``."""


def sent_values(prefix: str) -> str:
    """Return the values of ``SENT_COLUMNS`` in SQL, from names with this prefix."""
    return ", ".join(
        f"coalesce({prefix}hops, 0)" if name == "hops" else f"{prefix}{name}"
        for name in SENT_COLUMNS
    )


class AnswerWanted(SessionsDBError):
    """The open question of the session may take a message of a send as its answer.

    No caller sees it: ``question_answers.send_beside_question`` does the send.
    """


class Delivery(NamedTuple):
    """One message that was given to a turn."""

    position: int
    message: StoredMessage
    sender: str | None
    attempt: int
    sent_at: datetime | str
    """The time of the send as the driver returned it, which it takes again."""
    chain: Chain
    extra: str | None = None
    """Author and metadata: see ``messages/extra.py``."""
    trace: str | None = None
    """The ``traceparent`` of its send, if one was recorded."""
    ahead: bool = False
    """Claimed before the messages from head to tail, so that its end does not move ``head``."""
    joined: bool = False
    """Joined the turn while it ran. The attempts of the turn are not its own."""
    answers: int | None = None
    """The question that it answers, or whose expiry it tells. A claim delivers it alone."""
    fault: DamagedValue | None = None
    """Why the message can't be read. No handler gets it: the attempt fails with this error."""

    @property
    def enqueued_at(self) -> datetime:
        """The time of the send. Most turns never ask for it, and SQLite has it as text."""
        return as_utc(self.sent_at)


def delivered_attributes(delivery: Delivery) -> Attributes:
    """Return the values that stand beside a delivered message in the transcript."""
    return Attributes(delivery.position, delivery.sender, delivery.sent_at, delivery.extra)


class Lease(NamedTuple):
    """A worker's right to run a session's turn over the deliveries."""

    namespace: str
    session_id: str
    epoch: int
    deliveries: list[Delivery]
    """The messages that the turn began with, in the order of the claim, then joined ones."""
    rewrites: int
    """The rewrites of the transcript before the turn. With another number it does not commit."""
    withdrawn: int | None
    """The question that was withdrawn, and that no turn has seen yet."""
    reports: bool
    """Whether the parent of the session is still to be told what came of it."""
    session_row: SessionRow
    waiting: int
    """How many messages wait behind the deliveries."""

    @property
    def key(self) -> SessionKey:
        return (self.namespace, self.session_id)

    @property
    def session(self) -> SessionDetails:
        """The session at the moment of the claim, made from its row by each call."""
        return session_details(self.session_row, pending=self.waiting, running=True)

    @property
    def is_about_question(self) -> bool:
        """Whether the turn sees an answer, an expiry or a withdrawal.

        A claim delivers an answer alone, so it is the first delivery.
        """
        return self.withdrawn is not None or self.deliveries[0].answers is not None

    @property
    def sees_withdrawal(self) -> bool:
        """Whether the turn sees a withdrawal. The turn of an answer leaves it to the next one."""
        return self.withdrawn is not None and self.deliveries[0].answers is None

    @property
    def fault(self) -> DamagedValue | None:
        """The fault of the first message that can't be read."""
        return next((one.fault for one in self.deliveries if one.fault is not None), None)

    @property
    def fence(self) -> Fence:
        return (self.key, self.epoch)

    @property
    def positions(self) -> list[int]:
        return [delivery.position for delivery in self.deliveries]

    @property
    def begun(self) -> list[Delivery]:
        """The messages that the turn began with. Its attempt and its death are theirs alone."""
        return [delivery for delivery in self.deliveries if not delivery.joined]

    @property
    def is_retried(self) -> bool:
        """Whether the turn is not the first attempt. A retried message is claimed alone."""
        return self.deliveries[0].attempt > 1

    @property
    def last_position(self) -> int:
        """The last position of the messages that are not ahead, 0 if all are."""
        if len(self.deliveries) == 1:
            [one] = self.deliveries
            return 0 if one.ahead else one.position
        return max((one.position for one in self.deliveries if not one.ahead), default=0)

    @property
    def chain(self) -> Chain:
        """The place of the message with the most hops."""
        return max((d.chain for d in self.deliveries), key=lambda chain: chain.hops)


class Usage(NamedTuple):
    """The tokens that a turn used. ``None``: not known."""

    input_tokens: int | None = None
    output_tokens: int | None = None


NO_USAGE = Usage()


class Commit(NamedTuple):
    """A finished turn. ``messages`` are the delivered messages, and behind them the replies."""

    lease: Lease
    messages: list[StoredMessage]
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    beside: list[Attributes] | None = None
    """The values that stand beside each message, if the replies do not simply follow the delivered
    messages."""

    @property
    def attributes(self) -> list[Attributes]:
        """The values that stand beside each message in the transcript.

        A reply has the position of the last delivered message before it.
        """
        if self.beside is not None:
            return self.beside
        delivered = [delivered_attributes(one) for one in self.lease.deliveries]
        reply = Attributes(self.lease.deliveries[-1].position)
        return delivered + [reply] * (len(self.messages) - len(delivered))

    @property
    def reply(self) -> StoredMessage | None:
        """The last assistant message that the handler returned, ``None`` if it returned none.

        A message of nothing but reasoning has no text, and is not a reply. See ``Outcome.reply``.
        """
        for message, beside in reversed(list(zip(self.messages, self.attributes, strict=True))):
            is_delivered = beside.sent_at is not None
            if not is_delivered and message.role == "assistant" and _has_text(message):
                return message
        return None

    @property
    def answered(self) -> list[tuple[int, int | None, int | None]]:
        """For each delivered message its position, and the input and output tokens.

        The usage of the turn stands with the last message only, so that sums are right.
        """
        deliveries = self.lease.deliveries
        last = (deliveries[-1].position, self.input_tokens, self.output_tokens)
        if len(deliveries) == 1:
            return [last]
        return [*((one.position, None, None) for one in deliveries[:-1]), last]


def _has_text(message: StoredMessage) -> bool:
    return message.content != "" or message.payload is None


class Fail(NamedTuple):
    """A failed turn, to be tried again after ``retry_in`` seconds.

    With ``None`` it is not tried again: its messages are dead.
    """

    lease: Lease
    error: str
    retry_in: float | None
    usage: Usage = NO_USAGE

    @property
    def reports(self) -> bool:
        """Whether the prompt of a child dies whose parent is to be told."""
        return (
            self.retry_in is None
            and self.lease.reports
            and any(one.position == PROMPT_POSITION for one in self.lease.begun)
        )


class Due(NamedTuple):
    """Whether a worker finds something to do now, and in how many seconds at the latest it will."""

    ready: bool
    in_seconds: float | None
    """Until a backoff, a lease or a question ends."""
    schedule_in_seconds: float | None
    """Until a worker looks at a scheduled message."""
    idle: bool
    """Whether nothing runs, nothing is tried again later, and no message is due."""

    @property
    def soonest(self) -> float | None:
        known = [s for s in (self.in_seconds, self.schedule_in_seconds) if s is not None]
        return min(known, default=None)
