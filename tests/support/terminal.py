"""A program on a terminal of its own, which a test types to."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.command_line import environment

_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_END_OF_LINE = "\x1b[?2004l\r"
"""What readline writes when Enter was pressed."""

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """The screen and the keyboard of a program. The text of the screen is kept without styles."""

    def __init__(self, file: int, process: subprocess.Popen[bytes]) -> None:
        self._file = file
        self.process = process
        self._raw = b""
        self._read_to = 0

    @property
    def text(self) -> str:
        """All text so far, without the sequences of styles and cursors."""
        text = self.raw.replace("\r\n", "\n").replace(_END_OF_LINE, "")
        return _SEQUENCES.sub("", text)

    @property
    def raw(self) -> str:
        return self._raw.decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def read_until(self, text: str, *, within: float = 60.0) -> str:
        """Wait for ``text`` behind what was read so far, and return the text up to its end."""
        deadline = time.monotonic() + within
        while (found := self.text.find(text, self._read_to)) < 0:
            assert self._read(deadline - time.monotonic()), f"no {text!r} in {self.text!r}"
        begin, self._read_to = self._read_to, found + len(text)
        return self.text[begin : self._read_to]

    def read_to_end(self, *, within: float = 60.0) -> str:
        """Wait until the program has ended, and return the text that was not read yet."""
        deadline = time.monotonic() + within
        while self._read(deadline - time.monotonic()):
            pass
        self.process.wait(timeout=max(1.0, deadline - time.monotonic()))
        begin, self._read_to = self._read_to, len(self.text)
        return self.text[begin:]

    def echoes(self) -> bool:
        """Return whether the terminal is in the mode that a shell needs."""
        mode = termios.tcgetattr(self._file)[3]
        return bool(mode & termios.ECHO) and bool(mode & termios.ICANON)

    def _read(self, seconds: float) -> bool:
        """Read more output. Return false at its end, and fail after some time."""
        deadline = time.monotonic() + seconds
        while True:
            # Our side of the terminal stays open, so its end is no event.
            has_ended = self.process.poll() is not None
            ready, _, _ = select.select([self._file], [], [], 0 if has_ended else 0.05)
            if ready:
                self._raw += os.read(self._file, 65_536)
                return True
            if has_ended:
                return False
            assert time.monotonic() < deadline, f"nothing more came behind {self.text!r}"


@contextmanager
def on_terminal(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    columns: int = 80,
    env: Mapping[str, str] | None = None,
) -> Iterator[Terminal]:
    """Run a program with a terminal as its controlling one. It is killed when the block ends."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        # The leader of a session gets the terminal that it opens first: then Ctrl-C is a signal.
        ["/bin/sh", "-c", 'exec "$@" <$0 >$0 2>&1', os.ttyname(side), *map(str, command)],
        cwd=folder,
        env=environment({"TERM": "xterm", **(env or {})}),
        start_new_session=True,
    )
    try:
        yield Terminal(main, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(side)
        os.close(main)
