"""Conversations of Pydantic AI in this database, without a model.

    pip install 'sessionsdb[pydantic-ai]'
    python examples/pydantic_ai_store.py

``TestModel`` answers, so that the program runs without a key.
"""

from __future__ import annotations

import asyncio

from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationConflict
from pydantic_ai.models.test import TestModel

from sessionsdb import SessionsDB
from sessionsdb.adapters.pydantic_ai import ConversationStore

URL = "sqlite:///pydantic-ai.db"


async def main() -> None:
    agent = Agent(TestModel(custom_output_text="It is sunny."))
    store = ConversationStore(URL)
    for prompt in ("What is the weather?", "And tomorrow?"):
        conversation = await store.load("chat-1") or Conversation(conversation_id="chat-1")
        result = await agent.run(prompt, conversation=conversation)
        await store.save(result, scope="ada")
    print(len(result.conversation.messages), "messages")

    # Of two writers at the same time one is told to load again.
    older = await store.load("chat-1")
    assert older is not None
    await store.save(await agent.run("And on Sunday?", conversation=older))
    older.usage.requests += 1
    try:
        await store.save(older)
    except ConversationConflict:
        print("the conversation was changed")

    # A fork shares the messages of its source.
    fork = await store.fork("chat-1", at=2, new_conversation_id="chat-2")
    await store.save(await agent.run("And in Rome?", conversation=fork))
    print(len(fork.messages), "messages were shared")

    # The broker shows the same conversations.
    async with SessionsDB(URL) as db:
        for shown in await db.broker.list(channel="pydantic-ai"):
            print(shown.id, [message.content for message in await db.broker.history(shown.id)])


if __name__ == "__main__":
    asyncio.run(main())
