"""``python -m sessionsdb.cli`` is ``sessionsdb``."""

from sessionsdb.cli.app import main

main()
