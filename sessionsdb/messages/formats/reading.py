"""Read the conversations of a document: the lists of records, their ids and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.untrusted_values import is_storable_time

_SAMPLE = 50
"""Records of a document that are looked at to tell its form."""

_SYSTEM_KEYS = (
    *("system", "system_prompt", "systemPrompt", "system_message"),
    *("systemInstruction", "system_instruction", "instructions"),
)
"""Keys of a system prompt beside the list of records."""

_LATEST = 253402300799  # the end of the year 9999, in seconds


def is_in_form(form: Form, document: Document) -> bool:
    """Return whether a document is of this form: one of its first records is."""
    return any(
        isinstance(record, dict) and form.recognise(record)
        for _, records in _split(form, document.values)[:_SAMPLE]
        for record in _sample(form, records)
    )


def _sample(form: Form, records: list[Any]) -> list[Any]:
    """Return the first records, and the last ones where an answer stands behind its request."""
    return [*records[:_SAMPLE], *(records[-_SAMPLE:] if form.joined else ())]


def read_file(form: Form, document: Document) -> list[Conversation]:
    """Return the conversations of a document that is of this form."""
    return read_conversations(form, document) if form.read is None else form.read(form, document)


def read_conversations(form: Form, document: Document) -> list[Conversation]:
    """Return one conversation for each list of records in the document."""
    found = []
    for container, records in _split(form, document.values):
        whole = [*_system_of(form, container, records), *records]
        if whole:
            times = [time_of(form, one) for one in whole]
            id = first_text(container, form.ids)
            found.append(Conversation(id, whole, times, other_lists=_other_lists(form, container)))
    return found


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
    """Return the list of records that an object holds, or all lists that are one conversation."""
    if not isinstance(value, dict) or value.keys() & {"role", "type"}:
        return None  # a record itself, which may have a list too
    keys = _lists(form, value)
    if not keys:
        return None
    return [record for key in keys[0] for record in _records(form, key, value[key])]


def _lists(form: Form, container: Record) -> list[tuple[str, ...]]:
    """Return the keys of the lists that an object holds, the one with the messages first.

    Lists that are joined are one.
    """
    found = [key for key in form.lists if isinstance(container.get(key), list)]
    found.sort(key=lambda key: not container[key])  # the empty ones last
    if found and found[0] in form.joined:
        joined = [key for key in form.joined if isinstance(container.get(key), (list, str))]
        return [tuple(joined), *((key,) for key in found if key not in joined)]
    return [(key,) for key in found]


def _records(form: Form, key: str, given: Any) -> list[Any]:
    if isinstance(given, str):
        return [{"role": form.joined[key], "content": given}] if given else []
    return list(given)


def _other_lists(form: Form, container: Record) -> dict[str, int]:
    """Return how many records the lists have that are not imported."""
    return {
        key: len(container[key])
        for keys in _lists(form, container)[1:]
        for key in keys
        if container[key]
    }


def _system_of(form: Form, container: Record, records: list[Any]) -> list[Any]:
    """Return the system prompts that stand beside the records of an object, as messages."""
    found: list[Any] = []
    for key in _SYSTEM_KEYS:
        given = container.get(key)
        if not given or not isinstance(given, (str, list, dict)):
            continue
        if isinstance(given, list) and all(
            isinstance(one, dict) and "role" in one for one in given
        ):
            prompts = given
        elif isinstance(given, dict) and given.keys() & {"parts", "content"}:
            prompts = [{**given, "role": "system"}]
        else:
            prompts = [form.system(given)]
        repeated = [*found, *records[:1]]
        found.extend(one for one in prompts if one not in repeated)
    return found


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

    A time without a zone is in UTC. ``None`` for any other value, and for a time that may not be
    stored.
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
    return time if is_storable_time(time) else None


def left_out(kinds: Iterable[Any]) -> dict[str, int]:
    """Count the records that are no messages, by their type."""
    return dict(Counter(kind if isinstance(kind, str) else "?" for kind in kinds))
