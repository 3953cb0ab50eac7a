"""Read only the rows of a transcript that are newer than those that this process remembers.

A write that changes or removes a message adds one to ``sessions.rewrites``. A purge removes
messages without that, and lowers ``message_count``. ``seq`` never goes back. So remembered rows
still stand if three things are true. The session is the same one. It was not rewritten. Its
``message_count`` has grown by the number of the new rows.

A server may lose commits in a failover, or by a restored backup. It gives the lost numbers to other
messages then. So the last remembered message must also have the same time. One case is not noticed:
only rewrites were lost, and the session was rewritten as many times again.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getsizeof
from typing import NamedTuple

from sessionsdb.engine.statement import Row
from sessionsdb.operations.history_page import FIRST_SEQ


class ReadState(NamedTuple):
    """The state of a transcript when its rows were read."""

    incarnation: str = ""
    version: int = 0
    rewrites: int = -1
    last_seq: int = FIRST_SEQ
    last_at: str | None = None
    """The time of the message at ``last_seq``, in the text of the database.

    ``None``: there is no such message. The rows can't be remembered then, because no later read
    could look for it.
    """
    message_count: int = 0
    """Rows of another number can't be remembered: the counters are damaged."""


NO_STATE = ReadState()
"""Stands for the state before the first rows are remembered. All rows are read then."""


class NewRows(NamedTuple):
    """The answer of a database to a request for the rows behind remembered ones."""

    state: ReadState
    remembered_at: str | None
    """The time of the last remembered message."""
    behind: int
    """The ``seq`` behind which the rows were read, see ``read_behind``."""
    rows: Sequence[Row]
    """Oldest first."""


def read_behind(remembered: ReadState, state: ReadState) -> int:
    """Return the ``seq`` behind which the messages are read. ``FIRST_SEQ``: all of them.

    The statement of PostgreSQL decides the same in SQL. A repair by hand adds one to ``rewrites``,
    see schema.md. A repair that only adds to ``version`` is noticed too, unless another message was
    appended before this read.
    """
    if (
        state.incarnation == remembered.incarnation
        and state.rewrites == remembered.rewrites
        and (state.version == remembered.version or state.last_seq > remembered.last_seq)
    ):
        return remembered.last_seq
    return FIRST_SEQ


def stand(remembered: ReadState, new: NewRows) -> bool:
    """Return whether the remembered rows and the new ones are the transcript.

    ``new`` has all rows behind the remembered ones.
    """
    return (
        new.remembered_at == remembered.last_at
        and remembered.message_count + len(new.rows) == new.state.message_count
    )


def memory_of(text: str) -> int:
    """Return the memory of a text in bytes, about.

    A text that is not ASCII may keep its UTF-8 too, once a caller has written it somewhere.
    """
    return getsizeof(text) + (0 if text.isascii() else 4 * len(text))
