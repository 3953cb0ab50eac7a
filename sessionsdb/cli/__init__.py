"""The command line: ``sessionsdb``. Built on the package's public names."""

from sessionsdb.cli.app import main

__all__ = ["main"]
