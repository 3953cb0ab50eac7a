"""The replies that running turns stream: ``pieces``."""

from __future__ import annotations

from sqlalchemy import Column, Integer, Table

from sessionsdb.schema.base import BigInt, KeyText, PlainText, UTCDateTime, metadata

# The streamed pieces of replies, see operations/pieces.py. There is no foreign key: pieces that no
# running turn owns are invisible by their epoch, and are swept.
pieces = Table(
    "pieces",
    metadata,
    Column("namespace", KeyText, primary_key=True),
    Column("session_id", KeyText, primary_key=True),
    # The epoch of the lease of the turn that streams.
    Column("epoch", BigInt, primary_key=True, autoincrement=False),
    # How often the worker has written this turn's pieces from the start, because rows of them were
    # lost with a server that failed.
    Column("generation", Integer, primary_key=True, autoincrement=False),
    # The number of the piece in its generation, from 0 on.
    Column("number", BigInt, primary_key=True, autoincrement=False),
    # How many characters of text are before the piece.
    Column("start", BigInt, nullable=False),
    # The text of a piece, or the kind and the JSON of a piece of data.
    Column("text", PlainText),
    Column("kind", PlainText),
    Column("data", PlainText),
    Column("written_at", UTCDateTime, nullable=False),
)
