"""A text in windows: read once from front to back, so that its length costs no memory."""

from __future__ import annotations

import io
from typing import BinaryIO

WINDOW = 1 << 18  # bytes; larger windows leave the processor's cache and are slower


class Feed:
    """`read` gives one window after the other; `ended` says that the last one has been given.

    The last window is up to twice as long, so that it is never blank or a few brackets only.
    """

    def __init__(self, source: bytes | BinaryIO, *, window: int = WINDOW) -> None:
        """Read from a text, or from a seekable binary stream at its present position."""
        self._stream = io.BytesIO(source) if isinstance(source, bytes) else source
        self._window = window
        self._start = self._stream.tell()
        self._next = b""
        self.ended = False
        self.rewind()

    def rewind(self) -> None:
        """Begin again."""
        self._stream.seek(self._start)
        self.ended = False
        self._next = self._full()

    def read(self) -> bytes:
        """The next window; empty only when the text is, or behind its end."""
        window, self._next = self._next, self._full()
        if len(self._next) < self._window:
            window += self._next
            self._next = b""
            self.ended = True
        return window

    def _full(self) -> bytes:
        """A whole window unless the text ends: a raw stream may give less than it is asked for."""
        parts, missing = [], self._window
        while missing and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
