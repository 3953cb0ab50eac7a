"""Hand-written records of each foreign form, with the role and the text that they have."""

from __future__ import annotations

from typing import Any

BASE64 = (
    "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg"
)
SECRET = "the user is naive"

Case = tuple[dict[str, Any], str, str]

TEXT_A = {"type": "text", "text": "a"}
PDF = {"mimeType": "application/pdf", "fileUri": "gs://a", "displayName": "a.pdf"}
PNG = f"data:image/png;base64,{BASE64}"


def call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def claude(kind: str, message: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "parentUuid": None,
        "isSidechain": False,
        "sessionId": "s",
        "type": kind,
        "message": message,
        "uuid": "u",
        "timestamp": "2026-01-02T03:04:05.678Z",
        **others,
    }


def codex(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"timestamp": "2026-01-02T03:04:05.678Z", "type": kind, "payload": payload}


OPENAI_CHAT: list[Case] = [
    ({"role": "developer", "content": "Be kind."}, "developer", "Be kind."),
    (
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": PNG}},
                {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
                {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": BASE64}},
            ],
        },
        "user",
        "look\n[image]\n[image]\n[audio]\n[file: a.pdf]",
    ),
    (
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": SECRET,
            "tool_calls": [call("1", "f", '{"a": 1}'), call("2", "g", "{}")],
        },
        "assistant",
        '[tool_use: f input={"a": 1}]\n[tool_use: g input={}]',
    ),
    ({"role": "tool", "tool_call_id": "1", "content": "done"}, "tool", "done"),
    (
        {
            "role": "assistant",
            "content": None,
            "audio": {"id": "a", "data": BASE64, "transcript": "Hello."},
        },
        "assistant",
        "[audio: Hello.]",
    ),
    ({"role": "assistant", "content": None, "refusal": "No."}, "assistant", "No."),
]

OPENAI_RESPONSES: list[Case] = [
    (
        {
            "type": "message",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "See it.",
                    "annotations": [{"type": "url_citation", "url": "https://x.test"}],
                },
                {"type": "refusal", "refusal": "Not that."},
            ],
        },
        "assistant",
        "See it.\nNot that.",
    ),
    (
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "read"},
                {"type": "input_image", "image_url": PNG},
                {"type": "input_file", "filename": "a.pdf", "file_data": BASE64},
            ],
        },
        "user",
        "read\n[image]\n[file: a.pdf]",
    ),
    (
        {"type": "reasoning", "summary": [], "encrypted_content": SECRET},
        "assistant",
        "",
    ),
    (
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'},
        "assistant",
        '[tool_use: f input={"a":1}]',
    ),
    (
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [
                {"type": "input_text", "text": "ok"},
                {"type": "input_image", "image_url": PNG},
            ],
        },
        "tool",
        "[tool_result: ok\n[image]]",
    ),
    (
        {"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": "ls"},
        "assistant",
        "[tool_use: sh input=ls]",
    ),
    (
        {"type": "custom_tool_call_output", "call_id": "c", "output": "a b"},
        "tool",
        "[tool_result: a b]",
    ),
    (
        {
            "type": "web_search_call",
            "status": "completed",
            "action": {"type": "search", "query": "q"},
        },
        "assistant",
        '[tool_use: web_search input={"type":"search","query":"q"}]',
    ),
    (
        {"type": "file_search_call", "queries": ["q"], "results": None},
        "assistant",
        '[tool_use: file_search input=["q"]]',
    ),
    (
        {
            "type": "code_interpreter_call",
            "code": "1+1",
            "outputs": [{"type": "logs", "logs": "2"}, {"type": "image", "url": PNG}],
        },
        "assistant",
        "[tool_use: code_interpreter input=1+1]\n[tool_result: 2\n[image]]",
    ),
    (
        {"type": "computer_call", "call_id": "c", "action": {"type": "click", "x": 1}},
        "assistant",
        '[tool_use: computer input={"type":"click","x":1}]',
    ),
    (
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "image_url": PNG},
        },
        "tool",
        "[tool_result: [image]]",
    ),
    (
        {
            "type": "shell_call_output",
            "call_id": "c",
            "output": [{"stdout": "a", "stderr": "b", "outcome": {"type": "exit"}}],
        },
        "tool",
        "[tool_result: a\nb]",
    ),
    (
        {"type": "image_generation_call", "result": BASE64, "status": "completed"},
        "assistant",
        "[tool_use: image_generation input=null]\n[image]",
    ),
    (
        {"type": "mcp_call", "name": "f", "arguments": "{}", "output": "ok", "error": None},
        "assistant",
        "[tool_use: f input={}]\n[tool_result: ok]",
    ),
    (
        {"type": "mcp_call", "name": "f", "arguments": "{}", "output": None, "error": "down"},
        "assistant",
        "[tool_use: f input={}]\n[tool_error: down]",
    ),
    (
        {"type": "mcp_approval_request", "name": "f", "arguments": "{}"},
        "assistant",
        "[tool_use: f input={}]",
    ),
    (
        {"type": "mcp_approval_response", "approve": False, "reason": "no"},
        "user",
        "[denied: no]",
    ),
    ({"type": "item_reference", "id": "i"}, "assistant", "[item_reference]"),
    ({"type": "compaction", "encrypted_content": SECRET}, "assistant", "[summary]"),
]

