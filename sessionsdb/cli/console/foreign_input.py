"""Recognise input that is not JSON lines of sessions by its beginning.

It is a file of another program, in a form that import reads, or refused with the command that
converts it.
"""

from __future__ import annotations

import codecs
import json
import shlex
from typing import Any, Literal

from pydantic_core import from_json

from sessionsdb import InvalidArgument
from sessionsdb.messages.formats.form import Document
from sessionsdb.messages.formats.registry import form_of_document

GZIP = b"\x1f\x8b"

_COMPRESSED = {
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"PK\x03\x04": ("zip", "unzip -p"),
}
_MARKS = {  # the marks of UTF-32 begin like those of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_INCOMPLETE = object()

SAMPLE_LINES = 50
"""Lines that are looked at to tell the form of the input."""


def needs_more(head: bytes) -> bool:
    """Return whether ``refuse_foreign`` needs more of the input: one JSON line, or two lines."""
    whole = _lines(head.rpartition(b"\n")[0])
    return not whole or (len(whole) < 2 and _parse(whole[0]) is _INCOMPLETE)


Beginning = Literal["sessions", "foreign", "document", "unknown"]


def beginning_of(head: bytes) -> Beginning:
    """Tell what input begins so.

    ``sessions``: JSON lines of sessions. ``foreign``: records of another program. ``document``: one
    JSON value over several lines, or longer than ``head``. ``unknown``: none of these.
    """
    lines = _lines(head, SAMPLE_LINES)
    values = [value for line in lines if (value := _parse(line)) is not _INCOMPLETE]
    if any(is_of_sessions(value) for value in values):
        return "sessions"
    objects = [value for value in values if isinstance(value, dict)]
    if len(values) == 1 and len(lines) == 1 and isinstance(values[0], list):
        objects = values
    if objects and form_of_document(Document("", objects, True)) is not None:
        return "foreign"
    if _is_array(lines[:2]) or _is_object_over_lines(lines[:2]):
        return "document"
    is_long = len(lines) == 1 and not values and lines[0][:1] in (b"{", b"[")
    return "document" if is_long and not lines[0].startswith(b'{"session_id"') else "unknown"


def is_of_sessions(value: Any) -> bool:
    """Return whether a value is of our own form: a session, a shared state, or a list of them."""
    if isinstance(value, list):
        return bool(value) and is_of_sessions(value[0])
    return isinstance(value, dict) and (
        ("session_id" in value and "messages" in value) or "shared_state" in value
    )


def refuse_foreign(head: bytes, name: str) -> None:
    """Raise ``InvalidArgument`` with the remedy if ``head`` does not begin JSON lines.

    ``head`` is the beginning of the input, ``name`` its file or ``-``. A single bad line is not
    enough: it is reported by itself, and the other lines are imported.
    """
    for magic, (form, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise _refusal(name, f"is compressed with {form}", command)
    if head.startswith(b"SQLite format 3\0"):
        file = "FILE" if name == "-" else name
        raise InvalidArgument(
            f"{shown(name)} is a SQLite database, not JSON lines; run: "
            f"sessionsdb --url {shlex.quote(f'sqlite:///{file}')} export | sessionsdb import -"
        )
    if encoding := _wide_encoding(head):
        raise _refusal(name, f"is {encoding}, not UTF-8", f"iconv -f {encoding} -t UTF-8")
    lines = _lines(head)
    if _is_array(lines):
        raise _refusal(name, "is one JSON array, not one session a line", "jq -c '.[]'")
    if _is_object_over_lines(lines):
        raise _refusal(name, "has JSON objects over several lines, not one a line", "jq -c .")


def _refusal(name: str, finding: str, command: str) -> InvalidArgument:
    file = "FILE" if name == "-" else shlex.quote(name)
    return InvalidArgument(f"{shown(name)} {finding}; run: {command} {file} | sessionsdb import -")


def shown(name: str) -> str:
    """Return the name of an input for a message."""
    return "standard input" if name == "-" else name


def _wide_encoding(head: bytes) -> str | None:
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    # JSON begins with ASCII. Without a mark its first characters tell the width.
    if len(head) >= 4 and head[1] == 0 and head[0] != 0:
        return "UTF-32LE" if head[2:4] == b"\0\0" else "UTF-16LE"
    if len(head) >= 4 and head[0] == 0:
        return "UTF-32BE" if head[:3] == b"\0\0\0" else "UTF-16BE"
    return None


def _is_array(lines: list[bytes]) -> bool:
    first, second = (*lines, b"", b"")[:2]
    if not first.startswith(b"["):
        return False
    value = _parse(first)
    if value is _INCOMPLETE:
        begins = first == b"[" or first[1:].lstrip().startswith(b"{")
        return begins and (first == b"[" or not isinstance(_parse(second), dict))
    return not second and bool(value) and isinstance(value[0], dict)


def _is_object_over_lines(lines: list[bytes]) -> bool:
    first, second = (*lines, b"", b"")[:2]
    if not (second and first.startswith(b"{") and _parse(first) is _INCOMPLETE):
        return False
    goes_on = second.startswith((b'"', b"}")) or first.endswith((b"{", b"[", b","))
    return goes_on and not isinstance(_parse(second), dict)


def _lines(head: bytes, most: int = 2) -> list[bytes]:
    """Return the first lines that are not blank."""
    lines = head.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [line.strip() for line in lines if line.strip()][:most]


def _parse(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return _INCOMPLETE
