"""The reply that a handler returns, and its messages in the order of the transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sessionsdb import validation
from sessionsdb.errors import InvalidMessage
from sessionsdb.messages.codec import Message, StoredMessage, encode, encode_all
from sessionsdb.operations.inbox_types import Delivery, delivered_attributes
from sessionsdb.operations.transcript_types import Attributes
from sessionsdb.types import Question, SessionMessage


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
    ask: Question | None = None
    """A question to a person. The commit of the turn asks it, and holds the session until the
    answer, the expiry or an interrupt: see ``SessionBroker.answer`` and ``Turn.answer``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", validation.model(self.model))
        for name in ("input_tokens", "output_tokens"):
            tokens = validation.optional_integer(
                getattr(self, name), name, maximum=validation.MAX_TOKENS
            )
            object.__setattr__(self, name, tokens)
        if self.ask is not None:
            object.__setattr__(self, "ask", validation.question(self.ask))


_NO_USAGE = Reply()


def encode_result(
    answer: Any, *, max_bytes: int, joined: Mapping[int, Delivery] = MappingProxyType({})
) -> tuple[list[StoredMessage | Delivery], Reply]:
    """Return the encoded messages of a handler's answer, and its usage.

    ``joined`` are the deliveries of ``take_incoming`` by the ``id`` of the message object. Where
    such an object stands in a list, its delivery stands in the result. Raises ``InvalidMessage``.
    """
    reply, said = (answer, answer.messages) if isinstance(answer, Reply) else (_NO_USAGE, answer)
    if said is None:
        return [], reply
    if isinstance(said, str):
        said = {"role": "assistant", "content": said}
    if isinstance(said, dict):
        return [encode(said, max_bytes=max_bytes)], reply
    if isinstance(said, list):
        if any(isinstance(one, SessionMessage) for one in said):
            return _encode_mixed(said, max_bytes, joined), reply
        return [*encode_all(said, max_bytes=max_bytes)], reply
    raise InvalidMessage(
        "a handler must return a string, a dict, a list of dicts, a Reply or None, "
        f"not {type(said).__name__}"
    )


def _encode_mixed(
    said: list[Any], max_bytes: int, joined: Mapping[int, Delivery]
) -> list[StoredMessage | Delivery]:
    left = dict(joined)
    encoded: list[StoredMessage | Delivery] = []
    for index, one in enumerate(said):
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
    deliveries: Sequence[Delivery],
    replies: Sequence[StoredMessage | Delivery],
    notice: int | None = None,
) -> tuple[list[StoredMessage], list[Attributes] | None]:
    """Return the messages of a turn in the order of the transcript, and the values beside them.

    The values are ``None`` if the replies simply follow the deliveries. The notice at the position
    ``notice`` has no row in the transcript.
    """
    new = [one for one in replies if not isinstance(one, Delivery)]
    if len(new) == len(replies) and notice is None:
        return [*(one.message for one in deliveries), *new], None
    placed = {one.position for one in replies if isinstance(one, Delivery)}
    order: list[StoredMessage | Delivery] = [
        *(one for one in deliveries if one.position not in placed),
        *replies,
    ]
    messages: list[StoredMessage] = []
    beside: list[Attributes] = []
    reply = Attributes(deliveries[-1].position)
    for one in order:
        if not isinstance(one, Delivery):
            messages.append(one)
            beside.append(reply)
        elif one.position != notice:
            messages.append(one.message)
            beside.append(delivered_attributes(one))
            reply = Attributes(one.position)
    return messages, beside