ANTHROPIC: list[Case] = [
    (
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "data": BASE64}},
                {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
                {"type": "document", "source": {"data": BASE64}, "title": "Bill"},
                {"type": "text", "text": "both"},
            ],
        },
        "user",
        "[image]\n[image]\n[document: Bill]\nboth",
    ),
    (
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": SECRET, "signature": BASE64},
                {"type": "redacted_thinking", "data": SECRET},
                {"type": "text", "text": "Two calls.", "citations": [{"type": "char_location"}]},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "2", "name": "g", "input": {}},
            ],
        },
        "assistant",
        'Two calls.\n[tool_use: f input={"a":1}]\n[tool_use: g input={}]',
    ),
    (
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "1",
                    "content": [{"type": "text", "text": "a"}],
                },
                {"type": "tool_result", "tool_use_id": "2", "content": "b", "is_error": True},
                {"type": "tool_result", "tool_use_id": "3"},
            ],
        },
        "user",
        "[tool_result: a]\n[tool_error: b]\n[tool_result: ]",
    ),
    (
        {
            "role": "assistant",
            "content": [
                {"type": "server_tool_use", "name": "web_search", "input": {"query": "q"}},
                {
                    "type": "web_search_tool_result",
                    "content": [
                        {
                            "type": "web_search_result",
                            "title": "T",
                            "url": "https://x.test",
                            "encrypted_content": BASE64,
                        }
                    ],
                },
                {
                    "type": "web_search_tool_result",
                    "content": {
                        "type": "web_search_tool_result_error",
                        "error_code": "max_uses_exceeded",
                    },
                },
                {
                    "type": "code_execution_tool_result",
                    "content": {
                        "type": "code_execution_result",
                        "stdout": "2",
                        "stderr": "",
                        "return_code": 0,
                        "content": [],
                    },
                },
            ],
        },
        "assistant",
        '[tool_use: web_search input={"query":"q"}]\n[tool_result: T https://x.test]\n'
        "[tool_error: max_uses_exceeded]\n[tool_result: 2]",
    ),
]

GEMINI: list[Case] = [
    (
        {
            "role": "user",
            "parts": [
                {"text": "hear"},
                {"inlineData": {"mimeType": "audio/wav", "data": BASE64}},
                {"inline_data": {"mime_type": "image/png", "data": BASE64}},
                {
                    "fileData": {
                        "mimeType": "application/pdf",
                        "fileUri": "gs://a",
                        "displayName": "a.pdf",
                    }
                },
                {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a"}},
            ],
        },
        "user",
        "hear\n[audio]\n[image]\n[file: a.pdf]\n[video]",
    ),
    (
        {
            "role": "model",
            "parts": [
                {"text": SECRET, "thought": True},
                {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": BASE64},
                {"functionCall": {"name": "g", "args": {}}},
                {"executableCode": {"language": "PYTHON", "code": "1+1"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_FAILED", "output": "boom"}},
            ],
        },
        "model",
        '[tool_use: f input={"a":1}]\n[tool_use: g input={}]\n'
        '[tool_use: code_execution input={"language":"PYTHON","code":"1+1"}]\n'
        "[tool_result: 2]\n[tool_error: boom]",
    ),
    (
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "f", "response": {"result": "ok"}}},
                {"functionResponse": {"name": "g", "response": {"error": "down"}}},
                {"functionResponse": {"name": "h", "response": {"a": 1}}},
            ],
        },
        "user",
        '[tool_result: ok]\n[tool_error: down]\n[tool_result: {"a":1}]',
    ),
    ({"parts": [{"text": ""}, {"text": "no role"}]}, "assistant", "no role"),
]

