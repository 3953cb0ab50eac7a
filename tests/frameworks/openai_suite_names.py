"""The tests of the OpenAI Agents SDK that concern sessions, in its version 0.24.0."""

from __future__ import annotations

URL_VARIABLE = "SESSIONSDB_TEST_SUITE_URL"
"""Names a migrated database on PostgreSQL. Without it the tests run on SQLite."""

PORTABLE = 600
"""How many tests any session passes. The others are named in openai_agents_not_portable.txt."""

FILES = [
    "tests/memory/test_session.py",
    "tests/memory/test_session_limit.py",
    "tests/memory/test_session_context_wrapper.py",
    "tests/memory/test_session_persistence_sanitize.py",
    "tests/memory/test_openai_responses_compaction_session.py",
    "tests/memory/test_compaction_suffix.py",
    "tests/memory/test_compaction_model_visibility.py",
    "tests/memory/test_sqlalchemy_compaction.py",
    "tests/extensions/memory/test_sqlalchemy_session.py",
    "tests/extensions/memory/test_async_sqlite_session.py",
    "tests/extensions/memory/test_encrypt_session.py",
    "tests/deferred_session_writes",
    "tests/test_hitl_session_scenario.py",
    "tests/test_soft_cancel.py",
]
