"""Read the conversations of a document: the lists of records, their ids and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sessionsdb.messages.formats.form import Conversation, Document, Form, Record

_SAMPLE = 50
"""Records of a document that are looked at to tell its form."""

_LATEST = 253402300799  # the end of the year 9999, in seconds


def is_in_form(form: Form, document: Document) -> bool:
    """Return whether a document is of this form: one of its first records is."""
    return any(
        isinstance(record, dict) and form.recognise(record)
        for _, records in _split(form, document.values)[:_SAMPLE]
        for record in records[:_SAMPLE]
    )


def read_file(form: Form, document: Document) -> list[Conversation]:
    """Return the conversations of a document that is of this form."""
    return read_conversations(form, document) if form.read is None else form.read(form, document)


def read_conversations(form: Form, document: Document) -> list[Conversation]:
    """Return one conversation for each list of records in the document."""
    return [
        Conversation(
            first_text(container, form.ids), records, [time_of(form, one) for one in records]
        )
        for container, records in _split(form, document.values)
        if records
    ]


def _split(form: Form, values: Sequence[Any]) -> list[tuple[Record, list[Any]]]:
    """Return the lists of records with the object that holds each."""
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if values and all(isinstance(one, list) for one in values):
        return [({}, one) for one in values]
    holders = [_held(form, value) for value in values]
    if values and all(held is not None for held in holders):
        return [
            (value, held) for value, held in zip(values, holders, strict=True) if held is not None
        ]
    return [({}, list(values))]


def _held(form: Form, value: Any) -> list[Any] | None:
    """Return the list of records that an object holds."""
    if not isinstance(value, dict) or value.keys() & {"role", "type"}:
        return None  # a record itself, which may have a list too
    lists = [found for key in form.lists if isinstance(found := value.get(key), list)]
    if not lists:
        return None
    return [*system_of(value), *next(filter(None, lists), [])]


def system_of(container: Record) -> list[dict[str, Any]]:
    """Return the system prompt that stands beside the messages of a request, as a message."""
    system = container.get("system")
    if "messages" in container and isinstance(system, (str, list)) and system:
        return [{"role": "system", "content": system}]
    for key in ("systemInstruction", "system_instruction"):
        if "contents" in container and isinstance(given := container.get(key), dict):
            return [{**given, "role": "system"}]
    instructions = container.get("instructions")
    if isinstance(container.get("input"), list) and isinstance(instructions, str) and instructions:
        return [{"role": "system", "content": instructions}]
    return []


def first_text(record: Any, keys: Iterable[str]) -> str | None:
    """Return the first of these values that is a text."""
    if isinstance(record, dict):
        for key in keys:
            if isinstance(found := record.get(key), str) and found:
                return found
    return None


def time_of(form: Form, record: Any) -> datetime | None:
    """Return the time of a record. ``None`` if it has none that can be read."""
    if not isinstance(record, dict):
        return None
    for key in form.times:
        if (found := parse_time(record.get(key))) is not None:
            return found
    return None


def parse_time(given: Any) -> datetime | None:
    """Return a time in UTC: of ISO 8601, or of seconds or milliseconds since 1970.

    A time without a zone is in UTC. ``None`` for any other value.
    """
    try:
        if isinstance(given, str):
            parsed = datetime.fromisoformat(given)
            zoned = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
            time = zoned.astimezone(UTC)
        elif isinstance(given, (int, float)) and not isinstance(given, bool):
            seconds = given / 1000 if given > _LATEST else given
            time = datetime.fromtimestamp(seconds, UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return time if time.year >= 1970 else None


def left_out(kinds: Iterable[Any]) -> dict[str, int]:
    """Count the records that are no messages, by their type."""
    return dict(Counter(kind if isinstance(kind, str) else "?" for kind in kinds))
