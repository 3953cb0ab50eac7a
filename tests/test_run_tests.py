"""The runner of the tests deals files to several processes, and sums up honestly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PASSES = "def test_it():\n    pass\n"
FAILS = "def test_it():\n    assert 1 == 2, 'two is not one'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q -p no:cacheprovider\n")
    return tmp_path


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "devtools.run_tests", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def outcome(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """The exit code and the lines of a whole run."""
    with started(folder, *arguments) as process:
        output, _ = process.communicate()
        return process.returncode, output.splitlines()


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / "tests" / f"test_{name}.py").write_text(text)


def test_the_closing_line_sums_all_processes_up(folder: Path) -> None:
    skips = "import pytest\n\ndef test_it():\n    pytest.skip('here')\n"
    write(folder, a=PASSES, b=PASSES + skips.replace("_it", "_other"), c=PASSES)
    code, lines = outcome(folder)
    assert (code, lines[-1]) == (0, "3 passed, 0 failed, 1 skipped")


def test_a_failure_is_shown_whole_and_ends_the_run_with_1(folder: Path) -> None:
    write(folder, a=PASSES, b=FAILS, c=PASSES)
    code, lines = outcome(folder)
    assert (code, lines[-1]) == (1, "2 passed, 1 failed, 0 skipped")
    assert any("two is not one" in line for line in lines)


def test_a_failed_teardown_is_a_failed_test(folder: Path) -> None:
    breaks = "import pytest\n\n@pytest.fixture\ndef broken():\n    yield\n    raise OSError\n\n"
    write(folder, a=f"{breaks}def test_it(broken):\n    pass\n", b=PASSES)
    code, lines = outcome(folder)
    assert (code, lines[-1]) == (1, "1 passed, 1 failed, 0 skipped")


def test_a_run_without_tests_ends_with_1(folder: Path) -> None:
    write(folder, a=PASSES, b=PASSES)
    code, lines = outcome(folder, "--", "-k", "absent")
    assert (code, lines[-1]) == (1, "0 passed, 0 failed, 0 skipped")


def test_a_file_that_cannot_be_imported_ends_the_run_with_1(folder: Path) -> None:
    write(folder, a=PASSES, b="import absent_module\n")
    code, lines = outcome(folder)
    assert code == 1
    assert any("absent_module" in line for line in lines)


def test_the_other_process_goes_on_when_one_dies(folder: Path) -> None:
    dies = "import os\n\ndef test_it():\n    os._exit(3)\n"
    write(folder, a=dies, b=PASSES, c=PASSES, d=PASSES)
    code, lines = outcome(folder)
    assert (code, lines[-1]) == (1, "3 passed, 0 failed, 0 skipped")
    assert any("exit code 3" in line and "tests/test_a.py" in line for line in lines)


def test_the_files_of_a_process_that_dies_last_are_run_by_a_new_one(folder: Path) -> None:
    dies = "import os\n\ndef test_it():\n    os._exit(3)\n"
    write(folder, a=dies, b=PASSES, c=dies, d=PASSES)
    code, lines = outcome(folder, "--jobs", "1")
    assert (code, lines[-1]) == (1, "2 passed, 0 failed, 0 skipped")
    assert not any("Not run" in line for line in lines)


def test_the_longest_file_goes_first(folder: Path) -> None:
    write(folder, a=PASSES, b=PASSES, c=PASSES)
    durations = {f"tests/test_{name}.py": n for n, name in enumerate("abc")}
    (folder / "tests" / "durations.json").write_text(json.dumps(durations))
    _, lines = outcome(folder, "--jobs", "1")
    dealt = [name for line in lines for name in "abc" if f"tests/test_{name}.py:" in line]
    assert dealt == ["c", "b", "a"]


@pytest.fixture
def hanging(folder: Path) -> Path:
    """A FIFO that gets a line when a test hangs, and another when its fixture is closed."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    hangs = (
        "import signal, pytest\n\n"
        "@pytest.fixture\n"
        "def told():\n"
        f"    with open({str(fifo)!r}, 'w', buffering=1) as fifo:\n"
        "        yield fifo\n"
        "        fifo.write('closed\\n')\n\n"
        "def test_it(told):\n    told.write('runs\\n')\n    signal.pause()\n"
    )
    # A process reserves a second file while it runs the last test of the first.
    write(folder, a=hangs, b=hangs, c=hangs, d=hangs)
    return fifo


def test_an_interrupt_stops_all_processes(folder: Path, hanging: Path) -> None:
    with started(folder) as process, hanging.open() as lines:
        assert [lines.readline() for _ in range(2)] == ["runs\n"] * 2
        process.send_signal(signal.SIGINT)
        assert lines.read().splitlines() == ["closed"] * 2
        output, _ = process.communicate()
    assert process.returncode == 1
    assert "Interrupted" in output
    assert output.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_no_process_outlives_a_runner_that_is_killed(folder: Path, hanging: Path) -> None:
    with started(folder) as process, hanging.open() as lines:
        assert [lines.readline() for _ in range(2)] == ["runs\n"] * 2
        process.kill()
        assert lines.read().splitlines() == ["closed"] * 2
