"""The places of a server for what runs at once, shared among its callers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable


class Places:
    """A number of places. A caller may hold as many as it leaves free for all others.

    So one caller holds half of them at most, two hold a third each, and there is always room for
    one more caller. (The rule is that of dynamic thresholds for shared buffers, by Choudhury and
    Hahne, 1998.)
    """

    def __init__(self, count: int) -> None:
        self._held: Counter[Hashable] = Counter()
        self._free = count

    @property
    def is_full(self) -> bool:
        """Whether no caller can take one."""
        return self._free <= 0

    def take(self, caller: Hashable) -> bool:
        """Take a place, if the caller may have one more. Return whether it was taken."""
        if self._held.get(caller, 0) >= self._free:
            return False
        self._held[caller] += 1
        self._free -= 1
        return True

    def give_back(self, caller: Hashable) -> None:
        """Give a taken place back."""
        self._free += 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
