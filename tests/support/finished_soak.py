"""A good soak to tamper with. Each test gets a copy of its journals and its database."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soak import tables
from soak.checker import Verdict, check
from soak.storage_sqlite import SqliteStorage

Entry = dict[str, Any]


class FinishedSoak:
    """The folder of a finished soak on SQLite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = SqliteStorage(folder)

    def copied(self, folder: Path) -> FinishedSoak:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return FinishedSoak(folder)

    def verdict(self) -> Verdict:
        found = tables.read_sqlite(self.storage.path)
        found.integrity = self.storage.integrity_now()
        return check(self.folder, found, "sqlite")

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.storage.path)) as connection:
            return connection.execute(sql, arguments).fetchall()

    def change(self, sql: str, *arguments: object) -> None:
        """Run a statement that must change rows, without foreign keys."""
        with contextlib.closing(sqlite3.connect(self.storage.path)) as connection, connection:
            changed = connection.execute(sql, arguments).rowcount
        assert changed > 0, f"nothing to tamper with: {sql}"

    def entries(self) -> Iterator[Entry]:
        for path in self._journals():
            for line in path.read_text().splitlines():
                yield json.loads(line)

    def find(self, wanted: Callable[[Entry], Any]) -> Entry:
        """The first entry of all journals that ``wanted`` accepts."""
        found = next((entry for entry in self.entries() if wanted(entry)), None)
        assert found is not None, "no such entry in the journals"
        return found

    def rewrite(self, changed: Callable[[Entry], Entry | None]) -> None:
        """Change entries of the journals, or leave them out."""
        touched = 0
        for path in self._journals():
            lines = []
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                new = changed(dict(entry))
                touched += new != entry
                if new is not None:
                    lines.append(json.dumps(new) + "\n")
            path.write_text("".join(lines))
        assert touched, "nothing to tamper with in the journals"

    def answer(self, question: str) -> Entry:
        return self.find(lambda entry: entry.get("told") == question)

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))
