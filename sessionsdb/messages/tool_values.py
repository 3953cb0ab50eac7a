"""The arguments and the results of tools as values that a message can hold."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from sessionsdb.messages.json_text import dump, replace_unstorable, utf8_size

MAX_ARGUMENTS_DEPTH: Final = 200
"""The maximum nesting of arguments. A question holds them at its sixth level."""

_MOST_BYTES: Final = 6
"""The bytes that a character takes in JSON at most: an escape such as ``\\u0000``."""

CUT: Final = "\n[Cut: the result has {} characters, more than a message of this session can hold.]"


def parsed_arguments(given: Any) -> Any:
    """Return the arguments of a call as JSON values, or the text if the model wrote no JSON.

    The text stays also if a question could not hold the values: for a number that is not finite,
    half of a surrogate pair, or more than 200 levels.
    """
    if not isinstance(given, str):
        return given
    try:
        value = json.loads(given)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return replace_unstorable(given)
    return value if _depth(value) <= MAX_ARGUMENTS_DEPTH else given


def _depth(value: Any) -> int:
    """Return the number of lists and objects inside of each other."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [
            value for one in level for value in (one.values() if isinstance(one, dict) else one)
        ]
    return depth


def bounded_texts(texts: Sequence[str], room: int) -> list[str]:
    """Return results of tools that take at most ``room`` bytes of JSON together.

    The longest ones are cut, and say so.
    """
    if _MOST_BYTES * sum(map(len, texts)) <= room:
        return [*texts]
    bounded = [*texts]
    sizes = [_size(text) for text in texts]
    by_size = sorted(range(len(texts)), key=sizes.__getitem__)
    for done, index in enumerate(by_size):
        share = max(room, 0) // (len(texts) - done)
        if sizes[index] > share:
            bounded[index] = _cut(texts[index], share)
        room -= min(sizes[index], share)
    return bounded


def _cut(text: str, room: int) -> str:
    note = CUT.format(len(text))
    room -= _size(note)
    if room < 0:
        return ""
    fitting = range(min(len(text), room) + 1)
    kept = bisect_right(fitting, room, key=lambda count: _size(text[:count])) - 1
    return text[:kept] + note


def _size(text: str) -> int:
    """Return the bytes of a text inside of the quotes of JSON."""
    return utf8_size(dump(text)) - 2
