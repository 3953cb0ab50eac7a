"""The text of a message as HTML: paragraphs, code, calls of tools, and links, all escaped.

A text is hostile. It is read line by line and once, so the time grows with its length only. The
colours of code have a limited time: see ``code_colours.py``.
"""

from __future__ import annotations

import contextlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator

from markupsafe import Markup

from sessionsdb.printable import escape_hidden
from sessionsdb.web.pages.code_colours import coloured

MAX_TEXT = 20_000
"""The characters of a message that a transcript shows. Its own page shows the whole."""

_FENCE = re.compile(r" {0,8}```([\w+#.-]{0,30})[^`]*")
_FENCE_END = re.compile(r" {0,8}```[ \t]*")
_CALL = re.compile(r"\[tool_use: (.{1,200}?) input=(.*)")
_MARKS = re.compile(
    r"https?://[^\s<>\"'`\\\]]{1,2000}"
    r"|`[^`\n]{1,300}`"
    r"|\*\*[^*\s](?:[^*\n]{0,300}[^*\s])?\*\*"
)
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_AFTER_LINK = ".,;:!?)"


def message_html(text: str, limit: int | None = MAX_TEXT) -> Markup:
    """Return a message's text, at most ``limit`` characters of it.

    Code between fences is a block of code, also without an end. The call of a tool is folded.
    """
    cut = text if limit is None else text[:limit]
    return Markup("").join(_blocks(cut.replace("\r\n", "\n").split("\n")))


def visible(text: str) -> str:
    """Return a text in which control characters and direction overrides are written out.

    Other format characters stay: emoji and several scripts need them. The style sheet isolates the
    direction of each text.
    """
    return _HIDDEN.sub(lambda found: escape_hidden(found[0]), text.replace("\r\n", "\n"))


def _blocks(lines: list[str]) -> Iterator[Markup]:
    ends = [place for place, line in enumerate(lines) if _FENCE_END.fullmatch(line)]
    prose: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        if (fence := _FENCE.fullmatch(line)) is not None:
            after = bisect_right(ends, place)
            end = ends[after] if after < len(ends) else len(lines)
            yield _prose(prose)
            yield _code("\n".join(lines[place + 1 : end]), fence[1])
        # The last line may be the begin of a call: the text was cut.
        elif (call := _CALL.fullmatch(line)) is not None and (
            line.endswith("]") or place == len(lines) - 1
        ):
            end = place
            yield _prose(prose)
            yield _call(call[1], call[2].removesuffix("]"))
        else:
            prose.append(line)
            place += 1
            continue
        prose = []
        place = end + 1
    yield _prose(prose)


def _prose(lines: list[str]) -> Markup:
    text = visible("\n".join(lines)).strip("\n")
    return Markup('<p class="text">{}</p>').format(_with_marks(text)) if text else Markup("")


def _with_marks(text: str) -> Markup:
    """Show addresses as links, and the two marks that most answers have: code, and bold words."""
    parts: list[str | Markup] = []
    place = 0
    for found in _MARKS.finditer(text):
        parts.append(text[place : found.start()])
        parts.append(_mark(found[0]))
        place = found.end()
    parts.append(text[place:])
    return Markup("").join(parts)


def _mark(text: str) -> Markup:
    if text.startswith("`"):
        return Markup("<code>{}</code>").format(text[1:-1])
    if text.startswith("*"):
        return Markup("<strong>{}</strong>").format(text[2:-2])
    url = text.rstrip(_AFTER_LINK)
    # The other site does not learn the address of this page, and has no hold on its window.
    link = Markup('<a href="{0}" target="_blank" rel="noopener noreferrer nofollow">{0}</a>')
    return link.format(url) + text[len(url) :]


def _code(code: str, language: str) -> Markup:
    shown = visible(code)
    return Markup('<pre tabindex="0"><code>{}</code></pre>').format(
        coloured(shown, language) or shown
    )


def _call(name: str, arguments: str) -> Markup:
    """Fold the call of a tool. Arguments that are no JSON, as in a text that was cut, stay text."""
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    return Markup(
        '<details class="call"><summary>Calls <bdi><code>{}</code></bdi></summary>'
        '<pre tabindex="0">{}</pre></details>'
    ).format(visible(name), visible(arguments))
