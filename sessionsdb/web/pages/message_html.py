"""The text of a message as HTML: paragraphs, code, calls of tools, and links, all escaped.

A text is hostile. It is read line by line and once, so the time grows with its length only. A page
has a fixed time for all marks of its texts. What is behind that is plain text. The colours of code
have a time of their own: see ``code_colours.py``.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from bisect import bisect_right
from collections.abc import Iterator

from markupsafe import Markup, escape

from sessionsdb.printable import escape_hidden
from sessionsdb.web.pages.code_colours import coloured, spent_on_page

MAX_TEXT = 20_000
"""The characters of a message that a transcript shows. Its own page shows the whole."""

MARKUP_SECONDS = 0.5
"""The processor time of a page for the blocks and marks of its texts. A text of 20,000 characters
without hostile intent takes about 0.002 s."""

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
_WRITTEN_OUT = {
    ord(character): escape_hidden(character)
    for character in map(chr, range(0x10000))
    if _HIDDEN.match(character)
}
_AFTER_LINK = ".,;:!?)"


def message_html(text: str, limit: int | None = MAX_TEXT) -> Markup:
    """Return a message's text, at most ``limit`` characters of it.

    Code between fences is a block of code, also without an end. The call of a tool is folded.
    """
    cut = text if limit is None else text[:limit]
    spent = spent_on_page()
    begin = time.thread_time()
    end = begin + MARKUP_SECONDS - spent.markup
    try:
        return Markup("".join(_blocks(cut.replace("\r\n", "\n").split("\n"), end)))
    finally:
        spent.markup += time.thread_time() - begin


def visible(text: str) -> str:
    """Return a text in which control characters and direction overrides are written out.

    Other format characters stay: emoji and several scripts need them. The style sheet isolates the
    direction of each text.
    """
    text = text.replace("\r\n", "\n")
    return text.translate(_WRITTEN_OUT) if _HIDDEN.search(text) else text


def _blocks(lines: list[str], until: float) -> Iterator[str]:
    """Yield the blocks of a text. Those behind the time ``until`` are one plain block."""
    ends = [
        place for place, line in enumerate(lines) if "```" in line and _FENCE_END.fullmatch(line)
    ]
    prose: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        if "```" not in line and not line.startswith("[tool_use: "):
            prose.append(line)
            place += 1
            continue
        if time.thread_time() > until:
            prose += lines[place:]
            break
        if (fence := _FENCE.fullmatch(line)) is not None:
            after = bisect_right(ends, place)
            end = ends[after] if after < len(ends) else len(lines)
            yield _prose(prose, until)
            yield _code("\n".join(lines[place + 1 : end]), fence[1])
        # The last line may be the begin of a call: the text was cut.
        elif (call := _CALL.fullmatch(line)) is not None and (
            line.endswith("]") or place == len(lines) - 1
        ):
            end = place
            yield _prose(prose, until)
            yield _call(call[1], call[2].removesuffix("]"))
        else:
            prose.append(line)
            place += 1
            continue
        prose = []
        place = end + 1
    yield _prose(prose, until)


def _prose(lines: list[str], until: float) -> str:
    text = visible("\n".join(lines)).strip("\n")
    return f'<p class="text">{_with_marks(text, until)}</p>' if text else ""


def _with_marks(text: str, until: float) -> str:
    """Show addresses as links, and the two marks that most answers have: code, and bold words."""
    parts: list[str] = []
    place = 0
    for found in _MARKS.finditer(text):
        if time.thread_time() > until:
            break
        parts.append(escape(text[place : found.start()]))
        parts.append(_mark(found[0]))
        place = found.end()
    parts.append(escape(text[place:]))
    return "".join(parts)


def _mark(text: str) -> str:
    if text.startswith("`"):
        return f"<code>{escape(text[1:-1])}</code>"
    if text.startswith("*"):
        return f"<strong>{escape(text[2:-2])}</strong>"
    url = text.rstrip(_AFTER_LINK)
    shown, rest = escape(url), escape(text[len(url) :])
    # The other site does not learn the address of this page, and has no hold on its window.
    return f'<a href="{shown}" target="_blank" rel="noopener noreferrer nofollow">{shown}</a>{rest}'


def _code(code: str, language: str) -> str:
    shown = visible(code)
    return f'<pre tabindex="0"><code>{coloured(shown, language) or escape(shown)}</code></pre>'


def _call(name: str, arguments: str) -> str:
    """Fold the call of a tool. Arguments that are no JSON, as in a text that was cut, stay text."""
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    return (
        '<details class="call"><summary>Calls <bdi><code>'
        f"{escape(visible(name))}</code></bdi></summary>"
        f'<pre tabindex="0">{escape(visible(arguments))}</pre></details>'
    )
