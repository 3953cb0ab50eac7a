"""The cursor of a follower: how far it has come in the events of one session.

A cursor is text, URL-safe ASCII of at most 256 characters::

    1.<digest of namespace and session>.<incarnation>.<numbers in hexadecimal, joined by dots>

The digest keeps a cursor from being used for another session: ids may have 512 characters. The
numbers are the fields of ``Place`` in their order.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from sessionsdb.errors import InvalidCursor
from sessionsdb.operations.keys import SessionKey

VERSION = "1"

Phase = Literal["unknown", "between", "idle", "running", "waiting", "held"]
"""The last status that a follower was told of the turns of a session.

``between``: something is unfinished, and no turn runs as far as it was told. ``waiting``: a turn
failed and is tried again later. ``held``: a question is open.
"""

PHASES: tuple[Phase, ...] = ("unknown", "between", "idle", "running", "waiting", "held")

_MAX = 2**63 - 1
_NUMBER = re.compile(r"[0-9a-f]{1,16}")
_INCARNATION = re.compile(r"[0-9a-f]{0,32}")
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Place(NamedTuple):
    """How far a follower has come. All messages and statuses before it were told."""

    incarnation: str
    """The incarnation of the session. Empty for a session of before revision 0008."""
    seq: int = 0
    """The last message of the transcript."""
    rewrites: int = 0
    """The rewrites of the transcript that were told."""
    tail: int = 0
    """The last position of the inbox that was told as queued, or that was there before."""
    low: int = 0
    """No position before this one was unfinished. A requeued message is an exception."""
    finished_at: int = 0
    """When the last message was finished whose end was told, in microseconds since 1970."""
    finished_position: int = 0
    """The position of that message."""
    run: int = 0
    """The last run that was told."""
    attempt: int = 0
    """The attempt of that run."""
    generation: int = 0
    """The generation of the pieces of that run."""
    number: int = 0
    """The number of the next piece of that generation. 0: none was told."""
    offset: int = 0
    """The characters of text in the pieces that were told."""
    phase: int = 0
    """The index in ``PHASES``."""
    ended: int = 0
    """1 if the end of the session was told."""

    @property
    def phase_name(self) -> Phase:
        return PHASES[self.phase]

    def in_phase(self, phase: Phase) -> Place:
        return self._replace(phase=PHASES.index(phase))

    def without_pieces(self) -> Place:
        """Return the place with no piece told."""
        return self._replace(generation=0, number=0, offset=0)

    @property
    def finished(self) -> datetime:
        return _EPOCH_START + timedelta(microseconds=self.finished_at)


def microseconds(moment: datetime) -> int:
    """Return the microseconds since 1970."""
    return (moment - _EPOCH_START) // _MICROSECOND


def prefix_of(key: SessionKey) -> str:
    """Return the beginning of all cursors of a session: the version and the digest."""
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:20]
    return f"{VERSION}.{digest}"


def encode(prefix: str, place: Place) -> str:
    """Return the cursor of a place. ``prefix`` is that of its session."""
    incarnation, *numbers = place
    return ".".join([prefix, incarnation, *(f"{number:x}" for number in numbers)])


def decode(key: SessionKey, cursor: str) -> Place:
    """Return the place that a cursor of this session names. Raises ``InvalidCursor``."""
    parts = cursor.split(".")
    if parts[0] != VERSION:
        raise InvalidCursor(
            key[1], "it is of another version of sessionsdb, or no cursor of follow"
        )
    if len(parts) != 2 + len(Place._fields):
        raise InvalidCursor(key[1], "it is malformed")
    if ".".join(parts[:2]) != prefix_of(key):
        raise InvalidCursor(key[1], "it is of another session or namespace")
    incarnation, *numbers = parts[2:]
    if not _INCARNATION.fullmatch(incarnation) or not all(map(_NUMBER.fullmatch, numbers)):
        raise InvalidCursor(key[1], "it is malformed")
    place = Place(incarnation, *(int(number, 16) for number in numbers))
    # 10**16 microseconds is the year 2286. All other numbers fit into a bigint.
    if max(place[1:]) > _MAX or place.phase >= len(PHASES) or place.finished_at > 10**16:
        raise InvalidCursor(key[1], "it is malformed")
    return place
