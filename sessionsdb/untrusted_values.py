"""Read values of callers that may lie about themselves, without running a method of theirs.

A subclass of ``str``, ``int`` or ``datetime`` can override every method, and a method of it can
fail or lie. The drivers look at the exact type and refuse subclasses or store something else. So
a check of an argument follows two rules, and no other module needs them:

- It asks the type of a value and never the value (``is_instance``), because ``isinstance`` also
  reads the attribute ``__class__`` of the value.
- It reads a value with the methods of the base class (``str.__str__(value)``) and returns a value
  of the exact base class.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""The characters that a text column can't hold: NUL and lone surrogates."""

FIRST_YEAR = 1970
LAST_YEAR = 9998
"""The years in UTC of a time that may be stored. The years 1 and 9999 have times that a host in
another zone can't read, and the two that PostgreSQL's driver stores as infinite."""


def is_instance(value: Any, *wanted: type) -> bool:
    """Like ``isinstance``, but without a look at the value itself."""
    return issubclass(type(value), wanted)


def is_storable(text: str) -> bool:
    """Whether a text column can hold ``text``."""
    if text.isascii():  # a flag of the string, read without a scan
        return "\x00" not in text
    return text.isprintable() or UNSTORABLE.search(text) is None


def is_storable_time(moment: datetime) -> bool:
    """Whether a time in UTC may be stored: see ``LAST_YEAR``."""
    return FIRST_YEAR <= moment.year <= LAST_YEAR


def plain_text(value: Any) -> str:
    """Return a ``str``, or an instance of a subclass of it, as an exact ``str``."""
    return str.__str__(value)


def type_name(value: Any) -> str:
    """Return the type of a refused value for an error, at most 60 characters."""
    return type(value).__name__[:60]


def with_article(noun: str) -> str:
    """Return the noun behind ``a`` or ``an``."""
    return f"{'an' if noun[:1] in tuple('aeiouAEIOU') else 'a'} {noun}"


_PRINTED_TYPES = (str, bytes, int, float, bool, type(None))


def short_repr(value: Any) -> str:
    """Return a refused value for an error: at most 60 characters of it, or its type."""
    if type(value) not in _PRINTED_TYPES:
        return with_article(type_name(value))
    try:
        return f"{value!r:.60}" if not is_instance(value, str, bytes) else f"{value[:60]!r:.60}"
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"


def text_or_short_repr(value: Any) -> str:
    """Return a value that should be text: a ``str`` unchanged, any other value as an error names
    it."""
    return plain_text(value) if is_instance(value, str) else short_repr(value)


def model_field(model: Any, name: str, default: Any = None) -> Any:
    """Return a field of a model, or ``default``: ``model_construct`` may leave a field out."""
    return vars(model).get(name, default)
