"""A process that sends and appends to the same sessions as other processes.

Run as ``python -m tests.support.writer_process URL NAME ROUNDS SESSIONS``.
"""

from __future__ import annotations

import asyncio
import random
import sys

from sessionsdb import SessionsDB


async def write(url: str, name: str, rounds: int, sessions: int) -> None:
    chance = random.Random(name)
    ids = [f"s-{n}" for n in range(sessions)]
    async with SessionsDB(url) as db:
        for round in range(rounds):
            chance.shuffle(ids)
            await asyncio.gather(
                *(db.broker.send(id, f"{name} {round}") for id in ids),
                *(
                    db.store.append(id, [{"role": "user", "content": f"{name} {round}"}])
                    for id in reversed(ids)
                ),
            )


if __name__ == "__main__":
    url, name, rounds, sessions = sys.argv[1:]
    asyncio.run(write(url, name, int(rounds), int(sessions)))
