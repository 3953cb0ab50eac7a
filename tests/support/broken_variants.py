"""Implementations in memory that break one rule each, by the name of the check that finds it."""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from sessionsdb.errors import UnknownSession
from sessionsdb.events import DeletedEvent, Event
from sessionsdb.testing import Subject
from sessionsdb.types import Edited, ListOptions, Receipt, SessionRecord, State
from tests.support.memory_broker import MemoryBroker
from tests.support.memory_sessions import Item, Memory, Message, Session
from tests.support.memory_store import MemoryStore


def memory_subject(
    memory_type: type[Memory] = Memory,
    store_type: type[MemoryStore] = MemoryStore,
    broker_type: type[MemoryBroker] = MemoryBroker,
) -> Subject:
    memory = memory_type()
    return Subject(store_type(memory), broker_type(memory), memory.run_turns)


@dataclass(frozen=True)
class Variant:
    """A fault, and the check that has to find it."""

    check: str
    make: Callable[[], Subject]


VARIANTS: list[Variant] = []


def breaks(*checks: str) -> Callable[[type], type]:
    """Add a class that breaks these rules to the variants."""

    def add(kind: type) -> type:
        parts: dict[str, Any] = {
            name: kind
            for name, base in (
                ("memory_type", Memory),
                ("store_type", MemoryStore),
                ("broker_type", MemoryBroker),
            )
            if issubclass(kind, base)
        }
        VARIANTS.extend(Variant(check, lambda: memory_subject(**parts)) for check in checks)
        return kind

    return add


# ---- the store -----------------------------------------------------------------------------------


@breaks("transcripts.messages_are_copied")
class SharedObjects(MemoryStore):
    async def save(self, id: str, messages: Any, **more: Any) -> int:
        self.given = list(messages)
        return await super().save(id, messages, **more)

    async def load(self, id: str) -> list[Message] | None:
        return self.given


@breaks("transcripts.save_replaces_everything")
class SaveThatAppends(MemoryStore):
    async def save(self, id: str, messages: Any, *, expected_version: int | None = None) -> int:
        return await self.append(id, messages, expected_version=expected_version)


@breaks("transcripts.an_equal_save_keeps_the_version")
class RestlessVersion(MemoryStore):
    async def save(self, id: str, messages: Any, **more: Any) -> int:
        await super().save(id, messages, **more)
        self.memory.sessions[id].version += 1
        return self.memory.sessions[id].version


@breaks("transcripts.the_version_grows")
class VersionOfTheLength(MemoryStore):
    async def version(self, id: str) -> int | None:
        return len(await self.load(id) or [])

    async def save(self, id: str, messages: Any, **more: Any) -> int:
        return len(messages) * min(1, await super().save(id, messages, **more))


@breaks(
    "transcripts.save_expects_a_version",
    "transcripts.version_0_means_no_session",
    "transcripts.append_expects_a_version",
    "edits.edit_has_expectations",
)
class NoExpectations(Memory):
    def expect(self, session: Session | None, id: str, version: int | None) -> None:
        pass


@breaks("transcripts.one_of_several_writers_wins")
class LateWrite(MemoryStore):
    """It checks the version, and writes after a pause."""

    async def save(self, id: str, messages: Any, *, expected_version: int | None = None) -> int:
        self._expected(id, expected_version)
        await asyncio.sleep(0)
        return await super().save(id, messages)


@breaks("transcripts.appends_at_once_lose_nothing")
class AppendBySave(MemoryStore):
    async def append(self, id: str, messages: Any, **_more: Any) -> int:
        present = await self.load(id) or []
        await asyncio.sleep(0)
        return await self.save(id, [*present, *messages])


@breaks("transcripts.a_transcript_is_loaded_as_it_was_saved")
class NumbersAsFloats(MemoryStore):
    async def load(self, id: str) -> list[Message] | None:
        session = self.memory.sessions.get(id)
        return session and [json.loads(row.text, parse_int=float) for row in session.rows]


@breaks("transcripts.an_empty_transcript_is_a_list")
class NothingForEmpty(MemoryStore):
    async def load(self, id: str) -> list[Message] | None:
        return await super().load(id) or None


@breaks("transcripts.only_json_objects_are_stored")
class HalfASave(MemoryStore):
    """It writes message after message, and stops at a bad one."""

    async def save(self, id: str, messages: Any, **_more: Any) -> int:
        for message in messages:
            await self.append(id, [message])
        return 1


@breaks("transcripts.a_key_is_appended_once", "edits.find_by_key")
class NoKeys(Memory):
    def add(self, session: Session, texts: Any, keys: Any = None) -> list[int]:
        return super().add(session, texts)


