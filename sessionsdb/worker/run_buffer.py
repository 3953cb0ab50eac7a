"""The pieces of one run in the memory of its worker."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from sessionsdb.messages.json_text import dump, utf8_size
from sessionsdb.operations.piece_types import Piece, Run, RunPieces

CUT = "cut"
"""The kind of the piece that says that the rest was dropped."""

RUN_DATA_BYTES = 8 * 1_048_576
"""The data that one run may emit, in bytes of JSON."""

PIECE_BYTES = 64
"""The bytes that each piece of data counts beside its text: its row and its place in memory."""


class RunBuffer:
    """The pieces of one run: to be written, being written, and written.

    Written pieces are kept, because a server that fails may lose them. Then the whole run is
    written anew. The buffer is bounded: ``max_bytes`` of text, and ``RUN_DATA_BYTES`` of data.
    """

    def __init__(self, run: Run, max_bytes: int) -> None:
        self.run = run
        self.closed = False
        """No piece is taken or written any more."""
        self._max_bytes = max_bytes
        self._text_bytes_left = max_bytes
        self._data_bytes_left = RUN_DATA_BYTES
        self._characters = 0
        self._texts: list[str] = []
        """Texts behind the last waiting piece, which become one piece."""
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0
        self.writing: list[Piece] = []
        """The pieces of the write in flight. They are the same when it is tried again."""
        self._written: list[Piece] = []
        self._generation = 0

    # ---- pieces of the turn ------------------------------------------------------------------

    def add_text(self, text: str) -> bool:
        """Add text, as far as there is room, and return whether there is a piece to write."""
        if self.closed or self._text_bytes_left < 0 or not text:
            return False
        size = utf8_size(text)
        if size <= self._text_bytes_left:
            self._append_text(text, size)
            return True
        head = text.encode()[: self._text_bytes_left].decode(errors="ignore")
        if head:
            self._append_text(head, utf8_size(head))
        self._text_bytes_left = -1
        self._append_cut("text", self._max_bytes)
        return True

    def add_data(self, kind: str, data: str) -> bool:
        """Add data if there is room, and return whether there is a piece to write."""
        if self.closed or self._data_bytes_left < 0:
            return False
        self._data_bytes_left -= utf8_size(kind) + utf8_size(data) + PIECE_BYTES
        if self._data_bytes_left < 0:
            self._append_cut("data", RUN_DATA_BYTES)
        else:
            self._append_data(kind, data)
        return True

    def close(self) -> None:
        """Take and write nothing more, and free the memory."""
        self.closed = True
        self._texts, self._waiting, self.writing, self._written = [], [], [], []

    def _append_text(self, text: str, size: int) -> None:
        self._texts.append(text)
        self._text_bytes_left -= size
        self._waiting_bytes += size

    def _append_cut(self, dropped: str, limit: int) -> None:
        self._append_data(CUT, dump({"dropped": dropped, "limit": limit}))

    def _append_data(self, kind: str, data: str) -> None:
        self._join_texts()
        self._waiting.append(Piece(self._characters, kind=kind, data=data))
        self._waiting_bytes += utf8_size(data)

    def _join_texts(self) -> None:
        if self._texts:
            text = "".join(self._texts)
            self._texts = []
            self._waiting.append(Piece(self._characters, text=text))
            self._characters += len(text)

    # ---- rows for the lane -----------------------------------------------------------------

    @property
    def has_pieces(self) -> bool:
        return bool(self._texts or self._waiting or self.writing)

    @property
    def next_pieces(self) -> RunPieces:
        return RunPieces(self.run, self._generation, len(self._written), self.writing)

    def begin_write(self) -> int:
        """Have ``writing`` hold the next pieces to write, and return about how many bytes.

        After a failed write they are the same as before: it may have been committed.
        """
        if not self.writing and not self.closed:
            self._join_texts()
            self.writing, self._waiting = self._waiting, []
            size, self._waiting_bytes = self._waiting_bytes, 0
            return size
        return 0

    def end_write(self, stored: int | None) -> None:
        """Take the answer: how many pieces were stored before, ``None`` if the lease is lost."""
        if stored is None or self.closed:
            self.close()
        elif stored in (len(self._written), len(self._written) + len(self.writing)):
            self._written += self.writing
            self.writing = []
        else:  # the server has lost some: the run is written anew
            self._generation += 1
            self.writing = _joined(self._written + self.writing)
            self._written = []


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Join texts that follow each other."""
    joined: list[Piece] = []
    for is_data, group in groupby(pieces, key=lambda piece: piece.text is None):
        if is_data:
            joined += group
        else:
            texts = list(group)
            joined.append(Piece(texts[0].start, text="".join(str(one.text) for one in texts)))
    return joined
