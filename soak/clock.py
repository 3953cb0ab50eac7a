"""A wall clock of a process that another process sets forward and back."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo
from typing import Any

from soak.shared_value import SharedValue

PACKAGE = "sessionsdb"


def install(shift: SharedValue) -> None:
    """Let every module of the package read the shifted wall clock, on both databases. The
    monotonic clock stays, as it does when an administrator or NTP sets the time."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=shift.value)

    readers = [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == PACKAGE and getattr(module, "datetime", None) is datetime
    ]
    assert readers, "no module reads the wall clock"
    for module in readers:
        vars(module)["datetime"] = Shifted
