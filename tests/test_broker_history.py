"""history: the newest messages, and cursors through all of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessionsdb import InvalidArgument, SessionMessage, SessionsDB, UnknownSession


def said(n: int) -> dict[str, str]:
    return {"role": "user" if n % 2 else "assistant", "content": f"message {n}"}


async def chat(db: SessionsDB, length: int) -> None:
    await db.store.save("chat", [said(n) for n in range(1, length + 1)])


def texts(page: list[SessionMessage]) -> list[str]:
    return [message.content for message in page]


def numbered(*numbers: int) -> list[str]:
    return [f"message {n}" for n in numbers]


async def test_history_is_newest_last(db: SessionsDB) -> None:
    await chat(db, 3)
    page = await db.broker.history("chat")
    assert texts(page) == numbered(1, 2, 3)
    assert [message.role for message in page] == ["user", "assistant", "user"]
    assert all(message.timestamp.tzinfo is not None for message in page)


async def test_without_a_limit_the_last_fifty(db: SessionsDB) -> None:
    await chat(db, 60)
    assert texts(await db.broker.history("chat")) == numbered(*range(11, 61))


async def test_limit_counts_from_the_end(db: SessionsDB) -> None:
    await chat(db, 5)
    assert texts(await db.broker.history("chat", 1)) == numbered(5)
    assert texts(await db.broker.history("chat", limit=2)) == numbered(4, 5)
    assert texts(await db.broker.history("chat", 0)) == []
    assert texts(await db.broker.history("chat", 10**30)) == numbered(1, 2, 3, 4, 5)


async def test_a_limit_that_is_no_count_is_refused(db: SessionsDB) -> None:
    await chat(db, 1)
    limit: Any
    for limit in (-1, 2.0, 0.5, True, False, "3", float("nan")):
        with pytest.raises(InvalidArgument, match="limit"):
            await db.broker.history("chat", limit)


async def test_a_cursor_that_is_no_seq_is_refused(db: SessionsDB) -> None:
    await chat(db, 1)
    cursor: Any
    for cursor in (1.0, "1", True, [1]):
        with pytest.raises(InvalidArgument, match="before"):
            await db.broker.history("chat", before=cursor)
        with pytest.raises(InvalidArgument, match="after"):
            await db.broker.history("chat", after=cursor)


async def test_before_pages_back_through_everything_once(db: SessionsDB) -> None:
    await chat(db, 10)
    for size in (1, 3, 4, 5, 100):
        seen: list[str] = []
        before: int | None = None
        while page := await db.broker.history("chat", size, before=before):
            seen, before = texts(page) + seen, page[0].seq
        assert seen == numbered(*range(1, 11))


async def test_after_pages_forward_through_everything_once(db: SessionsDB) -> None:
    await chat(db, 10)
    for size in (1, 3, 4, 5, 100):
        seen: list[str] = []
        after: int | None = 0
        while page := await db.broker.history("chat", size, after=after):
            seen, after = seen + texts(page), page[-1].seq
        assert seen == numbered(*range(1, 11))


async def test_after_shows_newer_messages_also_over_a_rewrite(db: SessionsDB) -> None:
    await chat(db, 4)
    last = (await db.broker.history("chat"))[-1].seq
    assert await db.broker.history("chat", after=last) == []
    await db.store.save("chat", [said(1), said(7), said(8)])
    assert texts(await db.broker.history("chat", after=last)) == numbered(7, 8)


async def test_before_and_after_together_bound_a_stretch(db: SessionsDB) -> None:
    await chat(db, 6)
    seqs = [message.seq for message in await db.broker.history("chat")]
    assert texts(await db.broker.history("chat", after=seqs[1], before=seqs[4])) == numbered(3, 4)
    assert texts(await db.broker.history("chat", 1, after=seqs[1], before=seqs[4])) == numbered(3)
    assert await db.broker.history("chat", after=seqs[4], before=seqs[1]) == []


async def test_cursors_outside_the_transcript_are_its_ends(db: SessionsDB) -> None:
    await chat(db, 2)
    assert texts(await db.broker.history("chat", before=10**30)) == numbered(1, 2)
    assert texts(await db.broker.history("chat", after=-(10**30))) == numbered(1, 2)
    assert await db.broker.history("chat", before=-(10**30)) == []
    assert await db.broker.history("chat", after=10**30) == []


async def test_an_unknown_session_is_refused(db: SessionsDB) -> None:
    pages: list[dict[str, int]] = [{}, {"limit": 0}, {"before": 3}, {"after": 0}]
    for page in pages:
        with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
            await db.broker.history("nobody", **page)


async def test_a_session_without_messages_has_an_empty_history(db: SessionsDB) -> None:
    await db.broker.register("new", channel="cli", peer="ada")
    await db.broker.send("new", "waits, and is not in the transcript yet")
    assert await db.broker.history("new") == []
    assert await db.broker.history("new", limit=0) == []


async def test_a_page_is_bounded_by_the_bytes_of_its_texts(db: SessionsDB) -> None:
    texts = ["é" * 50, "b" * 100, "c" * 100, "d" * 100]
    await db.store.save("long", [{"role": "user", "content": text} for text in texts])

    async def page(max_bytes: int, limit: int = 50, **edge: int) -> list[int | None]:
        found = await db.broker.history("long", limit, max_bytes=max_bytes, **edge)
        assert [one.content for one in found] == [texts[(one.seq or 0) - 1] for one in found]
        return [one.seq for one in found]

    for max_bytes, newest, oldest in (
        (0, [4], [1]),
        (199, [4], [1]),
        (200, [3, 4], [1, 2]),
        (399, [2, 3, 4], [1, 2, 3]),
        (400, [1, 2, 3, 4], [1, 2, 3, 4]),
    ):
        assert await page(max_bytes) == newest
        assert await page(max_bytes, after=-1) == oldest
        assert await page(max_bytes, 2) == newest[-2:]
        assert await page(max_bytes, 2, after=-1) == oldest[:2]
    assert await page(200, before=4) == [2, 3]
    assert await page(200, 0) == []
    assert await page(200, after=4) == []
    pages = await asyncio.gather(
        page(200), db.broker.history("long"), page(0), db.broker.history("long", 1)
    )
    assert [len(one) for one in pages] == [2, 4, 1, 1]
