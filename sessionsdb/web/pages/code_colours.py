"""The colours of code in a message: of few languages, and for a limited time.

The code is hostile. Many lexers of Pygments take quadratic time for some texts: that of C takes
seconds for 10,000 blanks behind a name. The page of another reader waits for it. So there are two
limits. Only lexers that passed a test with such texts are used. And a page has a fixed time for
colours. Code behind that is plain.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

LANGUAGES = frozenset(
    (
        "bash",
        "csharp",
        "css",
        "diff",
        "go",
        "html",
        "java",
        "javascript",
        "json",
        "python",
        "ruby",
        "rust",
        "sql",
        "toml",
        "typescript",
        "xml",
        "yaml",
    )
)
"""The languages that have colours, by the first alias of their lexers. No single step of these
lexers took more than 0.05 s for 10,000 characters. C, C++ and Markdown are not among them."""

MAX_CHARACTERS = 10_000
"""Longer code has no colours."""

PAGE_SECONDS = 0.1
"""The time that all code of a page takes for its colours, besides the last step of a lexer. A block
of 100 lines takes about 0.01 s."""

_FORMATTER = HtmlFormatter(nowrap=True)
_spent: ContextVar[list[float]] = ContextVar("spent")


@contextmanager
def shared_time() -> Iterator[None]:
    """Let all code that is coloured in this block share the time of one page."""
    token = _spent.set([0.0])
    try:
        yield
    finally:
        _spent.reset(token)


def coloured(code: str, language: str) -> Markup | None:
    """Return code as HTML with colours, or ``None`` if it is to be shown without.

    ``language`` is a name or an alias, as it stands behind a fence. Outside of ``shared_time``
    each call has the time of a page for itself.
    """
    if not language or len(code) > MAX_CHARACTERS:
        return None
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return None
    if lexer.aliases[0] not in LANGUAGES:
        return None
    spent = _spent.get([0.0])
    begin = time.perf_counter()
    end = begin + PAGE_SECONDS - spent[0]
    try:
        tokens = []
        for token in lexer.get_tokens(code):
            if time.perf_counter() > end:
                return None
            tokens.append(token)
        html = io.StringIO()
        _FORMATTER.format(tokens, html)  # escapes the code
        return Markup(html.getvalue())
    finally:
        spent[0] += time.perf_counter() - begin