ADK: list[Case] = [
    (
        {
            "id": "e",
            "author": "user",
            "invocationId": "i",
            "timestamp": 1767323045.5,
            "content": {"role": "user", "parts": [{"text": "hi"}]},
            "actions": {"stateDelta": {}},
        },
        "user",
        "hi",
    ),
    (
        {
            "author": "root_agent",
            "invocation_id": "i",
            "content": {
                "role": "model",
                "parts": [
                    {"text": SECRET, "thought": True},
                    {"text": "I ask."},
                    {"function_call": {"name": "f", "args": {"a": 1}}},
                ],
            },
        },
        "assistant",
        'I ask.\n[tool_use: f input={"a":1}]',
    ),
    (
        {
            "author": "root_agent",
            "invocationId": "i",
            "content": {
                "role": "user",
                "parts": [{"functionResponse": {"name": "f", "response": {"result": "ok"}}}],
            },
        },
        "tool",
        "[tool_result: ok]",
    ),
    (
        {
            "author": "root_agent",
            "invocationId": "i",
            "actions": {"stateDelta": {"a": 1}, "artifactDelta": {}, "skipSummarization": None},
        },
        "assistant",
        '[actions: {"stateDelta":{"a":1}}]',
    ),
    (
        {"author": "root_agent", "invocationId": "i", "errorCode": "X", "errorMessage": "down"},
        "assistant",
        "[error: down]",
    ),
]

BEDROCK: list[Case] = [
    (
        {
            "role": "user",
            "content": [
                {"text": "look"},
                {"image": {"format": "png", "source": {"bytes": BASE64}}},
                {"document": {"format": "pdf", "name": "Bill", "source": {"bytes": BASE64}}},
                {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://a"}}}},
                {"audio": {"format": "wav", "source": {"bytes": BASE64}}},
                {"cachePoint": {"type": "default"}},
                {"guardContent": {"text": {"text": "guarded"}}},
            ],
        },
        "user",
        "look\n[image]\n[document: Bill]\n[video]\n[audio]\nguarded",
    ),
    (
        {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": SECRET, "signature": BASE64}}},
                {"text": "I book."},
                {"toolUse": {"toolUseId": "1", "name": "f", "input": {"a": 1}}},
                {"toolUse": {"toolUseId": "2", "name": "g", "input": {}}},
                {"citationsContent": {"content": [{"text": "cited"}], "citations": []}},
            ],
        },
        "assistant",
        'I book.\n[tool_use: f input={"a":1}]\n[tool_use: g input={}]\ncited',
    ),
    (
        {
            "role": "user",
            "content": [
                {
                    "toolResult": {
                        "toolUseId": "1",
                        "content": [
                            {"text": "ok"},
                            {"json": {"n": 1}},
                            {"image": {"format": "png", "source": {"bytes": BASE64}}},
                        ],
                        "status": "success",
                    }
                },
                {"toolResult": {"toolUseId": "2", "content": [{"text": "no"}], "status": "error"}},
            ],
        },
        "user",
        '[tool_result: ok\n{"n":1}\n[image]]\n[tool_error: no]',
    ),
]

