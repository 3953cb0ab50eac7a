"""The payloads of messages, which let the checker recognise each message wherever it is.

The text of a message is a JSON object with a ``token`` that no other message has, and a ``verb``
that says what the handler does:

- ``echo``: replies; ``two``: replies twice; ``none``: gives no reply
- ``relay``: stages a message to the session ``to``; its token is this one's with ``>relay``
- ``child``: stages a spawn; the token of its prompt is this one's with ``>child``
- ``fail``: fails, with probability ``odds``
- ``slow``: takes ``seconds``; ``spin``: keeps the event loop for ``seconds``
- ``large``: replies with ``size`` characters
- ``count``: adds its token to the state of the session, and 1 to the ``count`` there
- ``ask``: replies, and asks a person; the question expires after ``expires`` seconds

The reports of children and the notice of an expired question are texts of the package. The handler
takes them for an ``echo``.

A reply says which tokens it answers and which run of the handler gave it.
"""

from __future__ import annotations

import json
from typing import Any

PARTIAL = "partial reply of "
"""The text that a handler streams begins so. The run follows, and more."""

RELAYED = ">relay"
CHILD = ">child"


def payload(token: str, verb: str = "echo", **more: Any) -> str:
    return json.dumps({"token": token, "verb": verb, **more})


def parsed(text: str) -> dict[str, Any]:
    """The fields of a payload or a reply. Empty for any other text."""
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


NOTICE = "The question has expired without an answer."
"""The text that a session gets when a question expires."""


def understood(text: str) -> dict[str, Any]:
    """The fields of a payload, as the handler takes them. A text of the package is an ``echo``."""
    fields = parsed(text)
    return fields if "verb" in fields else {"token": f"text of {len(text)}", "verb": "echo"}


def is_report(extra: str | None) -> bool:
    """Whether a message with this ``extra`` is the report of a child."""
    metadata = {} if extra is None else json.loads(extra).get("metadata")
    return isinstance(metadata, dict) and "report" in metadata


def replies(run: str, payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The assistant messages of a turn."""
    verbs = {payload["verb"] for payload in payloads}
    if verbs == {"none"}:
        return []
    filler = "x" * max((payload.get("size", 0) for payload in payloads), default=0)
    return [
        {
            "role": "assistant",
            "content": json.dumps(
                {"re": [payload["token"] for payload in payloads], "run": run, "n": n, "x": filler}
            ),
        }
        for n in range(2 if "two" in verbs else 1)
    ]
