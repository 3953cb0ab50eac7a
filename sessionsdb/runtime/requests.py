"""Check the arguments of a send or spawn, and build the request that an operation takes."""

from __future__ import annotations

import hashlib
import json
import os
from uuid import uuid4

from sessionsdb import validation
from sessionsdb.messages.codec import encode_text
from sessionsdb.operations.inbox_types import Chain, Send
from sessionsdb.operations.tree import Spawn
from sessionsdb.types import Limits, SpawnRequest

READABLE_KEY_BYTES = 64
"""A longer idempotency key is stored as its beginning and its digest. It is part of an index entry
with the session id, and PostgreSQL limits an entry to 2,704 bytes."""

READABLE_KEY_CHARACTERS = 40
"""The beginning of a longer key is kept up to this length, for people who read the table."""


def send_request(
    namespace: str,
    id: str,
    text: str,
    limits: Limits,
    sender: str | None = None,
    idempotency_key: str | None = None,
    chain: Chain | None = None,
    trace: str | None = None,
) -> Send:
    """Build the request for one message. Raises ``InvalidSessionId``, ``InvalidMessage`` and
    ``InvalidArgument``."""
    key = validation.idempotency_key(idempotency_key)
    sender = validation.optional_name(sender, "sender")
    message = encode_text(text, field="text", max_bytes=limits.message_bytes)
    return Send(
        namespace,
        validation.session_id(id),
        message,
        fingerprint=os.urandom(16).hex() if key is None else _fingerprint(*message, sender),
        sender=sender,
        idempotency_key=_stored_key(key),
        chain=chain,
        trace=trace,
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
    prompt = encode_text(request.prompt, field="prompt", max_bytes=limits.message_bytes)
    return Spawn(
        namespace,
        validation.session_id(parent),
        f"spawn-{uuid4()}",
        request.model,
        request.system,
        request.tools,
        prompt,
        idempotency_key=_stored_key(key),
        fingerprint=(
            None
            if key is None
            else _fingerprint(*prompt, request.model, request.system, request.tools)
        ),
        trace=trace,
    )


def _fingerprint(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _stored_key(key: str | None) -> str | None:
    if key is None or len(key.encode()) <= READABLE_KEY_BYTES:
        return key
    return f"{key[:READABLE_KEY_CHARACTERS]}…sha256:{hashlib.sha256(key.encode()).hexdigest()}"
