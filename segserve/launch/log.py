"""The attempt's log: a pipe in the place of stdout and stderr, redacted line by line, bounded on disk."""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from segserve import redact

LIMIT_BYTES = 256 * 2**20
TAIL_BYTES = 2**18  # of what is over the limit, the end is kept: that is where errors stand
PARTIAL_SECONDS = 0.5  # a line without an end (a progress bar, a question) is shown after this time
LINE_BYTES = 2**16  # a longer one is cut
_CHUNK = 2**16
_PIPE_BYTES = 2**20
_REST_SECONDS = 10.0  # for reading what is in the pipe at the end, should somebody go on writing


class Log:
    """Takes over descriptors 1 and 2 of this process, and so of all its children, between `attach` and `close`."""

    def __init__(self, path: Path, *, secrets: Sequence[str] = (), limit: int = LIMIT_BYTES) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._secrets = tuple(secret for secret in secrets if len(secret) > 4)
        self._left = limit
        self._limit = limit
        self._pending = bytearray()  # the line that has no end yet
        self._shown = ""  # what of it is written already
        self._tail = bytearray()
        self._dropped = 0
        self._until = float("inf")  # monotonic; finite when we are closing
        self._originals: tuple[int, int] | None = None

    def hide(self, secrets: Sequence[str]) -> None:
        """Mask these texts, too, from now on."""
        self._secrets += tuple(secret for secret in secrets if len(secret) > 4)

    def attach(self) -> None:
        """Put the pipe in place and start to read it."""
        self._pipe, end = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):  # more than /proc/sys/fs/pipe-max-size is not granted
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._originals = (os.dup(1), os.dup(2))
        os.dup2(end, 1)
        os.dup2(end, 2)
        os.close(end)
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Write a line of our own, in its place among the executor's."""
        with suppress(OSError):
            os.write(2, f"[segserve] {text}\n".encode())

    def close(self) -> None:
        """Give descriptors 1 and 2 back and write the rest. Does not wait for those who still hold the pipe."""
        if self._originals is None:
            return
        for number, original in zip((1, 2), self._originals, strict=True):
            os.dup2(original, number)
            os.close(original)
        self._until = time.monotonic() + _REST_SECONDS
        self._thread.join()
        os.close(self._pipe)
        os.close(self._file)
        self._originals = None

    def _read(self) -> None:
        while time.monotonic() < self._until:
            closing = self._until < float("inf")
            ready, _, _ = select.select([self._pipe], [], [], 0.05 if closing else PARTIAL_SECONDS)
            data = os.read(self._pipe, _CHUNK) if ready else b""
            if data:
                self._take(data)
            elif ready or closing:  # nobody holds it any more, or nobody writes
                break
            else:
                self._show_partial()
        self._finish()

    def _take(self, data: bytes) -> None:
        if self._left <= 0:
            self._drop(data)
            return
        self._pending += data
        cut = max(self._pending.rfind(b"\n"), self._pending.rfind(b"\r")) + 1
        if not cut and len(self._pending) > LINE_BYTES:
            cut = self._pending.rfind(b" ") + 1 or len(self._pending)
        if cut:
            lines = bytes(self._pending[:cut])
            del self._pending[:cut]
            self._write(self._unseen(self._redacted(lines)))
            self._shown = ""

    def _show_partial(self) -> None:
        if self._pending:
            text = self._redacted(bytes(self._pending))
            self._write(self._unseen(text))
            self._shown = text

    def _unseen(self, text: str) -> str:
        # The end of a line can make a secret of its beginning; then all of it is written again, redacted.
        return text.removeprefix(self._shown) if text.startswith(self._shown) else f"\n{text}"

    def _redacted(self, data: bytes) -> str:
        text = data.decode("utf-8", "replace")
        for secret in self._secrets:
            text = text.replace(secret, redact.MASK)
        if not redact.suspicious(text):
            return text
        return "".join(redact.text(line) for line in text.splitlines(keepends=True))

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self._put(data[: max(0, self._left)])
        if len(data) > self._left:
            self._put(f"\n[segserve] The log is over {self._limit} bytes; only its end follows.\n".encode())
            self._drop(data[max(0, self._left) :])
        self._left -= len(data)

    def _drop(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            self._dropped += len(self._tail) - TAIL_BYTES
            del self._tail[:-TAIL_BYTES]

    def _finish(self) -> None:
        self._show_partial()
        if self._tail:
            surplus = max(0, len(self._tail) - TAIL_BYTES)
            rest = bytes(self._tail[surplus:])
            if self._dropped + surplus:  # what begins in the middle of a line could hide half of a secret
                rest = rest.partition(b"\n")[2] or rest
                self._put(f"[segserve] {self._dropped + surplus} bytes are left out here.\n".encode())
            self._put(self._redacted(rest).encode("utf-8", "replace"))

    def _put(self, data: bytes) -> None:
        with suppress(OSError):  # a full disk must not stop the executor; what cannot be written is lost
            while data:
                data = data[os.write(self._file, data) :]
