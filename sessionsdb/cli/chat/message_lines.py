"""Messages from lines: one line each, unless the user goes on."""

from __future__ import annotations

QUOTES = '"""'


class MessageLines:
    """Puts the lines of a message together.

    A line that ends with a backslash goes on in the next line. Three double quotes at the beginning
    of a message open a block, which ends with three double quotes at the end of a line.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._is_block = False

    @property
    def is_open(self) -> bool:
        """Whether a message has begun and has not ended."""
        return bool(self._lines) or self._is_block

    def add(self, line: str) -> str | None:
        """Add a line, and return the message if it ends here. An empty message is ``None``."""
        if not self.is_open and line.startswith(QUOTES):
            self._is_block = True
            line = line.removeprefix(QUOTES)
        if self._is_block:
            is_end = line.rstrip().endswith(QUOTES)
            if is_end:
                line = line.rstrip().removesuffix(QUOTES)
            self._lines.append(line)
            return self.end() if is_end else None
        if line.endswith("\\"):
            self._lines.append(line.removesuffix("\\"))
            return None
        self._lines.append(line)
        return self.end()

    def end(self) -> str | None:
        """End the message, and return it. An empty message is ``None``."""
        text = "\n".join(self._lines)
        if self._is_block:
            text = text.strip("\n")
        self.clear()
        return text if text.strip() else None

    def clear(self) -> None:
        """Drop the lines of a message that has not ended."""
        self._lines, self._is_block = [], False
