"""search: words in messages, found by each database's own engine."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SearchHit, SearchUnavailable, SessionsDB, SpawnRequest, Turn
from sessionsdb.admin import purge
from sessionsdb.database import open_database_of
from sessionsdb.engine.statement import Statement
from sessionsdb.messages.search_words import matches, parse_query
from sessionsdb.operations import search, search_index
from sessionsdb.operations.postgresql import search as postgresql_search
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.operations.search_types import LAST_ID, Document, Mark, new_id
from sessionsdb.operations.sqlite import search as sqlite_search
from sessionsdb.runtime import search_indexer
from tests.support.loop_share import loop_share
from tests.support.schemas import downgrade, upgrade
from tests.support.waiting import until


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


async def find(db: SessionsDB, query: str, **options: Any) -> list[tuple[str, int]]:
    return [(hit.session_id, hit.seq) for hit in await db.broker.search(query, **options)]


async def prepare(db: SessionsDB, **texts: str) -> None:
    """Index one message for each session."""
    for id, text in texts.items():
        await db.store.append(id, said(text))
    await db.index_search()


# ---- queries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("hello", ["a", "b"]),
        ("HELLO", ["a", "b"]),
        ("hello world", ["a"]),
        ("world hello", ["a"]),
        ('"hello brave"', ["a"]),
        ('"brave hello"', []),
        ('"brave new world"', ["a"]),
        ('"brave new worl"', []),
        ('"rave new"', []),
        ('"hello brave" "new world"', ["a"]),
        ("日本*", ["d"]),
        ("本日*", []),
        ("hello -world", ["b"]),
        ('hello -"brave new"', ["b"]),
        ("hel", []),
        ("hel*", ["a", "b"]),
        ("strasse", ["c"]),
        ("STRASSE uber", ["c"]),
        ("日本", ["d"]),
        ("本日", []),
        ("テキ", ["d"]),
        ("प्रतिदिन", ["e"]),
        ("list", ["f"]),
        ("sessions_list", ["f"]),
        ("list_sessions", []),
        ("مرحبا", ["g"]),
        # Nothing is an operator of an engine, and nothing is a syntax error.
        ("hello AND world", []),
        ("hello NEAR(world)", []),
        ("words: hello", []),
        ('hello"', ["a", "b"]),
        ("hello' | !& <-> :*", ["a", "b"]),
        ("\\hello ^ ( { [", ["a", "b"]),
    ],
)
def test_queries_cover_each_text(query: str, found: list[str]) -> None:
    """The comparison of a hit with its message. The engines are compared with it below."""
    assert [id for id, text in TEXTS.items() if matches(parse_query(query), text)] == found


def test_a_long_phrase_is_not_compared_at_each_place_of_its_first_word() -> None:
    query = parse_query('a -"' + "a " * 490 + 'b"')
    calls: list[str] = []
    sys.setprofile(lambda _frame, event, _argument: calls.append(event))
    try:
        found = matches(query, "a " * 16_000)
    finally:
        sys.setprofile(None)
    assert found
    assert len(calls) < 1_000


TEXTS = {
    "a": "Hello brave new world",
    "b": "hello again",
    "c": "Über die Straße",
    "d": "日本語のテキスト",
    "e": "मैं प्रतिदिन पढ़ता हूँ",
    "f": "call sessions_list() first",
    "g": "مَرْحَبًا",
}


async def test_both_engines_find_what_the_comparison_finds(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare(db, **TEXTS)
    monkeypatch.setattr(search, "matches", lambda *_: True)
    queries = [
        *("hello", "HELLO", "hello world", '"hello brave"', '"brave hello"', "hello -world"),
        *('hello -"brave new"', "hel", "hel*", '"hello brave" -new', "strasse", "STRASSE uber"),
        *(
            "日本",
            "本日",
            "テキ",
            "प्रतिदिन",
            "sessions_list",
            "list_sessions",
            "مرحبا",
            "hello AND world",
        ),
        *("hello NEAR(world)", 'hello"', "hello' | !& <-> :*", "\\hello ^ ( { [", "bra* wor*"),
    ]
    for query in queries:
        expected = {id for id, text in TEXTS.items() if matches(parse_query(query), text)}
        assert {id for id, _ in await find(db, query)} == expected, query


@pytest.mark.parametrize("query", ["", "  ", "-", '"', '""', "-hello", '-"a b"', "*", "!?", "\0"])
def test_a_query_without_a_word_is_refused(query: str) -> None:
    with pytest.raises(InvalidArgument, match="has no word to search for"):
        parse_query(query)


async def test_other_arguments_are_refused(db: SessionsDB) -> None:
    with pytest.raises(InvalidArgument, match="has no word to search for"):
        await db.broker.search("-")
    with pytest.raises(InvalidArgument, match="1001 characters"):
        await db.broker.search("x" * 1_001)
    with pytest.raises(InvalidArgument, match="33 words and phrases"):
        await db.broker.search(" ".join(f"w{n}" for n in range(33)))
    with pytest.raises(InvalidArgument, match="must be a string, not int"):
        await db.broker.search(1)
    for cursor in ("", "1-", "1-g", "2-1", "1-ffffffffffffffff"):
        with pytest.raises(InvalidArgument, match="after"):
            await db.broker.search("x", after=cursor)
    with pytest.raises(InvalidArgument, match="limit"):
        await db.broker.search("x", limit=1_001)


# ---- hits ----------------------------------------------------------------------------------------


async def test_hits_come_newest_first_in_pages(db: SessionsDB) -> None:
    for number in range(7):
        await db.store.append(f"chat-{number % 2}", said(f"word {number}"))
        await wait_a_millisecond(db)
    await db.index_search()
    everything = await db.broker.search("word")
    times = [hit.created_at for hit in everything]
    assert times == sorted(times, reverse=True)
    assert [hit.snippet for hit in everything] == [f"word {n}" for n in range(6, -1, -1)]
    pages: list[SearchHit] = []
    while page := await db.broker.search("word", limit=3, after=pages[-1] if pages else None):
        pages += page
    assert pages == everything
    assert await db.broker.search("word", limit=2, after=pages[1].cursor) == everything[2:4]
    assert await db.broker.search("word", limit=0) == []


async def wait_a_millisecond(db: SessionsDB) -> None:
    """Hits are ordered by milliseconds."""
    start = datetime.now(UTC)
    await until(lambda: datetime.now(UTC) - start > timedelta(milliseconds=2))


async def test_a_snippet_is_one_bounded_line_with_the_places_of_the_words(db: SessionsDB) -> None:
    text = "lorem " * 100 + "the\n\x1b[1m Needle\u202e <b>in</b>\tneedles " + "ipsum " * 100
    await prepare(db, a=text)
    [hit] = await db.broker.search("needle in")
    assert len(hit.snippet) <= 200
    assert hit.snippet.startswith("…")
    assert hit.snippet.endswith("…")
    assert hit.snippet.isprintable()
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["Needle", "in"]
    assert SearchHit.model_validate_json(hit.model_dump_json()) == hit
    assert (hit.role, hit.session_id, hit.seq) == ("user", "a", 1)


async def test_reasoning_and_results_of_tools_are_not_searched(db: SessionsDB) -> None:
    await db.store.append(
        "a",
        [
            {"role": "tool", "content": "hidden", "tool_call_id": "1"},
            {"type": "function_call_output", "call_id": "1", "output": "hidden"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hidden"}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": "hidden"},
                    {"type": "tool-result", "output": "hidden"},
                    {"toolResult": {"content": [{"text": "hidden"}]}},
                    {"type": "text", "text": "shown"},
                ],
            },
            {"role": "assistant", "reasoning_content": "hidden", "content": "shown \ud800 \0 x"},
            {"role": "model", "parts": [{"functionResponse": {"response": "hidden"}}]},
        ],
    )
    assert await db.index_search() == 2
    assert await find(db, "hidden") == []
    assert await find(db, "shown") == [("a", 5), ("a", 4)]


async def test_filters_select_the_sessions(db: SessionsDB) -> None:
    await db.broker.register("top", channel="web", peer="ada")
    child = (await db.broker.spawn("top", SpawnRequest(prompt="x"))).id
    grandchild = (await db.broker.spawn(child, SpawnRequest(prompt="x"))).id
    await db.broker.register("other", channel="web", peer="bob")
    for id in ("top", child, grandchild, "other"):
        await db.store.append(id, said("word"))
    await db.index_search()
    await db.broker.end(grandchild)  # ended sessions are searched

    async def ids(**options: Any) -> set[str]:
        return {id for id, _ in await find(db, "word", **options)}

    assert await ids() == {"top", child, grandchild, "other"}
    assert await ids(channel="web") == {"top", "other"}
    assert await ids(channel="web", peer="bob") == {"other"}
    assert await ids(peer="ada") == {"top"}
    assert await ids(root="top") == {"top", child, grandchild}
    assert await ids(root=child) == {child, grandchild}
    assert await ids(root=child, channel="web") == set()
    assert await ids(root="unknown") == set()


async def test_namespaces_are_apart(db: SessionsDB) -> None:
    other = db.in_namespace("other")
    await prepare(db, a="word here")
    assert await find(other, "word") == []
    await prepare(other, a="word there", b="word")
    assert await find(db, "word") == [("a", 1)]
    assert len(await find(other, "word")) == 2
    assert await find(other, "here") == []


async def test_nothing_indexed_is_an_error_and_not_an_empty_page(db: SessionsDB) -> None:
    assert await find(db, "word") == []
    await db.store.append("a", said("word"))
    with pytest.raises(SearchUnavailable, match="namespace default are not indexed"):
        await db.broker.search("word")
    await db.index_search(all_namespaces=True)
    assert await find(db, "word") == [("a", 1)]


# ---- changes -------------------------------------------------------------------------------------


async def documents(database: Database) -> list[tuple[str, int]]:
    rows = await database.query("SELECT session_id, seq FROM search_documents ORDER BY 1, 2")
    return [(id, seq) for id, seq in rows]


async def test_a_message_that_is_gone_or_changed_is_never_shown(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("a", said("old one", "old two", "old three"))
    await db.index_search()
    await db.store.replace("a", 1, said("new one")[0])
    await db.store.truncate("a", keep_through=2)
    # Before the indexer has seen it: nothing stale, and the replaced message by no word.
    assert await find(db, "old") == [("a", 2)]
    assert await find(db, "new") == []
    assert await db.index_search() == 1
    assert await find(db, "new") == [("a", 1)]
    assert await documents(database) == [("a", 1), ("a", 2)]
    await db.store.save("a", said("other"))
    assert await find(db, "one") == []
    await db.index_search()
    assert len(await documents(database)) == 1
    await db.store.delete("a")
    assert await documents(database) == []


async def test_a_page_is_filled_past_stale_documents(db: SessionsDB) -> None:
    await db.store.append("a", said(*[f"word {n}" for n in range(120)]))
    await db.index_search()
    await db.store.truncate("a", keep_through=5)
    assert await find(db, "word", limit=3) == [("a", 5), ("a", 4), ("a", 3)]


async def test_long_messages_are_compared_beside_the_event_loop(db: SessionsDB) -> None:
    """Nothing else of the process went on meanwhile, for 0.15 s with 100,000 Greek letters."""
    await db.store.append("chat", said(*["λόγος " * 15_000] * 10))
    await db.index_search()
    await find(db, "hello")
    with loop_share() as share:
        found = await find(db, "λόγος")
    assert found == [("chat", seq) for seq in range(10, 0, -1)]
    assert share() < 0.6  # 0.9 to 1 on the event loop


async def test_only_the_difference_of_a_transcript_is_written(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("a", said("one", "two", "three"))
    assert await db.index_search() == 3
    before = await database.query("SELECT id FROM search_documents ORDER BY seq")
    await db.store.replace("a", 3, said("four")[0])
    assert await db.index_search() == 1
    assert (await database.query("SELECT id FROM search_documents ORDER BY seq"))[:2] == before[:2]
    await db.store.append("a", said("five"))
    assert await db.index_search() == 1
    assert await db.index_search() == 0


async def test_a_session_made_again_under_its_id_is_indexed_anew(db: SessionsDB) -> None:
    await prepare(db, a="first", b="other")
    await db.store.delete("a")
    await db.store.append("a", said("second"))
    assert await find(db, "first") == []
    await db.index_search()
    assert await find(db, "first") == []
    assert await find(db, "second") == [("a", 1)]


async def test_purge_takes_the_words_of_its_messages_along(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("a", said("word one", "word two"))
    await db.index_search()
    later = datetime.now(UTC) + timedelta(days=1)
    await db.store.append("a", said("word three"))
    await purge.purge(db, RetentionRules(messages_before=later))
    assert await documents(database) == []
    await db.store.append("a", said("word four"))
    assert await db.index_search() == 1
    assert await find(db, "word") == [("a", 4)]
    await db.broker.end("a")
    await purge.purge(db, RetentionRules(ended_before=later))
    assert await database.query("SELECT * FROM search_marks") == []


async def test_forks_are_found(db: SessionsDB) -> None:
    await prepare(db, a="word")
    fork = await db.broker.fork("a")
    assert await db.index_search() == 1
    assert set(await find(db, "word")) == {("a", 1), (fork.id, 1)}


async def test_a_session_that_is_forked_thousands_of_times_is_indexed(db: SessionsDB) -> None:
    """The messages of all forks have one time and one seq."""
    await db.store.append("template", said("word"))
    await db.index_search()
    for _ in range(11):
        await asyncio.gather(*(db.broker.fork("template") for _ in range(100)))
    assert await db.index_search() == 1_100
    await db.store.append("later", said("word"))
    await db.index_search()
    hits = await db.broker.search("word", limit=1_000)
    hits += await db.broker.search("word", limit=1_000, after=hits[-1])
    assert len({hit.session_id for hit in hits}) == 1_102
    assert hits[0].session_id == "later"


@pytest.mark.parametrize("milliseconds", [-1, 0, 1_800_000_000_000, 2**42 - 1, 2**60])
def test_documents_of_one_time_and_seq_have_an_id_each(milliseconds: int) -> None:
    for seq in (1, 2**11 - 1):
        document = Document(seq, milliseconds, 0, [])
        taken: set[int] = set()
        for _ in range(5_000):
            free = (new_id(document, attempt) for attempt in range(40))
            taken.add(next(id for id in free if id not in taken))
        assert len(taken) == 5_000
        time = min(max(milliseconds, 0), 2**42 - 1)
        assert {id >> 21 for id in taken} == {time}
        assert max(taken) < LAST_ID


def test_a_time_that_has_no_room_left_takes_ids_of_the_times_beside_it() -> None:
    for milliseconds in (0, 1_800_000_000_000, 2**42 - 1):
        ids = {new_id(Document(1, milliseconds, 0, []), attempt) for attempt in range(12, 100)}
        assert len({id >> 21 for id in ids}) > 10
        assert min(ids) >= 0
        assert max(ids) < LAST_ID


async def test_a_long_transcript_takes_several_batches(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "PART_MESSAGES", 60)
    monkeypatch.setattr(search_index, "PAGE_MESSAGES", 25)
    monkeypatch.setattr(search_indexer, "PAGE_SESSIONS", 2)
    for id in ("a", "b", "c", "d", "e"):
        await db.store.append(id, said(*[f"word n{n}" for n in range(130)]))
    assert await db.index_search() == 650
    assert await find(db, "n129 word", limit=1) != []
    assert len(await find(db, "word", limit=1_000)) == 650
    await db.store.replace("c", 1, said("other")[0])
    await db.store.replace("c", 128, said("other")[0])
    assert await db.index_search() == 2


# ---- races ---------------------------------------------------------------------------------------


async def read_and_tell(db: SessionsDB) -> list[Any]:
    """Read all that is due, as an indexer does before it writes."""
    access = open_database_of(db)
    await access.write_repeatable(search_index.create_index, wakes=())
    page = await access.read(
        partial(search_index.session_page, namespace="default", after=("", ""), limit=10)
    )
    due = [session for session in page if session.is_due]
    parts = await access.read(partial(search_index.read_parts, due=due))
    return [search_index.index_part(part) for part in parts]


async def write(db: SessionsDB, parts: list[Any]) -> set[Any]:
    operation = partial(search_index.write_parts, parts=parts)
    return await open_database_of(db).write_repeatable(operation, wakes=())


async def test_of_two_indexers_at_one_session_only_one_writes(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("a", said("word"))
    one, other = await read_and_tell(db), await read_and_tell(db)
    assert await write(db, one) == {("default", "a")}
    assert await write(db, other) == set()
    await db.store.append("a", said("word"))
    one, other = await read_and_tell(db), await read_and_tell(db)
    assert await write(db, other) == {("default", "a")}
    assert await write(db, one) == set()
    assert await documents(database) == [("a", 1), ("a", 2)]


async def test_two_indexers_at_once_index_each_message_once(
    db: SessionsDB, database: Database
) -> None:
    for number in range(40):
        await db.store.append(f"s{number}", said("word", "word"))
    async with SessionsDB(database.url) as second:
        counts = await asyncio.gather(db.index_search(), second.index_search())
    assert sum(counts) == 80
    assert len(await documents(database)) == 80


@pytest.mark.parametrize("change", ["rewrite", "purge", "delete", "again"])
async def test_a_change_between_reading_and_writing_is_found_later(
    db: SessionsDB, database: Database, change: str
) -> None:
    await db.store.append("a", said("old one", "old two"))
    parts = await read_and_tell(db)
    if change == "rewrite":
        await db.store.replace("a", 1, said("new")[0])
    elif change == "purge":
        later = datetime.now(UTC) + timedelta(days=1)
        await purge.purge(db, RetentionRules(messages_before=later))
    else:
        await db.store.delete("a")
        if change == "again":
            await db.store.append("a", said("new"))
    await write(db, parts)
    await db.store.append("b", said("other"))
    await db.index_search()
    stored = {"rewrite": [1, 2], "purge": [], "delete": [], "again": [1]}[change]
    assert await documents(database) == [*(("a", seq) for seq in stored), ("b", 1)]
    assert await find(db, "old one") == []


@pytest.mark.parametrize("change", ["delete", "create"])
async def test_sessions_that_change_the_page_that_is_indexed_hide_no_other(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(search_indexer, "PAGE_SESSIONS", 4)
    monkeypatch.setattr(search_indexer, "BATCH_SESSIONS", 2)
    ids = [f"s{number:02}" for number in range(12)]
    for id in ids:
        await db.store.append(id, said("word"))
    changed: list[str] = []

    async def others_change() -> None:
        async with SessionsDB(database.url) as other:
            for number in range(3):
                if change == "delete":
                    await other.store.delete(ids[number])
                else:
                    await other.store.append(f"a{number}", said("other"))

    def after_the_first_batch(_: int) -> None:
        if not changed:
            changed.append(change)
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, others_change()).result()

    await search_indexer.index_all(open_database_of(db), "default", after_the_first_batch)
    left = ids[3:] if change == "delete" else ids
    assert sorted(id for id, _ in await find(db, "word", limit=100)) == left


async def test_a_purge_between_reading_and_writing_of_an_indexed_session_is_found(
    db: SessionsDB, database: Database
) -> None:
    await prepare(db, a="one")
    await db.store.append("a", said("two"))
    parts = await read_and_tell(db)
    later = datetime.now(UTC) + timedelta(days=1)
    await purge.purge(db, RetentionRules(messages_before=later))
    assert await write(db, parts) == set()
    assert await documents(database) == []


# ---- the indexer of a worker ---------------------------------------------------------------------


async def silent(_: Turn) -> str:
    return "an answer with words"


async def test_a_worker_indexes_new_messages_and_those_from_before_its_start(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_indexer, "INTERVAL_SECONDS", 0.01)
    await db.store.append("before", said("words"))
    worker = db.worker(silent, index_search=True)
    running = asyncio.create_task(worker.run())

    async def found() -> set[tuple[str, int]]:
        try:
            return set(await find(db, "words"))
        except SearchUnavailable:
            return set()

    try:
        await until(lambda: has(found, {("before", 1)}))
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.broker.send("chat", "hello words")
        await until(lambda: has(found, {("before", 1), ("chat", 1), ("chat", 2)}))
    finally:
        await worker.stop()
        await running


async def has(found: Any, wanted: set[tuple[str, int]]) -> bool:
    return bool(await found() == wanted)


async def test_a_commit_with_an_earlier_time_is_found(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a transaction that was open for long, of an import, or of a clock that was set back."""
    monkeypatch.setattr(search_indexer, "INTERVAL_SECONDS", 0.01)
    await prepare(db, a="word", b="word")
    indexer = search_indexer.SearchIndexer(open_database_of(db), ["default"])
    running = asyncio.create_task(indexer.run_forever())
    try:
        await until(lambda: indexer._swept_once)
        await db.store.append("a", said("late"))
        early = "2020-01-01 00:00:00.000000" + ("+00" if database.kind == "postgresql" else "")
        await database.query(f"UPDATE sessions SET updated_at = '{early}' WHERE id = 'a'")

        async def found() -> bool:
            return await find(db, "late") == [("a", 2)]

        await until(found)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_run_until_idle_returns_with_a_full_index(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "question")
    assert await db.worker(silent, index_search=True).run_until_idle() == 1
    assert await find(db, "answer") == [("chat", 2)]
    other = db.in_namespace("other")
    await other.store.append("x", said("answer"))
    await db.worker(silent, namespaces="*", index_search=True).run_until_idle()
    assert await find(other, "answer") == [("x", 1)]


