"""The reply that a handler returns, and its messages in the order of the transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sessionsdb import validation
from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.codec import Message, StoredMessage, encode, encode_all
from sessionsdb.operations.inbox_types import Delivery
from sessionsdb.types import SessionMessage


@dataclass(frozen=True)
class Reply:
    """The answer of a turn together with its token usage, which the reports sum up.

    Raises ``InvalidArgument`` for a negative number of tokens or one above 10**12.
    """

    messages: str | Message | list[Message] | list[Message | SessionMessage] | None = None
    """A string (one assistant message), one message, a list of messages, or ``None`` for none. The
    list may have messages of ``take_incoming`` where they belong between the others."""
    model: str | None = None
    """The model that answered."""
    input_tokens: int | None = None
    """The tokens that the model read in this turn."""
    output_tokens: int | None = None
    """The tokens that the model wrote in this turn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", validation.model(self.model))
        for name in ("input_tokens", "output_tokens"):
            tokens = validation.optional_integer(
                getattr(self, name), name, maximum=validation.MAX_TOKENS
            )
            object.__setattr__(self, name, tokens)


_NO_USAGE = Reply()


def encode_result(
    answer: Any, *, max_bytes: int, joined: Mapping[int, Delivery] = MappingProxyType({})
) -> tuple[list[StoredMessage | Delivery], Reply]:
    """Return the encoded messages of a handler's answer, and its usage.

    ``joined`` are the deliveries of ``take_incoming`` by the ``id`` of the message object. Where
    such an object stands in a list, its delivery stands in the result. Raises ``InvalidMessage``.
    """
    reply, given = (answer, answer.messages) if isinstance(answer, Reply) else (_NO_USAGE, answer)
    if given is None:
        return [], reply
    if isinstance(given, str):
        given = {"role": "assistant", "content": given}
    if isinstance(given, dict):
        return [encode(given, max_bytes=max_bytes)], reply
    if isinstance(given, list):
        if any(isinstance(one, SessionMessage) for one in given):
            return _encode_mixed(given, max_bytes, joined), reply
        return [*encode_all(given, max_bytes=max_bytes)], reply
    raise InvalidMessage(
        "a handler must return a string, a dict, a list of dicts, a Reply or None, "
        f"not {type(given).__name__}"
    )


def _encode_mixed(
    given: list[Any], max_bytes: int, joined: Mapping[int, Delivery]
) -> list[StoredMessage | Delivery]:
    left = dict(joined)
    encoded: list[StoredMessage | Delivery] = []
    for index, one in enumerate(given):
        if not isinstance(one, SessionMessage):
            encoded += encode_all([one], max_bytes=max_bytes, first_index=index)
            continue
        delivery = left.pop(id(one), None)
        if delivery is None:
            raise InvalidMessage(
                f"message {index} is a SessionMessage that take_incoming of this turn did not "
                "return, or that stands twice in the list: return each of them once at most"
            )
        encoded.append(delivery)
    return encoded


def place_messages(
    deliveries: Sequence[Delivery], replies: Sequence[StoredMessage | Delivery]
) -> tuple[list[StoredMessage], list[int] | None]:
    """Return the messages of a turn in the order of the transcript, and their inbox positions.

    The positions are ``None`` if the replies simply follow the deliveries.
    """
    placed: set[int] = set()
    messages: list[StoredMessage] = []
    for one in replies:
        if isinstance(one, Delivery):
            placed.add(one.position)
            messages.append(one.message)
        else:
            messages.append(one)
    if not placed:
        return [one.message for one in deliveries] + messages, None
    first = [one for one in deliveries if one.position not in placed]
    places = [one.position for one in first]
    for one in replies:
        places.append(one.position if isinstance(one, Delivery) else places[-1])
    return [one.message for one in first] + messages, places
