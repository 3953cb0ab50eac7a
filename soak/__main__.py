"""Soaks both databases, one after the other.

python -m soak [--minutes 5] [--only sqlite|postgresql] [--seed N] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from soak import report
from soak.figures import Figures
from soak.plan import Plan
from soak.run import KINDS, new_storage, soak


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    kinds = [options.only] if options.only else list(KINDS)
    console = Console()
    folders = Path(tempfile.mkdtemp(prefix="sessionsdb-soak-"))
    console.print(f"seed {seed}, {options.minutes:g} minutes of faults; journals in {folders}")
    runs: list[Figures] = []
    for kind in kinds:
        folder = folders / kind
        folder.mkdir()
        plan = Plan(seconds=options.minutes * 60 / len(kinds), seed=seed)
        with new_storage(kind, folder) as storage:
            runs.append(asyncio.run(soak(plan, storage, folder)))
        report.show(runs[-1:], console)
    if options.json:
        found = [figures.as_json() for figures in runs]
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(report.markdown(runs))
    if any(figures.violations for figures in runs):
        console.print(f"the journals are kept in {folders}")
        return 1
    shutil.rmtree(folders)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="soak", description="Work under faults, and check all promises."
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="minutes of faults, shared by the databases"
    )
    parser.add_argument("--only", choices=KINDS, help="soak one database only")
    parser.add_argument(
        "--seed", type=int, help="the seed of all random choices, printed at the start"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--markdown", type=Path, help="write the tables of docs/reliability.md to this file"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
