"""The part of the operations that differs by database.

Each statement and expression for one database only is in the folder of that database, behind the
functions of ``Dialect``. An operation asks ``dialect_of(connection)`` and never for a name. Support
for another database is a folder here, a folder in ``engine/``, and the test suite.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from sqlalchemy import Connection

from sessionsdb.engine.dialect import Kind, kind_of
from sessionsdb.engine.statement import Row
from sessionsdb.errors import SessionsDBError
from sessionsdb.types import Limits, Receipt

if TYPE_CHECKING:
    from sessionsdb.messages.codec import StoredMessage
    from sessionsdb.operations import postgresql, sqlite
    from sessionsdb.operations.follow_types import PieceRequest
    from sessionsdb.operations.history_page import HistoryPage
    from sessionsdb.operations.inbox_types import Commit, Lease, Send
    from sessionsdb.operations.keys import Fence, MessageKey, SessionKey
    from sessionsdb.operations.newer_rows import NewRows, ReadState
    from sessionsdb.operations.piece_types import Run, RunPieces
    from sessionsdb.operations.search_types import IndexedPart, Search
    from sessionsdb.operations.session_rows import SessionChange
    from sessionsdb.operations.transcript_types import (
        Attributes,
        NewSession,
        SessionAppend,
        TranscriptMark,
        TranscriptState,
    )

    _checked: tuple[Dialect, Dialect] = (sqlite, postgresql)


class Dialect(Protocol):
    """The functions that each database has."""

    has_row_locks: bool
    """Whether several transactions write at once, each of them holding rows."""

    # ---- mailbox: see mailbox.py --------------------------------------------------------------

    def send(
        self, connection: Connection, /, requests: Sequence[Send], limits: Limits
    ) -> list[Receipt | SessionsDBError]: ...

    def claim(
        self,
        connection: Connection,
        /,
        worker: str,
        shares: Mapping[str, int],
        batch: int,
        lease_seconds: float,
    ) -> list[Lease]:
        """Lease at most as many sessions of each namespace as ``shares`` says."""
        ...

    def ready_namespaces(
        self,
        connection: Connection,
        /,
        namespaces: Collection[str] | None,
        after: str,
        limit: int,
    ) -> list[str]:
        """Return at most ``limit`` of the namespaces that have a ready session, beginning behind
        ``after``. ``namespaces``: ``None`` means all of the database."""
        ...

    def heartbeat(
        self,
        connection: Connection,
        /,
        worker: str,
        fences: Sequence[Fence],
        lease_seconds: float,
        *,
        wait_for_locks: bool,
    ) -> set[SessionKey]:
        """Renew leases. Without ``wait_for_locks``, mailboxes that others lock are passed over."""
        ...

    def commit(
        self, connection: Connection, /, worker: str, turns: Sequence[Commit]
    ) -> list[bool | None]:
        """Return true for each committed turn, and false for a turn whose lease was lost.

        ``None``: the lease is held, and the transcript was rewritten since the claim, or a message
        has joined that the lease does not name.
        """
        ...

    # ---- pieces: see pieces.py ------------------------------------------------------------------

    def write_pieces(
        self, connection: Connection, /, worker: str, runs: Sequence[RunPieces]
    ) -> list[int | None]:
        """Store the pieces of each run that continue its stored ones.

        Return how many pieces of its generation each run had before, ``None`` for a lost lease.
        """
        ...

    def find_runs(
        self, connection: Connection, /, after: Run, limit: int
    ) -> list[tuple[Run, bool]]:
        """Return at most ``limit`` runs with pieces behind ``after``, in order, and whether each of
        them is void. The cost does not depend on how many pieces a run has."""
        ...

    # ---- schedules: see firing.py ----------------------------------------------------------------

    def first_schedules(
        self, connection: Connection, /, namespaces: Collection[str]
    ) -> list[tuple[str, datetime]]:
        """Return the namespaces that have a schedule, each with the first ``try_at`` of it. The
        cost does not depend on how many schedules there are."""
        ...

    # ---- transcripts: see transcripts.py and saving.py ----------------------------------------

    def append(
        self, connection: Connection, /, appends: Sequence[SessionAppend], write_id: str | None
    ) -> list[int | None]:
        """Append to each session that is at its expected version.

        Return the version that each session had before, ``None`` for an unknown session.
        """
        ...

    def lock_version(
        self, connection: Connection, /, namespace: str, session_id: str
    ) -> int | None:
        """Return the version of a transcript that nothing else changes until the commit."""
        ...

    def lock_transcript(
        self, connection: Connection, /, namespace: str, session_id: str
    ) -> TranscriptState | None:
        """Return the counters of a transcript that nothing else changes until the commit."""
        ...

    def lock_marked(
        self, connection: Connection, /, namespace: str, session_id: str, mark: TranscriptMark
    ) -> bool:
        """Return whether a transcript is in the state ``mark``, and keep it so until the commit."""
        ...

    def write_tail(
        self,
        connection: Connection,
        /,
        namespace: str,
        session_id: str,
        added: Sequence[StoredMessage],
        attributes: Sequence[Attributes],
        write_id: str,
        message_count: int | None,
        rewrites: int,
    ) -> tuple[int, int] | None:
        """Append to a transcript, and keep its session locked until the commit.

        ``message_count`` is the number of messages then, for a transcript that was locked before
        and lost messages. ``None``: it lost none. ``attributes`` has an item for each added
        message. ``rewrites`` is 1 if messages were removed before. A turn that runs over the
        transcript now does not commit then.

        Return the new version and the ``seq`` before the first new message, ``None`` for an unknown
        session.
        """
        ...

    def extend(
        self,
        connection: Connection,
        /,
        namespace: str,
        session_id: str,
        added: Sequence[StoredMessage],
        write_id: str,
        mark: TranscriptMark,
    ) -> tuple[int, int] | None:
        """Append to a transcript in the state ``mark``, and return the same as ``write_tail``.

        ``None``: the transcript is in another state, and nothing was written.
        """
        ...

    def read_new_rows(
        self, connection: Connection, /, key: SessionKey, remembered: ReadState
    ) -> NewRows | None:
        """Return the rows of a transcript behind the remembered ones: ``role, content, payload``.

        ``None`` for an unknown session.
        """
        ...

    def read_pages(
        self, connection: Connection, /, pages: Sequence[HistoryPage]
    ) -> list[Sequence[Row]]:
        """Return the rows of each page, oldest first."""
        ...

    def read_new_pages(
        self, connection: Connection, /, requests: Sequence[tuple[HistoryPage, ReadState]]
    ) -> list[NewRows | None]:
        """Return the rows of each page behind the remembered ones, or ``None`` as above.

        The pages have a limit and no other bound.
        """
        ...

    # ---- state: see state.py --------------------------------------------------------------------

    def write_state_value(
        self,
        connection: Connection,
        /,
        scope: Mapping[str, str | None],
        key: str,
        value: str,
        version: int,
        size: int,
    ) -> None:
        """Set one value of a scope that nothing else changes until the commit, with the version and
        the size of the scope. ``scope``: the fields of a ``ScopeKey``."""
        ...

    # ---- followers: see following.py ----------------------------------------------------------

    def read_states(self, connection: Connection, /, keys: Sequence[SessionKey]) -> Sequence[Row]:
        """Return the index of a key, and the columns of its ``SessionState``, for each key that
        exists."""
        ...

    def read_ends(
        self, connection: Connection, /, key: SessionKey, positions: Sequence[int]
    ) -> Sequence[Row]:
        """Return the ``END_COLUMNS`` of these messages of an inbox, as far as they are finished."""
        ...

    def read_pieces(
        self, connection: Connection, /, requests: Sequence[PieceRequest], limit: int
    ) -> Sequence[Row]:
        """Return the index of a request, and the columns of a ``Piece``, in order.

        ``limit`` is the largest number of pieces for each request.
        """
        ...

    # ---- search: see search_index.py and search.py ---------------------------------------------

    def create_search_index(self, connection: Connection, /) -> None: ...

    def has_search_index(self, connection: Connection, /) -> bool:
        """Return whether documents can be written and searched.

        Raises ``SearchUnavailable`` if this database can't have a search index.
        """
        ...

    def write_search_parts(
        self, connection: Connection, /, parts: Sequence[IndexedPart]
    ) -> set[SessionKey]:
        """Write the parts, which are in the order of their keys. See ``write_parts``."""
        ...

    def find_documents(self, connection: Connection, /, search: Search) -> Sequence[Row]:
        """Return the ``COLUMNS`` of search.py for the newest documents that have the words."""
        ...

    # ---- sessions, receipts, locks ------------------------------------------------------------

    def insert_session(self, connection: Connection, /, values: dict[str, Any]) -> bool:
        """Insert a row of ``sessions``, created now. False: there is one with this key."""
        ...

    def create_sessions(
        self, connection: Connection, /, sessions: Sequence[NewSession], channel: str
    ) -> set[SessionKey]:
        """Insert sessions, created now, each with its id as the peer, and their mailboxes.

        The list is in the order of the keys, so that two calls don't wait for each other. Return
        the keys of the sessions that did not exist.
        """
        ...

    def change_sessions(
        self, connection: Connection, /, changes: Sequence[SessionChange]
    ) -> Sequence[Row]:
        """Change sessions, each of them once, all in the same columns.

        Return the number of the change, from 1, and the columns of ``SELECT_DETAILS``, for each
        session that exists.
        """
        ...

    in_ids: str
    """A condition behind the id of a row in a WHERE: it is one of a list. Its parameters get their
    values from ``ids_values``."""

    def ids_values(self, ids: Sequence[str], /) -> dict[str, Any]:
        """Return the values of the parameters of ``in_ids``."""
        ...

    in_positions: str
    """A condition as ``in_ids``, for numbers. Its values are from ``positions_values``."""

    def positions_values(self, positions: Sequence[int], /) -> dict[str, Any]:
        """Return the values of the parameters of ``in_positions``."""
        ...

    reply_join: str
    """A join of a message ``i`` of an inbox with the reply ``m``, the last of its transcript's
    messages from ``first_seq`` to ``last_seq`` that is one. It reads no other messages."""

    def in_few(self, select: str, /) -> str:
        """Return a condition behind a number: it is one of the few that ``select`` finds. They are
        found first, and the rows of the outer query by them."""
        ...

    receipt_table: str
    """Receipts as a table ``g`` for a FROM clause, with namespace, session_id and position. Its
    parameters get their values from ``receipt_values``."""

    def receipt_values(self, receipts: Sequence[MessageKey], /) -> dict[str, Any]:
        """Return the values of the parameters of ``receipt_table``."""
        ...

    def lock_mailboxes(self, connection: Connection, /, keys: Collection[SessionKey]) -> None: ...

    def lock_sessions(self, connection: Connection, /, keys: Collection[SessionKey]) -> None: ...

    def lock_waits(self, connection: Connection, /, namespace: str) -> None:
        """Keep other transactions from adding waits to the namespace until the commit."""
        ...


_dialects: dict[Kind, Dialect] = {}


def dialect_of(connection: Connection) -> Dialect:
    """Return the functions for the database of this connection."""
    kind = kind_of(connection)
    return _dialects.get(kind) or _load(kind)


def _load(kind: Kind) -> Dialect:
    # At the first use: a process needs the statements of one database, and a command that only
    # lists needs none of them.
    dialect = _dialects[kind] = cast(Dialect, import_module(f"sessionsdb.operations.{kind}"))
    return dialect
