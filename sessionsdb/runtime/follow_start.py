"""The argument ``after`` of ``follow``: where a follower begins."""

from __future__ import annotations

from typing import Any

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument, InvalidCursor
from sessionsdb.operations import follow_cursor
from sessionsdb.operations.follow_cursor import Place
from sessionsdb.operations.following import Start
from sessionsdb.operations.keys import SessionKey
from sessionsdb.untrusted_values import is_instance, plain_text, short_repr

Starts = dict[str, Place] | Start
"""The beginning of each session in a subtree by its id, or the same one for all."""


def of_session(key: SessionKey, after: Any) -> Place | Start:
    """Read ``after`` for one session. Raises ``InvalidCursor`` and ``InvalidArgument``."""
    if after is None:
        return "now"
    if is_instance(after, str):
        text = plain_text(after)
        return "start" if text == "start" else follow_cursor.decode(key, text)
    if is_instance(after, int) and type(after) is not bool:
        return max(0, validation.cursor(after, "after") or 0)
    raise InvalidArgument(
        'after must be a cursor, a seq, "start" or None, not ' + short_repr(after)
    )


def of_subtree(key: SessionKey, after: Any) -> Starts:
    """Read ``after`` for a subtree. Raises ``InvalidCursor`` and ``InvalidArgument``."""
    if after is None:
        return "now"
    if is_instance(after, str) and plain_text(after) == "start":
        return "start"
    if is_instance(after, str) or is_instance(after, int):
        raise InvalidArgument(
            'with subtree after must be a mapping from ids to cursors, "start" or None, not '
            + short_repr(after)
        )
    places: dict[str, Place] = {}
    for id, cursor in validation.mapping(after, "after").items():
        session_id = validation.session_id(id)
        if not is_instance(cursor, str):
            reason = f"a cursor is text, not {short_repr(cursor)}"
            raise InvalidCursor(session_id, reason, in_subtree=True)
        try:
            places[session_id] = follow_cursor.decode((key[0], session_id), plain_text(cursor))
        except InvalidCursor as error:
            raise InvalidCursor(session_id, error.reason, in_subtree=True) from None
    return places
