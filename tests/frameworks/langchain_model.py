"""A chat model of LangChain that answers from a script, and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import ConfigurableField, Runnable
from pydantic import Field


class ScriptedModel(BaseChatModel):
    """What the model says depends on the last message.

    - ``call``: the calls of ``calls``. ``loop``: the same at each step.
    - ``hang``: a first word, then nothing, if the file ``begun`` is not there. It makes the file.
    - the result of a tool: ``It is RESULT.``, and all other texts: ``You said TEXT.``
    """

    calls: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)
    name_of_model: str = "scripted"
    begun: Path | None = None
    # Any: a copy of the model with another name has the same objects.
    seen: Any = Field(default_factory=list)
    offered: Any = Field(default_factory=list)
    left: Any = Field(default_factory=asyncio.Event)
    """Set when a request that hangs was cancelled."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Runnable[Any, Any]:
        self.offered.append([one.name for one in tools])
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        whole, *others = self._chunks(messages)
        for chunk in others:
            whole += chunk
        return ChatResult(generations=[ChatGeneration(message=whole)])

    async def _astream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        if messages[-1].text == "hang" and self.begun is not None and not self.begun.exists():
            self.begun.touch()
            yield ChatGenerationChunk(message=AIMessageChunk("begun ", id="hanging"))
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        for chunk in self._chunks(messages):
            yield ChatGenerationChunk(message=chunk)

    def _chunks(self, messages: list[BaseMessage]) -> Iterator[AIMessageChunk]:
        self.seen.append(messages)
        last, id = messages[-1], f"answer-{len(self.seen)}"
        asked = [one.text for one in messages if one.type == "human"][-1:]
        if last.text == "call" or asked == ["loop"]:
            yield AIMessageChunk("I call. ", id=id)
            for index, (name, args) in enumerate(self.calls):
                call = {"name": name, "args": args, "id": f"call_{len(messages)}_{index}"}
                yield AIMessageChunk("", id=id, tool_calls=[call])
        else:
            said = (
                f"It is {last.text}." if isinstance(last, ToolMessage) else f"You said {last.text}."
            )
            for word in said.split(" "):
                yield AIMessageChunk(word if word.endswith(".") else f"{word} ", id=id)
        used = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
        model = {"model_name": self.name_of_model}
        yield AIMessageChunk("", id=id, usage_metadata=used, response_metadata=model)


def configurable(model: ScriptedModel) -> Runnable[Any, Any]:
    """Return the model, whose name is a setting of the run as with ``init_chat_model``."""
    return model.configurable_fields(name_of_model=ConfigurableField(id="model"))
