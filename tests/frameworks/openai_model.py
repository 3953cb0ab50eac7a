"""A model for the OpenAI Agents SDK that answers without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, Usage
from openai.types.responses import ResponseOutputMessage, ResponseOutputText


class CountingModel(Model):
    """Answers with the number of items that it was given."""

    async def get_response(
        self, system_instructions: str | None, input: str | list[Any], *_: Any, **__: Any
    ) -> ModelResponse:
        items = 1 if isinstance(input, str) else len(input)
        text = ResponseOutputText(text=f"read {items} items", type="output_text", annotations=[])
        message = ResponseOutputMessage(
            id=f"message-{items}",
            content=[text],
            role="assistant",
            status="completed",
            type="message",
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def counting_agent() -> Agent[None]:
    return Agent("counter", instructions="Count.", model=CountingModel())
