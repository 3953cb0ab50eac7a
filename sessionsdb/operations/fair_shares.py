"""How a worker of several namespaces shares its slots among them.

A namespace that has work gets the next slot when it holds the fewest, whatever the others have
waiting. Otherwise one with 2,000 ready sessions would keep all others waiting until it is done.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence


def share_slots(namespaces: Sequence[str], held: Mapping[str, int], slots: int) -> dict[str, int]:
    """Return how many of ``slots`` each namespace gets. Those that get none are left out.

    ``held``: the slots that a namespace has already. Of equals the first in the list goes first.
    """
    queue = [(held.get(name, 0), order, name) for order, name in enumerate(namespaces)]
    heapq.heapify(queue)
    shares: dict[str, int] = {}
    for _ in range(slots if queue else 0):
        count, order, name = queue[0]
        shares[name] = shares.get(name, 0) + 1
        heapq.heapreplace(queue, (count + 1, order, name))
    return shares


def in_rotation(namespaces: Iterable[str], after: str) -> list[str]:
    """Return the namespaces in order, beginning behind ``after``."""
    ordered = sorted(namespaces)
    return [n for n in ordered if n > after] + [n for n in ordered if n <= after]