async def test_a_worker_without_the_option_reads_and_writes_nothing_of_the_index(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "question")
    await db.worker(silent).run_until_idle()
    assert await database.query("SELECT * FROM search_marks") == []
    assert await documents(database) == []


# ---- the database --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_index_of_a_file_is_sound_after_changes(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("a", said(*[f"word {n}" for n in range(50)]))
    await db.store.append("b", said("word"))
    await db.index_search()
    await db.store.truncate("a", keep_through=10)
    await db.index_search()
    await db.store.delete("b")
    check = "INSERT INTO search_words (search_words, rank) VALUES ('integrity-check', 1)"
    await database.query(check)
    assert await database.query("PRAGMA integrity_check") == [("ok",)]
    assert await database.query("SELECT count(*) FROM search_words WHERE words MATCH 'word'") == [
        (10,)
    ]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_sqlite_without_fts5_says_so_and_does_everything_else(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_search, "_HAS_MODULE", Statement("SELECT 1 WHERE 0"))
    version = sqlite3.sqlite_version
    for call in (db.broker.search("x"), db.index_search()):
        with pytest.raises(SearchUnavailable, match=f"SQLite {version} of this Python has no FTS5"):
            await call
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "question")
    assert await db.worker(silent, index_search=True).run_until_idle() == 1


