"""The errors of the package.

Each message names the id, the limit that was reached, and the next step for the caller. An error
that refuses a write means that nothing was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sessionsdb.printable import escape_hidden
from sessionsdb.untrusted_values import short_repr


class SessionsDBError(Exception):
    """Base of all errors that the package raises on purpose.

    The text of an error is one line. Control characters and line separators are escaped, because
    an error quotes ids that other people chose.
    """

    def __str__(self) -> str:
        return escape_hidden(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy, also one of another process, have the same text and attributes."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[SessionsDBError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> SessionsDBError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InvalidArgument(SessionsDBError, ValueError):
    """An argument has a type or a value that the method never accepts. Nothing was written."""


class InvalidSessionId(InvalidArgument):
    """A session id is not a string, is empty, is longer than 512 characters, or holds a NUL or a
    lone surrogate. The id of a session in a tree is also refused above 1,024 bytes."""


class InvalidMessage(InvalidArgument):
    """A message can't be stored. Nothing was written.

    It is not a JSON object, has empty text, nests deeper than 256 levels, or is larger than
    ``Limits.message_bytes``.
    """


class InvalidCursor(InvalidArgument):
    """A cursor of ``follow`` is malformed, or belongs to another session, namespace or version."""

    def __init__(self, session_id: str, reason: str, *, in_subtree: bool = False) -> None:
        others = (
            ", or leave the session out to begin at its start"
            if in_subtree
            else ', a seq, "start" or None'
        )
        super().__init__(
            f"invalid cursor for session {session_id}: {reason}; pass the cursor of an event of "
            f"this session{others}"
        )
        self.session_id = session_id
        self.reason = reason


class UnknownSession(SessionsDBError, LookupError):
    """The namespace has no session with this id. A session of another namespace counts as none."""

    def __init__(self, session_id: str, *, is_sender: bool = False) -> None:
        given_as = ", which is given as the sender" if is_sender else ""
        super().__init__(f"unknown session: {session_id}{given_as}")
        self.session_id = session_id
        self.is_sender = is_sender


class UnknownReceipt(SessionsDBError, LookupError):
    """The inbox has no message for this receipt.

    The send was never committed, the session was deleted, or the message is past its retention.
    """

    def __init__(self, session_id: str, position: int) -> None:
        super().__init__(
            f"unknown receipt: message {short_repr(position)} of session {session_id} was never "
            "committed, "
            "was deleted with its session, or is past its retention"
        )
        self.session_id = session_id
        self.position = position


class SessionExists(SessionsDBError):
    """``register`` was called without ``exist_ok``, or ``fork`` with ``new_id``, for a session that
    exists."""

    def __init__(self, session_id: str, *, for_fork: bool = False) -> None:
        next_step = (
            "give the fork another new_id"
            if for_fork
            else "pass exist_ok=True to get it unchanged, or call update() to change it"
        )
        super().__init__(f"session exists already: {session_id}; {next_step}")
        self.session_id = session_id
        self.for_fork = for_fork


class SessionEnded(SessionsDBError):
    """The session has ended. It accepts no messages, no requeue and no new children, and its id
    can't be registered again."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session has ended: {session_id}; it takes no messages and spawns no children, "
            "call reopen() to let it take messages again, or register a session with a new id"
        )
        self.session_id = session_id


