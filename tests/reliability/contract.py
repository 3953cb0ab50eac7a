"""The contract as a plain program: the answers and the rows that a database of sessions must have.

This is docs/guarantees.md and docs/messages.md again, with lists and dictionaries in place of
tables, and without regard to speed. It imports nothing of the package: where the two disagree, one
of them is wrong. Time is ``now``, which the test sets.

The contract leaves some choices open: the id of a spawned child, which of two sessions that became
ready at the same moment is claimed first, and the origin of a message whose sender works on several
equally far messages. Here the contract takes the choice of the database, after checking that it is
a possible one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Key = tuple[str, str]
"""``(namespace, session id)``"""

Message = dict[str, Any]

NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""Until when a session waits for the answer to a question that does not expire."""

NOTICE = "The question has expired without an answer."


def next_minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0) + timedelta(minutes=1)


class Refused(Exception):
    """The call is refused with this error, and nothing has changed."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class Impossible(Exception):
    """An answer that the contract does not allow."""


class _Any:
    """Equal to any choice of the database."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "<any>"

    def __deepcopy__(self, memo: object) -> _Any:
        return self


ANY = _Any()


@dataclass
class Entry:
    """A message of a transcript."""

    seq: int
    message: Message
    at: datetime
    position: int | None = None
    sender: str | None = None
    extra: str | None = None
    sent_at: datetime | None = None
    """When it was sent, if it came through an inbox."""
    key: str | None = None

    def came_from(self, letter: Letter) -> None:
        self.position, self.sender = letter.position, letter.sender
        self.sent_at = letter.enqueued_at

    def repeats(self, removed: Entry) -> None:
        """Take over what stands beside a removed message that is equal."""
        self.sender, self.extra, self.sent_at = removed.sender, removed.extra, removed.sent_at
        self.position = removed.position if removed.sent_at else None
        self.key = removed.key

    @property
    def role(self) -> str:
        return str(self.message["role"])


def carry_over(removed: list[Entry], added: list[Entry]) -> None:
    """Equal messages at both ends belong together, and before them equal ones in their order."""
    removed, added = list(removed), list(added)
    while removed and added and removed[-1].message == added[-1].message:
        added.pop().repeats(removed.pop())
    for entry in added:
        equal = [one for one in removed if one.message == entry.message]
        if equal:
            removed.remove(equal[0])
            entry.repeats(equal[0])


@dataclass
class Letter:
    """A message of an inbox, which stays when it is finished."""

    position: int
    text: str
    enqueued_at: datetime
    sender: str | None = None
    hops: int = 0
    origin: Any = None
    key: str | None = None
    status: str = "pending"
    attempts: int = 0
    error: str | None = None
    finished_at: datetime | None = None
    ahead: bool = False
    joined: bool = False
    """Joined a turn that was already running."""
    reruns: int = 0
    """How many turns in a row did not commit because the transcript was rewritten."""
    stopped_by: str | None = None
    span: tuple[int, int] | None = None
    """The first and the last ``seq`` of the turn that answered it, or of what was kept of it."""
    answers: int | None = None
    """The question that it answers, or whose expiry it tells."""
    asked: bool = False
    """Its turn has asked a question."""

    @property
    def unfinished(self) -> bool:
        return self.status in ("pending", "running")


@dataclass
class Question:
    """A question to a person. It stays when it is closed."""

    accepts: bool
    expires_at: datetime | None
    status: str = "open"
    answer: str | None = None


@dataclass
class Later:
    """A message that is sent later: once, or each minute."""

    id: str | None
    name: str
    text: str
    at: datetime | None
    catch_up: str
    due_at: datetime
    try_at: datetime
    refused: bool = False


