"""The programs in examples/ run, and the imports of docs/frameworks.md exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
PAGE = ROOT / "docs" / "frameworks.md"

OUTPUT = {
    "openai_agents_session": """\
I have read 1 items.
I have read 3 items.
I have read 3 items.
chat-1-again ['hello', 'I have read 1 items.', 'another question', 'I have read 3 items.']
chat-1 ['hello', 'I have read 1 items.']
""",
    "pydantic_ai_store": """\
4 messages
the conversation was changed
2 messages were shared
""",
    "anthropic_agent": """\
Run refund {"order": 7, "euros": 12.5}?
user      My tea was cold.
assistant [tool_use: refund input={"order":7,"euros":12.5}]
user      [tool_result: 12.5 € for order 7 are on their way]
user      yes
assistant Done: 12.5 € for order 7 are on their way.
""",
    "google_adk_agent": """\
asked: Run pay {}?
clerk: In your cart: tea.
clerk: In your cart: tea, honey.
clerk: 2 items are paid.
the user's state: {'cart': []}
""",
    "google_adk_sessions": """\
clerk: In your cart: tea.
clerk: In your cart: tea, honey.
user      tea
assistant [tool_use: add_to_cart input={"item":"tea"}]
tool      [tool_result: In your cart: tea.]
assistant In your cart: tea.
user      honey
assistant [tool_use: add_to_cart input={"item":"honey"}]
tool      [tool_result: In your cart: tea, honey.]
assistant In your cart: tea, honey.
the user's state: {'cart': ['tea', 'honey']}
""",
    "openai_agents_agent": """\
Run refund {"order": 7, "euros": 12.5}?
user      My tea was cold.
assistant [tool_use: refund input={"order":7,"euros":12.5}]
tool      [tool_result: 12.5 € for order 7 are on their way]
user      yes
assistant Your 12.5 € are on their way.
""",
    "pydantic_ai_agent": """\
Run refund {"order": 7, "euros": 12.5}?
user      My tea was cold.
assistant [tool_use: refund input={"order": 7, "euros": 12.5}]
tool      [tool_result: 12.5 € for order 7 are on their way]
user      yes
assistant Done: 12.5 € for order 7 are on their way.
""",
    "langgraph_agent": """\
Refund 12.5 €?
user      My tea was cold.
assistant I have read 1 messages.
user      I want my money back.
user      yes
assistant It is on its way.
""",
    "claude_agent_handler": """\
asked: Run mcp__shop__refund {"order": 7}?
user      My tea was cold.
assistant [tool_use: mcp__shop__refund input={"order":7}]
user      yes
tool      [tool_result: Order 7 is refunded.]
user      Continue from where you left off.
assistant Order 7 is refunded.
""",
    "claude_agent_store": """\
the fork: About leases (fork), 2 messages
the session: About leases, 2 messages
user      What is a lease?
assistant The right to run a turn until a moment.
a subagent: subagents/agent-1
""",
    "agent_framework_history": """\
agent: It rains in Paris. You asked 1 times.
agent: It rains in Rome. You asked 2 times.
user      Paris
assistant [tool_use: weather input={"city":"Paris"}]
tool      [tool_result: It rains in Paris.]
assistant It rains in Paris. You asked 1 times.
user      Rome
assistant [tool_use: weather input={"city":"Rome"}]
tool      [tool_result: It rains in Rome.]
assistant It rains in Rome. You asked 2 times.
""",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if example.stem in OUTPUT:
        assert done.stdout.startswith(OUTPUT[example.stem])
    assert done.stderr == ""


def test_the_page_imports_names_that_exist() -> None:
    blocks = re.findall(
        r"^```python no-run\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 5
    for block in blocks:
        tree = ast.parse(block, mode="exec", type_comments=False, feature_version=None)
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert imports
        exec(compile(ast.Module(imports, []), PAGE.name, "exec"), {})
