"""What is done to the tables: plain functions of a synchronous SQLAlchemy ``Connection``.

A function here reads and writes through the connection it is given and never commits: whoever
calls it decides which transaction it is part of. The hot ones take a list of requests and answer
each with its result or with the error it failed with, so that one bad request fails alone.
"""
