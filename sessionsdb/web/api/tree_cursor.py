"""The place of a listener in a tree: one token for the cursors of all sessions of a subtree.

The token holds the cursors themselves, compressed. So it needs no row in the database: it is valid
at every process as long as its cursors are, and a listener writes nothing. A token is::

    t1.<base64 for URLs of zlib of lines: the cursor of a session, with a short digest>

A session has about 50 characters. A follower has 200 sessions at most, so a token fits into a
header.
"""

from __future__ import annotations

import base64
import binascii
import time
import zlib
from collections.abc import Callable, Mapping
from functools import partial

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidCursor, UnknownSession
from sessionsdb.events import Event
from sessionsdb.operations import registry
from sessionsdb.operations.follow_cursor import prefix_of

PREFIX = "t1."

MAX_SESSIONS = 200
"""The sessions that ``follow`` takes in a subtree. In a larger one it leaves ended ones out."""

SMALL = 20
"""A place of so few sessions is told with each event. A larger one at most once a second."""

SECONDS = 1.0

_DIGEST = 10
"""The hexadecimal digits of a session's digest in a token."""

_MAX_BYTES = 300 * MAX_SESSIONS


class TreePlace:
    """How far a listener has come in each session of a subtree.

    ``cursors``: the places that it begins with. A session that has none begins at its start.
    ``unheard``: sessions that begin now. Until each had an event, its place is not known.
    """

    def __init__(
        self,
        cursors: Mapping[str, str],
        *,
        unheard: set[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cursors = dict(cursors)
        self._unheard = unheard or set()
        self._clock = clock
        self._told_at = float("-inf")

    def after(self, event: Event) -> str | None:
        """Return the token of the place behind an event. ``None``: this event has none."""
        self._unheard.discard(event.session_id)
        if event.type == "deleted":
            self._cursors.pop(event.session_id, None)
        else:
            self._cursors[event.session_id] = event.cursor
        now = self._clock()
        is_due = len(self._cursors) <= SMALL or now >= self._told_at + SECONDS
        if self._unheard or not is_due:
            return None
        self._told_at = now
        return token_of(self._cursors)


def token_of(cursors: Mapping[str, str]) -> str:
    """Return the token for the cursors of sessions."""
    lines = []
    for cursor in cursors.values():
        _version, digest, rest = cursor.split(".", 2)
        lines.append(f"{digest[:_DIGEST]}.{rest}")
    packed = zlib.compress("\n".join(lines).encode(), 9)
    return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


async def cursors_of(db: SessionsDB, id: str, token: str) -> dict[str, str]:
    """Return the cursors of a token by their sessions. Sessions that were deleted are left out.

    ``id`` is the top of the subtree. Raises ``InvalidCursor`` and ``UnknownSession``.
    """
    lines = _lines(id, token)
    prefixes = {one: prefix_of((db.namespace, one)) for one in await _subtree(db, id)}
    by_digest = {prefix.split(".")[1][:_DIGEST]: one for one, prefix in prefixes.items()}
    cursors: dict[str, str] = {}
    for line in lines:
        digest, _, rest = line.partition(".")
        if (one := by_digest.get(digest)) is not None:
            cursors[one] = f"{prefixes[one]}.{rest}"
    if lines and not cursors:
        raise InvalidCursor(id, "it is of another session or namespace")
    return cursors


def _lines(id: str, token: str) -> list[str]:
    text = token.removeprefix(PREFIX)
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        unpacking = zlib.decompressobj()
        lines = unpacking.decompress(packed, _MAX_BYTES).decode("ascii").split("\n")
    except (ValueError, binascii.Error, zlib.error):
        raise InvalidCursor(id, "it is malformed") from None
    if unpacking.unconsumed_tail or unpacking.unused_data or not unpacking.eof:
        raise InvalidCursor(id, "it is malformed")
    return [line for line in lines if line]


async def sessions_from_now(db: SessionsDB, id: str) -> set[str]:
    """Return the sessions that ``follow`` begins with. Raises ``UnknownSession``."""
    found = await _subtree(db, id)
    if len(found) <= MAX_SESSIONS:
        return set(found)
    return {one for one, has_ended in found.items() if not has_ended or one == id}


async def _subtree(db: SessionsDB, id: str) -> dict[str, bool]:
    """Return the sessions of a subtree, and whether each has ended. Raises ``UnknownSession``."""
    operation = partial(registry.subtree_with_ends, namespace=db.namespace, session_id=id)
    found = dict(await open_database_of(db).read(operation))
    if not found:
        raise UnknownSession(id)
    return found
