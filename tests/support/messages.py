"""Messages for tests: random JSON values, and the hardest cases by name."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# All of Unicode, lone surrogates and NUL included.
texts = st.text(st.characters(), max_size=20) | st.text(
    st.sampled_from('a\\u"\n\x00\x1f\x7fé中😀\ud83d\ude00\udfff\ufffd\u2028'), max_size=12
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)

# Names that the renderer knows, in places where it does not expect them.
keys = texts | st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "name",
        "input",
        "arguments",
        "args",
        "output",
        "parts",
        "tool_calls",
        "function",
        "custom",
        "function_call",
        "functionCall",
        "functionResponse",
        "response",
        "inlineData",
        "mimeType",
        "refusal",
        "summary",
        "is_error",
        "tool_use_id",
        "payload",
        "seq",
    ]
)
kinds = st.sampled_from(
    [
        "text",
        "tool_use",
        "tool_result",
        "function_call",
        "function_call_output",
        "reasoning",
        "message",
        "image",
        "image_url",
        "thinking",
        "refusal",
        "human",
        "system",
        "unheard_of",
    ]
)

values = st.recursive(
    scalars | kinds,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.fixed_dictionaries({"type": kinds}, optional={"content": inner, "text": inner})
    ),
    max_leaves=12,
)

messages = st.dictionaries(keys, values, max_size=5) | st.fixed_dictionaries(
    {"role": texts | st.sampled_from(["user", "assistant", "system", "tool"]), "content": values},
    optional={"tool_calls": values, "type": kinds},
)


def nested(levels: int) -> dict[str, Any]:
    """A message with this many levels of nesting."""
    value: Any = []
    for _ in range(levels - 2):
        value = [value]
    return {"content": value}


HOSTILE: dict[str, dict[str, Any]] = {
    "empty object": {},
    "empty strings": {"role": "", "content": ""},
    "NUL": {"role": "user", "content": "a\x00b"},
    "NUL as a key": {"\x00": "\x00"},
    "NUL as a role": {"role": "\x00", "content": "x"},
    "a lone surrogate": {"role": "user", "content": "half \ud83d"},
    "a lone surrogate as a key": {"\udfff": 1},
    "two halves that are not one character": {"role": "user", "content": "\ud83d\ude00"},
    "both halves, and the whole": {"content": ["\ud83d\ude00", "😀", "\ude00\ud83d"]},
    "what looks like an escape": {"content": "\\ud83d \\uD83D\\uDE00 \\\\uD83D \ud83d"},
    "the largest integer that can be read": {"n": 10**4299},
    "beyond 64 bits": {"n": [2**63, -(2**63) - 1, 2**64]},
    "floats": {"n": [1.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2]},
    "one, true and one": {"n": [1, True, 1.0]},
    "deep": nested(256),
    "line separators": {"content": "a\u2028b\u2029c\r\nd\x85e\x0bf"},
    "SQL": {"role": "user", "content": "'; DROP TABLE messages; -- :role %s $1 ?"},
    "keys out of order": {"content": "x", "role": "user"},
    "no text where text belongs": {"role": 5, "content": None, "tool_calls": "no list"},
    "a list of nothing": {"role": "user", "content": [[], {}, None, ""]},
    "nulls": {"role": None, "content": None, "type": None},
    "right to left, combined, astral": {"role": "user", "content": "אب e\u0301 \U0010ffff 👩‍👩‍👧"},
}
