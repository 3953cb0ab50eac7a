"""The messages of transcripts: stored form, rendered text and attribution.

``search_words`` is an attribute of the package, and is imported at its first use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessionsdb.messages import search_words

__all__ = ["search_words"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")  # which makes it an attribute of the package
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
