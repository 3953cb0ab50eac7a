"""The names of the cases that peers take part in, and the size of a page.

The results are kept under these names.
"""

APPEND, HISTORY, LOAD = "append two", "read the last 50", "load 1,000"
SAVE, LIST = "save 1,000 with two more", "list a page of 50"

SEND, WORK, WORK_READING = "send", "work off", "work off, reading 50"
WORK_KEEPING = "work off, messages kept"
"""The work of ``WORK`` beside peers whose jobs store the message and the reply themselves."""

UPDATE = "update a session"

PAGE = 50
"""Messages that a history returns, and sessions that a list returns."""
