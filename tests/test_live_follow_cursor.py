"""The cursor of a follower: its form, and what it is refused for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionsdb import InvalidArgument, InvalidCursor, SessionsDB
from sessionsdb.operations.follow_cursor import PHASES, Place, decode, encode, prefix_of
from tests.support.following import following

KEY = ("default", "chat")
BIGINT = st.integers(0, 2**63 - 1)
PLACES = st.builds(
    Place,
    incarnation=st.text("0123456789abcdef", max_size=16),
    seq=BIGINT,
    rewrites=BIGINT,
    tail=BIGINT,
    low=BIGINT,
    finished_at=st.integers(0, 10**16),
    finished_position=BIGINT,
    run=BIGINT,
    attempt=st.integers(0, 2**31 - 1),
    generation=st.integers(0, 2**31 - 1),
    number=BIGINT,
    offset=BIGINT,
    phase=st.integers(0, len(PHASES) - 1),
    ended=st.integers(0, 1),
)


@given(place=PLACES, key=st.tuples(st.text(), st.text(max_size=512)))
def test_a_cursor_is_short_ascii_and_leads_back_to_its_place(
    place: Place, key: tuple[str, str]
) -> None:
    key = (key[0].encode("utf-8", "replace").decode(), key[1].encode("utf-8", "replace").decode())
    cursor = encode(prefix_of(key), place)
    assert len(cursor) <= 256
    assert re.fullmatch(r"1\.[A-Za-z0-9._~-]+", cursor)
    assert decode(key, cursor) == place


CURSOR = encode(prefix_of(KEY), Place("00ff", seq=7, run=2**48))


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "7",
        "1",
        "1.2.3",
        CURSOR + ".0",
        CURSOR[:-2],
        CURSOR[:-1] + "z",
        CURSOR[:-1] + "-1",
        CURSOR[:-1] + " 0",
        CURSOR.replace("1000000000000", "1" + "0" * 16),
        CURSOR.replace("1000000000000", "f" * 17),
        CURSOR.replace("00ff", "xyz"),
        CURSOR[:-3] + "9.0",
        "2" + CURSOR[1:],
        CURSOR.upper().replace("00FF", "00FG"),
        CURSOR.replace("7", "\u0667"),
        "ünïcode",
        "\x00",
        encode(prefix_of(("default", "other")), Place("00ff")),
        encode(prefix_of(("other", "chat")), Place("00ff")),
        encode(prefix_of(("default.chat", "")), Place("00ff")),
    ],
)
async def test_a_cursor_that_is_none_of_this_session_is_refused(
    memory: SessionsDB, cursor: str
) -> None:
    for after in (cursor, {"chat": cursor}):
        async with following(
            memory, "chat", after=after, subtree=isinstance(after, dict)
        ) as follow:
            with pytest.raises(InvalidCursor, match="chat") as refused:
                await follow.next()
            assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("after", [1.5, True, b"start", [], {"chat": 1}, object()])
async def test_another_value_is_refused(memory: SessionsDB, after: object) -> None:
    async with following(memory, "chat", after=after) as follow:
        with pytest.raises(InvalidArgument):
            await follow.next()


@pytest.mark.parametrize("after", [1, "x", {"chat": 1}, {1: CURSOR}, [("chat", CURSOR)], True])
async def test_another_value_is_refused_with_subtree(memory: SessionsDB, after: object) -> None:
    async with following(memory, "chat", after=after, subtree=True) as follow:
        with pytest.raises(InvalidArgument):
            await follow.next()


@pytest.mark.parametrize("after", [5, None, "start", b"x"])
async def test_in_a_subtree_an_error_asks_for_a_cursor(memory: SessionsDB, after: object) -> None:
    async with following(memory, "chat", after={"chat": after}, subtree=True) as follow:
        with pytest.raises(InvalidCursor, match="leave the session out") as refused:
            await follow.next()
    assert "a seq" not in str(refused.value)
    assert "or None" not in str(refused.value)


@pytest.mark.parametrize("after", [-5, 0, 10**30])
async def test_a_seq_may_lie_outside_of_the_transcript(memory: SessionsDB, after: int) -> None:
    async with following(memory, "chat", after=after) as follow:
        told = await follow.take(1)
    assert told == (["rewritten"] if after > 0 else ["message hello"])


@pytest.fixture
async def memory():
    async with SessionsDB("sqlite://") as db:
        await db.store.save("chat", [{"role": "user", "content": "hello"}])
        yield db