LANGCHAIN: list[Case] = [
    ({"type": "human", "data": {"content": "hi", "type": "human"}}, "user", "hi"),
    ({"type": "system", "data": {"content": "s", "type": "system"}}, "system", "s"),
    (
        {
            "type": "ai",
            "data": {
                "type": "ai",
                "content": [
                    {"type": "reasoning", "reasoning": SECRET},
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                ],
                "tool_calls": [
                    {"name": "f", "args": {"a": 1}, "id": "t1", "type": "tool_call"},
                    {"name": "g", "args": {}, "id": "t2", "type": "tool_call"},
                ],
                "invalid_tool_calls": [
                    {
                        "type": "invalid_tool_call",
                        "id": "t3",
                        "name": "h",
                        "args": "{",
                        "error": "x",
                    }
                ],
                "additional_kwargs": {"reasoning_content": SECRET},
            },
        },
        "assistant",
        'a\n[tool_use: f input={"a":1}]\n[tool_use: g input={}]\n[tool_use: h input={]',
    ),
    (
        {"type": "tool", "data": {"content": "out", "tool_call_id": "t1", "status": "success"}},
        "tool",
        "out",
    ),
    (
        {"type": "tool", "data": {"content": "no", "tool_call_id": "t1", "status": "error"}},
        "tool",
        "[tool_error: no]",
    ),
    ({"type": "chat", "data": {"content": "x", "role": "critic"}}, "critic", "x"),
    (
        {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "messages", "HumanMessage"],
            "kwargs": {
                "content": [
                    {"type": "image", "base64": BASE64, "mime_type": "image/png"},
                    {"type": "audio", "base64": BASE64, "mime_type": "audio/wav"},
                ],
                "type": "human",
            },
        },
        "user",
        "[image]\n[audio]",
    ),
    ({"type": "AIMessageChunk", "data": {"content": "part"}}, "assistant", "part"),
]

PYDANTIC_AI: list[Case] = [
    (
        {
            "kind": "request",
            "parts": [
                {"part_kind": "system-prompt", "content": "Be kind."},
                {
                    "part_kind": "user-prompt",
                    "timestamp": "2026-01-02T03:04:05Z",
                    "content": [
                        "look",
                        {"kind": "image-url", "url": "https://x.test/a.png"},
                        {"kind": "binary", "data": BASE64, "media_type": "audio/wav"},
                        {"kind": "binary", "data": BASE64, "media_type": "image/png"},
                        {"kind": "document-url", "url": "https://x.test/a.pdf"},
                        {"kind": "cache-point"},
                    ],
                },
            ],
        },
        "user",
        "Be kind.\nlook\n[image]\n[audio]\n[image]\n[document]",
    ),
    (
        {
            "kind": "response",
            "timestamp": "2026-01-02T03:04:05Z",
            "parts": [
                {"part_kind": "thinking", "content": SECRET},
                {"part_kind": "text", "content": "hi"},
                {
                    "part_kind": "tool-call",
                    "tool_name": "f",
                    "args": '{"a":1}',
                    "tool_call_id": "1",
                },
                {"part_kind": "tool-call", "tool_name": "g", "args": {}, "tool_call_id": "2"},
            ],
        },
        "assistant",
        'hi\n[tool_use: f input={"a":1}]\n[tool_use: g input={}]',
    ),
    (
        {
            "kind": "request",
            "parts": [
                {"part_kind": "tool-return", "tool_name": "f", "content": {"r": 1}},
                {
                    "part_kind": "tool-return",
                    "tool_name": "g",
                    "content": "no",
                    "outcome": "failed",
                },
                {"part_kind": "retry-prompt", "tool_name": "h", "content": "again"},
            ],
        },
        "tool",
        '[tool_result: {"r":1}]\n[tool_error: no]\n[tool_error: again]',
    ),
    (
        {"kind": "request", "parts": [{"part_kind": "system-prompt", "content": "s"}]},
        "system",
        "s",
    ),
    (
        {"kind": "request", "parts": [{"part_kind": "retry-prompt", "content": "plain text"}]},
        "user",
        "plain text",
    ),
]

