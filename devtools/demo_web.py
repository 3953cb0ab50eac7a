"""Fill a new file with conversations, and serve the pages over it: ``make demo-web``.

A scripted agent answers at a human pace: it streams, spawns children that report, asks before it
deletes, fails, and is scheduled. Ctrl-C ends the demonstration and removes the file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import webbrowser
from pathlib import Path

from sessionsdb import Question, Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.web import serve

REVIEW = """The function adds the amounts, and it forgets refunds:

```python
def total(rows):
    # A refund has a negative amount.
    return sum(row["amount"] for row in rows if row["amount"] > 0)
```

I would drop the condition. A test with one refund shows the difference."""

SUMMARY = """Three things happened in March:

1. Revenue grew by 4 % to 182,400.
2. Two invoices are open: 1041 and 1057.
3. Refunds doubled. Most of them are from one shop."""

FOUND = "Pages 1 to 12 are complete. Page 7 has an entry without a date: invoice 1041."


async def agent(turn: Turn) -> Reply:
    """Answer by the words of the message."""
    if turn.answer is not None:
        message = turn.answer.message
        said = "nothing" if message is None else message.content
        return await streamed(turn, f"You answered: {said}. I have done that.")
    if (turn.messages[0].metadata or {}).get("report"):
        return await streamed(turn, "Thank you. I have noted this report.")
    text = turn.text.lower()
    if "ledger" in text and turn.session.parent is None:
        for month in ("January", "February", "March"):
            turn.spawn(SpawnRequest(prompt=f"Read the pages of {month}", report="each"))
        return await streamed(turn, "I have sent three helpers. Their reports will come here.")
    if "delete" in text:
        await streamed(turn, "There are 3 old reports. I ask before I delete them.")
        return Reply(
            "There are 3 old reports. I ask before I delete them.",
            ask=Question(
                prompt="Delete january.csv, february.csv and march.csv?",
                data={"files": ["january.csv", "february.csv", "march.csv"]},
            ),
        )
    if "pay" in text:
        raise ConnectionError("the bank did not answer within 30 s")
    if "review" in text:
        return await streamed(turn, REVIEW)
    if turn.session.parent is not None:
        return await streamed(turn, FOUND)
    return await streamed(turn, SUMMARY)


async def streamed(turn: Turn, text: str) -> Reply:
    """Stream a text word by word, as a model does."""
    for word in text.split(" "):
        turn.stream(word + " ")
        await asyncio.sleep(0.06)
    return Reply(text, model="demo", input_tokens=len(turn.text), output_tokens=len(text) // 4)


async def talk(db: SessionsDB) -> None:
    """Send the messages of three people, with pauses between them."""
    broker = db.broker
    for id, channel, peer in (
        ("accounts", "web", "ann@example.org"),
        ("review-42", "slack", "bob"),
        ("payments", "mail", "carol@example.org"),
    ):
        await broker.register(id, channel=channel, peer=peer, model="demo")
    await broker.schedule(
        "accounts", "Good morning. What is new?", cron="0 9 * * 1-5", tz="Europe/Berlin", name="day"
    )
    for id, text, author in (
        ("review-42", "Please review the function total().", "Bob"),
        ("accounts", "Summarise March for me.", "Ann"),
        ("payments", "Pay invoice 1057.", "Carol"),
        ("accounts", "Check the whole ledger, please.", "Ann"),
        ("review-42", "Delete the old reports of the last quarter.", "Bob"),
    ):
        await broker.send(id, text, author=author)
        await asyncio.sleep(2.5)
    await db.index_search()


async def main(port: int, *, open_browser: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="sessionsdb-demo-") as folder:
        async with SessionsDB(f"sqlite:///{Path(folder) / 'demo.db'}") as db:
            worker = db.worker(agent, max_attempts=1, index_search=True)
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(worker.run()), tasks.create_task(talk(db))]
                await serve(db, port=port, ready=lambda url: show(url, open_browser=open_browser))
                for task in running:
                    task.cancel()


def show(url: str, *, open_browser: bool) -> None:
    print(f"The agents work now. Look at {url} (Ctrl-C ends it.)", flush=True)
    if open_browser:
        webbrowser.open(url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8700)
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(given.port, open_browser=not given.no_browser))