@breaks("transcripts.list_has_the_newest_last")
class ListByName(MemoryStore):
    async def list(self) -> builtins.list[SessionRecord]:
        return sorted(await super().list(), key=lambda one: one.id)


@breaks("transcripts.a_page_is_a_part_of_the_list")
class LimitAsEnd(MemoryStore):
    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        return (await self.list())[options.offset : options.limit]


@breaks("transcripts.delete_removes")
class StrictDelete(MemoryStore):
    async def delete(self, id: str, **more: Any) -> None:
        if id not in self.memory.sessions:
            raise UnknownSession(id)
        await super().delete(id, **more)


@breaks("transcripts.delete_decides_about_children")
class DeleteOfTheTree(MemoryStore):
    async def delete(self, id: str, **_more: Any) -> None:
        await super().delete(id, children="cascade")


@breaks("edits.a_seq_is_used_once")
class SeqOfTheLength(Memory):
    def add(self, session: Session, texts: Any, keys: Any = None) -> list[int]:
        session.last_seq = len(session.rows)
        return super().add(session, texts, keys)


@breaks("edits.pop_returns_the_newest")
class PopBackwards(MemoryStore):
    async def pop(self, id: str, *args: Any, **more: Any) -> list[Message]:
        return (await super().pop(id, *args, **more))[::-1]


@breaks("edits.an_edit_with_keys_is_repeatable")
class ExpectationsFirst(MemoryStore):
    async def edit(self, id: str, edit: Any) -> Edited:
        self._expected(id, edit.expected_version)
        return await super().edit(id, edit)


@breaks("edits.replace_keeps_the_place")
class ReplaceAtTheEnd(MemoryStore):
    async def replace(self, id: str, seq: int, message: Message, **more: Any) -> int:
        await super().replace(id, seq, message, **more)
        session = self.memory.sessions[id]
        session.rows.sort(key=lambda row: row.seq == seq)
        return session.version


@breaks("state.changes_are_merged")
class StateIsReplaced(MemoryStore):
    async def update_state(self, id: str, changes: dict[str, Any], **more: Any) -> State:
        old = (await self.state(id)).values
        return await super().update_state(id, dict.fromkeys(old) | changes, **more)


@breaks("state.writers_of_other_keys_lose_nothing")
class LateState(MemoryStore):
    """It reads the state, and writes the whole of it after a pause."""

    async def update_state(self, id: str, changes: dict[str, Any], **_more: Any) -> State:
        whole = (await self.state(id)).values | changes
        await asyncio.sleep(0)
        self.memory.states["session", id] = (whole, 1)
        return await self.state(id)


@breaks("state.scopes_are_apart")
class OneScope(MemoryStore):
    def _scope(self, id: str, scope: Any) -> tuple[str, ...]:
        return ("session", id)


# ---- sessions ------------------------------------------------------------------------------------


@breaks("registry.an_id_is_registered_once")
class RegisterChanges(MemoryBroker):
    async def register(self, id: str, **more: Any) -> Any:
        made = await super().register(id, **more)
        await self.update(id, channel=more["channel"], peer=more["peer"], model=more.get("model"))
        return made


@breaks("registry.ended_sessions_are_left_out")
class ListsEnded(MemoryBroker):
    async def list(self, **more: Any) -> Any:
        return await super().list(**{**more, "include_ended": True})


@breaks("registry.pages_of_list_are_complete")
class PagesOverlap(MemoryBroker):
    async def list(self, *, after: Any = None, limit: Any = None, **more: Any) -> Any:
        found = await super().list(**more)
        return found[0 if after is None else found.index(after) :][:limit]


@breaks("registry.end_ends")
class EndForgetsMessages(Memory):
    def finish(self, session: Session, item: Item, status: Any) -> None:
        if status != "cancelled":
            super().finish(session, item, status)


@breaks("registry.fork_copies")
class ForkSharesRows(MemoryBroker):
    async def fork(self, id: str, **more: Any) -> Any:
        made = await super().fork(id, **more)
        self.memory.sessions[made.id].rows = self.memory.sessions[id].rows
        return made


@breaks("registry.history_has_the_newest_last")
class HistoryBackwards(MemoryBroker):
    async def history(self, id: str, *args: Any, **more: Any) -> Any:
        return (await super().history(id, *args, **more))[::-1]


# ---- the inbox -----------------------------------------------------------------------------------


@breaks("inbox.messages_are_handled_in_order")
class LastInFirstOut(Memory):
    def _next(self, session: Session) -> Item | None:
        return session.pending[-1] if session.pending else None


