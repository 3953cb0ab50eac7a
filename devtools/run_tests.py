"""Run the test files side by side, in several pytest processes: ``python -m devtools.run_tests``.

Each process collects all files, then asks this one for the next file, runs it and asks again. The
files are dealt longest first, by the recorded times of ``tests/durations.json``, so that no long
file begins last. A process keeps its session fixtures, such as its PostgreSQL server, from one file
to the next.

pytest-xdist does not serve here: its workers die from tests whose handlers raise
``KeyboardInterrupt``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytest

from devtools.file_queue_plugin import CONNECTION_VARIABLE

DURATIONS = Path("tests/durations.json")

STOP_SECONDS = 30.0
"""After Ctrl-C, the time for the processes to stop their PostgreSQL servers."""


@dataclass
class Worker:
    """A pytest process, and the connection on which it asks for files."""

    process: subprocess.Popen[bytes]
    connection: Connection
    output: IO[bytes]
    counts: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    """The files it has been given and has not reported yet."""

    @property
    def failed(self) -> bool:
        """Whether a test failed, or the process ended before its files did."""
        fine = self.process.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        return not fine or bool(self.counts["failed"] or self.files)

    @property
    def was_stopped(self) -> bool:
        """Whether pytest ended it before the end of a file, as after a failure with ``-x``."""
        ended = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
        return bool(self.files) and self.process.returncode in ended


@contextlib.contextmanager
def started_worker(arguments: Sequence[str]) -> Iterator[Worker]:
    ours, theirs = Pipe()
    with theirs, tempfile.TemporaryFile() as output, ours:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pytest", "-p", "devtools.file_queue_plugin", *arguments],
            env=os.environ | {CONNECTION_VARIABLE: str(theirs.fileno())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            # Ctrl-C comes to this process alone, which passes it on once. A second SIGINT would
            # interrupt pytest while it stops its PostgreSQL server.
            start_new_session=True,
        )
        theirs.close()
        try:
            yield Worker(process, ours, output)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def recorded_durations() -> dict[str, float]:
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def longest_first(files: Sequence[str], durations: dict[str, float]) -> deque[str]:
    """Order the files by their recorded seconds. A file that is not recorded yet is taken for a
    median one of its size."""
    sizes = {file: Path(file).stat().st_size for file in files}
    rates = [durations[file] / sizes[file] for file in files if file in durations]
    rate = statistics.median(rates) if rates else 1.0
    return deque(sorted(files, key=lambda file: -durations.get(file, sizes[file] * rate)))


def deal(workers: Sequence[Worker], files: deque[str]) -> dict[str, float]:
    """Give each worker its next file when it asks, until all of them have ended. Return the
    seconds that each file took."""
    durations: dict[str, float] = {}
    running = [*workers]
    while running:
        ready = wait([worker.connection for worker in running])
        for worker in [worker for worker in running if worker.connection in ready]:
            try:
                report = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                running.remove(worker)
                # It was in the first of its files, and had only reserved the other.
                while len(worker.files) > 1:
                    files.appendleft(worker.files.pop())
                continue
            if report is not None:
                file, seconds, counts = report
                worker.files.remove(file)
                worker.counts.update(counts)
                durations[file] = seconds
                words = ", ".join(f"{number} {word}" for word, number in counts.items())
                print(f"{seconds:7.1f} s  {file}: {words}", flush=True)
                continue
            next_file = files.popleft() if files else None
            if next_file is not None:
                worker.files.append(next_file)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.connection.send(next_file)
    for worker in workers:
        worker.process.wait()
    return durations


def interrupt(workers: Sequence[Worker]) -> None:
    """Let each worker end the test it runs and stop its servers."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, deadline - time.monotonic()))


def run(files: Sequence[str], jobs: int, arguments: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Run the files and print the closing line. Return the exit code and the seconds of the
    files."""
    queue = longest_first(files, recorded_durations())
    interrupted = False
    durations: dict[str, float] = {}
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(started_worker([*arguments, *files]))
            for _ in range(min(jobs, len(files)))
        ]
        try:
            durations = deal(workers, queue)
            # A process may die after the others asked for their last file. What it had reserved is
            # run by a new one. One that takes no file can't start.
            left = len(files)
            while 0 < len(queue) < left and not any(worker.was_stopped for worker in workers):
                left = len(queue)
                workers.append(stack.enter_context(started_worker([*arguments, *files])))
                durations |= deal(workers[-1:], queue)
        except KeyboardInterrupt:
            interrupted = True
            interrupt(workers)
        failed = [worker for worker in workers if worker.failed]
        for worker in failed:
            worker.output.seek(0)
            sys.stdout.write(worker.output.read().decode(errors="replace"))
            if worker.files and not interrupted:
                print(f"The process ended (exit code {worker.process.returncode}) in", end=" ")
                print(", ".join(worker.files))
    counts = sum((worker.counts for worker in workers), Counter())
    if queue and not interrupted:
        print("Not run, because all processes had ended:", ", ".join(queue))
    print("Interrupted" if interrupted else "Finished", f"after {time.monotonic() - began:.0f} s")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    wrong = interrupted or failed or queue or not counts.total()
    return (1 if wrong else 0), durations


SET_UP_BY = {
    "browser": "SESSIONSDB_TEST_BROWSER",
    "citus": "SESSIONSDB_TEST_CITUS_URL",
    "frameworks": "SESSIONSDB_TEST_FRAMEWORKS",
    "openapi": "SESSIONSDB_TEST_OPENAPI",
}
"""Folders of tests that need a server or packages of their own, and the variable that is set where
they are there."""


def find_files(paths: Sequence[Path]) -> list[str]:
    """The test files at these paths and in these folders, relative to the working directory."""
    found = [file for path in paths for file in ([path] if path.is_file() else _below(path))]
    return [os.path.relpath(file) for file in found]


def _below(folder: Path) -> list[Path]:
    """The test files in a folder, without the folders whose needs are not there."""
    left_out = {name for name, variable in SET_UP_BY.items() if variable not in os.environ}
    return sorted(
        file for file in folder.rglob("test_*.py") if left_out.isdisjoint(file.parent.parts)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m devtools.run_tests",
        description="Run the test files side by side.",
        epilog="Arguments after -- go to pytest.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        default=[Path("tests")],
        help="test files and folders; all of tests/ by default",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--record", action="store_true", help=f"write the seconds of the files to {DURATIONS}"
    )
    ours, arguments = sys.argv[1:], []
    if "--" in ours:
        arguments = ours[ours.index("--") + 1 :]
        ours = ours[: ours.index("--")]
    options = parser.parse_args(ours)

    def end(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    code, durations = run(find_files(options.paths), max(1, options.jobs), arguments)
    if options.record:
        seconds = {file: round(seconds, 1) for file, seconds in durations.items()}
        known = recorded_durations() | seconds
        kept = {file: known[file] for file in sorted(known) if Path(file).exists()}
        DURATIONS.write_text(json.dumps(kept, indent=2) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
