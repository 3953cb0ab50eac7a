"""Transcripts of the Claude Agent SDK in this database: mirrored, listed, forked and read.

Run it: ``pip install 'sessionsdb[claude-agent]'``, then ``python claude_agent_store.py``. It needs
no key: it stores entries as the SDK's program writes them during a turn. An application passes the
store to the SDK, and the SDK stores the entries::

    options = ClaudeAgentOptions(session_store=SessionStore("sqlite:///sessions.db"))
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from claude_agent_sdk import (
    fork_session_via_store,
    get_session_messages_from_store,
    list_sessions_from_store,
    project_key_for_directory,
    rename_session_via_store,
)

from sessionsdb import SessionsDB
from sessionsdb.adapters.claude_agent import SessionStore


def turn(session_id: str, question: str, answer: str) -> list[Any]:
    """Return the entries of a turn, as the SDK's program writes them."""
    asked, said = str(uuid4()), str(uuid4())
    common = {"sessionId": session_id, "timestamp": "2026-11-27T08:00:00.000Z"}
    return [
        {
            **common,
            "type": "user",
            "uuid": asked,
            "parentUuid": None,
            "message": {"role": "user", "content": question},
        },
        {
            **common,
            "type": "assistant",
            "uuid": said,
            "parentUuid": asked,
            "message": {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        },
    ]


async def main(folder: str) -> None:
    url = f"sqlite:///{Path(folder, 'sessions.db').as_posix()}"
    store = SessionStore(url)
    project, session_id = project_key_for_directory(folder), str(uuid4())
    key: Any = {"project_key": project, "session_id": session_id}
    entries = turn(session_id, "What is a lease?", "The right to run a turn until a moment.")
    await store.append(key, entries)
    await store.append(key, entries)  # the SDK's retry: an entry with a known uuid is stored once
    await store.append({**key, "subpath": "subagents/agent-1"}, turn(session_id, "Look.", "Done."))
    await rename_session_via_store(store, session_id, "About leases", directory=folder)
    fork = await fork_session_via_store(store, session_id, directory=folder)
    for found in await list_sessions_from_store(store, directory=folder):
        messages = await get_session_messages_from_store(store, found.session_id, directory=folder)
        which = "the fork" if found.session_id == fork.session_id else "the session"
        print(f"{which}: {found.summary}, {len(messages)} messages")
    async with SessionsDB(url) as db:
        id = store.stored_id(key)
        for message in await db.broker.history(id):
            if message.role != "system":  # the SDK's own entries, such as the title
                print(f"{message.role:9} {message.content}")
        for child in await db.broker.list(parent=id):
            print("a subagent:", child.id.removeprefix(f"{id}/"))
    await store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
