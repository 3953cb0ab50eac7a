"""How long the tests of reliability go on: a short form by default, longer ones on request.

``SESSIONSDB_TEST_SCALE`` is a whole number by which they multiply their examples, rounds or
seconds; ``make soak`` sets it.
"""

from __future__ import annotations

import os

SCALE = int(os.environ.get("SESSIONSDB_TEST_SCALE", "1"))

if SCALE < 1:
    raise ValueError(f"SESSIONSDB_TEST_SCALE must be 1 or more, not {SCALE}")
