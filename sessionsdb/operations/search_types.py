"""The values between the search index, the dialects and the indexer."""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from sessionsdb.messages.search_words import Query
from sessionsdb.operations.keys import SessionKey

LAST_ID = 2**63 - 1
"""Above every id of a document."""

_TIME_BITS = 42
_PLACE_BITS = 21
"""The bits of an id that tell documents of one millisecond apart."""

_RANDOM_BITS = 10
_MAX_RANDOM_BITS = 40


class Mark(NamedTuple):
    """How far a transcript is indexed: the columns of ``search_marks`` behind its key."""

    version: int
    seq: int
    rewrites: int
    removed: int


class Indexable(NamedTuple):
    """A session with what its transcript and its mark say."""

    key: SessionKey
    incarnation: str | None
    last_seq: int
    rewrites: int
    removed: int
    mark: Mark | None

    @property
    def is_due(self) -> bool:
        """Whether messages were added, removed or replaced since the mark."""
        if self.mark is None:
            return self.last_seq > 0
        return self.mark[1:] != (self.last_seq, self.rewrites, self.removed)

    @property
    def indexed_seq(self) -> int:
        """The message behind which the transcript is compared with the index."""
        if self.mark is None or self.mark[2:] != (self.rewrites, self.removed):
            return 0
        return self.mark.seq


class Document(NamedTuple):
    """The words of one message."""

    seq: int
    milliseconds: int
    """The time of the message since 1970."""
    digest: int
    words: list[str]


class IndexedPart(NamedTuple):
    """A part of a transcript, and how the index becomes equal to it."""

    key: SessionKey
    incarnation: str | None
    mark: Mark
    """The mark afterwards. The mark before has the version below, or there is none."""
    removed: list[int]
    """The ids of the documents to delete."""
    added: list[Document]


class Search(NamedTuple):
    """The request for a page of hits, the newest first."""

    namespace: str
    query: Query
    channel: str | None = None
    peer: str | None = None
    root: str | None = None
    limit: int = 20
    before: int = LAST_ID
    """Only documents with a lower id."""


def namespace_word(namespace: str) -> str:
    """Return a word that no text has. Each document begins with the one of its namespace.

    So the search of a small namespace does not read the documents of the others.
    """
    return "§" + hashlib.blake2b(namespace.encode(), digest_size=8).hexdigest()


def new_id(document: Document, attempt: int = 0) -> int:
    """Return an id for a document: 42 bits of its time, 11 of its seq, and 10 random ones.

    Documents have the order of their times, and those of one time mostly the order of their seqs.
    A caller whose id is taken asks again with the next ``attempt``. Each draws from twice as many
    ids: first from those of the time, and when they are used up from those of the times beside it.
    """
    milliseconds = min(max(document.milliseconds, 0), (1 << _TIME_BITS) - 1)
    first, place = milliseconds << _PLACE_BITS, (document.seq & 0x7FF) << _RANDOM_BITS
    bits = min(_RANDOM_BITS + attempt, _MAX_RANDOM_BITS)
    distance = random.getrandbits(bits)
    if bits <= _PLACE_BITS:
        return min(first + (place + distance) % (1 << _PLACE_BITS), LAST_ID - 1)
    return first + distance if first + distance < LAST_ID else first - distance
