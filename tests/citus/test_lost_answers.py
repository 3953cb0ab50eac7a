"""Writes whose answers are lost, on Citus."""

from tests.test_engine_lost_answers import *  # noqa: F403
