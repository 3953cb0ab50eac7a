"""The protocol of a broker: list sessions, read history, send messages and spawn children."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

from sessionsdb.types import (
    CatchUp,
    OpenQuestion,
    Outcome,
    Receipt,
    Schedule,
    SearchHit,
    SessionDetails,
    SessionMessage,
    SessionSummary,
    SpawnedSession,
    SpawnRequest,
    WhenBusy,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sessionsdb.events import Event


@runtime_checkable
class SessionBroker(Protocol):
    """The live side: list sessions, read history, send messages and spawn children.

    Every method raises ``UnknownSession`` for an id that does not exist in the namespace. An
    argument that is never accepted raises ``InvalidSessionId`` or ``InvalidArgument``. A failure
    of the database raises ``StorageError``.
    """

    async def register(
        self,
        id: str,
        *,
        channel: str,
        peer: str,
        parent: str | None = None,
        model: str | None = None,
        system: str | None = None,
        tools: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> SessionSummary:
        """Create a session and return it. With ``parent`` it becomes a child of that session.

        ``tools=None`` means no restriction, ``tools=[]`` means no tools. Raises ``SessionExists``
        if the session exists. With ``exist_ok`` the existing session is returned unchanged.
        If it has ended, this raises ``SessionEnded``: it would take no message. Raises
        ``UnknownSession`` or ``SessionEnded`` for the parent.
        """

    async def get(self, id: str) -> SessionDetails:
        """Return the settings, the counters and the state of a session, without its transcript."""

    async def update(
        self,
        id: str,
        *,
        channel: str | EllipsisType = ...,
        peer: str | EllipsisType = ...,
        model: str | EllipsisType | None = ...,
        system: str | EllipsisType | None = ...,
        tools: Sequence[str] | EllipsisType | None = ...,
        metadata: dict[str, Any] | EllipsisType | None = ...,
    ) -> SessionDetails:
        """Change the given fields, keep the others, and return the session.

        ``None`` clears a setting. A running turn keeps the settings that it started with. Children
        keep the settings that they copied when they were spawned.
        """

    @overload
    async def list(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: Literal[False] = False,
    ) -> builtins.list[SessionSummary]: ...

    @overload
    async def list(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: Literal[True],
    ) -> builtins.list[SessionDetails]: ...

    @overload
    async def list(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: bool,
    ) -> builtins.list[SessionSummary] | builtins.list[SessionDetails]: ...

    async def list(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: bool = False,
    ) -> builtins.list[SessionSummary] | builtins.list[SessionDetails]:
        """Return sessions by ``last_active``, oldest first. Equal times are ordered by id.

        All filters must match, then ``limit`` applies. ``None`` is no filter and no limit.

        - ``parent``: the children of that session.
        - ``root``: that session and all sessions below it.
        - ``active_since``: sessions active at that time or later. It must have a time zone.
        - ``include_ended``: also sessions that have ended.
        - ``after``: the last session of the previous page. A summary keeps its place even if the
          session was active since. An id stands at the present place of that session.
        - ``newest_first``: the opposite order. ``limit`` then keeps the newest sessions, and
          ``after`` continues to older ones.

        - ``details``: the sessions as ``SessionDetails``, as ``get`` returns them, in the same
          query.

        A filter without a match gives an empty list, also if its session does not exist. The cost
        depends on the size of the page, not on the number of sessions. A filter by peer alone reads
        the sessions that it leaves out. So does a filter by channel with a root or a parent.
        """

    async def fork(
        self, id: str, *, at: int | None = None, new_id: str | None = None
    ) -> SessionSummary:
        """Create a session that begins with the transcript of another one, and return it.

        The fork is a session without a parent. It has the channel, the peer, the settings and the
        metadata of its source. It also has the messages with their ``seq`` and their times, and the
        session's own state. The inbox is not copied. ``SessionDetails.forked_from`` names the
        source.

        - ``at``: only the messages up to this ``seq``. With 0 the fork is empty, and beyond the end
          it has all messages. A negative number is ``InvalidArgument``.
        - ``new_id``: the id of the fork, ``fork-<uuid>`` by default.

        A session that has ended may be forked. The fork of a session whose turn runs has what is
        committed. The database copies the rows itself: 100,000 messages take less than a second on
        SQLite. Raises ``SessionExists`` for ``new_id``.
        """

    async def history(
        self,
        id: str,
        limit: int | None = None,
        *,
        before: int | None = None,
        after: int | None = None,
        max_bytes: int | None = None,
    ) -> builtins.list[SessionMessage]:
        """Return messages of the transcript, rendered as text, newest last.

        Without a cursor these are the newest ``limit`` messages. ``before`` gives the newest
        ``limit`` messages with a smaller ``seq``. ``after`` gives the oldest ``limit`` messages
        with a larger ``seq``. ``limit=None`` is 50, ``limit=0`` gives none.

        With ``max_bytes`` the page ends before the message with which the texts would be larger, in
        UTF-8. It has at least one message. The database adds up the sizes, and sends only the page.

        Messages that still wait in the inbox are not in the transcript. The cost is O(limit).
        """

    async def search(
        self,
        query: str,
        *,
        channel: str | None = None,
        peer: str | None = None,
        root: str | None = None,
        limit: int = 20,
        after: SearchHit | str | None = None,
    ) -> builtins.list[SearchHit]:
        """Return the messages that have the words of ``query``, the newest first.

        All words must be in a message. ``"two words"`` is a phrase, ``-word`` excludes messages,
        ``word*`` finds all words that begin so. No query is a syntax error. Case and accents make
        no difference. ``channel`` and ``peer`` select sessions, ``root`` a session and all below
        it. Ended sessions count.

        ``limit`` is at most 1,000. ``after`` is the last hit of the page before, or its cursor.

        Searched is the text of messages in transcripts, without reasoning and without results of
        tools. The index is filled behind the commits: by workers with ``index_search=True``, and by
        ``SessionsDB.index_search``. A message that was removed or changed since is never shown with
        its old words.

        Raises ``InvalidArgument`` for a query without a word and for a bad cursor. Raises
        ``SearchUnavailable`` if the namespace has messages and none is indexed, or if SQLite has no
        FTS5.
        """

    def follow(
        self,
        id: str,
        *,
        after: str | int | Mapping[str, str] | None = None,
        subtree: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Return an iterator over the events of a session, as they happen.

        ``after`` is where it begins:

        - ``None``: now. The first event is ``turn`` if a turn runs or is tried again later, and
          ``idle`` if not. Then come the messages that wait and the reply as far as it was streamed.
          As the first event ``idle`` says only that no turn runs: messages may wait.
        - a cursor of an event of this session: behind that event.
        - the ``seq`` of a message: behind that message. So ``history`` and then ``follow`` lose
          nothing. A ``seq`` beyond the end is of another transcript: the first event is
          ``rewritten``, and the iterator goes on from the present end.
        - ``"start"``: at the first message of the transcript.

        Messages come once each and in order. Pieces of one run come in order without a gap, and
        ``reset`` comes before the pieces of another run. At a commit the messages come first, then
        the ``turn`` event with ``done``. Statuses may be skipped when they pass faster than a look.
        ``ended`` does not end the iterator. ``deleted`` is the last event.

        A cursor from before a purge goes on with what is left. With a cursor of a deleted session
        whose id was used again, the first event is ``rewritten``, then it goes on from the start.

        With ``subtree`` the events of all sessions below it come too, also of children that appear
        later: these from their start. ``after`` is then ``None``, ``"start"``, or a mapping from
        ids to cursors, and sessions that it does not name begin at their start. At most 200
        sessions are followed.

        Closing or cancelling the iterator frees everything. While the database is away the iterator
        waits, and goes on when it is back. The first step raises ``UnknownSession``,
        ``InvalidCursor``, ``InvalidArgument``, and ``StorageError``.
        """

    async def send(
        self,
        id: str,
        message: str | dict[str, Any],
        *,
        sender: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        when_busy: WhenBusy = "queue",
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> Receipt:
        """Queue a message for a session. Returns after the commit.

        ``message`` is a text or one JSON message of any form, for example with content blocks and
        images. Its role is ``user`` unless the message says otherwise. A worker handles the
        messages of a session in the order in which their sends committed.

        - ``author``: the speaker, for people: ``alice``, ``ci``. It stands with the message
          and gives no authority.
        - ``metadata``: a JSON object that stays with the message in the inbox and the transcript.
          It is not part of the message that a model reads.
        - ``sender``: the session of this namespace whose agent sends the message. It may have
          ended. ``UnknownSession`` says which of the two sessions is unknown. The receiver sees
          the sender, and the hops of the message are counted (see ``Limits.hops``).
        - ``when_busy``: a session is busy if any of its messages is unfinished, or a question is
          open. ``"queue"``: the message waits behind the others. ``"interrupt"``: the running turn
          is stopped first, in the same transaction, as by ``interrupt``. The message still waits
          behind the others. ``"reject"``: raises ``SessionBusy``, and nothing is written.
        - ``idempotency_key``: a repeated send with the same key queues nothing. It returns the
          first receipt with ``duplicate=True``, and stops and rejects nothing.
        - ``connection``: an ``AsyncConnection`` on this database. The message commits or rolls
          back with the transaction of the caller.

        Raises ``SessionEnded``, ``InboxFull`` (back-pressure), ``HopLimitReached``,
        ``IdempotencyConflict``, ``SessionBusy``, and ``InvalidMessage`` for a message that is
        empty, or too large together with its author and metadata. So is a message with a sender and
        another role than ``user``. ``InvalidArgument`` if a session interrupts itself.
        """

    async def spawn(
        self,
        parent: str,
        request: SpawnRequest,
        *,
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> SpawnedSession:
        """Create a child of ``parent`` and queue its prompt, in one transaction.

        Settings that are ``None`` are copied from the parent. With ``wait_for_first_reply`` the
        child is committed first. Then the call waits at most ``wait_timeout_secs`` seconds. At the
        timeout ``first_reply`` is ``None`` and the child goes on. With ``report="each"`` the parent
        is sent the child's first reply, or the death of the prompt, or the end of the child, once.
        ``idempotency_key`` and ``connection`` are the same as in ``send``.

        Raises ``SpawnDenied`` (depth, number of children, or tools that the parent does not have),
        ``SessionEnded``, ``HopLimitReached``, ``IdempotencyConflict`` and ``InvalidMessage``.
        Raises ``InvalidArgument`` for ``report="each"`` with ``wait_for_first_reply``.
        """

    async def outcome(self, receipt: Receipt) -> Outcome:
        """Return the present state of a message. Raises ``UnknownReceipt``."""

    async def wait(
        self, receipt: Receipt, timeout: float = 60.0, *, waiter: str | None = None
    ) -> Outcome:
        """Wait until a message is ``done``, ``dead`` or ``cancelled`` and return its outcome.

        After ``timeout`` seconds the present outcome is returned instead. A timeout or a cancelled
        wait changes nothing for the message. No database connection is held during the wait.

        ``waiter`` is the session whose turn stands still during the wait. Raises ``CircularWait``
        if the session of the message waits for the waiter, directly or through other sessions, in
        any process. None of these sessions could ever answer. Raises ``UnknownReceipt``.
        """

    async def end(self, id: str, *, subtree: bool = False, reason: str | None = None) -> int:
        """End a session and return the number of sessions that this call ended.

        The session accepts no more messages, its unfinished messages become ``cancelled``, and a
        running turn is cancelled and can't commit. With ``subtree`` all sessions below it end too.
        Sessions that had ended before are not counted.
        """

    async def reopen(self, id: str) -> SessionDetails:
        """Let an ended session take messages again, and return it. A live session is unchanged.

        The sessions below it stay as they are. Messages that its end cancelled stay cancelled.
        Raises ``SpawnDenied`` if its parent has ``Limits.children`` live children already.
        """

    async def cancel(self, receipt: Receipt, *, keep_partial: bool = True) -> Outcome:
        """Cancel one message, and return its outcome. A message that is final is left as it is.

        - A message that waits, also for another attempt, is ``cancelled``. The next one is handled.
        - The turn of a running message is stopped: its handler is cancelled within about 0.25 s,
          and can't commit. A commit that came first wins, and the outcome is ``done``. Other
          messages of the same turn wait again, and the attempt is not counted.

        With ``keep_partial`` the question of a turn that ran enters the transcript, and behind it
        the text that the turn has streamed. ``Outcome.reply`` is that text, marked as
        ``interrupted``. The staged changes of the turn are dropped. A message that waits for
        another attempt is cancelled without entering the transcript. Raises ``UnknownReceipt``, and
        ``InvalidArgument`` inside the handler of the message's own turn.
        """

    async def interrupt(
        self, id: str, *, subtree: bool = False, keep_partial: bool = True
    ) -> builtins.list[Outcome]:
        """Stop the running turn of a session, and return the outcomes of its messages.

        All messages of the running turn, or those whose failed turn waits for another attempt, are
        ``cancelled``. The result is empty if there are none. An open question is withdrawn, and the
        next turn sees that in ``Turn.answer``. Messages that wait behind them are
        handled next, and the session lives on. With ``subtree`` all sessions below it are stopped
        too, in one transaction. ``keep_partial`` is the same as in ``cancel``. Raises
        ``InvalidArgument`` inside the handler of the session's own turn.
        """

    async def questions(
        self,
        id: str | None = None,
        *,
        limit: int = 100,
        after: OpenQuestion | str | None = None,
    ) -> builtins.list[OpenQuestion]:
        """Return the open questions of one session or of the namespace, the oldest first.

        These are the first ``limit`` questions behind ``after``: a question, or the id of one. A
        question that has expired is not open, also before a worker has seen it. Raises
        ``UnknownSession``, and ``UnknownQuestion`` for ``after``.
        """

    async def answer(
        self,
        question_id: str,
        message: str | dict[str, Any],
        *,
        author: str | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Answer an open question, and return the receipt of the answer, after the commit.

        ``message`` and ``author`` are the same as in ``send``. The answer is handled before all
        other messages of the session, in a turn of its own, and passes ``Limits.pending``. That
        turn finds it in ``Turn.answer``. ``wait`` for the receipt waits for its reply.

        The same answer by the same author again queues nothing, and returns the first receipt with
        ``duplicate=True``. ``idempotency_key`` is the same as in ``send``.

        Raises ``UnknownQuestion``, ``QuestionAnswered`` if there is another answer,
        ``QuestionClosed`` if the question has expired, was withdrawn, or its session has ended,
        ``IdempotencyConflict`` and ``InvalidMessage``.
        """

    async def inbox(
        self, id: str, *, limit: int = 100, after: Receipt | int | None = None
    ) -> builtins.list[Outcome]:
        """Return the messages of an inbox that wait, run or died, by position.

        These are the first ``limit`` messages behind ``after``: a receipt, or a position. Each
        outcome has its ``message``. The messages are handled in this order, but requeued messages
        come first.
        """

    async def dead_letters(
        self, id: str | None = None, *, limit: int = 100
    ) -> builtins.list[Outcome]:
        """Return the newest ``limit`` dead messages of one session or of all, newest last.

        A message is dead when its last attempt has failed.
        """

    async def requeue(self, receipt: Receipt) -> None:
        """Make a dead message pending again, under its old receipt and with new attempts.

        It is handled before the messages that wait in the inbox. Raises ``UnknownReceipt``,
        ``SessionEnded``, and ``InvalidArgument`` if the message is not dead.
        """

    async def requeue_all(
        self, id: str | None = None, *, since: datetime | None = None, error: str | None = None
    ) -> int:
        """Requeue the dead messages of one session or of all, and return how many there were.

        ``since``: only those that died at this time or later. ``error``: only those with this text
        in their error. Messages of ended sessions stay dead. It works in transactions of 500
        messages: if it fails, some are requeued, and a second call goes on. Raises
        ``UnknownSession``.
        """

    async def schedule(
        self,
        id: str,
        message: str | dict[str, Any],
        *,
        at: datetime | None = None,
        cron: str | None = None,
        tz: str = "UTC",
        name: str | None = None,
        sender: str | None = None,
        author: str | None = None,
        metadata: dict[str, Any] | None = None,
        catch_up: CatchUp = "one",
    ) -> Schedule:
        """Send a message to a session later, once or again and again. Returns after the commit.

        A worker of the namespace sends it, at most about a second late. Each due time is sent
        exactly once, whatever dies. The time of the message is the moment at which it was sent.

        - ``at``: the moment of a message that is sent once, with a time zone. One in the past is
          sent at once.
        - ``cron``: the five fields of cron, for example ``"0 9 * * MON-FRI"``. Exactly one of
          ``at`` and ``cron`` is given.
        - ``tz``: the zone in which ``cron`` is read, by its name in the IANA database. A local time
          that daylight saving time skips is due at the first moment after. A local time that comes
          twice is due the first time only, except with the hour ``*``, which is every hour.
        - ``name``: a second call with the name replaces the first one's schedule, under its id. The
          next due time moves only if ``at``, ``cron`` or ``tz`` is another. So start-up code may
          repeat the call. At most 64 characters.
        - ``catch_up``: the messages for due times that passed while no worker ran. ``"one"`` for
          all of them, or ``"all"``, one for each, at most 100.
        - ``message``, ``sender``, ``author`` and ``metadata`` are the same as in ``send``. The
          hops of a message with a sender are counted at this call.

        While the inbox is full, the message stays due, and later due times are sent together with
        it. The end of the session deletes its schedules, and a fork does not copy them.

        Raises ``UnknownSession``, ``SessionEnded``, ``InvalidMessage``, and ``InvalidArgument`` for
        a moment without a zone, an unknown zone, a wrong expression, or more than
        ``Limits.schedules`` of the session. With a sender also ``HopLimitReached``.
        """

    async def schedules(self, id: str | None = None) -> builtins.list[Schedule]:
        """Return the schedules of a session, or all of the namespace, the next due one first.

        A message that was sent once has no schedule any more. Raises ``UnknownSession``.
        """

    async def unschedule(self, schedule_id: str) -> bool:
        """Delete a schedule. Messages that it has sent stay. Return false if there is none."""