@dataclass
class Session:
    channel: str
    peer: str
    created_at: datetime
    parent: str | None = None
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    spawned_by: tuple[str, tuple[Any, ...]] | None = None
    """The idempotency key and the arguments of its spawn."""
    updated_at: datetime = field(init=False)
    last_active: datetime = field(init=False)
    ended_at: datetime | None = None
    end_reason: str | None = None
    version: int = 1
    rewrites: int = 0
    """How many writes removed a message of the transcript."""
    last_seq: int = 0
    transcript: list[Entry] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    state: str = "idle"
    moment: datetime | None = None
    """The time since which the session is ready, or until which it is leased or waits."""
    owner: str | None = None
    lease: Any = None
    """The valid lease. No two leases are equal."""
    rewrites_at_claim: int = 0
    streamed: str = ""
    """The text that the running turn has streamed."""
    questions: dict[int, Question] = field(default_factory=dict)
    """By the position of the last message of the turn that asked."""
    question: int | None = None
    """The open one, for which the session is held."""
    answer: int | None = None
    """The message that comes before all others: an answer, or the notice of an expiry. Others that
    were requeued wait for its end."""
    withdrawn: int | None = None
    """The question that was withdrawn, until a turn that has seen it commits."""
    withdrawn_at_claim: int | None = None
    later: list[Later] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.updated_at = self.last_active = self.created_at

    @property
    def line(self) -> list[Letter]:
        """The unfinished messages, in the order of their turns."""
        unfinished = [letter for letter in self.letters if letter.unfinished]
        return sorted(
            unfinished,
            key=lambda one: (one.position != self.answer, not one.ahead, one.position),
        )

    @property
    def running(self) -> list[Letter]:
        """The messages of the running turn: those that it began with, then those that joined it."""
        running = [letter for letter in self.line if letter.status == "running"]
        return sorted(running, key=lambda letter: letter.joined)

    @property
    def begun(self) -> list[Letter]:
        return [letter for letter in self.running if not letter.joined]

    @property
    def tried(self) -> list[Letter]:
        """The messages that wait for another attempt. Only in the state ``waiting``."""
        if self.state != "waiting":
            return []
        return [letter for letter in self.line if letter.attempts]

    def is_notice(self, letter: Letter) -> bool:
        """Whether a message tells that a question has expired. It enters no transcript."""
        question = self.questions.get(letter.answers or 0)
        return question is not None and question.status == "expired"

    def close(self, status: str) -> None:
        """Close the open question."""
        if self.question is not None:
            self.questions[self.question].status = status
        self.question = None

    def withdraw(self, position: int) -> None:
        self.questions[position].status = "withdrawn"
        self.withdrawn = position

    def go_on_with(self, text: str, now: datetime) -> Letter:
        """Take a message before all others, in place of waiting for a person."""
        letter = Letter(len(self.letters) + 1, text, now, ahead=True, answers=self.question)
        self.letters.append(letter)
        self.answer = letter.position
        self.put("ready", now)
        return letter

    def point_to_answer(self) -> None:
        """Let the next answer that waits come first, if the one before is finished."""
        answers = [one.position for one in self.letters if one.unfinished and one.answers]
        if self.answer not in answers:
            self.answer = min(answers, default=None)

    def give_back(self, letters: Iterable[Letter], *, uncounted: int) -> None:
        """Make messages of the running turn pending. A message that joined has no attempt of it."""
        for letter in letters:
            letter.status = "pending"
            letter.attempts -= 0 if letter.joined else uncounted
            letter.joined = False

    def put(self, state: str, moment: datetime | None = None) -> None:
        self.state, self.moment, self.owner, self.lease = state, moment, None, None
        self.streamed = ""

    def go_on(self, now: datetime) -> None:
        """End the turn. The next message gets its turn."""
        if self.line:
            self.put("ready", now)
        else:
            self.put("idle")

    def write(self, messages: Sequence[Message], now: datetime) -> list[Entry]:
        added = []
        for message in messages:
            self.last_seq += 1
            added.append(Entry(self.last_seq, deepcopy(message), now))
        self.transcript += added
        return added

    def changed(self, now: datetime) -> None:
        self.version += 1
        self.updated_at = self.last_active = now


