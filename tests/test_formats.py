"""Foreign forms of messages: role and text of each, and what hostile records do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionsdb import SessionsDB
from sessionsdb.messages.codec import encode
from sessionsdb.messages.formats.form import Document
from sessionsdb.messages.formats.reading import read_file
from sessionsdb.messages.formats.registry import FORMS, form_of, form_of_document
from tests.support.foreign_records import BASE64, RECORDS, SECRET

CASES = [(form, *case) for form, cases in RECORDS.items() for case in cases]
IDS = [f"{form}-{index}" for form, cases in RECORDS.items() for index in range(len(cases))]


def columns(message: dict[str, Any]) -> tuple[str, str]:
    stored = encode(message, max_bytes=2**20)
    return stored.role, stored.content


def test_every_form_has_records() -> None:
    assert {form.name for form in FORMS} == set(RECORDS)


@pytest.mark.parametrize(("form", "record", "role", "text"), CASES, ids=IDS)
def test_a_foreign_record_has_its_role_and_text(
    form: str, record: dict[str, Any], role: str, text: str
) -> None:
    assert columns(record) == (role, text)
    assert BASE64 not in text
    assert SECRET not in columns(record)[1]


@pytest.mark.parametrize(("form", "record", "role", "text"), CASES, ids=IDS)
def test_a_foreign_record_is_told(form: str, record: dict[str, Any], role: str, text: str) -> None:
    [known] = [one for one in FORMS if one.name == form]
    if known.keys and "role" not in record:
        found = form_of(record)
        assert found is not None
        assert found.name == form
    else:
        assert form_of(record) is None  # a message itself: told by its role and its blocks


async def test_history_shows_foreign_records(db: SessionsDB) -> None:
    records = [case[0] for cases in RECORDS.values() for case in cases]
    expected = [case[1:] for cases in RECORDS.values() for case in cases]
    await db.store.save("foreign", records)
    shown = await db.broker.history("foreign", limit=len(records))
    assert [(one.role, one.content) for one in shown] == expected
    assert await db.store.load("foreign") == records


HOLOGRAM = {"kind": "hologram", "data": BASE64}


def test_an_unknown_part_is_named_in_every_form() -> None:
    """A type of the future is never dropped silently."""
    for message in (
        {"role": "user", "content": [{"type": "hologram", "data": BASE64}]},
        {"role": "user", "parts": [{"hologram": {"data": BASE64}}]},
        {"role": "user", "content": [{"hologram": {"data": BASE64}}]},
        {"kind": "request", "parts": [{"part_kind": "hologram", "data": BASE64}]},
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": [HOLOGRAM]}]},
        {"type": "hologram", "uuid": "1"},
        {"type": "event_msg", "payload": {"type": "hologram"}},
        {"type": "hologram_call", "id": "1"},
        {"kind": "ActionEvent", "source": "agent", "tool_name": "hologram"},
        {"source": "agent", "action": "hologram", "args": {}},
        {"id": "1", "role": "user", "parts": [{"type": "data-hologram", "data": BASE64}]},
    ):  # fmt: skip
        text = columns(message)[1]
        assert "hologram" in text, message
        assert BASE64 not in text


@pytest.mark.parametrize("call", ["input", "arguments"])
def test_data_in_base64_is_not_shown_in_calls_and_results(call: str) -> None:
    arguments: Any = {"file": BASE64 * 3} if call == "input" else json.dumps({"file": BASE64 * 3})
    for message in (
        {"role": "assistant", "content": [{"type": "tool_use", "name": "f", call: arguments}]},
        {"type": "function_call_output", "output": f"data:image/png;base64,{BASE64}"},
        {"type": "tool_result", "content": [{"json": {"image": BASE64 * 3}}]},
    ):
        text = columns(message)[1]
        assert BASE64 not in text
        assert "base64: " in text or "[image/png]" in text


def test_a_long_word_is_no_data() -> None:
    for word in ("x" * 5_000, "0123456789abcdef" * 50, "a/path" * 100):
        message = {
            "role": "assistant",
            "content": [{"type": "tool_use", "name": "f", "input": word}],
        }
        assert word in columns(message)[1]


# ---- hostile records -----------------------------------------------------------------------------

KEYS = sorted(
    {
        key
        for cases in RECORDS.values()
        for record, *_ in cases
        for key in json.dumps(record).split('"')[1::2]
        if len(key) < 30
    }
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([*KEYS, "\x00", "\ud800", BASE64, ""])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


def parts_of(value: Any) -> list[list[Any]]:
    """Return the path of every value inside a JSON value."""
    paths: list[list[Any]] = []
    if not isinstance(value, (dict, list)):
        return paths
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        paths.append([key])
        paths.extend([key, *path] for path in parts_of(item))
    return paths


@st.composite
def broken_records(draw: st.DrawFn) -> dict[str, Any]:
    """Return a record of a form in which some values are replaced by any others."""
    record = json.loads(json.dumps(draw(st.sampled_from(CASES))[1]))
    for _ in range(draw(st.integers(1, 3))):
        paths = parts_of(record)
        if not paths:
            break
        *path, last = draw(st.sampled_from(paths))
        place = record
        for key in path:
            place = place[key]
        place[last] = draw(VALUES)
    return record


@settings(max_examples=300, deadline=None)
@given(broken_records() | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_a_broken_record_is_stored_and_shown(record: dict[str, Any]) -> None:
    stored = encode(record, max_bytes=2**20)
    assert isinstance(stored.role, str)
    assert isinstance(stored.content, str)
    assert len(stored.content) <= 30 * (len(json.dumps(record)) + 20)
    for form in FORMS:
        if form.recognise(record):
            assert isinstance(form.role(record), str)
            assert isinstance(form.text(record), str)


@settings(max_examples=120, deadline=None)
@given(st.lists(broken_records() | VALUES, max_size=5), st.booleans())
def test_a_broken_document_is_read(values: list[Any], is_lines: bool) -> None:
    document = Document("name", values, is_lines)
    form = form_of_document(document)
    for one in FORMS if form is None else (form,):
        for found in read_file(one, document):
            assert len(found.times) == len(found.messages)


def test_a_deep_record_is_shown() -> None:
    deep: Any = "bottom"
    for _ in range(120):
        deep = [{"type": "tool_result", "content": deep}]
    for _, original, *_ in CASES:
        record = dict(original)
        for key in original:
            assert columns(record | {key: deep})[0]
