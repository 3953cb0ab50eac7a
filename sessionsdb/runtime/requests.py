"""What callers and turns ask for, checked and ready for an operation; and the two that are made
of several."""

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
"""A longer idempotency key is stored as its beginning and its digest: it stands in an index with
the session's id, and PostgreSQL limits an entry to 2,704 bytes."""

READABLE_KEY_CHARACTERS = 40
"""How much of a longer key is kept, for people to recognise it by."""


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
    """A message that may be sent. Raises ``InvalidSessionId`` and ``InvalidMessage``."""
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
    """A child that may be asked for; ``request`` has been checked (``arguments.spawn_request``).
    Raises ``InvalidSessionId`` and ``InvalidMessage``."""
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
