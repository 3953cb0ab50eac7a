"""The rows that a follower reads when a session has changed. Each statement reads a bounded part.

The statements of one follower run in one snapshot of the database: see ``Runner.read_snapshot``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.messages.codec import from_inbox
from sessionsdb.messages.extra import Extra, decode_extra
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.follow_cursor import Place, microseconds
from sessionsdb.operations.follow_types import END_COLUMNS, Piece, PieceRequest, SessionState
from sessionsdb.operations.history_page import SELECT_MESSAGE
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.question_rows import read_open
from sessionsdb.types import OpenQuestion

PAGE = 100
"""The messages, ends of messages and queued messages of one read. A follower that is further behind
reads again when its consumer has taken the events."""

PAGE_CHARACTERS = 1_000_000
"""The characters of the texts of one read of messages or queued messages, or one longer row. A
follower with a slow consumer keeps what was read."""

FIRST_ROWS = 4
"""The rows of the first statement of such a read. More statements follow while the texts are short,
so that long ones are not read to be dropped."""

PIECES = 200
"""The pieces of one read."""

SCANNED_POSITIONS = 10_000
"""The newest positions of an inbox that are searched for messages that ended without a row in the
transcript. So the cost is bounded for any number of cancelled messages at the head of an inbox."""

_MESSAGES = Statement(f"""
    {SELECT_MESSAGE.format(page="m.position")}
    WHERE m.namespace = :namespace AND m.session_id = :session_id
      AND m.seq > :after AND m.seq <= :last
    ORDER BY m.seq LIMIT :limit
""")

_QUEUED = Statement("""
SELECT i.position, i.content, i.payload, i.sender, i.extra, i.enqueued_at, i.finished_at
FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :session_id
  AND i.position > :after AND i.position <= :last
ORDER BY i.position LIMIT :limit
""")

# The columns that the two above are ordered by.
_SEQ, _QUEUED_POSITION = 3, 0

# Messages that were finished after a moment. The position decides between equal times.
_ENDS = Statement(f"""
SELECT {END_COLUMNS} FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.position >= :low
  AND (i.finished_at > :since OR (i.finished_at = :since AND i.position > :since_position))
ORDER BY i.finished_at, i.position LIMIT :limit
""")

_POSITION = Statement("""
SELECT m.position FROM messages AS m
WHERE m.namespace = :namespace AND m.session_id = :session_id AND m.seq = :seq
""")

_LAST_END = Statement("""
SELECT x.finished_at, x.position FROM (
    SELECT i.finished_at, i.position FROM inbox AS i
    WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.position >= :low
      AND i.finished_at IS NOT NULL
    UNION ALL
    SELECT i.finished_at, i.position FROM inbox AS i
    WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.finished_at IS NOT NULL
      AND i.position = (
          SELECT m.position FROM messages AS m
          WHERE m.namespace = :namespace AND m.session_id = :session_id AND m.seq = :seq
      )
) AS x
ORDER BY x.finished_at DESC, x.position DESC LIMIT 1
""")

# The messages of the present turn, or of the one that failed last, and those that are ahead.
_OPEN = Statement(f"""
SELECT i.position, i.status, i.epoch, i.attempts, i.error, i.claimed_at, i.ahead
FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.ahead
  AND i.status IN {UNFINISHED_SQL}
UNION ALL
SELECT i.position, i.status, i.epoch, i.attempts, i.error, i.claimed_at, i.ahead
FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :session_id AND NOT i.ahead
  AND i.position >= :head AND i.position <= :tail
  AND i.epoch = :epoch AND i.status IN {UNFINISHED_SQL}