class Contract:
    """Two or more namespaces of sessions."""

    def __init__(self, now: datetime, *, pending: int, depth: int, children: int, hops: int):
        self.now = now
        self.limits = {"pending": pending, "depth": depth, "children": children, "hops": hops}
        self.sessions: dict[Key, Session] = {}
        self.passed_over: frozenset[Key] = frozenset()
        """Sessions that another call is using. Reap, wake and fire skip them for now."""

    # ---- looking around --------------------------------------------------------------------------

    def known(self, key: Key) -> Session:
        if key not in self.sessions:
            raise Refused("UnknownSession")
        return self.sessions[key]

    def children(self, key: Key) -> list[Key]:
        namespace, id = key
        return [k for k, s in self.sessions.items() if k[0] == namespace and s.parent == id]

    def tree(self, key: Key) -> list[Key]:
        """A session and all its descendants."""
        if key not in self.sessions:
            return []
        return [key, *(below for child in self.children(key) for below in self.tree(child))]

    def ancestors(self, key: Key) -> list[str]:
        """The ancestors, parent first, root last."""
        found: list[str] = []
        parent = self.sessions[key].parent
        while parent is not None:
            found.append(parent)
            parent = self.sessions[key[0], parent].parent
        return found

    # ---- the store -------------------------------------------------------------------------------

    def save(self, key: Key, messages: list[Message], expected: int | None = None) -> int:
        session = self._for_store(key, expected, writes=bool(messages))
        same = 0
        for entry, message in zip(session.transcript, messages, strict=False):
            if entry.message != message:
                break
            same += 1
        if same == len(session.transcript) == len(messages):
            return session.version
        session.rewrites += same < len(session.transcript)
        removed = session.transcript[same:]
        del session.transcript[same:]
        carry_over(removed, session.write(messages[same:], self.now))
        session.changed(self.now)
        return session.version

    def append(self, key: Key, messages: list[Message], expected: int | None = None) -> int:
        session = self._for_store(key, expected, writes=bool(messages))
        if messages:
            session.write(messages, self.now)
            session.changed(self.now)
        return session.version

    def edit(
        self,
        key: Key,
        append: list[Message],
        keys: list[str | None],
        keep_through: int | None,
        expected: int | None,
        tail: list[int] | None,
        create: bool,
    ) -> tuple[int, list[int], list[Message]]:
        """The version, the ``seq`` of each appended message, and the removed messages."""
        session = self.sessions.get(key)
        if session is None:
            if not create:
                raise Refused("UnknownSession")
            session = Session("store", key[1], self.now)
            session.version = 0 if append else 1
        there = {entry.key: entry.seq for entry in session.transcript if entry.key is not None}
        behind = [one for one in session.transcript if one.seq > (keep_through or 0)]
        if keys and all(one in there for one in keys):
            directly = [entry.key for entry in behind][: len(keys)] == keys
            if keep_through is None or directly:
                return session.version, [there[one] for one in keys], []
        version = session.version if key in self.sessions else 0
        if expected is not None and expected != version:
            raise Refused("VersionConflict")
        seqs = [entry.seq for entry in session.transcript]
        if tail is not None and seqs[-max(len(tail), 1) :] != tail:
            raise Refused("VersionConflict")
        self.sessions[key] = session
        removed = [] if keep_through is None else behind
        for entry in removed:
            session.transcript.remove(entry)
            there.pop(entry.key, None)
        appended = []
        for message, name in zip(append, keys, strict=True):
            if name is None or name not in there:
                [entry] = session.write([message], self.now)
                entry.key = name
            appended.append(there.get(name or "", session.last_seq))
        if removed or len(session.transcript) + len(removed) > len(seqs):
            session.rewrites += bool(removed)
            session.changed(self.now)
        return session.version, appended, [entry.message for entry in removed]

    def pop(self, key: Key, count: int, expected: int | None) -> list[Message]:
        transcript = self.known(key).transcript
        last = transcript[-count:] if count else []
        keep_through = last[0].seq - 1 if last else None
        return self.edit(key, [], [], keep_through, expected, None, create=False)[2]

    def replace(self, key: Key, seq: int, message: Message, expected: int | None) -> int:
        session = self.known(key)
        if expected is not None and expected != session.version:
            raise Refused("VersionConflict")
        for entry in session.transcript:
            if entry.seq == seq:
                if entry.message != message:
                    entry.message, entry.extra = deepcopy(message), None
                    session.rewrites += 1
                    session.changed(self.now)
                return session.version
        raise Refused("InvalidArgument")

    def _for_store(self, key: Key, expected: int | None, *, writes: bool) -> Session:
        found = self.sessions.get(key)
        if expected is not None and expected != (0 if found is None else found.version):
            raise Refused("VersionConflict")
        if found is None:
            found = self.sessions[key] = Session("store", key[1], self.now)
            found.version = 0 if writes else 1
        return found

    def delete(self, key: Key, children: str) -> None:
        if key not in self.sessions:
            return
        below = self.children(key)
        if below and children == "refuse":
            raise Refused("SessionHasChildren")
        if children == "cascade":
            for gone in self.tree(key):
                del self.sessions[gone]
            return
        for child in below:
            self.sessions[child].parent = None
            self.sessions[child].spawned_by = None
        del self.sessions[key]

    # ---- the registry ----------------------------------------------------------------------------

    def register(
        self, key: Key, *, exist_ok: bool, parent: str | None, **given: Any
    ) -> dict[str, Any]:
        if parent is not None and self.known((key[0], parent)).ended_at is not None:
            raise Refused("SessionEnded")
        if key not in self.sessions:
            self.sessions[key] = Session(created_at=self.now, parent=parent, **deepcopy(given))
        elif not exist_ok:
            raise Refused("SessionExists")
        elif self.sessions[key].ended_at is not None:
            raise Refused("SessionEnded")
        return self.summary(key)

    def update(self, key: Key, **changes: Any) -> dict[str, Any]:
        session = self.known(key)
        for name, value in deepcopy(changes).items():
            setattr(session, name, value)
        session.metadata = session.metadata or {}
        return self.details(key)

    def end(self, key: Key, *, subtree: bool, reason: str | None) -> int:
        self.known(key)
        ended = 0
        for member in self.tree(key) if subtree else [key]:
            session = self.sessions[member]
            if session.ended_at is not None:
                continue
            ended += 1
            session.ended_at, session.end_reason = self.now, reason
            session.put("closed")
            session.close("ended")
            session.answer = session.withdrawn = None
            session.later = []
            for letter in session.line:
                self._cancel(letter, "end")
        return ended

    def reopen(self, key: Key) -> dict[str, Any]:
        session = self.known(key)
        if session.ended_at is None:
            return self.details(key)
        if session.parent is not None:
            living = [
                k
                for k in self.children((key[0], session.parent))
                if self.sessions[k].ended_at is None
            ]
            if len(living) >= self.limits["children"]:
                raise Refused("SpawnDenied")
        session.ended_at = session.end_reason = None
        session.last_active = self.now
        session.put("idle")
        return self.details(key)

    # ---- stopping --------------------------------------------------------------------------------

    def cancel(self, key: Key, position: int, keep_partial: bool) -> dict[str, Any]:
        letter = self._letter(key, position)
        session = self.sessions[key]
        if letter.status == "running":
            self._stop(session, [letter], "cancel", keep_partial)
        elif letter.status == "pending":
            waited = session.tried[:1] == [letter]
            self._cancel(letter, "cancel")
            self._withdraw_answers(session, [letter])
            if waited or (not session.line and session.state != "held"):
                session.go_on(self.now)
        return self.outcome(key, position)

    def interrupt(self, key: Key, subtree: bool, keep_partial: bool) -> list[dict[str, Any]]:
        self.known(key)
        stopped: list[tuple[Key, int]] = []
        for member in sorted(self.tree(key)) if subtree else [key]:
            session = self.sessions[member]
            letters = session.running or session.tried
            stopped += [(member, letter.position) for letter in letters]
            if session.running:
                self._stop(session, letters, "interrupt", keep_partial)
            elif session.question is not None:
                session.withdraw(session.question)
                session.question = None
                session.go_on(self.now)
            elif letters:
                for letter in letters:
                    self._cancel(letter, "interrupt")
                self._withdraw_answers(session, letters)
                session.go_on(self.now)
        return [self.outcome(*place) for place in stopped]

    def _stop(self, session: Session, letters: list[Letter], by: str, keep_partial: bool) -> None:
        session.give_back((one for one in session.running if one not in letters), uncounted=1)
        kept_letters = [letter for letter in letters if not session.is_notice(letter)]
        for letter in letters:
            self._cancel(letter, by)
        self._withdraw_answers(session, letters)
        if keep_partial and (kept_letters or session.streamed):
            kept: list[Message] = [{"role": "user", "content": one.text} for one in kept_letters]
            if session.streamed:
                kept.append({"role": "assistant", "content": session.streamed})
            entries = session.write(kept, self.now)
            for entry, letter in zip(entries, kept_letters, strict=False):
                entry.came_from(letter)
            for entry in entries[len(kept_letters) :]:
                entry.position = letters[-1].position
                entry.extra = '{"interrupted":true}'
            for letter in letters:
                letter.span = (entries[0].seq, entries[-1].seq)
            session.changed(self.now)
        session.go_on(self.now)

    def _withdraw_answers(self, session: Session, letters: list[Letter]) -> None:
        """Withdraw the questions whose answers were cancelled."""
        for letter in letters:
            if letter.answers is not None:
                session.withdraw(letter.answers)
        session.point_to_answer()

    def _cancel(self, letter: Letter, by: str) -> None:
        letter.status, letter.stopped_by, letter.finished_at = "cancelled", by, self.now
        letter.ahead = letter.joined = False

    # ---- sending ---------------------------------------------------------------------------------

    def send(
        self,
        key: Key,
        text: str,
        *,
        sender: str | None = None,
        idempotency_key: str | None = None,
        chain: tuple[int, Any] | None = None,
    ) -> tuple[int, bool]:
        """The position, and whether an earlier send with the same key made it."""
        session = self.known(key)
        if idempotency_key is not None:
            for letter in session.letters:
                if letter.key == idempotency_key:
                    if (letter.text, letter.sender) != (text, sender):
                        raise Refused("IdempotencyConflict")
                    return letter.position, True
        if sender is not None and chain is None:
            self.known((key[0], sender))
        if session.ended_at is not None:
            raise Refused("SessionEnded")
        if sender is None:
            chain = (0, None)
        elif chain is None:
            chain = self.behind((key[0], sender))
        asked = session.questions.get(session.question or 0)
        if asked is not None and asked.accepts and sender is None and not self._is_over(asked):
            return self._answer(session, text, idempotency_key), False
        hops, origin = chain
        if hops > self.limits["hops"]:
            raise Refused("HopLimitReached")
        if len(session.line) >= self.limits["pending"]:
            raise Refused("InboxFull")
        position = len(session.letters) + 1
        session.letters.append(
            Letter(position, text, self.now, sender, hops, origin, idempotency_key)
        )
        session.last_active = self.now
        if session.state == "idle":
            session.put("ready", self.now)
        return position, False

    # ---- schedules -------------------------------------------------------------------------------

    def schedule(
        self, key: Key, text: str, name: str, at: datetime | None, catch_up: str, id: str | None
    ) -> tuple[str | None, datetime]:
        """The id, ``id`` if it is new, and the next due time. Without ``at`` the message is sent
        each minute."""
        session = self.known(key)
        if session.ended_at is not None:
            raise Refused("SessionEnded")
        due_at = at or next_minute(self.now)
        found = next((one for one in session.later if one.name == name), None)
        if found is None:
            session.later.append(Later(id, name, text, at, catch_up, due_at, due_at))
            return id, due_at
        found.text, found.catch_up = text, catch_up
        if found.at != at:
            found.at, found.due_at, found.try_at, found.refused = at, due_at, due_at, False
        return found.id, found.due_at

    def unschedule(self, namespace: str, id: str) -> bool:
        for key, session in self.sessions.items():
            for one in session.later:
                if key[0] == namespace and one.id == id:
                    session.later.remove(one)
                    return True
        return False

    def fire(self, namespaces: list[str] | None) -> tuple[int, int]:
        """How many messages were sent, and how many schedules had no room."""
        sent = refused = 0
        for key, session in self.sessions.items():
            if (namespaces is not None and key[0] not in namespaces) or key in self.passed_over:
                continue
            due = [one for one in session.later if one.try_at <= self.now]
            for one in sorted(due, key=lambda one: one.due_at):
                times = [one.due_at]
                if one.at is None and one.catch_up == "all" and not one.refused:
                    while next_minute(times[-1]) <= self.now:
                        times.append(next_minute(times[-1]))
                accepted = 0
                while accepted < len(times) and self._queue(session, one.text):
                    accepted += 1
                sent += accepted
                if accepted < len(times):
                    refused += 1
                    one.due_at, one.refused = times[accepted], True
                    one.try_at = self.now + timedelta(seconds=1)
                elif one.at is not None:
                    session.later.remove(one)
                else:
                    one.due_at = one.try_at = next_minute(self.now)
                    one.refused = False
        return sent, refused

    def _queue(self, session: Session, text: str) -> bool:
        """Queue a message that is no person's. It is no answer to a question."""
        if len(session.line) >= self.limits["pending"]:
            return False
        session.letters.append(Letter(len(session.letters) + 1, text, self.now))
        session.last_active = self.now
        if session.state == "idle":
            session.put("ready", self.now)
        return True

    def _is_over(self, question: Question) -> bool:
        return question.expires_at is not None and question.expires_at <= self.now

    def _answer(self, session: Session, text: str, idempotency_key: str | None = None) -> int:
        assert session.question is not None
        letter = session.go_on_with(text, self.now)
        letter.key = idempotency_key
        session.questions[session.question].answer = text
        session.close("answered")
        session.last_active = self.now
        return letter.position

    def answer(self, key: Key, position: int, text: str) -> tuple[int, bool]:
        """The position of the answer, and whether it is the same as the one before."""
        session = self.sessions.get(key)
        question = None if session is None else session.questions.get(position)
        if session is None or question is None:
            raise Refused("UnknownQuestion")
        if question.status == "answered":
            if question.answer != text:
                raise Refused("QuestionAnswered")
            [first] = [one.position for one in session.letters if one.answers == position]
            return first, True
        if question.status != "open" or self._is_over(question):
            raise Refused("QuestionClosed")
        return self._answer(session, text), False

    def behind(self, sender: Key) -> tuple[int, Any]:
        """Hops and origin of the messages that a session sends: one hop more than its present
        message."""
        running = self.sessions[sender].running if sender in self.sessions else []
        hops = max((letter.hops for letter in running), default=0)
        origins = {letter.origin for letter in running if letter.hops == hops}
        if len(origins) > 1:
            return hops + 1, ANY
        return hops + 1, next(iter(origins), None) or sender[1]

    def spawn(
        self,
        parent: Key,
        child: str,
        prompt: str,
        *,
        model: str | None = None,
        system: str | None = None,
        tools: list[str] | None = None,
        idempotency_key: str | None = None,
        chain: tuple[int, Any] | None = None,
    ) -> str:
        """The id of the child, ``child`` if it is new."""
        above = self.known(parent)
        arguments = (prompt, model, system, None if tools is None else tuple(tools))
        for sibling in self.children(parent):
            spawned_by = self.sessions[sibling].spawned_by
            if idempotency_key is not None and spawned_by and spawned_by[0] == idempotency_key:
                if spawned_by[1] != arguments:
                    raise Refused("IdempotencyConflict")
                return sibling[1]
        if above.ended_at is not None:
            raise Refused("SessionEnded")
        living = [k for k in self.children(parent) if self.sessions[k].ended_at is None]
        if (
            len(self.ancestors(parent)) + 1 > self.limits["depth"]
            or len(living) >= self.limits["children"]
            or (tools is not None and above.tools is not None and set(tools) - set(above.tools))
        ):
            raise Refused("SpawnDenied")
        chain = chain or self.behind(parent)
        if chain[0] > self.limits["hops"]:
            raise Refused("HopLimitReached")
        key = (parent[0], child)
        if key in self.sessions:
            raise Impossible(f"the new child {child} has the id of a session that exists")
        self.sessions[key] = Session(
            "spawned",
            f"spawned-by-{parent[1]}",
            self.now,
            parent[1],
            above.model if model is None else model,
            above.system if system is None else system,
            deepcopy(above.tools if tools is None else tools),
            spawned_by=None if idempotency_key is None else (idempotency_key, arguments),
        )
        self.send(key, prompt, sender=parent[1], chain=chain)
        return child

    # ---- turns -----------------------------------------------------------------------------------

    def claim(
        self,
        worker: str,
        namespaces: Sequence[str] | None,
        slots: int,
        batch: int,
        seconds: float,
        got: dict[Key, tuple[Any, int]],
        *,
        alone: bool = True,
    ) -> dict[Key, list[tuple[int, str, int, str | None, int, Any]]]:
        """Grant the leases that the database gave: for each session the name of the lease and the
        number of messages.

        They must be the sessions of each namespace that have been ready longest, each with all
        its messages. Without ``alone``, other calls run at the same time. A claim may then skip
        sessions that another call is using, and so get fewer and later ones. It may also miss
        messages that are being sent.
        """
        ready: dict[str, list[datetime]] = {}
        for (namespace, _), session in self.sessions.items():
            if namespaces is not None and namespace not in namespaces:
                continue
            if session.state == "ready" and session.moment is not None:
                ready.setdefault(namespace, []).append(session.moment)
        claimed: dict[str, list[datetime]] = {}
        for key in got:
            session = self.sessions.get(key)
            if session is None or session.state != "ready" or session.moment is None:
                raise Impossible(f"{key} was claimed, but is not ready")
            if namespaces is not None and key[0] not in namespaces:
                raise Impossible(f"{key} was claimed from outside of its namespace")
            claimed.setdefault(key[0], []).append(session.moment)
        # Each namespace that has work gets its share of the slots.
        shared = sorted(ready)[:slots]
        expected = {}
        for order, namespace in enumerate(shared):
            share = slots // len(shared) + (order < slots % len(shared))
            expected[namespace] = sorted(ready[namespace])[:share]
        found = {namespace: sorted(moments) for namespace, moments in claimed.items()}
        if len(got) > slots or (alone and found != expected):
            raise Impossible(f"claimed those ready since {found}, not {expected}")
        deliveries = {}
        for key, (lease, count) in got.items():
            session = self.sessions[key]
            taken = session.line[: batch if alone else min(batch, max(1, count))]
            fresh = [letter.attempts == 0 for letter in taken]
            taken = taken[: max(1, fresh.index(False) if False in fresh else batch)]
            if session.answer is not None:
                taken = taken[:1]
            session.put("leased", self.now + timedelta(seconds=seconds))
            session.owner, session.lease = worker, lease
            session.rewrites_at_claim = session.rewrites
            session.withdrawn_at_claim = session.withdrawn
            for letter in taken:
                letter.status = "running"
                letter.attempts += 1
            deliveries[key] = [
                (one.position, one.text, one.attempts, one.sender, one.hops, one.origin)
                for one in taken
            ]
        return deliveries

    def holds(self, key: Key, lease: Any) -> Session | None:
        """The session if this lease is its valid one."""
        session = self.sessions.get(key)
        return session if session is not None and session.lease == lease else None

    def stream(self, key: Key, lease: Any, text: str) -> bool:
        session = self.holds(key, lease)
        if session is None:
            return False
        session.streamed += text
        return True

    def join(self, key: Key, lease: Any, limit: int | None) -> list[int]:
        """Return the positions of the waiting messages that join a running turn."""
        session = self.holds(key, lease)
        if session is None:
            raise Refused("LeaseLost")
        joined: list[int] = []
        if any(one.status == "pending" and one.answers for one in session.line):
            return joined
        for letter in sorted(session.line, key=lambda one: (not one.ahead, one.position)):
            if letter.status == "pending" and len(joined) != limit:
                if letter.attempts:
                    break
                letter.status, letter.joined = "running", True
                joined.append(letter.position)
        return joined

    def is_rewritten(self, key: Key, lease: Any) -> bool:
        """Whether the transcript was rewritten under the turn that holds this lease."""
        session = self.holds(key, lease)
        return session is not None and session.rewrites != session.rewrites_at_claim

    def rerun(self, key: Key, lease: Any) -> bool | None:
        session = self.holds(key, lease)
        if session is None:
            return False
        if any(letter.reruns >= 3 for letter in session.begun):
            return None
        for letter in session.begun:
            letter.reruns += 1
        self.release(key, lease)
        return True

    def commit(
        self, key: Key, lease: Any, replies: list[Message], known: Sequence[int]
    ) -> bool | None:
        """``known``: the messages of the turn that the worker knows of.

        ``None``: the lease is held, and the transcript was rewritten, or a message has joined that
        the worker does not know of.
        """
        session = self.holds(key, lease)
        if session is None:
            return False
        if self.is_rewritten(key, lease) or len(known) != len(session.running):
            return None
        answered = session.running
        written = [letter for letter in answered if not session.is_notice(letter)]
        asked = [{"role": "user", "content": letter.text} for letter in written]
        first = session.last_seq + 1
        entries = session.write([*asked, *replies], self.now)
        for entry, letter in zip(entries, written, strict=False):
            entry.came_from(letter)
        for entry in entries[len(written) :]:
            entry.position = answered[-1].position
        for letter in answered:
            letter.status, letter.finished_at, letter.error = "done", self.now, None
            letter.span = (first, session.last_seq)
            letter.ahead = letter.joined = False
        session.point_to_answer()
        session.changed(self.now)
        session.go_on(self.now)
        return True

    def commit_staged(
        self,
        key: Key,
        lease: Any,
        replies: list[Message],
        known: Sequence[int],
        staged: Iterable[tuple[str, str, str]],
    ) -> None:
        """Commit a turn with sends and spawns, ``(verb, id, text)``: all of it, or nothing."""
        session = self.holds(key, lease)
        if session is None:
            raise Refused("LeaseLost")
        furthest = max(session.running, key=lambda letter: letter.hops)
        chain = (furthest.hops + 1, furthest.origin or key[1])
        before = deepcopy(self.sessions)
        try:
            if self.commit(key, lease, replies, known) is None:
                raise Refused("TranscriptRewritten")
            if session.withdrawn == session.withdrawn_at_claim:
                session.withdrawn = None
            for verb, id, text in staged:
                if verb == "send":
                    self.send((key[0], id), text, sender=key[1], chain=chain)
                else:
                    self.spawn(key, id, text, chain=chain)
        except Refused:
            self.sessions = before
            raise

    def ask(
        self,
        key: Key,
        lease: Any,
        replies: list[Message],
        known: Sequence[int],
        expires_in: float | None,
        accepts: bool,
    ) -> None:
        """Commit a turn that asks a question. Its session is held."""
        self.commit_staged(key, lease, replies, known, ())
        session = self.sessions[key]
        expires_at = None if expires_in is None else self.now + timedelta(seconds=expires_in)
        session.question = known[-1]
        session.questions[known[-1]] = Question(accepts, expires_at)
        session.letters[known[-1] - 1].asked = True
        session.put("held", expires_at or NEVER)

    def fail(self, key: Key, lease: Any, error: str, retry_in: float | None) -> bool:
        session = self.holds(key, lease)
        if session is None:
            return False
        for letter in session.begun:
            letter.error = error
            if retry_in is None:
                self._bury(letter)
            else:
                letter.status, letter.reruns = "pending", 0
        session.give_back(session.running, uncounted=0)
        if retry_in is None:
            session.point_to_answer()
            session.go_on(self.now)
        else:
            session.put("waiting", self.now + timedelta(seconds=retry_in))
        return True

    def release(self, key: Key, lease: Any) -> bool:
        session = self.holds(key, lease)
        if session is None:
            return False
        session.give_back(session.running, uncounted=1)
        session.go_on(self.now)
        return True

    def release_unknown(self, worker: str, known: Iterable[tuple[Key, Any]]) -> int:
        strays = [
            key
            for key, session in self.sessions.items()
            if session.owner == worker and (key, session.lease) not in known
        ]
        for key in strays:
            self.release(key, self.sessions[key].lease)
        return len(strays)

    def heartbeat(self, held: Iterable[tuple[Key, Any]], seconds: float) -> set[Key]:
        kept = set()
        for key, lease in held:
            session = self.holds(key, lease)
            if session is not None:
                session.moment = self.now + timedelta(seconds=seconds)
                kept.add(key)
        return kept

    def reap(self, namespaces: Sequence[str] | None, max_attempts: int) -> tuple[int, int]:
        """Return the number of expired leases, and of messages that are dead now."""
        expired = dead = 0
        for key, session in self.sessions.items():
            if (
                (namespaces is None or key[0] in namespaces)
                and key not in self.passed_over
                and session.state == "leased"
                and session.moment is not None
                and session.moment < self.now
            ):
                expired += 1
                for letter in session.begun:
                    letter.error = "LeaseExpired"
                    if letter.attempts >= max_attempts:
                        self._bury(letter)
                        session.point_to_answer()
                        dead += 1
                    else:
                        letter.status, letter.reruns = "pending", 0
                session.give_back(session.running, uncounted=0)
                session.go_on(self.now)
        return expired, dead

    def wake(self, namespaces: Sequence[str] | None) -> int:
        due = 0
        for key, session in self.sessions.items():
            if (
                (namespaces is None or key[0] in namespaces)
                and key not in self.passed_over
                and session.state in ("waiting", "held")
                and session.moment is not None
                and session.moment <= self.now
            ):
                due += 1
                if session.state == "held":
                    session.go_on_with(NOTICE, self.now)
                    session.close("expired")
                else:
                    session.put("ready", session.moment)  # since its backoff was over
        return due

    def requeue(self, key: Key, position: int) -> None:
        letter = self._letter(key, position)
        session = self.sessions[key]
        if session.ended_at is not None:
            raise Refused("SessionEnded")
        if letter.status != "dead":
            raise Refused("InvalidArgument")
        letter.status, letter.attempts, letter.ahead = "pending", 0, True
        letter.finished_at, letter.reruns = None, 0
        session.point_to_answer()
        if session.state == "idle":
            session.put("ready", self.now)

    def _bury(self, letter: Letter) -> None:
        letter.status, letter.finished_at, letter.ahead = "dead", self.now, False

    def _letter(self, key: Key, position: int) -> Letter:
        letters = self.sessions[key].letters if key in self.sessions else []
        if not 1 <= position <= len(letters):
            raise Refused("UnknownReceipt")
        return letters[position - 1]

    # ---- reading ---------------------------------------------------------------------------------

    def load(self, key: Key) -> list[Message] | None:
        if key not in self.sessions:
            return None
        return [entry.message for entry in self.sessions[key].transcript]

    def version(self, key: Key) -> int | None:
        return self.sessions[key].version if key in self.sessions else None

    def history(
        self, key: Key, limit: int | None, before: int | None, after: int | None
    ) -> list[dict[str, Any]]:
        shown = [
            {
                "role": entry.role,
                "content": rendered(entry.message["content"]),
                "timestamp": entry.sent_at or entry.at,
                "seq": entry.seq,
                "sender": entry.sender,
                "author": None,
                "metadata": {"interrupted": True} if entry.extra else None,
                "interrupted": entry.extra is not None,
            }
            for entry in self.known(key).transcript
            if (before is None or entry.seq < before) and (after is None or entry.seq > after)
        ]
        limit = 50 if limit is None else limit
        if after is not None:
            return shown[:limit]
        return shown[-limit:] if limit else []

    def records(
        self, namespace: str, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]:
        mine = [(s.updated_at, k[1], s) for k, s in self.sessions.items() if k[0] == namespace]
        listed = [
            {
                "id": id,
                "message_count": len(session.transcript),
                "created_at": session.created_at,
                "updated_at": session.updated_at,
            }
            for _, id, session in sorted(mine, key=lambda one: one[:2])
        ]
        return listed[offset:][:limit]

    def summary(self, key: Key) -> dict[str, Any]:
        session = self.known(key)
        return {
            "id": key[1],
            "channel": session.channel,
            "peer": session.peer,
            "created_at": session.created_at,
            "last_active": session.last_active,
            "message_count": len(session.transcript),
            "parent": session.parent,
        }

    def details(self, key: Key) -> dict[str, Any]:
        session = self.known(key)
        ancestors = self.ancestors(key)
        return self.summary(key) | {
            "root": ancestors[-1] if ancestors else None,
            "model": session.model,
            "system": session.system,
            "tools": session.tools,
            "metadata": session.metadata,
            "version": session.version,
            "pending": sum(letter.status == "pending" for letter in session.letters),
            "running": session.state == "leased",
            "ended_at": session.ended_at,
            "end_reason": session.end_reason,
            "forked_from": None,
            "held": None if session.question is None else f"{key[1]}:{session.question}",
        }

    def page(
        self,
        namespace: str,
        *,
        include_ended: bool = False,
        channel: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
    ) -> list[dict[str, Any]]:
        cursor = None
        if after is not None:
            cursor = (self.known((namespace, after)).last_active, after)
        within = None if root is None else self.tree((namespace, root))
        shown = [
            (session.last_active, key[1])
            for key, session in self.sessions.items()
            if key[0] == namespace
            and (include_ended or session.ended_at is None)
            and (channel is None or session.channel == channel)
            and (parent is None or session.parent == parent)
            and (within is None or key in within)
            and (active_since is None or session.last_active >= active_since)
        ]
        places = sorted(shown, reverse=newest_first)
        if cursor is not None:
            places = [p for p in places if (p < cursor if newest_first else p > cursor)]
        return [self.summary((namespace, id)) for _, id in places][:limit]

    def outcome(self, key: Key, position: int) -> dict[str, Any]:
        letter = self._letter(key, position)
        reply = None
        if letter.span is not None:
            first, last = letter.span
            for entry in self.sessions[key].transcript:
                if first <= entry.seq <= last and entry.role == "assistant":
                    reply = rendered(entry.message["content"])
        return {
            "receipt": (key[1], position, False),
            "status": letter.status,
            "attempts": letter.attempts,
            "reply": reply,
            "error": letter.error,
            "enqueued_at": letter.enqueued_at,
            "finished_at": letter.finished_at,
            "question": self._open_question(key, letter),
        }

    def _open_question(self, key: Key, letter: Letter) -> str | None:
        question = self.sessions[key].question
        return f"{key[1]}:{question}" if letter.asked and question == letter.position else None

    def dead_letters(self, namespace: str, id: str | None, limit: int) -> list[dict[str, Any]]:
        if id is not None:
            self.known((namespace, id))
        dead = sorted(
            (letter.finished_at, key[1], letter.position)
            for key, session in self.sessions.items()
            for letter in session.letters
            if letter.status == "dead" and letter.finished_at is not None
            if key[0] == namespace and id in (None, key[1])
        )
        newest = dead[-limit:] if limit else []
        return [self.outcome((namespace, session), position) for _, session, position in newest]


def rendered(content: Any) -> str:
    """Text as a text column can hold it; blocks are joined by newlines."""
    if isinstance(content, list):
        return "\n".join(rendered(block["text"]) for block in content)
    return "".join(
        "\ufffd" if char == "\x00" or "\ud800" <= char <= "\udfff" else char for char in content
    )
