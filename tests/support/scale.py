"""The length of the reliability tests: short by default, longer on request.

``SESSIONSDB_TEST_SCALE`` is a whole number that multiplies their examples, rounds or seconds.
``make soak`` sets it.
"""

from __future__ import annotations

import os

SCALE = int(os.environ.get("SESSIONSDB_TEST_SCALE", "1"))

if SCALE < 1:
    raise ValueError(f"SESSIONSDB_TEST_SCALE must be 1 or more, not {SCALE}")
