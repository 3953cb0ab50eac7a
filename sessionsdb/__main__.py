"""``python -m sessionsdb`` is ``sessionsdb``."""

from sessionsdb.cli.app import main

main()
