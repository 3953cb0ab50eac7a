"""The part of a reply that stands on the screen, compared with the messages of the transcript."""

from __future__ import annotations


class ShownReply:
    """The streamed text of one run.

    Pieces come first. When the turn commits, its messages come: they are the whole reply, and their
    text is most often what was streamed.
    """

    def __init__(self) -> None:
        self.is_begun = False
        """Whether the heading of the reply stands on the screen."""
        self.is_answered = False
        """Whether a piece or a message was shown."""
        self._unread: list[str] = []

    @property
    def has_unread(self) -> bool:
        """Whether pieces were shown that no message has repeated yet."""
        return any(self._unread)

    def add_piece(self, text: str) -> str:
        """Keep a piece that is shown now, and return it."""
        self.is_answered = self.is_answered or bool(text)
        self._unread.append(text)
        return text

    def rest_of(self, content: str) -> str | None:
        """Return the rest of a message behind its pieces. ``None``: its text is another one.

        A message may go on behind the streamed text, for example with calls of tools. Several
        messages may have been streamed as one text.
        """
        self.is_answered = self.is_answered or bool(content)
        streamed = "".join(self._unread)
        self._unread = []
        if content.startswith(streamed):
            return content[len(streamed) :]
        if streamed.startswith(content):
            self._unread = [streamed[len(content) :].lstrip()]
            return ""
        common = _common_length(streamed, content)
        if common and content.startswith("\n", common):
            self._unread = [streamed[common:].lstrip()]
            return content[common:]
        return None


def _common_length(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
