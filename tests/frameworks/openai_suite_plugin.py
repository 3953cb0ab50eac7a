"""A pytest plugin for the tests of the OpenAI Agents SDK: they run against our ``Session``.

It is loaded before any test of the SDK imports a session class. It leaves out the tests of the
SDK's own tables, locks and private attributes: those that a simple list in memory fails too.
"""

from __future__ import annotations

from pathlib import Path

import agents
import agents.extensions.memory as extensions
import agents.extensions.memory.async_sqlite_session as async_sqlite
import agents.extensions.memory.sqlalchemy_session as sqlalchemy
import agents.memory
import agents.memory.sqlite_session as sqlite
import pytest
from openai_suite_session import Session

agents.SQLiteSession = agents.memory.SQLiteSession = sqlite.SQLiteSession = Session
sqlalchemy.SQLAlchemySession = extensions.SQLAlchemySession = Session
async_sqlite.AsyncSQLiteSession = extensions.AsyncSQLiteSession = Session

NOT_PORTABLE = frozenset(
    Path(__file__).with_name("openai_agents_not_portable.txt").read_text().split("\n")
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item
        for item in items
        if item.nodeid in NOT_PORTABLE or item.nodeid.partition("[")[0] in NOT_PORTABLE
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
