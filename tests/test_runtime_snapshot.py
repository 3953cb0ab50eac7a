"""Snapshots: equal for equal messages, and for no others."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionsdb.runtime.snapshot import take_snapshot
from tests.support import messages as strategies
from tests.support.messages import HOSTILE

HELLO = {"role": "user", "content": "hello"}


def copy(value: Any) -> Any:
    """Equal messages, made of other objects."""
    match value:
        case dict():
            return {copy(key): copy(one) for key, one in value.items()}
        case list():
            return [copy(one) for one in value]
        case str():
            return "".join(list(value))
    return value


def known(messages: list[Any]) -> Any:
    made = take_snapshot(messages)
    assert made is not None
    return made


@given(st.lists(strategies.messages, max_size=5))
def test_the_same_messages_of_other_objects_have_the_same_snapshot(messages: list[Any]) -> None:
    assert known(messages).is_prefix_of([*copy(messages), HELLO])


def test_one_object_in_two_places_is_as_good_as_two() -> None:
    text = "".join(["a", "b"])
    shared = {"role": "user", "content": text, "more": [text, text]}
    assert known([shared, shared]).is_prefix_of(copy([shared, shared]))


class Word(StrEnum):
    HELLO = "hello"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 0.0}, {"a": -0.0}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": None}, {}),
        ({"a": "1"}, {"a": 1}),
        ({"a": [[], {}]}, {"a": [{}, []]}),
        ({"a": "e\u0301"}, {"a": "\u00e9"}),
        ({"a": "\ud83d\ude00"}, {"a": "\U0001f600"}),
        ({"a": 10**40}, {"a": 10**40 + 1}),
        ({"a": "hello"}, {"a": Word.HELLO}),
    ],
)
def test_what_json_tells_apart_has_another_snapshot(one: Any, other: Any) -> None:
    assert not known([one]).is_prefix_of([other])
    assert not known([HELLO, one]).is_prefix_of([HELLO, other])


def test_what_differs_only_behind_does_not_count_and_what_is_missing_does() -> None:
    made = known([HELLO, HELLO])
    assert made.is_prefix_of([HELLO, HELLO, object()])
    assert not made.is_prefix_of([HELLO])
    assert not made.is_prefix_of([])


@pytest.mark.parametrize("thing", HOSTILE)
def test_what_is_not_of_json_has_no_snapshot_and_is_not_asked(thing: Any) -> None:
    made = take_snapshot([HELLO, thing])
    assert made is None or known([HELLO, thing]).is_prefix_of([HELLO, thing])


class Liar(dict[str, Any]):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AssertionError("nobody may ask")


def test_a_dict_of_ones_own_is_not_asked_to_pickle_itself() -> None:
    assert take_snapshot([Liar(role="user")]) is None
    circle: dict[str, Any] = {}
    circle["self"] = circle
    assert take_snapshot([circle]) is None


@pytest.mark.parametrize("steps", [[1], [0, 3, 1], [20, 19, 18, 17, 16, 15, 14, 13]])
def test_a_list_that_grows_is_known_in_few_parts(steps: list[int]) -> None:
    messages: list[Any] = [HELLO]
    made = known(messages)
    for step in steps * 20:
        more = range(len(messages), len(messages) + step)
        messages = [*messages, *({"role": "user", "content": str(number)} for number in more)]
        made = made.extended_to(messages)
        assert made.is_prefix_of(copy(messages))
        assert made.count == len(messages)
        assert len(made.parts) <= math.log2(len(messages)) + 1
    messages = [*messages, HELLO]
    assert not made.is_prefix_of([*messages[:15], HELLO, *messages[16:]])
