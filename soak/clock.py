"""A process's wall clock that is set forward and back from outside."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo

from soak.dial import Dial

PACKAGE = "sessionsdb"


def install(shift: Dial) -> None:
    """Let every module of the package read the shifted wall clock, on both databases. The
    monotonic clock stays, as it does when an administrator or NTP sets the time."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=shift.value)

    readers = [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == PACKAGE and getattr(module, "datetime", None) is datetime
    ]
    assert readers, "nobody reads the wall clock"
    for module in readers:
        module.datetime = Shifted  # type: ignore[attr-defined]
