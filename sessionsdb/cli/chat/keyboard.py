"""The keyboard of a terminal, while other things happen too.

Between two lines the terminal does not echo, and keys wait unread in it. The first key leads to
``read_line``, where readline edits the line. So what is typed during a reply is not mixed into it,
and stands in the next line.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
from types import FrameType
from typing import Any

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
"""With bracketed paste the terminal marks pasted text, so that readline takes all lines of it."""


class Keyboard:
    """Standard input as a terminal. For the main thread, which gets the signals."""

    def __init__(self) -> None:
        self._file = sys.stdin.fileno()
        self._is_reading = False
        self._interrupts = 0
        self.is_terminated = False
        """Whether SIGTERM has come."""

    def __enter__(self) -> Keyboard:
        self._has_readline = _load_readline()
        self._marks_pastes = self._has_readline and os.environ.get("TERM", "dumb") != "dumb"
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        # Otherwise a signal that comes just before a wait, or to another thread, would not end it.
        self._wakeup_file = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._saved: list[Any] = termios.tcgetattr(self._file)
        self._handlers = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGINT, self._on_interrupt),
                (signal.SIGTERM, self._on_terminate),
                (signal.SIGCONT, self._on_continue),
            )
        }
        self._quieten()
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_file)
        self._mark_pastes(PASTE_OFF)
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._saved)
        # The pipe stays open: another thread may be about to write to it.

    def wake(self) -> None:
        """End a wait. Any thread may call this."""
        with contextlib.suppress(BlockingIOError):  # full, so the wait ends anyway
            os.write(self._wake, b"\0")

    def wait(self, timeout: float | None, *, keys: bool) -> bool:
        """Wait for ``wake``, a signal, or with ``keys`` a key. Return whether there is a key."""
        files = [self._woken, self._file] if keys else [self._woken]
        ready, _, _ = select.select(files, [], [], timeout)
        if self._woken in ready:
            os.read(self._woken, 65_536)
        return self._file in ready

    def take_interrupt(self) -> bool:
        """Return whether Ctrl-C was pressed since the last call."""
        interrupts, self._interrupts = self._interrupts, 0
        return interrupts > 0

    def read_line(self, prompt: str) -> str:
        """Let the user edit a line, and return it without its end.

        Raises ``EOFError`` at Ctrl-D and at SIGTERM, ``KeyboardInterrupt`` at Ctrl-C, and
        ``UnicodeDecodeError``.
        """
        mode = termios.tcgetattr(self._file)
        if self._has_readline:  # it sets the rest, and echoes only where the terminal would
            mode[3] |= termios.ECHO
        else:
            mode = self._saved
        termios.tcsetattr(self._file, termios.TCSADRAIN, mode)
        try:
            self._is_reading = True
            return input(prompt)
        finally:
            self._is_reading = False
            self._quieten()

    # ---- the terminal and the signals --------------------------------------------------------

    def _quieten(self) -> None:
        mode = termios.tcgetattr(self._file)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._file, termios.TCSADRAIN, mode)
        self._mark_pastes(PASTE_ON)

    def _mark_pastes(self, sequence: str) -> None:
        if self._marks_pastes:
            sys.stdout.write(sequence)
            sys.stdout.flush()

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_reading:
            raise KeyboardInterrupt
        self._interrupts += 1
        self.wake()

    def _on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self.is_terminated = True
        self.wake()
        if self._is_reading:
            raise EOFError

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        # The shell has changed the mode of the terminal while the program was stopped.
        if not self._is_reading:
            self._quieten()


def _load_readline() -> bool:
    try:
        import readline
    except ImportError:
        return False
    # Python turns this off.
    readline.parse_and_bind("set enable-bracketed-paste on")
    return True
