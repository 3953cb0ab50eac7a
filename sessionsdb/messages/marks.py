"""The marks by which a text shows the parts of a message that are no text.

A mark stands in square brackets: ``[tool_use: NAME input=JSON]``, ``[tool_result: TEXT]``,
``[tool_error: TEXT]``, ``[image]``, ``[audio]``, ``[video]``, ``[file: NAME]``. Data in base64 is
never shown: its length is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sessionsdb.messages.json_text import dump
from sessionsdb.messages.reasoning import without_reasoning

MAX_NAME = 200
"""The characters of the name of a file that are shown."""

_MAX_DEPTH = 256

# Hostile texts are searched in linear time too: a run of characters is tried once.
_FEWEST_BASE64 = 200
_BASE64 = re.compile(rf"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{{{_FEWEST_BASE64},}}+={{0,2}}")
_RUN = b"a" * _FEWEST_BASE64
_AS_RUNS = bytes(b"a"[0] if re.match(rb"[A-Za-z0-9+/_-]", bytes([n])) else 0 for n in range(256))
_DATA = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_DATA_KEYS = frozenset(("data", "bytes", "base64", "b64_json", "file_data", "fileData", "blob"))
"""Keys whose values are data in base64 where nothing else is known about an object."""

_BASE64_SIGN = ";base64,"
_URL_HEAD = re.compile(r"data:([\w.+-]{1,80}+/[\w.+-]{1,80}+)?+[\w.+/;=-]{0,200}+\Z")
_URL_HEAD_CHARACTERS = 366
_URL_DATA = re.compile(r"[\w+/=-]*")
_FEWEST_CHARACTERS = 24
"""The different characters of text in base64. Hashes in hexadecimal have 16, words fewer."""

_IMAGES = "image"
_KIND_OF_TYPE = {
    **dict.fromkeys(
        (
            *("image", "image_url", "input_image", "output_image", "computer_screenshot"),
            *("image-url", "local_image"),
        ),
        "image",
    ),
    **dict.fromkeys(("audio", "input_audio", "output_audio", "audio_url", "audio-url"), "audio"),
    **dict.fromkeys(("video", "input_video", "video_url", "video-url"), "video"),
    **dict.fromkeys(
        (
            *("file", "input_file", "container_upload", "uploaded-file", "binary", "media"),
            *("source-document", "blob"),
        ),
        "file",
    ),
    **dict.fromkeys(("document", "document-url"), "document"),
}
_MEDIA_TYPES = ("media_type", "mediaType", "mime_type", "mimeType")
_NAMES = ("filename", "file_name", "displayName", "display_name", "title", "name")


def tool_call(name: Any, arguments: Any) -> str:
    """Return the mark of a call of a tool. Arguments that are a string are JSON already."""
    text = arguments if isinstance(arguments, str) else dump(arguments)
    shown = name if isinstance(name, str) else dump(name)
    return f"[tool_use: {shown} input={without_base64(text)}]"


def tool_result(text: str, *, failed: bool = False) -> str:
    """Return the mark of the result of a tool."""
    return f"[{'tool_error' if failed else 'tool_result'}: {without_base64(text)}]"


def medium_of_type(kind: str) -> str | None:
    """Return ``image``, ``audio``, ``video``, ``document`` or ``file`` for the type of a block.

    ``None``: a block of this type is no medium.
    """
    return _KIND_OF_TYPE.get(kind)


def medium(block: Mapping[str, Any], kind: str = "file") -> str:
    """Return the mark of an image, a sound, a film or a file.

    ``kind`` is the one of its type. The media type of the data is more exact. A file and a document
    are shown with their names.
    """
    inner = [block, *(one for key in _INNER if isinstance(one := block.get(key), Mapping))]
    if kind == "file":
        given = _first_text(inner, _MEDIA_TYPES)
        kind = next((one for one in ("image", "audio", "video") if given.startswith(one)), kind)
    name = "" if kind == _IMAGES else _first_text(inner, _NAMES)
    if len(name) > MAX_NAME:
        name = name[:MAX_NAME] + "…"
    return f"[{kind}: {without_base64(name)}]" if name else f"[{kind}]"


_INNER = ("file", "source", "inlineData", "inline_data", "fileData", "file_data")


def _first_text(places: list[Mapping[str, Any]], keys: tuple[str, ...]) -> str:
    for place in places:
        for key in keys:
            if isinstance(found := place.get(key), str) and found:
                return found
    return ""


def shown_json(value: Any) -> str:
    """Return a value as JSON, without reasoning and without data in base64."""
    return dump(_without_base64(without_reasoning(value), 0))


def _without_base64(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return without_base64(value)
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {
            key: f"[base64: {len(item)} characters]"
            if key in _DATA_KEYS and isinstance(item, str) and _DATA.fullmatch(item)
            else _without_base64(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_base64(item, depth + 1) for item in value]
    return value


def without_base64(text: str) -> str:
    """Return ``text`` with the length of all data in base64 in the place of the data."""
    if _BASE64_SIGN in text:
        text = _without_data_urls(text)
    # Most texts have no long run. The search of bytes takes a fiftieth of the pattern's time.
    if _RUN not in text.encode("latin-1", "replace").translate(_AS_RUNS):
        return text
    return _BASE64.sub(_base64_length, text)


def _without_data_urls(text: str) -> str:
    before, *rest = text.split(_BASE64_SIGN)
    shown: list[str] = []
    for part in rest:
        head = _URL_HEAD.search(before, max(0, len(before) - _URL_HEAD_CHARACTERS))
        if head is None:
            shown += before, _BASE64_SIGN
            before = part
        else:
            shown += before[: head.start()], f"[{head[1] or 'data'}]"
            before = _URL_DATA.sub("", part, count=1)
    return "".join([*shown, before])


def _base64_length(found: re.Match[str]) -> str:
    data = found[0]
    if len(set(data[:2_000])) < _FEWEST_CHARACTERS or not any(map(str.isdigit, data[:2_000])):
        return data
    return f"[base64: {len(data)} characters]"
