"""The share of the processor's time that the event loop's thread takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def loop_share() -> Iterator[Callable[[], float]]:
    """Give a function that returns the share, 0 to 1, of the time in the block.

    Work on the event loop has a share near 1, however busy the machine is. Garbage is not collected
    meanwhile: any thread may do that for all others.
    """
    share = 0.0
    gc.collect()
    gc.disable()
    try:
        in_thread, in_process = time.thread_time(), time.process_time()
        yield lambda: share
        share = (time.thread_time() - in_thread) / (time.process_time() - in_process)
    finally:
        gc.enable()
