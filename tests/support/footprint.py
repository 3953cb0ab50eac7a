"""The resources of a process: memory, threads, files, tasks."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Footprint:
    resident: int
    """Bytes of memory, as the system counts them."""
    traced: int
    """Bytes of Python objects. 0 if ``tracemalloc`` does not run."""
    objects: int
    """Objects that the garbage collector tracks."""
    threads: int
    files: int
    """Descriptors: files, sockets, pipes."""
    tasks: int

    @classmethod
    def now(cls) -> Footprint:
        gc.collect()
        process = psutil.Process()
        return cls(
            resident=process.memory_info().rss,
            traced=tracemalloc.get_traced_memory()[0],
            objects=len(gc.get_objects()),
            threads=threading.active_count(),
            files=process.num_fds(),
            tasks=len(asyncio.all_tasks()),
        )
