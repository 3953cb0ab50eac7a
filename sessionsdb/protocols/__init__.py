"""The two interfaces of the package as protocols: ``SessionStore`` and ``SessionBroker``.

A caller can rely on their contract, and a host can implement them over other storage. The
semantics follow the traits ``SessionStore`` and ``SessionBroker`` of the Brainwires agent
framework, made durable.
"""

from sessionsdb.protocols.broker import SessionBroker
from sessionsdb.protocols.store import SessionStore

__all__ = ["SessionBroker", "SessionStore"]
