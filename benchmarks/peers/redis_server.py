"""A Redis server for the benchmark: started on a Unix socket, and stopped at the end.

With ``appendfsync always`` an answer comes after the log is on the disk, as after a commit of a
database. All commands of one round of the server share that sync. With ``everysec`` the last second
may be lost.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALWAYS, EVERYSEC = "redis-always", "redis-everysec"

SIDES = {ALWAYS: "always", EVERYSEC: "everysec"}
"""``appendfsync`` of each side."""

MISSING = "redis-server or the package redis is not installed, so Redis was not measured"

START = 10.0
"""The most seconds for the start of the server."""


def is_installed() -> bool:
    return bool(shutil.which("redis-server") and importlib.util.find_spec("redis"))


@contextmanager
def started(side: str) -> Iterator[str]:
    """A server with an empty database. Yields its URL."""
    with tempfile.TemporaryDirectory(prefix="sessionsdb-bench-") as folder:
        socket = Path(folder, "redis.sock")
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "dir": folder,
            "save": "",
            "appendonly": "yes",
            "appendfsync": SIDES[side],
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        server = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + START
            while not socket.exists():
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("redis-server did not start")
                time.sleep(0.02)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait()
