"""Signals that end a long-running command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

# Windows has no SIGTERM from another process. Ctrl-Break is its own signal there.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)


def on_stop_signal(call: Callable[[str], None]) -> AbstractContextManager[None]:
    """Call ``call`` with the name of each signal that ends a command, while the block runs."""
    return on_signals(STOP_SIGNALS, call)


@contextmanager
def on_signals(numbers: Collection[signal.Signals], call: Callable[[str], None]) -> Iterator[None]:
    """Call ``call`` in the event loop with the name of each of these signals."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for number in numbers:
            handler = partial(call, number.name)
            try:
                loop.add_signal_handler(number, handler)
            except NotImplementedError:  # the event loops of Windows
                stack.callback(_restore, number, _set(number, loop, handler))
            else:
                stack.callback(loop.remove_signal_handler, number)
        yield


def _set(number: signal.Signals, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Any:
    """Set the handler of the process, and return the one before."""

    def handle(*_: object) -> None:
        # Python runs a handler between two operations of any code, and the loop may have ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    return signal.signal(number, handle)


def _restore(number: signal.Signals, handler: Any) -> None:
    # None stands for a handler that was not set from Python, and can't be set again.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)
