"""A program without the parts of POSIX that Python has not on Windows.

``python -m tests.support.windows_like ARGUMENT…`` runs a command in it. With ``--many`` it reads a
JSON array of command lines, runs them one after the other, and prints a JSON array of their exit
codes and their output.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NoReturn

# Not fcntl: other packages import it where `sys.platform` is not Windows.
MODULES = ("termios", "tty", "pty", "resource", "pwd", "grp", "readline", "curses")

OF_OS = (
    "chown", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getuid",
    "getpgid", "killpg", "lchown", "mkfifo", "pread", "pwrite", "register_at_fork", "setsid",
    "sysconf", "uname", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
)  # fmt: skip

# Not SIGKILL: on POSIX subprocess itself uses it.
SIGNALS = (
    "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGPIPE", "SIGQUIT", "SIGSTOP",
    "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "pthread_kill", "pthread_sigmask", "siginterrupt",
)  # fmt: skip

OF_SOCKET = ("TCP_USER_TIMEOUT", "SO_REUSEPORT")

OF_THE_LOOP = ("add_signal_handler", "remove_signal_handler", "add_reader", "remove_reader")


def take_posix_away() -> None:
    """Remove all of this from the process, for good."""
    for name in MODULES:
        sys.modules[name] = None
    for module, names in ((os, OF_OS), (signal, SIGNALS), (socket, OF_SOCKET)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    fsync, opened = os.fsync, os.open

    def fsync_of_a_writer(file: int) -> None:
        """Windows refuses it for a file that was opened to read, with EBADF."""
        if file in readers:
            raise OSError(9, "Bad file descriptor")
        fsync(file)

    readers: set[int] = set()

    def open_file(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        """Windows opens no folder."""
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        file = opened(path, flags, *rest, **named)
        (readers.discard if flags & (os.O_WRONLY | os.O_RDWR) else readers.add)(file)
        return file

    os.fsync, os.open = fsync_of_a_writer, open_file

    def missing(*_: object) -> NoReturn:
        raise NotImplementedError

    for name in OF_THE_LOOP:
        setattr(asyncio.SelectorEventLoop, name, missing)


def run_many(lines: list[list[str]]) -> list[dict[str, Any]]:
    from sessionsdb.cli.app import app

    answers = []
    for words in lines:
        out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code: Any = 0
            try:
                app(words, prog_name="sessionsdb")
            except SystemExit as end:
                code = end.code
        out.flush()
        text = out.buffer.getvalue().decode()
        answers.append({"code": code, "stdout": text, "stderr": err.getvalue()})
    return answers


if __name__ == "__main__":
    take_posix_away()
    if sys.argv[1:] == ["--many"]:
        json.dump(run_many(json.load(sys.stdin)), sys.stdout)
    else:
        from sessionsdb.cli import main

        main()