@breaks("inbox.a_key_is_sent_once")
class IgnoresKeys(MemoryBroker):
    def _known(self, session: Session, key: str | None, request: str) -> Receipt | None:
        return None


@breaks("inbox.a_message_waits")
class TranscriptAtTheSend(Memory):
    def queue(self, session: Session, text: str, **fields: Any) -> Item:
        self.add(session, [text])
        return super().queue(session, text, **fields)


@breaks("inbox.a_failing_message_dies")
class FailureIsAReply(Memory):
    async def run_turns(self, answers: Any) -> None:
        def careless(id: str, text: str) -> Any:
            try:
                return answers(id, text)
            except Exception as error:
                return str(error)

        await super().run_turns(careless)


@breaks("inbox.a_dead_message_is_requeued")
class RequeueBehind(MemoryBroker):
    async def requeue(self, receipt: Receipt) -> None:
        await super().requeue(receipt)
        self._item(receipt)[1].ahead = False
        session = self.memory.sessions[receipt.session_id]
        session.inbox.append(session.inbox.pop(0))


@breaks("inbox.a_timeout_changes_nothing", "spawning.a_child_outlives_the_wait")
class TimeoutCancels(MemoryBroker):
    async def wait(self, receipt: Receipt, timeout: float = 60.0, **more: Any) -> Any:
        outcome = await super().wait(receipt, timeout, **more)
        if not outcome.final:
            await self.cancel(receipt)
        return outcome


@breaks("inbox.wait_returns_the_reply")
class WaitReturnsAtOnce(MemoryBroker):
    async def wait(self, receipt: Receipt, timeout: float = 60.0, **_more: Any) -> Any:
        return await self.outcome(receipt)


@breaks("inbox.a_waiting_message_is_cancelled")
class CancelOnlyTells(MemoryBroker):
    async def cancel(self, receipt: Receipt, **_more: Any) -> Any:
        outcome = await self.outcome(receipt)
        return outcome.model_copy(update={"status": "cancelled"})


# ---- children, questions, schedules, follow ------------------------------------------------------


@breaks("spawning.tools_lie_within_the_parents", "spawning.settings_are_copied")
class ParentHasNoTools(MemoryBroker):
    async def spawn(self, parent: str, request: Any, **more: Any) -> Any:
        self.memory.session(parent).tools = self.memory.session(parent).system = None
        return await super().spawn(parent, request, **more)


@breaks("spawning.a_child_reports")
class ReportsEachReply(Memory):
    def _report(self, session: Session, answer: str) -> None:
        reports_to = session.reports_to
        super()._report(session, answer)
        session.reports_to = reports_to


@breaks("questions.an_answer_comes_first", "questions.an_open_question_is_busy")
class QuestionsHoldNothing(Memory):
    def _ask(self, session: Session, item: Item, question: Any) -> None:
        super()._ask(session, item, question)
        session.held = None


@breaks("questions.a_question_is_answered_once")
class LastAnswerWins(MemoryBroker):
    async def answer(self, question_id: str, message: Any, **more: Any) -> Receipt:
        self.memory.questions[question_id].receipt = None
        return await super().answer(question_id, message, **more)


@breaks("schedules.a_due_schedule_is_sent_once")
class ScheduleStays(Memory):
    async def run_turns(self, answers: Any) -> None:
        kept = dict(self.schedules)
        await super().run_turns(answers)
        self.schedules = kept


@breaks("schedules.a_name_replaces")
class NamesMeanNothing(MemoryBroker):
    async def schedule(self, id: str, message: Any, *, name: Any = None, **more: Any) -> Any:
        return await super().schedule(id, message, **more)


@breaks("following.a_cursor_goes_on", "following.a_seq_is_a_cursor")
class CursorIsRepeated(MemoryBroker):
    def follow(self, id: str, *, after: Any = None, **more: Any) -> AsyncGenerator[Event, None]:
        place = after if after in (None, "start") else int(after) - 1
        return super().follow(id, after=place, **more)


@breaks("following.following_begins_now")
class FollowsFromTheStart(MemoryBroker):
    def follow(self, id: str, *, after: Any = None, **more: Any) -> AsyncGenerator[Event, None]:
        return super().follow(id, after=after or "start", **more)


@breaks("following.deletion_is_the_last_event")
class EndsSilently(MemoryBroker):
    async def follow(self, id: str, **more: Any) -> AsyncGenerator[Event, None]:
        async for event in super().follow(id, **more):
            if not isinstance(event, DeletedEvent):
                yield event
