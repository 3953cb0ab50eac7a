"""A conversation with a session: on a terminal, or between standard input and standard output."""
