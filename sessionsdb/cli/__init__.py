"""The command line ``sessionsdb``, built on the public names of the package."""

from sessionsdb.cli.app import main

__all__ = ["main"]
