"""Words of texts and of queries, as the search knows them.

The words are told apart here and not by the databases. So both databases find the same messages, in
any language and under any locale, and a hit can be compared with the message itself.

A word is a run of letters, digits and marks. Case, width and the accents of Latin, Greek, Cyrillic,
Hebrew and Arabic are ignored. Chinese, Japanese, Thai and others have no spaces between words. In
these scripts each character is a word, and a longer query is a phrase of them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, NamedTuple

from sessionsdb.errors import InvalidArgument
from sessionsdb.untrusted_values import is_instance, plain_text, type_name

MAX_CHARACTERS = 100_000
"""The characters of a message that are indexed, from its beginning."""

MAX_WORDS = 16_000
"""The words of a message that are indexed. PostgreSQL knows no position above 16,383."""

MAX_WORD_CHARACTERS = 64
"""A longer word is cut, in messages and in queries."""

MAX_WORDS_CHARACTERS = 120_000
"""The characters of all indexed words. PostgreSQL takes about 1 MB."""

MAX_QUERY_CHARACTERS = 1_000
MAX_TERMS = 32

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_TERM = re.compile(r'(-?)"([^"]*)"?|(-?)([^\s"]+)')
_ACCENTS = re.compile("[\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0640\u064b-\u065f\u0670]+")
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, and the scripts of Chinese and Japanese."""

_BLOCKS_WITH_MARKS = (
    range(0x300, 0x12000),
    range(0x16A00, 0x17000),
    range(0x1D100, 0x1D200),
    range(0x1E000, 0x1E970),
)


class Word(NamedTuple):
    """A word of a text, and its place in the text."""

    text: str
    start: int
    end: int


class Term(NamedTuple):
    """A word of a query, or several words that must stand side by side.

    ``prefix``: the last word may go on.
    """

    words: tuple[str, ...]
    prefix: bool = False


class Query(NamedTuple):
    """The terms that a message must have, and those that it must not have."""

    wanted: tuple[Term, ...]
    unwanted: tuple[Term, ...] = ()


class _Patterns(NamedTuple):
    run: re.Pattern[str]
    """A run of letters, digits and marks."""
    parts: re.Pattern[str]
    """Splits a run at the characters of scripts without spaces."""


@cache
def _patterns() -> _Patterns:
    """Made at the first use, because the search for all marks takes 15 ms."""
    marks: list[str] = []
    for block in _BLOCKS_WITH_MARKS:
        marks += [chr(code) for code in block if unicodedata.category(chr(code))[0] == "M"]
    class_ = "".join(marks)
    return _Patterns(
        re.compile(rf"[\w{class_}]+"), re.compile(rf"[{_SPACELESS}][{class_}]*|[^{_SPACELESS}]+")
    )


def words_of(text: str) -> list[str]:
    """Return the words of a text in order, as far as they are indexed."""
    text = text[:MAX_CHARACTERS]
    if text.isascii():
        found = _ASCII_WORD.findall(text.lower())[:MAX_WORDS]
        return [word[:MAX_WORD_CHARACTERS] for word in found]
    return [word.text for word in places_of(text)]


def places_of(text: str) -> Iterator[Word]:
    """Yield the words of a text with their places, as far as they are indexed."""
    patterns = _patterns()
    number = characters = 0
    # An underscore joins the words of identifiers. It counts as a space.
    for run in patterns.run.finditer(text[:MAX_CHARACTERS].replace("_", " ")):
        for part in _parts(run[0], patterns):
            word = _fold(part[0])
            if not word:
                continue
            number, characters = number + 1, characters + len(word)
            if number > MAX_WORDS or characters > MAX_WORDS_CHARACTERS:
                return
            yield Word(word, run.start() + part.start(), run.start() + part.end())


def _parts(run: str, patterns: _Patterns) -> Iterator[re.Match[str]]:
    return patterns.parts.finditer(run)


def _fold(word: str) -> str:
    if word.isascii():
        return word.lower()[:MAX_WORD_CHARACTERS]
    folded = unicodedata.normalize("NFKD", word.casefold()).casefold()
    folded = unicodedata.normalize("NFC", _ACCENTS.sub("", folded))
    # A few letters stand for several words. Quotes would end the word in a query.
    return re.sub(r"[\s\"'\\]+", "", folded)[:MAX_WORD_CHARACTERS]


def digest_of_words(words: Collection[str]) -> int:
    """Return a number of 63 bits that tells the words of two texts apart."""
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


# ---- queries -------------------------------------------------------------------------------------


def parse_query(value: Any) -> Query:
    """Return the terms of a query. No text is a syntax error.

    Words must all be in the message. ``"…"`` is a phrase, ``-`` before a word or a phrase excludes
    it, and ``*`` behind a word finds all words that begin with it. All other characters are spaces.
    Raises ``InvalidArgument`` for a query without a wanted word, above 1,000 characters, or with
    more than 32 terms.
    """
    if not is_instance(value, str):
        raise InvalidArgument(f"a query must be a string, not {type_name(value)}")
    text = plain_text(value)
    if len(text) > MAX_QUERY_CHARACTERS:
        raise InvalidArgument(
            f"the query has {len(text)} characters, the limit is {MAX_QUERY_CHARACTERS}"
        )
    wanted: list[Term] = []
    unwanted: list[Term] = []
    for minus, phrase, minus_of_word, word in _TERM.findall(text):
        words = tuple(found.text for found in places_of(phrase or word))
        if words:
            term = Term(words, prefix=word.endswith("*"))
            (unwanted if minus or minus_of_word else wanted).append(term)
    if len(wanted) + len(unwanted) > MAX_TERMS:
        raise InvalidArgument(
            f"the query has {len(wanted) + len(unwanted)} words and phrases, the limit is "
            f"{MAX_TERMS}"
        )
    if not wanted:
        raise InvalidArgument(
            "the query has no word to search for; give a word, or a phrase in double quotes"
        )
    return Query(tuple(dict.fromkeys(wanted)), tuple(dict.fromkeys(unwanted)))


def matches(query: Query, text: str) -> bool:
    """Return whether a text has all wanted terms of a query and no unwanted one."""
    # No word holds a blank. Python looks for a text in linear time, however often it begins.
    words = f" {' '.join(words_of(text))} "
    return all(_has(term, words) for term in query.wanted) and not any(
        _has(term, words) for term in query.unwanted
    )


def _has(term: Term, words: str) -> bool:
    return f" {' '.join(term.words)}{'' if term.prefix else ' '}" in words


def is_hit(query: Query, word: str) -> bool:
    """Return whether a word is one of the words that the query asks for."""
    return any(
        word in term.words or (term.prefix and word.startswith(term.words[-1]))
        for term in query.wanted
    )
