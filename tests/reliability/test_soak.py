"""The soak in its short form: every kind of fault at least once on each database, and a verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from soak.nemesis import PROCESS_FAULTS
from soak.plan import Plan
from soak.run import new_storage, soak
from tests.support.scale import SCALE

SHORT = Plan(
    rounds=SCALE,
    between_faults=0.7,
    freeze=4.5,
    hold=2.0,
    shift=6.0,
    long_odds=0.0,
    max_attempts=15,
)


@pytest.mark.timeout(120 * SCALE)
async def test_nothing_promised_is_broken_while_everything_breaks(
    kind: str, tmp_path: Path
) -> None:
    with new_storage(kind, tmp_path) as storage:
        figures = await soak(SHORT, storage, tmp_path)
        assert figures.violations == []
        assert figures.faults.keys() == PROCESS_FAULTS | storage.faults(SHORT).keys()
    # The run did enough to count.
    assert figures.calls > 200
    assert figures.messages["done"] > 100
    assert figures.leases_compared > 50


def test_the_checker_shares_no_code_with_the_package() -> None:
    program = """
import sys
import soak.checker
shared = {"sessionsdb", "sqlalchemy"} & {name.partition(".")[0] for name in sys.modules}
sys.exit(f"the checker imports {shared}" if shared else 0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
