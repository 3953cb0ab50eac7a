"""Check the arguments of a send or spawn, and build the request that an operation takes."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args
from uuid import uuid4

from sessionsdb import operations, validation
from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.codec import StoredMessage, encode_all, encode_incoming, size_of
from sessionsdb.messages.digests import digest, extra_values, message_values
from sessionsdb.messages.extra import encode_extra
from sessionsdb.messages.state_values import encode_changes
from sessionsdb.types import CatchUp, Limits, SpawnRequest

if TYPE_CHECKING:
    from sessionsdb.operations.editing import EditRequest
    from sessionsdb.operations.inbox_types import Chain, Send
    from sessionsdb.operations.schedules import NewSchedule
    from sessionsdb.operations.tree import Spawn

_CATCH_UP: tuple[CatchUp, ...] = get_args(CatchUp)

READABLE_KEY_BYTES = 64
"""A longer idempotency key is stored as its beginning and its digest. It is part of an index entry
with the session id, and PostgreSQL limits an entry to 2,704 bytes."""

READABLE_KEY_CHARACTERS = 40
"""The beginning of a longer key is kept up to this length, for people who read the table."""


def send_request(
    namespace: str,
    id: str,
    message: Any,
    limits: Limits,
    sender: str | None = None,
    idempotency_key: str | None = None,
    chain: Chain | None = None,
    trace: str | None = None,
    *,
    author: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> Send:
    """Build the request for one message: a text, or one JSON message of any form.

    Raises ``InvalidSessionId``, ``InvalidMessage`` and ``InvalidArgument``.
    """
    key = validation.idempotency_key(idempotency_key)
    sender = validation.optional_name(sender, "sender")
    stored, extra = _incoming(
        message, "message", limits, author, validation.metadata(metadata), by_agent=bool(sender)
    )
    return operations.inbox_types.Send(
        namespace,
        validation.session_id(id),
        stored,
        fingerprint=(
            os.urandom(16).hex()
            if key is None
            else digest(*message_values(stored), sender, *extra_values(extra))
        ),
        sender=sender,
        idempotency_key=_stored_key(key),
        chain=chain,
        trace=trace,
        extra=extra,
    )


def answer_request(
    namespace: str,
    id: str,
    position: int,
    message: Any,
    limits: Limits,
    idempotency_key: str | None = None,
    *,
    trace: str | None = None,
    author: str | None = None,
) -> Send:
    """Build the request for the answer to the question at ``position``.

    A key names the question too: the same words may answer another one. Raises ``InvalidMessage``
    and ``InvalidArgument``.
    """
    request = send_request(
        namespace, id, message, limits, None, idempotency_key, trace=trace, author=author
    )
    if request.idempotency_key is None:
        return request
    return request._replace(fingerprint=digest(request.fingerprint, position))


def new_schedule(
    namespace: str,
    id: str,
    message: Any,
    limits: Limits,
    *,
    at: datetime | None,
    cron: str | None,
    tz: str,
    name: str | None,
    sender: str | None,
    author: str | None,
    metadata: dict[str, Any] | None,
    catch_up: str,
) -> NewSchedule:
    """Build the request for one message that is sent later.

    Raises ``InvalidSessionId``, ``InvalidMessage`` and ``InvalidArgument``.
    """
    sender = validation.optional_name(sender, "sender")
    stored, extra = _incoming(
        message, "message", limits, author, validation.metadata(metadata), by_agent=bool(sender)
    )
    moment, times, zone = validation.schedule_times(at, cron, tz)
    return operations.schedules.NewSchedule(
        namespace,
        validation.session_id(id),
        operations.schedules.new_schedule_id(),
        stored,
        moment,
        times,
        zone,
        validation.schedule_name(name),
        extra,
        sender,
        validation.one_of(catch_up, _CATCH_UP, "catch_up"),
    )


def spawn_request(
    namespace: str,
    parent: str,
    request: SpawnRequest,
    limits: Limits,
    idempotency_key: str | None = None,
    trace: str | None = None,
) -> Spawn:
    """Build the request for one child. ``request`` comes from ``validation.spawn_request``.

    Raises ``InvalidSessionId``, ``InvalidMessage`` and ``InvalidArgument``.
    """
    key = validation.idempotency_key(idempotency_key)
    prompt, extra = _incoming(
        request.prompt, "prompt", limits, request.author, request.metadata, by_agent=True
    )
    settings = (request.model, request.system, request.tools)
    reports = request.report == "each"
    return operations.tree.Spawn(
        namespace,
        validation.session_id(parent),
        f"spawn-{uuid4()}",
        *settings,
        prompt,
        idempotency_key=_stored_key(key),
        fingerprint=(
            None
            if key is None
            else digest(
                *message_values(prompt),
                *settings,
                *extra_values(extra),
                *(["reports"] if reports else []),
            )
        ),
        trace=trace,
        extra=extra,
        reports=reports,
    )


def edit_request(
    namespace: str, id: str, given: Any, limits: Limits, *, in_own_turn: bool = False
) -> EditRequest:
    """Build the request for one edit of a transcript.

    Raises ``InvalidSessionId``, ``InvalidMessage`` and ``InvalidArgument``.
    """
    edit = validation.edit(given)
    messages = encode_all(edit.append, max_bytes=limits.message_bytes)
    return operations.editing.EditRequest(
        namespace,
        validation.session_id(id),
        messages,
        validation.message_keys(edit.keys, len(messages)),
        keep_through=edit.keep_through,
        expected_version=edit.expected_version,
        expected_tail=edit.expected_tail,
        metadata=edit.metadata,
        state=[
            (scope, encode_changes(changes, max_bytes=limits.state_bytes))
            for scope, changes in (edit.state or {}).items()
        ],
        create=edit.create,
        in_own_turn=in_own_turn,
    )


def _incoming(
    message: Any,
    field: str,
    limits: Limits,
    author: str | None,
    metadata: dict[str, Any] | None,
    *,
    by_agent: bool,
) -> tuple[StoredMessage, str | None]:
    """Return the columns of a message that is sent, and the text of its author and metadata.

    A message of an agent with another role than ``user`` would put words into the mouth of the
    receiving model, or of its system prompt.
    """
    stored = encode_incoming(message, field=field, max_bytes=limits.message_bytes)
    if by_agent and stored.role != "user":
        raise InvalidMessage(
            f"{field} has the role {stored.role[:40]!r}: a message with a sender must have the "
            "role user"
        )
    if author is None and metadata is None:
        return stored, None
    extra = encode_extra(validation.optional_name(author, "author"), metadata)
    size = size_of(stored) + len((extra or "").encode())
    if size > limits.message_bytes:
        raise InvalidMessage(
            f"{field} with its author and metadata is {size} bytes as JSON, the limit is "
            f"{limits.message_bytes}; store large content elsewhere and refer to it, or raise "
            "Limits.message_bytes"
        )
    return stored, extra


def _stored_key(key: str | None) -> str | None:
    if key is None or len(key.encode()) <= READABLE_KEY_BYTES:
        return key
    return f"{key[:READABLE_KEY_CHARACTERS]}…sha256:{hashlib.sha256(key.encode()).hexdigest()}"
