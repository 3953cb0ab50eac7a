"""The parts that know both sessions and asyncio.

The modules that few processes use are attributes of the package, and each is imported at its first
use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessionsdb.runtime import (
        caller_transaction,
        follow_start,
        follow_subtree,
        requests,
        requeuing,
        search_indexer,
        search_pages,
    )

__all__ = [
    "caller_transaction",
    "follow_start",
    "follow_subtree",
    "requests",
    "requeuing",
    "search_indexer",
    "search_pages",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")  # which makes it an attribute of the package
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
