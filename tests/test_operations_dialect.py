"""The functions that each database has, and the keys of a batch of sends."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import mailbox, postgresql, sqlite
from sessionsdb.operations.dialect import Dialect
from sessionsdb.operations.inbox_types import SENT_COLUMNS, USERS, Send

FUNCTIONS = [
    name for name, value in vars(Dialect).items() if inspect.isfunction(value) and name[0] != "_"
]


def parameters(function: object) -> list[str]:
    assert callable(function)
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("database", [sqlite, postgresql], ids=lambda module: module.__name__)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_database_has_every_function_of_the_dialect(database: ModuleType, name: str) -> None:
    # Positional parameters may have other names: the first ones are positional in the protocol.
    ours, theirs = parameters(getattr(Dialect, name)), parameters(getattr(database, name))
    assert len(theirs) == len(ours)
    assert theirs[1:] == ours[1:]


@pytest.mark.parametrize("database", [sqlite, postgresql], ids=lambda module: module.__name__)
def test_a_database_has_nothing_beside_the_dialect(database: ModuleType) -> None:
    assert sorted(database.__all__) == sorted([*FUNCTIONS, *Dialect.__annotations__])


def request(text: str, key: str | None, session: str = "s") -> Send:
    return Send("n", session, StoredMessage("user", text, None), text, idempotency_key=key)


def test_an_equal_request_repeats_the_first_and_another_one_comes_later() -> None:
    groups = mailbox.group_by_key(
        [
            request("one", "k"),
            request("one", None),
            request("one", "k"),
            request("two", "k"),
            request("one", "k", session="other"),
            request("two", "k"),
        ]
    )
    assert groups.first == [0, 1, 4]
    assert groups.repeats == {2: 0}
    assert groups.later == [3, 5]


def test_a_send_has_a_value_for_each_of_its_columns() -> None:
    sent = dict(zip(SENT_COLUMNS, request("one", "k").columns(USERS), strict=True))
    assert sent["content"] == sent["fingerprint"] == "one"
    assert sent["idempotency_key"] == "k"
    assert sent["hops"] is None
