"""Signals that end a long-running command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def on_stop_signal(call: Callable[[str], None]) -> Iterator[None]:
    """Call ``call`` with the name of each SIGTERM and SIGINT while the block runs."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, partial(call, number.name))
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
