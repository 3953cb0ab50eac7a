"""An error stays what it is in a copy and in another process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from sessionsdb import (
    CircularWait,
    DamagedValue,
    HopLimitReached,
    QuestionClosed,
    RetryAfter,
    SchemaOutOfDate,
    SessionExists,
    SessionsDBError,
    StorageError,
    UnknownReceipt,
    UnknownSession,
    VersionConflict,
)

ERRORS: list[SessionsDBError] = [
    CircularWait(["a", "b"]),
    DamagedValue("it is no JSON"),
    HopLimitReached("a", "b", 8, "c"),
    QuestionClosed("a:1", "expired"),
    RetryAfter(1.5, "busy"),
    SchemaOutOfDate("0001", "0016"),
    SessionExists("a", for_fork=True),
    StorageError("the database failed"),
    UnknownReceipt("a", 7),
    UnknownSession("a\x00b"),
    VersionConflict("a", 1, 2),
]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_copy_has_the_text_and_the_attributes_of_its_error(
    error: SessionsDBError, copied: Callable[[SessionsDBError], SessionsDBError]
) -> None:
    error.add_note("seen by a test")
    found = copied(error)
    assert type(found) is type(error)
    assert (str(found), found.args, found.__dict__) == (str(error), error.args, error.__dict__)