VERCEL: list[Case] = [
    (
        {
            "id": "m",
            "role": "user",
            "parts": [
                {"type": "text", "text": "look"},
                {"type": "file", "mediaType": "image/png", "url": PNG},
                {"type": "file", "mediaType": "application/pdf", "filename": "a.pdf", "url": PNG},
            ],
        },
        "user",
        "look\n[image]\n[file: a.pdf]",
    ),
    (
        {
            "id": "m",
            "role": "assistant",
            "parts": [
                {"type": "step-start"},
                {"type": "reasoning", "text": SECRET},
                {
                    "type": "tool-weather",
                    "toolCallId": "1",
                    "state": "output-available",
                    "input": {"city": "Rome"},
                    "output": {"c": 20},
                },
                {
                    "type": "tool-weather",
                    "toolCallId": "2",
                    "state": "output-error",
                    "input": {},
                    "errorText": "down",
                },
                {
                    "type": "dynamic-tool",
                    "toolName": "f",
                    "toolCallId": "3",
                    "state": "input-available",
                    "input": {"a": 1},
                },
                {"type": "source-url", "sourceId": "s", "url": "https://x.test", "title": "T"},
                {"type": "text", "text": "Warm."},
            ],
        },
        "assistant",
        '[tool_use: weather input={"city":"Rome"}]\n[tool_result: {"c":20}]\n'
        "[tool_use: weather input={}]\n[tool_error: down]\n"
        '[tool_use: f input={"a":1}]\n[source: T https://x.test]\nWarm.',
    ),
    (
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "ok"},
                {"type": "tool-call", "toolCallId": "1", "toolName": "f", "input": {"a": 1}},
            ],
        },
        "assistant",
        'ok\n[tool_use: f input={"a":1}]',
    ),
    (
        {
            "role": "tool",
            "content": [
                {
                    "type": "tool-result",
                    "toolCallId": "1",
                    "toolName": "f",
                    "output": {"type": "text", "value": "done"},
                },
                {
                    "type": "tool-result",
                    "toolCallId": "2",
                    "toolName": "g",
                    "output": {"type": "error-json", "value": {"code": 1}},
                },
            ],
        },
        "tool",
        '[tool_result: done]\n[tool_error: {"code":1}]',
    ),
    (
        {
            "id": "m",
            "role": "assistant",
            "content": "Warm.",
            "parts": [
                {
                    "type": "tool-invocation",
                    "toolInvocation": {
                        "state": "result",
                        "toolName": "f",
                        "args": {"a": 1},
                        "result": "20",
                    },
                },
                {"type": "text", "text": "Warm."},
            ],
        },
        "assistant",
        '[tool_use: f input={"a":1}]\n[tool_result: 20]\nWarm.',
    ),
]

SHAREGPT: list[Case] = [
    ({"from": "system", "value": "s"}, "system", "s"),
    ({"from": "human", "value": "hi"}, "user", "hi"),
    ({"from": "gpt", "value": "hello"}, "assistant", "hello"),
    (
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        "assistant",
        '[tool_use: f input={}]',
    ),
    ({"from": "function_call", "value": "f(1)"}, "assistant", "[tool_use: f(1)]"),
    ({"from": "observation", "value": "out"}, "tool", "out"),
]  # fmt: skip

SWE_AGENT: list[Case] = [
    (
        {
            "thought": "I look.",
            "action": "ls\n",
            "observation": "a.py",
            "response": "I look.\n```\nls\n```",
            "state": {"open_file": "n/a"},
        },
        "assistant",
        'I look.\n[tool_use: bash input={"command":"ls"}]\n[tool_result: a.py]',
    ),
    (
        {
            "role": "user",
            "content": [{"type": "text", "text": "Fix it."}],
            "agent": "main",
            "message_type": "observation",
        },
        "user",
        "Fix it.",
    ),
]

