"""Runs the benchmarks of the worker, on a SQLite file and a PostgreSQL of their own.

python -m benchmarks [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import claims, wakeups
from tests.support.databases import PostgresServer, SqliteFiles


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, a minute in all")
    quick = parser.parse_args().quick
    out = Console()
    with (
        tempfile.TemporaryDirectory(prefix="sessionsdb-bench-") as folder,
        PostgresServer.started(durable=True) as server,
    ):
        makers = {"SQLite": SqliteFiles(Path(folder)), "PostgreSQL": server}
        out.print(wakeups.table(makers, samples=50 if quick else 200))
        out.print(claims.table(makers, sizes=claims.SIZES[: 2 if quick else 3]))


if __name__ == "__main__":
    main()
