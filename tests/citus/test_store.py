"""The contract of the store, on Citus."""

from tests.test_store import *  # noqa: F403  all tests of the module run here again

# The names come with the star, which ruff does not look behind.
del test_sqlite_stores_every_time_in_one_form_that_sorts  # noqa: F821

# They count writes by triggers, which Citus does not have on its tables.
del test_a_save_writes_what_changed_and_not_what_was_kept  # noqa: F821
del test_a_new_rendering_of_the_same_messages_rewrites_nothing  # noqa: F821
