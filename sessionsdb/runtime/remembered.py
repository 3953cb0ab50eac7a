"""Remember what is read of a transcript again and again, up to a size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, Protocol, TypeVar

MAX_NOTED = 10_000
"""The last read of at most this many keys is noted."""


class Sized(Protocol):
    """Messages of a transcript."""

    @property
    def size(self) -> int:
        """The memory of the messages in bytes, about. 0: they can't be remembered."""


Key = TypeVar("Key")
Value = TypeVar("Value", bound=Sized)


class LastRead(NamedTuple):
    """The last read of messages that are not remembered."""

    length: int
    """The number of the messages."""
    read_before: int
    """How many messages were read without being remembered until then."""
    is_too_large: bool
    """Whether the messages can't be remembered for their size."""


class Remembered(Generic[Key, Value]):
    """The messages of the last reads. Those that were used longest ago are dropped."""

    def __init__(
        self, *, min_messages: int, max_bytes: int, max_value_bytes: int, max_between: int
    ) -> None:
        """Remember at most ``max_bytes`` of all values, and ``max_value_bytes`` of one.

        A value of fewer than ``min_messages`` messages is not remembered.

        Messages are due to be remembered at their second read, unless more than ``max_between``
        others were read since the first. So a program that reads each transcript once remembers
        none. Neither does one that goes through many more transcripts than fit, again and again.
        """
        self.min_messages = min_messages
        self.max_bytes = max_bytes
        self.max_value_bytes = max_value_bytes
        self.max_between = max_between
        self.values: OrderedDict[Key, Value] = OrderedDict()
        self.size = 0
        self._last_reads: dict[Key, LastRead] = {}
        self._read = 0
        """How many messages were read without being remembered."""

    def get(self, key: Key) -> Value | None:
        return self.values.get(key)

    def last_read(self, key: Key) -> LastRead | None:
        """Return the last read of messages that are not remembered."""
        return self._last_reads.get(key)

    def is_due(self, key: Key) -> bool:
        """Return whether the next read is to be remembered."""
        last = self._last_reads.get(key)
        if last is None or last.is_too_large:
            return False
        return self._read - last.read_before <= self.max_between

    def note(self, key: Key, count: int, value: Value | None = None) -> None:
        """Note a read of ``count`` messages. Remember ``value`` if it has a size."""
        before = self.forget(key)
        if count < self.min_messages:
            return
        if value is not None and value.size > self.max_value_bytes:
            self._add_last_read(key, LastRead(count, self._read, is_too_large=True))
        elif value is not None and value.size:
            self._remember(key, value)
        else:
            self._read += count
            is_too_large = before is not None and before.is_too_large and count >= before.length
            self._add_last_read(key, LastRead(count, self._read, is_too_large))

    def forget(self, key: Key) -> LastRead | None:
        """Forget a key, and return its last read if that was noted."""
        before = self.values.pop(key, None)
        if before is not None:
            self.size -= before.size
        return self._last_reads.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self.values.clear()
        self.size = 0
        self._last_reads.clear()

    def _remember(self, key: Key, value: Value) -> None:
        self.values[key] = value
        self.size += value.size
        while self.size > self.max_bytes:
            _, oldest = self.values.popitem(last=False)
            self.size -= oldest.size

    def _add_last_read(self, key: Key, last: LastRead) -> None:
        self._last_reads[key] = last
        if len(self._last_reads) > MAX_NOTED:
            del self._last_reads[next(iter(self._last_reads))]