""")


_ATTEMPTS = Statement("""
SELECT i.attempts FROM inbox AS i
WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.position = :position
""")


class QueuedRow(NamedTuple):
    """A message of the inbox."""

    position: int
    role: str
    content: str
    sender: str | None
    extra: Extra
    enqueued_at: datetime
    finished: tuple[int, int] | None
    """The microseconds since 1970 at which it was finished, and its position. They order ends."""


class EndRow(NamedTuple):
    """A message that is finished."""

    position: int
    status: str
    epoch: int | None
    attempts: int
    error: str | None
    finished_at: datetime
    first_seq: int | None
    last_seq: int | None

    @property
    def order(self) -> tuple[int, int]:
        """The order in which messages of a session are finished: its mailbox is locked then."""
        return microseconds(self.finished_at), self.position


class OpenRow(NamedTuple):
    """A message that runs, or waits for another attempt, or is ahead."""

    position: int
    status: str
    epoch: int | None
    attempts: int
    error: str | None
    claimed_at: datetime | str | None
    ahead: bool


def read_states(
    connection: Connection, keys: Sequence[SessionKey]
) -> dict[SessionKey, SessionState]:
    """Return the states of sessions in one statement. Unknown sessions are left out."""
    found: dict[SessionKey, SessionState] = {}
    for index, *columns in dialect_of(connection).read_states(connection, keys):
        found[keys[index]] = SessionState._make(columns)
    return found


def read_pieces(connection: Connection, requests: Sequence[PieceRequest]) -> list[list[Piece]]:
    """Return the pieces for each request, at most ``PIECES`` for each, in their order."""
    found: list[list[Piece]] = [[] for _ in requests]
    for index, *columns in dialect_of(connection).read_pieces(connection, requests, PIECES):
        found[index].append(Piece._make(columns))
    return found


class FollowedRows:
    """Reads the rows of one session."""

    def __init__(self, connection: Connection, key: SessionKey) -> None:
        self._connection = connection
        self.key = key
        self._key = {"namespace": key[0], "session_id": key[1]}

    # The next two return whether there may be more rows, too.

    def messages(self, place: Place, state: SessionState) -> tuple[list[Row], bool]:
        """Return rows of ``SELECT_MESSAGE`` behind a place, with the position as the page."""
        return self._page(_MESSAGES, _SEQ, after=place.seq, last=state.last_seq)

    def queued(self, place: Place, state: SessionState) -> tuple[list[QueuedRow], bool]:
        rows, has_more = self._page(_QUEUED, _QUEUED_POSITION, after=place.tail, last=state.tail)
        return [
            QueuedRow(
                position,
                from_inbox(content, payload).role,
                content,
                sender,
                decode_extra(extra),
                clock.as_utc(enqueued_at),
                None
                if finished_at is None
                else (microseconds(clock.as_utc(finished_at)), position),
            )
            for position, content, payload, sender, extra, enqueued_at, finished_at in rows
        ], has_more

    def ends(
        self, place: Place, state: SessionState, positions: Iterable[int]
    ) -> tuple[list[EndRow], list[EndRow]]:
        """Return messages that were finished behind a place, in the order of their ends.

        ``positions`` are of messages of the transcript behind the place: their ends are found
        wherever they stand in the inbox. A requeued message may stand far before the head. The
        second list has those behind which ends may be missing: the page of ends was full.
        """
        if not state.tail:
            return [], []
        by_time = self._rows(
            _ENDS,
            low=max(place.low, state.tail - SCANNED_POSITIONS),
            since=clock.as_stored(self._connection, place.finished),
            since_position=place.finished_position,
            limit=PAGE,
        )
        written = {position for (position,) in self._rows(_POSITION, seq=place.seq)}
        written.update(positions)
        of_messages = dialect_of(self._connection).read_ends(
            self._connection, self.key, sorted(filter(None, written))
        )
        ends = {row[0]: _end(row) for row in (*by_time, *of_messages)}
        told = (place.finished_at, place.finished_position)
        found = sorted(
            (
                end
                for end in ends.values()
                if end.order > told or (end.last_seq is not None and end.last_seq > place.seq)
            ),
            key=lambda end: end.order,
        )
        if len(by_time) < PAGE:
            return found, []
        known = bisect_right(found, _end(by_time[-1]).order, key=lambda end: end.order)
        return found[:known], found[known:]

    def last_end(self, state: SessionState, low: int, seq: int) -> tuple[int, int]:
        """Return the order of the last end among positions from ``low`` on, and of ``seq``."""
        if not state.tail:
            return 0, 0
        low = max(low, state.tail - SCANNED_POSITIONS)
        for finished_at, position in self._rows(_LAST_END, low=low, seq=seq):
            return microseconds(clock.as_utc(finished_at)), position
        return 0, 0

    def open(self, state: SessionState) -> list[OpenRow]:
        """Return the messages of the turn of a state, and those ahead, in the order of a claim."""
        if not state.pending:
            return []
        # They stand at the head, which every claim moves: behind it are no holes but new ones.
        tail = max(state.last_taken, min(state.tail, state.head + SCANNED_POSITIONS))
        rows = self._rows(_OPEN, head=state.head, tail=tail, epoch=state.epoch)
        return sorted(map(OpenRow._make, rows), key=lambda row: (not row.ahead, row.position))

    def question(self, position: int) -> tuple[OpenQuestion | None, int]:
        """Return an open question, and the attempt of the turn that asked it."""
        [(attempts,)] = self._rows(_ATTEMPTS, position=position) or [(1,)]
        return read_open(self._connection, self.key, position), attempts

    def _page(
        self, statement: Statement, number: int, *, after: int, last: int
    ) -> tuple[list[Row], bool]:
        """Read rows up to ``PAGE`` and ``PAGE_CHARACTERS``. ``number``: the column of ``after``."""
        rows: list[Row] = []
        characters, limit = 0, FIRST_ROWS
        while True:
            found = self._rows(statement, after=after, last=last, limit=limit)
            for row in found:
                characters += sum(len(value) for value in row if isinstance(value, str))
                if rows and characters > PAGE_CHARACTERS:
                    return rows, True
                rows.append(row)
            if len(found) < limit:
                return rows, False
            if len(rows) >= PAGE:
                return rows, True
            after = rows[-1][number]
            fitting = (PAGE_CHARACTERS - characters) * len(rows) // max(1, characters)
            limit = max(1, min(PAGE - len(rows), 4 * limit, fitting))

    def _rows(self, statement: Statement, **parameters: Any) -> Sequence[Row]:
        return statement.rows(self._connection, self._key | parameters)


def _end(row: Row) -> EndRow:
    end = EndRow._make(row)
    return end._replace(finished_at=clock.as_utc(end.finished_at))
