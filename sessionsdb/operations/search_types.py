"""The values between the search index, the dialects and the indexer."""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from sessionsdb.messages.search_words import Query
from sessionsdb.operations.keys import SessionKey

LAST_ID = 2**63 - 1
"""Above every id of a document."""


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


def new_id(document: Document) -> int:
    """Return an id for a document: 42 bits of its time, 11 of its seq, and 10 random ones.

    Documents have the order of their times, and those of one time mostly the order of their seqs.
    """
    milliseconds = min(max(document.milliseconds, 0), 2**42 - 1)
    return milliseconds << 21 | (document.seq & 0x7FF) << 10 | random.getrandbits(10)