async def test_the_revision_goes_down_and_up_with_an_index(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await prepare(db, a="word")
    await downgrade(database, "0013")
    assert await database.query("SELECT count(*) FROM messages") == [(1,)]
    await upgrade(database)
    async with SessionsDB(database.url) as db:
        await prepare(db, b="word")
        assert set(await find(db, "word")) == {("a", 1), ("b", 1)}


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("the lion " * 300 + "the zebra", '"the zebra"'),
        ("好的吗" * 300 + "我的猫在家", "我的猫"),
        ("好的吗" * 300 + "我的猫在家", "我的猫*"),
    ],
)
async def test_a_phrase_far_back_in_a_long_message_is_found(
    db: SessionsDB, text: str, query: str
) -> None:
    """PostgreSQL keeps 255 positions of a word."""
    other = text.replace("the zebra", "a zebra").replace("我的猫", "猫")
    await prepare(db, long=text, other=other)
    assert await find(db, query) == [("long", 1)]


async def test_hostile_words_fit_into_a_vector(db: SessionsDB) -> None:
    long = " ".join("ﷺ" * 60 + str(n) for n in range(1_500))
    many = "word " * 19_000
    distinct = " ".join(f"w{n}𝔘" for n in range(12_000))
    await prepare(db, a=long, b=many, c=distinct, d="x" * 1_000_000, e="'\\\"& x'y")
    assert await find(db, "word") == [("b", 1)]
    assert await find(db, "w1𝔘") == [("c", 1)]
    assert await find(db, "x" * 100) == [("d", 1)]
    assert await find(db, "x'y") == [("e", 1)]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_search_uses_the_index(db: SessionsDB, database: Database) -> None:
    await prepare(db, a="word")
    await database.query(
        "INSERT INTO search_documents SELECT n, 'default', 'a', n, n,"
        " to_tsvector('simple', 'w' || n || ' word') FROM generate_series(10, 20000) AS n"
    )
    await database.query("VACUUM ANALYZE search_documents")
    sql = postgresql_search.FIND._for_postgresql
    connection = await database.connect_to_postgres()
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        values = ("'w77'", "default", 2**62, None, None, 20)
        plan = await connection.fetch("EXPLAIN " + sql, *values)
    finally:
        await connection.close()
    text = "\n".join(row[0] for row in plan)
    assert "ix_search_documents_words" in text
    assert "Seq Scan" not in text


def test_a_mark_tells_what_is_due() -> None:
    session = search_index.Indexable(("n", "a"), "i", 10, 2, 3, None)
    assert session.is_due
    assert session.indexed_seq == 0
    assert not session._replace(last_seq=0).is_due
    for mark, due, seq in (
        (Mark(1, 10, 2, 3), False, 10),
        (Mark(1, 9, 2, 3), True, 9),
        (Mark(1, 10, 1, 3), True, 0),
        (Mark(1, 10, 2, 0), True, 0),
    ):
        marked = session._replace(mark=mark)
        assert (marked.is_due, marked.indexed_seq) == (due, seq)