class SessionHasChildren(SessionsDBError):
    """``delete(children="refuse")`` was called for a session with children. Nothing was deleted."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session has children: {session_id}; delete them first, "
            'or pass children="cascade" or children="detach"'
        )
        self.session_id = session_id


class VersionConflict(SessionsDBError):
    """The transcript or the state is not at ``expected_version``, because another call changed it.
    Nothing was written.

    ``scope`` is the scope of the state, ``None`` for the transcript.
    """

    def __init__(
        self, session_id: str, expected: int, actual: int, *, scope: str | None = None
    ) -> None:
        part = "" if scope is None else f"the {scope} state of "
        super().__init__(
            f"{part}session {session_id} is at version {actual}, not {expected}; "
            "load it again and repeat the change"
        )
        self.session_id = session_id
        self.expected = expected
        self.actual = actual
        self.scope = scope

    @classmethod
    def of_tail(cls, session_id: str, version: int, last_seqs: Sequence[int]) -> VersionConflict:
        """Return the error for a transcript that ends with other messages than ``expected_tail``.

        ``expected`` and ``actual`` are then both the present version.
        """
        error = cls(session_id, version, version)
        shown = f"the message {last_seqs[-1]}" if last_seqs else "no message"
        error.args = (
            f"session {session_id} at version {version} does not end with the expected messages: "
            f"its last one is {shown}; load it again and repeat the change",
        )
        return error


class InboxFull(SessionsDBError):
    """The inbox has ``Limits.pending`` unfinished messages (back-pressure). Nothing was written."""

    def __init__(self, session_id: str, limit: int) -> None:
        super().__init__(
            f"inbox of session {session_id} is full: {limit} messages wait already; "
            "try again when its worker has caught up, or raise Limits.pending"
        )
        self.session_id = session_id
        self.limit = limit


class SessionBusy(SessionsDBError):
    """``send(when_busy="reject")`` was called for a session that is busy. Nothing was written.

    Messages wait or run there, or a question is open. ``pending`` counts the unfinished messages.
    """

    def __init__(self, session_id: str, pending: int, *, is_held: bool = False) -> None:
        why = f"{pending} of its messages are unfinished"
        if is_held or not pending:
            why = "its question is open"
        super().__init__(
            f"session {session_id} is busy: {why}; send when it has answered, or with "
            'when_busy="queue" or when_busy="interrupt"'
        )
        self.session_id = session_id
        self.pending = pending


class UnknownQuestion(SessionsDBError, LookupError):
    """The namespace has no question with this id.

    The session was deleted, the question is past its retention, or it never was asked.
    """

    def __init__(self, question_id: str) -> None:
        super().__init__(
            f"unknown question: {short_repr(question_id)}; call questions() for the open ones"
        )
        self.question_id = question_id


class QuestionAnswered(SessionsDBError):
    """The question has another answer already. Nothing was written.

    The same answer by the same author returns the first receipt instead.
    """

    def __init__(self, question_id: str) -> None:
        super().__init__(
            f"question {question_id} is answered already; the first answer stands, send the "
            "session a message to say more"
        )
        self.question_id = question_id


class QuestionClosed(SessionsDBError):
    """The question takes no answer any more. Nothing was written.

    ``reason`` is ``expired``, ``withdrawn`` or ``ended``, the last for the end of its session.
    """

    def __init__(self, question_id: str, reason: str) -> None:
        why = {
            "expired": "its time is over",
            "withdrawn": "it was withdrawn",
            "ended": "its session has ended",
        }[reason]
        next_step = (
            "reopen the session and send it a message"
            if reason == "ended"
            else "send the session a message instead"
        )
        super().__init__(f"question {question_id} is closed: {why}; {next_step}")
        self.question_id = question_id
        self.reason = reason


class HopLimitReached(SessionsDBError):
    """A message was handed on ``Limits.hops`` times from session to session. Nothing was written.

    The limit stops sessions that would answer one another without end. ``origin`` is the session
    where the chain began, if it is known.
    """

    def __init__(self, session_id: str, sender: str, limit: int, origin: str | None = None) -> None:
        begun = f", which began at session {origin}," if origin is not None else ""
        super().__init__(
            f"message from session {sender} to session {session_id} refused: its chain of "
            f"messages{begun} has been handed on {limit} times from session to session, the limit; "
            "finish the turn with an answer instead of a message, or raise Limits.hops"
        )
        self.session_id = session_id
        self.sender = sender
        self.limit = limit
        self.origin = origin


class CircularWait(SessionsDBError):
    """The wait would close a circle of sessions that wait for one another, a deadlock."""

    def __init__(self, circle: Sequence[str]) -> None:
        waiter, target = circle[0], circle[1]
        steps = ", and ".join(f"{a} waits for {b}" for a, b in pairwise(circle[1:]))
        why = f"{steps} already" if steps else "its messages are handled after this turn"
        super().__init__(
            f"session {waiter} can't wait for session {target}: {why}; finish the turn without "
            "waiting, the answer can come as a message"
        )
        self.circle = list(circle)
        """The sessions in order, each waiting for the next. The first id is repeated at the end."""


class IdempotencyConflict(SessionsDBError):
    """The idempotency key was used before with other arguments. Nothing was written.

    With equal arguments the call returns the first receipt instead.
    """

    def __init__(self, session_id: str, key: str) -> None:
        super().__init__(
            f"idempotency key {key!r} was used for session {session_id} with other arguments; "
            "a key names one request, use a new one"
        )
        self.session_id = session_id
        self.key = key


class SpawnDenied(SessionsDBError):
    """The parent may not spawn this child. Nothing was written.

    ``reason`` names the limit: ``Limits.depth``, ``Limits.children``, a tool that the parent does
    not have, or a parent's id that is too long for a tree.
    """

    def __init__(self, parent: str, reason: str) -> None:
        super().__init__(f"session {parent} may not spawn: {reason}")
        self.parent = parent
        self.reason = reason


class LeaseLost(SessionsDBError):
    """The worker no longer holds the lease of the session. Nothing of the turn was committed."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"lease lost on session {session_id}: it expired, or the session was ended or "
            "deleted; nothing of this turn was committed"
        )
        self.session_id = session_id


