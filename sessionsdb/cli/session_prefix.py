"""Find the session whose id an argument begins."""

from __future__ import annotations

from functools import partial

from sessionsdb import InvalidArgument, SessionsDB, operations
from sessionsdb.cli.console import output
from sessionsdb.cli.console.short_ids import MIN_CHARACTERS, uuid_begin
from sessionsdb.database import open_database_of

MAX_SHOWN = 5


async def whole_id(db: SessionsDB, given: str, *, writes: bool = False) -> str:
    """Return the session's id that ``given`` is, or that it begins alone.

    A command that writes takes the beginning only if it ends inside a UUID. Otherwise a message to
    a missing session ``chat-2026-1`` would go to ``chat-2026-17``. Returns ``given`` if no session
    fits. Raises ``InvalidArgument`` if several do.
    """
    if not MIN_CHARACTERS <= len(given) <= 512 or "\0" in given or not _is_text(given):
        return given
    found = await open_database_of(db).read(
        partial(
            operations.registry.ids_with_prefix,
            namespace=db.namespace,
            prefix=given,
            limit=MAX_SHOWN + 1,
        )
    )
    if not found or given in found:
        return given
    if writes and not all(_ends_in_uuid(id, len(given)) for id in found):
        return given
    if len(found) > 1:
        more = ", …" if len(found) > MAX_SHOWN else ""
        raise InvalidArgument(
            f"several sessions begin with {given}: {', '.join(found[:MAX_SHOWN])}{more}; "
            "give more characters"
        )
    output.note(f"session {found[0]}")
    return found[0]


def _ends_in_uuid(id: str, length: int) -> bool:
    begin = uuid_begin(id)
    return begin is not None and begin < length < len(id)


def _is_text(given: str) -> bool:
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True
