"""What passes through a mailbox: messages on their way in, leases on turns, and what becomes of
them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sessionsdb.engine.clock import as_utc
from sessionsdb.errors import HopLimitReached, IdempotencyConflict
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import registry
from sessionsdb.operations.row_locks import SessionKey
from sessionsdb.types import Limits, Receipt, SessionDetails, SessionId


class Chain(NamedTuple):
    """A message's place in a chain of sends from session to session."""

    hops: int
    """How many sessions have handed it on: none, for what a user sent."""
    origin: str | None
    """The session that was the first to; the one a user spoke to, where one did."""

    def next(self, sender: str) -> Chain:
        """The place of what ``sender`` sends while it works on this message."""
        return Chain(self.hops + 1, self.origin or sender)


USERS = Chain(0, None)
"""The place of what a user sent."""


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
    """With a sender: where in a chain of sends this stands. ``None``: behind what the sender is
    running now."""
    trace: str | None = None
    """The ``traceparent`` of its send, where that is recorded."""

    @property
    def is_behind(self) -> bool:
        """Whether its place in a chain depends on what its sender is running."""
        return self.sender is not None and self.chain is None

    def chain_behind(self, running: Chain | None) -> Chain:
        """Its place in a chain, if what its sender is running has come as far as ``running``."""
        if self.sender is None:
            return USERS
        if self.chain is not None:
            return self.chain
        return (running or USERS).next(self.sender)

    def accepted(self, position: int, *, duplicate: bool = False) -> Receipt:
        """What the sender is told when the message stands at ``position``."""
        return Receipt.from_fields(
            session_id=SessionId(self.session_id), position=position, duplicate=duplicate
        )

    def known(self, position: int, *, same: bool) -> Receipt | IdempotencyConflict:
        """What the sender is told when its key is that of the message at ``position``."""
        if same:
            return self.accepted(position, duplicate=True)
        return IdempotencyConflict(self.session_id, str(self.idempotency_key))

    def too_far(self, limits: Limits, origin: str | None) -> HopLimitReached:
        """What the sender is told when its chain of sends has become too long."""
        return HopLimitReached(self.session_id, str(self.sender), limits.hops, origin)


class Delivery(NamedTuple):
    """One message that was handed to a turn."""

    position: int
    message: StoredMessage
    sender: str | None
    attempt: int
    enqueued_at: datetime
    chain: Chain
    trace: str | None = None
    """The ``traceparent`` of its send, where that was recorded."""


class Lease(NamedTuple):
    """A worker's right to run a session's turn over the deliveries."""

    namespace: str
    session: SessionDetails
    epoch: int
    deliveries: list[Delivery]

    @property
    def key(self) -> SessionKey:
        return (self.namespace, self.session.id)

    @property
    def fence(self) -> tuple[SessionKey, int]:
        """What tells this lease from all others."""
        return (self.key, self.epoch)

    @property
    def positions(self) -> list[int]:
        return [delivery.position for delivery in self.deliveries]

    @property
    def chain(self) -> Chain:
        """The place of the message that has come furthest."""
        return max((d.chain for d in self.deliveries), key=lambda chain: chain.hops)


class Commit(NamedTuple):
    """A finished turn: the messages for the transcript, the last ``replies`` of them answers."""

    lease: Lease
    messages: list[StoredMessage]
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def tokens(self) -> tuple[int | None, int | None]:
        """In and out."""
        return (self.input_tokens, self.output_tokens)

    @property
    def positions(self) -> list[int]:
        """For each message the inbox message it came from or, for a reply, the last of them."""
        asked = self.lease.positions
        return asked + [asked[-1]] * (len(self.messages) - len(asked))


class Fail(NamedTuple):
    """A failed turn. ``retry_in`` seconds from now, or never: then its messages are dead."""

    lease: Lease
    error: str
    retry_in: float | None


class Due(NamedTuple):
    """What there is to do: now, and in how many seconds at the latest something else."""

    ready: bool
    in_seconds: float | None


# ---- from rows -----------------------------------------------------------------------------------


def make_lease(namespace: str, session: registry.SessionRow, epoch: int, waiting: int) -> Lease:
    details = registry.details(session, pending=waiting, running=True)
    return Lease(namespace, details, epoch, [])


def make_delivery(
    position: int,
    content: str,
    payload: str | None,
    sender: str | None,
    hops: int,
    origin: str | None,
    trace: str | None,
    attempt: int,
    enqueued_at: datetime | str,
) -> Delivery:
    return Delivery(
        position,
        StoredMessage("user", content, payload),
        sender,
        attempt,
        as_utc(enqueued_at),
        Chain(hops, origin),
        trace,
    )
