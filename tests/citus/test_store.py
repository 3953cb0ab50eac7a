"""The contract of the store, on Citus."""

from tests.test_store import *  # noqa: F403

del test_sqlite_stores_every_time_in_one_form_that_sorts  # type: ignore[name-defined]  # noqa: F821