OPENHANDS: list[Case] = [
    (
        {
            "kind": "SystemPromptEvent",
            "source": "agent",
            "system_prompt": {"type": "text", "text": "Be kind."},
            "tools": [],
        },
        "system",
        "Be kind.",
    ),
    (
        {
            "kind": "MessageEvent",
            "source": "user",
            "llm_message": {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image", "image_urls": [PNG]},
                ],
            },
        },
        "user",
        "look\n[image]",
    ),
    (
        {
            "kind": "ActionEvent",
            "source": "agent",
            "thought": [{"type": "text", "text": "I list."}],
            "reasoning_content": SECRET,
            "action": {"kind": "TerminalAction", "command": "ls"},
            "tool_name": "terminal",
            "tool_call_id": "1",
            "tool_call": {"id": "1", "name": "terminal", "arguments": '{"command": "ls"}'},
        },
        "assistant",
        'I list.\n[tool_use: terminal input={"command": "ls"}]',
    ),
    (
        {
            "kind": "ObservationEvent",
            "source": "environment",
            "tool_name": "terminal",
            "tool_call_id": "1",
            "observation": {
                "kind": "TerminalObservation",
                "content": [{"type": "text", "text": "a.py"}],
                "is_error": False,
            },
        },
        "tool",
        "[tool_result: a.py]",
    ),
    (
        {"kind": "AgentErrorEvent", "source": "agent", "tool_name": "f", "error": "no such tool"},
        "tool",
        "[tool_error: no such tool]",
    ),
    (
        {"kind": "Condensation", "source": "environment", "summary": "So far."},
        "system",
        "[summary: So far.]",
    ),
    (
        {
            "id": 1,
            "source": "user",
            "message": "Fix it.",
            "action": "message",
            "args": {"content": "Fix it.", "image_urls": [PNG]},
        },
        "user",
        "Fix it.\n[image]",
    ),
    (
        {
            "id": 2,
            "source": "agent",
            "message": "Running",
            "action": "run",
            "args": {"command": "ls", "thought": "I list.", "is_input": False},
        },
        "assistant",
        'I list.\n[tool_use: run input={"command":"ls"}]',
    ),
    (
        {
            "id": 3,
            "source": "agent",
            "cause": 2,
            "observation": "run",
            "content": "a.py",
            "extras": {"exit_code": 0},
            "success": True,
        },
        "tool",
        "[tool_result: a.py]",
    ),
    (
        {"id": 4, "source": "environment", "observation": "error", "content": "no", "extras": {}},
        "tool",
        "[tool_error: no]",
    ),
]

ATIF: list[Case] = [
    ({"step_id": 1, "source": "system", "message": "Be kind."}, "system", "Be kind."),
    (
        {
            "step_id": 2,
            "source": "user",
            "message": [
                {"type": "text", "text": "look"},
                {"type": "image", "source": {"media_type": "image/png", "path": "a.png"}},
            ],
        },
        "user",
        "look\n[image]",
    ),
    (
        {
            "step_id": 3,
            "source": "agent",
            "message": "I list.",
            "reasoning_content": SECRET,
            "tool_calls": [
                {"tool_call_id": "1", "function_name": "f", "arguments": {"a": 1}},
                {"tool_call_id": "2", "function_name": "g", "arguments": {}},
            ],
            "observation": {
                "results": [
                    {"source_call_id": "1", "content": "one"},
                    {"source_call_id": "2", "subagent_trajectory_ref": [{"session_id": "sub"}]},
                ]
            },
        },
        "assistant",
        'I list.\n[tool_use: f input={"a":1}]\n[tool_use: g input={}]\n'
        "[tool_result: one]\n[tool_result: [subagent: sub]]",
    ),
]

CLAUDE_CODE: list[Case] = [
    (claude("user", {"role": "user", "content": "hi"}), "user", "hi"),
    (
        claude(
            "assistant",
            {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": SECRET, "signature": BASE64},
                    {"type": "tool_use", "id": "1", "name": "Bash", "input": {"command": "ls"}},
                ],
            },
        ),
        "assistant",
        '[tool_use: Bash input={"command":"ls"}]',
    ),
    (
        claude(
            "user",
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "1",
                        "content": [
                            {"type": "text", "text": "a.py"},
                            {"type": "image", "source": {"type": "base64", "data": BASE64}},
                        ],
                        "is_error": True,
                    }
                ],
            },
            toolUseResult={"stdout": "a.py", "image": BASE64},
        ),
        "tool",
        "[tool_error: a.py\n[image]]",
    ),
    (
        {"type": "summary", "summary": "Fixed the login", "leafUuid": "u"},
        "system",
        "[summary: Fixed the login]",
    ),
    (
        {
            "type": "system",
            "subtype": "compact_boundary",
            "content": "Conversation compacted",
            "uuid": "u",
            "compactMetadata": {"trigger": "auto", "preTokens": 1},
        },
        "system",
        "Conversation compacted",
    ),
    (
        {"type": "system", "subtype": "turn_duration", "durationMs": 1, "uuid": "u"},
        "system",
        "[turn_duration]",
    ),
    (
        {
            "type": "attachment",
            "uuid": "u",
            "attachment": {"type": "edited_text_file", "filename": "a.py", "snippet": BASE64},
        },
        "system",
        "[edited_text_file: a.py]",
    ),
    ({"type": "file-history-snapshot", "snapshot": {}}, "system", "[file-history-snapshot]"),
    (
        {"type": "assistant", "session_id": "s", "message": {"content": [TEXT_A]}},
        "assistant",
        "a",
    ),
]