class TranscriptRewritten(SessionsDBError):
    """Messages of the transcript were removed or replaced while a turn ran over it.

    Nothing of the turn was committed, and the turn is run again without a counted attempt. After 3
    such runs in a row the attempt counts and fails with this error.
    """

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"the transcript of session {session_id} was rewritten during the turn; "
            "nothing of this turn was committed"
        )
        self.session_id = session_id


class RetryAfter(SessionsDBError):
    """A handler raises it to have its attempt fail and be repeated after ``retry_after`` seconds.

    For example when a model's provider says so. ``Backoff`` honours it, and the same attribute of
    any other error. A wait of more than one day counts as one day.
    """

    def __init__(self, retry_after: float, reason: str = "") -> None:
        super().__init__(f"try again in {retry_after:g} s{f': {reason}' if reason else ''}")
        self.retry_after = retry_after


class SchemaOutOfDate(SessionsDBError):
    """The tables of the database are not at the revision that this version of the package needs.

    ``found`` is ``None`` for a database without sessionsdb tables. ``state`` and ``remedy`` say
    more about such a database.
    """

    def __init__(
        self,
        found: str | None,
        expected: str,
        *,
        newer: bool = False,
        state: str = "has no sessionsdb tables",
        remedy: str = "run: sessionsdb migrate",
    ) -> None:
        if found is not None:
            state = f"is at revision {found}"
        if newer:
            remedy = "upgrade the sessionsdb package"
        super().__init__(
            f"the database {state}, this version of sessionsdb needs revision {expected}; {remedy}"
        )
        self.found = found
        self.expected = expected


class HandleOpenedElsewhere(SessionsDBError):
    """A handle was used in another event loop than the one it was entered in, or after a fork.

    Nothing was done: its connections belong to that loop. ``process`` is the id of the process that
    entered it, ``None`` if it is this one.
    """

    def __init__(self, process: int | None) -> None:
        where = (
            "in another event loop" if process is None else f"in process {process}, before a fork"
        )
        super().__init__(
            f"this handle was entered {where}, and its connections can be used there only; "
            "enter another SessionsDB here"
        )
        self.process = process


class SearchUnavailable(SessionsDBError):
    """The words of messages can't be searched: nothing is indexed, or SQLite has no FTS5."""

    @classmethod
    def without_index(cls, namespace: str) -> SearchUnavailable:
        return cls(
            f"the messages of namespace {namespace} are not indexed; run: sessionsdb search "
            "--index, or a worker with index_search=True, which keeps the index up to date"
        )

    @classmethod
    def without_fts5(cls, version: str) -> SearchUnavailable:
        return cls(
            f"messages can't be searched: the SQLite {version} of this Python has no FTS5; use a "
            "Python whose SQLite has it, or PostgreSQL"
        )


class StorageError(SessionsDBError):
    """The database failed. The error of the driver is the ``__cause__``."""


class DamagedValue(StorageError):
    """A stored value can't be read, because other code than this package has changed it.

    Nothing was written. The same call fails again until the value is repaired.
    """

    def __init__(self, fault: str) -> None:
        super().__init__(
            f"a stored value is damaged: {fault}; find its row with: sessionsdb doctor --values"
        )
