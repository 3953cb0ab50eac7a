"""The operations on the tables: plain functions of a synchronous SQLAlchemy ``Connection``.

An operation reads and writes through its connection and never commits: the caller decides about the
transaction. A hot operation takes a list of requests and returns a result or an error for each, so
that a bad request fails alone.

A write ``x`` whose answer can be lost with the connection has a partner ``find_x``, for example
``send`` and ``find_sent``. The partner is given the same request, and returns the result of the
write if it was committed, ``None`` if not.

Statements that differ by database are in ``sqlite/`` and ``postgresql/``, behind ``dialect.py``.
"""
