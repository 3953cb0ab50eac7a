"""The colours of code in a message: of few languages, and for a limited time.

The code is hostile. Many lexers of Pygments take quadratic time for some texts: that of C takes
seconds for 10,000 blanks behind a name. The page of another reader waits for it. So there are two
limits. Only lexers that passed a test with such texts are used. And a page has a fixed time for
colours. Code behind that is plain.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name

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


@dataclass(slots=True)
class Spent:
    """The seconds that a page has taken so far."""

    colours: float = 0.0
    markup: float = 0.0


_spent: ContextVar[Spent] = ContextVar("spent")


def spent_on_page() -> Spent:
    """Return what the page has taken so far. Outside of ``shared_time`` that is nothing."""
    found = _spent.get(None)
    return Spent() if found is None else found


@cache
def _lexers() -> Mapping[str, type[Lexer]]:
    """Return the lexers of ``LANGUAGES`` by all their names.

    Pygments looks a name up among 500 lexers: 0.2 ms for one that it does not know.
    """
    lexers = [type(get_lexer_by_name(language)) for language in sorted(LANGUAGES)]
    return {alias: lexer for lexer in lexers for alias in lexer.aliases}


@contextmanager
def shared_time() -> Iterator[None]:
    """Let all texts that are shown in this block share the time of one page."""
    token = _spent.set(Spent())
    try:
        yield
    finally:
        _spent.reset(token)


def coloured(code: str, language: str) -> Markup | None:
    """Return code as HTML with colours, or ``None`` if it is to be shown without.

    ``language`` is a name or an alias, as it stands behind a fence. Outside of ``shared_time``
    each call has the time of a page for itself.
    """
    spent = spent_on_page()
    if not language or len(code) > MAX_CHARACTERS or spent.colours >= PAGE_SECONDS:
        return None
    if (lexer := _lexers().get(language.lower())) is None:
        return None
    begin = time.perf_counter()
    end = begin + PAGE_SECONDS - spent.colours
    try:
        tokens = []
        for token in lexer().get_tokens(code):
            if time.perf_counter() > end:
                return None
            tokens.append(token)
        html = io.StringIO()
        _FORMATTER.format(tokens, html)  # escapes the code
        return Markup(html.getvalue())
    finally:
        spent.colours += time.perf_counter() - begin