CODEX: list[Case] = [
    (
        codex(
            "response_item",
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ),
        "user",
        "hi",
    ),
    (
        codex(
            "response_item",
            {"type": "reasoning", "summary": [], "encrypted_content": SECRET},
        ),
        "assistant",
        "",
    ),
    (
        codex(
            "response_item",
            {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}'},
        ),
        "assistant",
        '[tool_use: shell input={"command":["ls"]}]',
    ),
    (
        codex("response_item", {"type": "function_call_output", "call_id": "c", "output": "a.py"}),
        "tool",
        "[tool_result: a.py]",
    ),
    (
        codex("response_item", {"type": "local_shell_call", "action": {"command": ["ls"]}}),
        "assistant",
        '[tool_use: local_shell input={"command":["ls"]}]',
    ),
    (
        codex("event_msg", {"type": "user_message", "message": "hi", "images": [PNG]}),
        "user",
        "hi\n[image]",
    ),
    (codex("event_msg", {"type": "agent_message", "message": "hello"}), "assistant", "hello"),
    (codex("event_msg", {"type": "agent_reasoning", "text": SECRET}), "system", ""),
    (codex("event_msg", {"type": "token_count", "info": None}), "system", "[token_count]"),
    (codex("session_meta", {"id": "s", "cwd": "/x"}), "system", "[session_meta]"),
    (codex("compacted", {"message": "So far."}), "system", "[summary: So far.]"),
]

AGENT_FRAMEWORK: list[Case] = [
    (
        {
            "type": "message",
            "role": "user",
            "contents": [
                {"type": "text", "text": "look", "additional_properties": {}},
                {"type": "uri", "uri": "https://example.com/a.png", "media_type": "image/png"},
                {
                    "type": "data",
                    "uri": f"data:audio/wav;base64,{BASE64}",
                    "media_type": "audio/wav",
                },
            ],
            "author_name": "alice",
            "additional_properties": {},
        },
        "user",
        "look\n[image]\n[audio]",
    ),
    (
        {
            "type": "message",
            "role": "assistant",
            "contents": [
                {"type": "text_reasoning", "text": SECRET},
                {"type": "text", "text": "I look."},
                {"type": "function_call", "call_id": "c", "name": "look", "arguments": {"a": 1}},
                {"type": "function_call", "call_id": "d", "name": "look", "arguments": '{"a": 2}'},
            ],
            "message_id": "m",
        },
        "assistant",
        'I look.\n[tool_use: look input={"a":1}]\n[tool_use: look input={"a": 2}]',
    ),
    (
        {
            "type": "message",
            "role": "tool",
            "contents": [
                {"type": "function_result", "call_id": "c", "result": "found", "items": []},
                {"type": "function_result", "call_id": "d", "result": "", "exception": "Boom"},
            ],
        },
        "tool",
        "[tool_result: found]\n[tool_error: Boom]",
    ),
]


RECORDS: dict[str, list[Case]] = {
    "claude-code": CLAUDE_CODE,
    "codex": CODEX,
    "pydantic-ai": PYDANTIC_AI,
    "langchain": LANGCHAIN,
    "atif": ATIF,
    "openhands": OPENHANDS,
    "adk": ADK,
    "agent-framework": AGENT_FRAMEWORK,
    "swe-agent": SWE_AGENT,
    "sharegpt": SHAREGPT,
    "vercel": VERCEL,
    "bedrock": BEDROCK,
    "gemini": GEMINI,
    "anthropic": ANTHROPIC,
    "openai-responses": OPENAI_RESPONSES,
    "openai-chat": OPENAI_CHAT,
}
