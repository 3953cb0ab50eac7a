"""Spawning a child session together with its prompt, and sending one message."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Connection

from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import HopLimitReached
from sessionsdb.operations import child_reports, question_answers, tree
from sessionsdb.operations.inbox_types import Chain, Send
from sessionsdb.operations.tree import Spawn
from sessionsdb.types import Limits, Receipt, SessionId


def spawn_child(
    connection: Connection, spawn: Spawn, limits: Limits, chain: Chain | None = None
) -> SessionId:
    """Create the child and queue its prompt. A known idempotency key returns the first child."""
    child, is_new = tree.create_child(connection, spawn, limits)
    if is_new:
        prompt = Send(
            spawn.namespace,
            child,
            spawn.prompt,
            fingerprint=uuid4().hex,
            sender=spawn.parent,
            chain=chain,
            trace=spawn.trace,
            extra=spawn.extra,
        )
        send_message(connection, prompt, limits)
        if spawn.reports:
            child_reports.promise(connection, spawn.namespace, child)
    return SessionId(child)


def check_hops(chain: Chain, limits: Limits, id: str, sender: str) -> None:
    """Raise ``HopLimitReached`` for a message to ``id`` that has more hops than the limit."""
    if chain.hops > limits.hops:
        raise HopLimitReached(id, sender, limits.hops, chain.origin)


def send_message(connection: Connection, request: Send, limits: Limits) -> Receipt:
    """Queue one message. Raises the errors of ``mailbox.send``."""
    [answer] = question_answers.send(connection, [request], limits)
    return result_or_raise(answer)
