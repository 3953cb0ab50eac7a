"""The namespace, the durability and the limits of a handle."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from sessionsdb.types.base import Count, Value

DEFAULT_NAMESPACE = "default"
"""The namespace of a handle that is created without one."""

Durability = Literal["full", "normal"]
"""The durability of a commit: ``"full"`` survives power loss, ``"normal"`` may lose the last
commits in a power loss, but not in a crash of the process."""


class Limits(Value):
    """The limits of a handle. They are checked before anything is written."""

    message_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 1_048_576
    """The size of a message in bytes, as JSON in UTF-8. At most 1 GiB - 1, because databases refuse
    larger texts."""
    state_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 262_144
    """The size of all keys and values of one scope of state, as JSON in UTF-8."""
    pending: Annotated[Count, Field(ge=1)] = 1_000
    """The number of unfinished messages in one inbox. Above it ``send`` raises ``InboxFull``."""
    depth: Count = 5
    """The number of ancestors of a spawned session. Above it ``spawn`` raises ``SpawnDenied``."""
    children: Count = 50
    """The number of children of one session that have not ended. Above it ``spawn`` raises
    ``SpawnDenied``."""
    hops: Count = 10
    """The number of times a message may be handed on from session to session.

    The message of a user has 0 hops. A message that a session sends during a turn has one hop more
    than the highest of the messages of that turn. Above the limit ``send`` and ``spawn`` raise
    ``HopLimitReached``."""
    schedules: Count = 100
    """The number of schedules of one session. Above it ``schedule`` raises ``InvalidArgument``."""
    stream_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 1_048_576
    """The text that one run of a turn may stream, in bytes of UTF-8. Text above it is dropped."""


DEFAULT_LIMITS: Limits = Limits.model_construct()
"""The limits of a handle that is created without any. It equals ``Limits()``.

``Limits()`` would build the validator of the class, and pydantic would first look for plugins in
all installed packages: 6 ms at each start.
"""
