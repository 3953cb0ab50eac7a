"""A scripted model for agents of Google ADK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.genai import types
from pydantic import Field


class ScriptedModel(BaseLlm):
    """What the model says depends on the last part of the request.

    - ``add A B``: a call of the tool ``add``. ``add twice A B``: two calls at once.
    - ``loop``: a call of ``add`` at every step.
    - ``hang``: a first word, then nothing, unless the file ``hangs_once`` is there. It is made.
    - the result of a tool: ``It is RESULT.``, and all other texts: ``You said TEXT.``
    """

    requests: list[LlmRequest] = Field(default_factory=list)
    hangs_once: Path | None = None

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        self.requests.append(llm_request)
        last = llm_request.contents[-1].parts[-1]
        text = "" if last.text is None else last.text
        by_user = [one for one in llm_request.contents if one.role == "user"]
        asked = [part.text for one in by_user for part in one.parts if part.text][-1]
        if text.startswith("add ") or asked == "loop":
            numbers = [int(word) for word in text.split() if word.isdigit()] or [1, 1]
            call = types.FunctionCall(name="add", args=dict(zip("ab", numbers, strict=True)))
            calls = [
                types.Part(function_call=call.model_copy()) for _ in range(1 + ("twice" in text))
            ]
            yield self._response([types.Part(text="I add. "), *calls], stream)
            return
        if text == "hang" and self.hangs_once is not None and not self.hangs_once.exists():
            self.hangs_once.touch()
            yield LlmResponse(content=_content([types.Part(text="begun ")]), partial=True)
            await asyncio.Event().wait()
        if last.function_response is not None:
            given = last.function_response.response
            said = f"It is {given.get('result', given.get('error'))}."
        else:
            said = f"You said {text}."
        if stream:
            for word in said.split(" "):
                piece = word if word.endswith(".") else f"{word} "
                yield LlmResponse(content=_content([types.Part(text=piece)]), partial=True)
        yield self._response([types.Part(text=said)], stream)

    def _response(self, parts: list[Any], stream: bool) -> LlmResponse:
        used = types.GenerateContentResponseUsageMetadata(
            prompt_token_count=5, candidates_token_count=2, thoughts_token_count=1
        )
        return LlmResponse(
            content=_content(parts),
            usage_metadata=used,
            model_version=f"{self.model}-1",
            partial=False if stream else None,
        )


def _content(parts: list[Any]) -> types.Content:
    return types.Content(role="model", parts=parts)


def told(request: LlmRequest) -> list[tuple[str, str]]:
    """Return the roles and the texts of a request, calls and results by their names."""
    return [(one.role, " ".join(_shown(part) for part in one.parts)) for one in request.contents]


def _shown(part: Any) -> str:
    if part.function_call is not None:
        return f"call:{part.function_call.name}"
    if part.function_response is not None:
        return f"result:{part.function_response.response}"
    return str(part.text)
