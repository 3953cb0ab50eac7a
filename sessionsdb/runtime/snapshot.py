"""Snapshots of messages: bytes that tell whether messages are unchanged, without the database.

Two lists of messages have equal snapshots only if they are equal to the last character. The order
of keys counts, and ``True`` is not ``1``. Pickle makes the bytes because it runs in C. It takes
0.1 µs for a plain message and 0.2 for one with tool calls, where JSON takes 0.5 and up to 20.
Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from sessionsdb.messages.codec import EncodedMessage


@dataclass(frozen=True)
class Snapshot:
    """The bytes of a list of messages, in parts that were added as the list grew.

    Each part has at least twice as many messages as the next one, and smaller parts are merged. So
    there are few parts, and a message is pickled only a few times however long the list grows.
    """

    parts: tuple[tuple[int, bytes], ...]
    """The number of messages and the bytes of each part."""

    @cached_property
    def count(self) -> int:
        """The number of messages."""
        return sum(count for count, _ in self.parts)

    @cached_property
    def size(self) -> int:
        """The number of bytes."""
        return sum(len(part) for _, part in self.parts)

    def is_prefix_of(self, messages: list[Any]) -> bool:
        """Return whether the first ``count`` of ``messages`` are the messages of this snapshot."""
        start = 0
        for count, part in self.parts:
            if _pickled(messages[start : start + count]) != part:
                return False
            start += count
        return True

    def extended_to(self, messages: list[Any]) -> Snapshot | None:
        """Return the snapshot of ``messages``, which begin with the messages of this one."""
        last = len(messages) - self.count
        if not last:
            return self
        parts = list(self.parts)
        while parts and parts[-1][0] < 2 * last:
            last += parts.pop()[0]
        added = take_snapshot(messages[-last:])
        return None if added is None else Snapshot((*parts, *added.parts))


def take_snapshot(messages: list[Any]) -> Snapshot | None:
    """Return the snapshot of ``messages``, or ``None`` if they hold an object of a type that
    reading JSON does not produce."""
    pickled = _pickled(messages)
    return None if pickled is None else Snapshot(((len(messages), pickled),))


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: object) -> NoReturn:
        """Refuse each value that is of no built-in type: its own methods could pretend anything."""
        raise TypeError(type(value).__name__)


def _pickled(messages: list[Any]) -> bytes | None:
    out = io.BytesIO()
    try:
        pickler = _Pickler(out, protocol=5)
        # Without ``fast`` the bytes depend on which of the strings are one object.
        pickler.fast = True
        pickler.dump(messages)
    except Exception:  # nested too deeply, or cyclic: the encoder reports it
        plain = [dict(one) if type(one) is EncodedMessage else one for one in messages]
        has_encoded = any(type(one) is EncodedMessage for one in messages)
        return _pickled(plain) if has_encoded else None
    return out.getvalue()
