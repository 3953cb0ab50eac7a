"""The command line, run in this process or as a separate program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from sessionsdb.cli.app import app

PROGRAM = Path(sys.executable).with_name("sessionsdb")

PLAIN = {
    "TERM": "dumb",
    "COLUMNS": None,
    "PYTHONUNBUFFERED": None,
    "SESSIONSDB_URL": None,
    "SESSIONSDB_NAMESPACE": None,
}


@dataclass
class Answer:
    """The output and the exit code of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def failed(self, *words: str) -> str:
        """Assert that the command failed with one line that contains ``words``. Return the line."""
        assert self.code == 1, (self.stdout, self.stderr)
        assert self.stderr.count("\n") == 1, self.stderr
        assert self.stderr.startswith("sessionsdb: "), self.stderr
        assert "Traceback" not in self.stderr
        for word in words:
            assert word in self.stderr, self.stderr
        return self.stderr

    def refused(self, *words: str) -> str:
        """Assert that the command refused its arguments for ``words``. Return all that it said."""
        assert self.code == 2, (self.stdout, self.stderr)
        assert self.stderr.startswith("Usage: sessionsdb"), self.stderr
        assert self.stdout == ""
        for word in words:
            assert word in self.stderr, self.stderr
        return self.stderr

    def ok(self) -> Answer:
        assert self.code == 0, (self.stdout, self.stderr)
        return self


class CommandLine:
    """Commands on one database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(
        self, *args: str, input: str | bytes | None = None, env: Mapping[str, str] | None = None
    ) -> Answer:
        """Run a command in this process."""
        result = CliRunner().invoke(
            app, ["--url", self.url, *args], input=input, env={**PLAIN, **(env or {})}
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return Answer(result.exit_code, result.stdout, result.stderr)

    def program(
        self,
        *args: str,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Answer:
        """Run a command as a program."""
        done = subprocess.run(
            [PROGRAM, "--url", self.url, *args],
            input=input,
            capture_output=True,
            env=environment(env),
            cwd=cwd,
            timeout=60,
            check=False,
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without the variables that change the behaviour of the program."""
    ours = {name: value for name, value in os.environ.items() if name not in PLAIN}
    return {**ours, "PYTHONWARNINGS": "error", **(extra or {})}
