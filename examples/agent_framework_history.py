"""An agent of Microsoft Agent Framework whose history and session are in this database.

Run it: ``pip install 'sessionsdb[agent-framework]'``, then ``python agent_framework_history.py``.
The chat client is a script, so no key is needed. For a real model, give the agent a client of the
framework.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatResponse,
    Content,
    FunctionInvocationLayer,
    Message,
)

from sessionsdb import SessionsDB
from sessionsdb.adapters.agent_framework import HistoryProvider, SessionStore


class ScriptedClient(FunctionInvocationLayer[Any], BaseChatClient[Any]):
    """Calls the tool with what the user said, and then says what the tool returned."""

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any
    ) -> Awaitable[ChatResponse]:
        last = messages[-1].contents[-1]
        if last.type == "function_result":
            users = sum(message.role == "user" for message in messages)
            content = Content.from_text(f"{last.result} You asked {users} times.")
        else:
            content = Content.from_function_call("c", "weather", arguments={"city": last.text})

        async def respond() -> ChatResponse:
            return ChatResponse(messages=[Message("assistant", [content])])

        return respond()


def weather(city: str) -> str:
    """Say the weather of a city."""
    return f"It rains in {city}."


async def say(url: str, text: str) -> None:
    """One run of the program."""
    history = HistoryProvider(url)  # the line to change: it was InMemoryHistoryProvider()
    agent = Agent(ScriptedClient(), tools=[weather], context_providers=[history])
    sessions = SessionStore(url)
    session = await sessions.get("alice") or agent.create_session(session_id="alice")
    print("agent:", (await agent.run(text, session=session)).text)
    await sessions.set("alice", session)
    await sessions.close()
    await history.close()


async def look(url: str) -> None:
    """Read the session as any other of this database."""
    async with SessionsDB(url) as db:
        [session] = await db.broker.list(channel="agent-framework", peer="alice")
        for message in await db.broker.history(session.id):
            print(f"{message.role:9} {message.content}")


def main(folder: str) -> None:
    url = f"sqlite:///{Path(folder, 'sessions.db').as_posix()}"
    asyncio.run(say(url, "Paris"))
    asyncio.run(say(url, "Rome"))
    asyncio.run(look(url))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
