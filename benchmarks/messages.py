"""The messages of the benchmarks: 225 characters each, like a short answer of an agent."""

from __future__ import annotations

from typing import Any

CHARACTERS = 225

_FILL = (
    " The order was found, its three items are in the warehouse, and the parcel leaves tomorrow"
    " morning; the customer asked for the invoice to be sent to the office, so it was sent there,"
    " and a copy was put into the file of the case."
)


def text(number: int) -> str:
    """A text of ``CHARACTERS`` characters that begins with its number."""
    return f"Message {number}.{_FILL}"[:CHARACTERS]


def transcript(count: int, first: int = 0) -> list[dict[str, Any]]:
    """``count`` messages, of user and assistant in turns."""
    return [
        {"role": "assistant" if number % 2 else "user", "content": text(number)}
        for number in range(first, first + count)
    ]
