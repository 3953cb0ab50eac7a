"""The session of one turn, as the runner of Google ADK reads and changes it.

The runner gets a session service of this turn alone. It is filled from the transcript, and collects
the new events. The commit of the turn stores them with the changes of the state, so a turn that
loses its lease stores none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session
from google.adk.sessions.state import State
from google.genai import types
from pydantic_core import to_jsonable_python

from sessionsdb.adapters.google_adk_values import as_event
from sessionsdb.agents.told import is_by_model, told_text
from sessionsdb.operations.state import peer_scope
from sessionsdb.types import SessionDetails, TranscriptEntry
from sessionsdb.worker import Turn
from sessionsdb.worker.turn import scope_state


class TurnSession(BaseSessionService):
    """The session service of one turn: one session, and its new events."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.events: list[Event] = []
        """The events that the runner has appended, in order."""

    async def create_session(self, **_options: Any) -> Session:
        raise NotImplementedError("a turn has one session, which exists")

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        return self.session if session_id == self.session.id else None

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        return ListSessionsResponse(sessions=[self.session])

    async def delete_session(self, **_options: Any) -> None:
        raise NotImplementedError("a turn can't delete its session")

    async def append_event(self, session: Session, event: Event) -> Event:
        event = await super().append_event(session, event)
        if not event.partial:
            self.events.append(event)
        return event


class TurnStates:
    """The states of the session, its user and its app, by the prefix that the framework gives.

    They are the states that ``sessionsdb.adapters.google_adk`` reads for a session with the channel
    ``adk:APP``. The commit of the turn stores the changes.
    """

    def __init__(self, by_prefix: dict[str, dict[str, Any]]) -> None:
        self._by_prefix = by_prefix

    @classmethod
    async def read(cls, turn: Turn, app_name: str) -> TurnStates:
        app = peer_scope(turn.namespace, "adk", app_name)
        return cls(
            {
                State.APP_PREFIX: await scope_state(turn, app),
                State.USER_PREFIX: await turn.state("peer"),
                "": await turn.state(),
            }
        )

    def values(self) -> dict[str, Any]:
        """Return a copy of all values by prefixed key."""
        return {
            prefix + name: value
            for prefix, values in self._by_prefix.items()
            for name, value in values.items()
        }

    def apply(self, events: Iterable[Event]) -> None:
        """Make the changes of events. A key that is set to ``None`` is removed.

        A value without a JSON form is stored as its ``repr``, as the framework's own services do.
        """
        for event in events:
            delta = event.actions.state_delta if event.actions else {}
            plain = to_jsonable_python(delta, inf_nan_mode="null", serialize_unknown=True)
            for name, value in plain.items():
                prefix = next(one for one in self._by_prefix if name.startswith(one))
                self._by_prefix[prefix][name.removeprefix(prefix)] = value


def remembered(
    session: SessionDetails, entries: Iterable[TranscriptEntry], agent_name: str
) -> list[Event]:
    """Return the events of a transcript, from the first one of a user on.

    Words of other agents are marked, and a message of another form is told as text. A message of
    the inbox is left out if the event that the runner made of it stands directly behind it.
    """
    events: list[Event] = []
    from_inbox = 0
    """How many of the newest events are messages of the inbox. An appended one is none."""
    for entry in entries:
        # Another agent can write a message in the form of an event of the user.
        event = as_event(entry.message) if entry.sender is None else None
        if event is not None:
            for told in events[len(events) - from_inbox :]:
                told.invocation_id = event.invocation_id
            if event.author == "user" and from_inbox:
                del events[len(events) - from_inbox :]
            from_inbox = 0
        elif (event := _told(session, entry, agent_name)) is not None:
            is_sent = event.author == "user" and entry.sent_at is not None
            from_inbox = from_inbox + 1 if is_sent else 0
        if event is not None:
            events.append(event)
    start = (n for n, event in enumerate(events) if _is_said_by_user(event))
    return events[next(start, len(events)) :]


def text_content(text: str, role: str = "user") -> types.Content:
    """Return a text as the content of an event."""
    return types.Content(role=role, parts=[types.Part(text=text)])


def _told(session: SessionDetails, entry: TranscriptEntry, agent_name: str) -> Event | None:
    text = told_text(session, entry)
    if not text:  # reasoning alone
        return None
    by_model = entry.sender is None and is_by_model(entry)
    return Event(
        id=f"{session.id}-{entry.seq}",
        author=agent_name if by_model else "user",
        content=text_content(text, "model" if by_model else "user"),
        timestamp=(entry.sent_at or entry.created_at).timestamp(),
    )


def _is_said_by_user(event: Event) -> bool:
    return event.author == "user" and not event.get_function_responses()
