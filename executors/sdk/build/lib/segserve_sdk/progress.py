"""How far an executor is. segserve shows it as images done; without segserve it is printed."""

import os
import time
from typing import Optional

PROGRESS = "SEGSERVE_PROGRESS"
RECORD_BYTES = 64
_PAUSE_SECONDS = 0.1


class Progress:
    """A counter of `total` images: call `advance` after each, or use it around a loop (`with Progress(10) as p`)."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._written = 0.0
        # Opened once and never replaced: in a container it is one mounted file, which cannot be renamed over.
        file = os.environ.get(PROGRESS)
        self._file: Optional[int] = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600) if file else None
        self._tell()

    def advance(self, count: int = 1, text: str = "") -> None:
        """`count` more are done. `text` goes to the log: what was found, how long it took."""
        self.done += count
        if text or self._file is None:
            print(f"{self.done}/{self.total} {text}".rstrip(), flush=True)
        if self.done >= self.total or time.monotonic() - self._written > _PAUSE_SECONDS:
            self._tell()

    def close(self) -> None:
        """Nothing more will come."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self) -> None:
        """One record of fixed size in one call, so that a reader never sees half of it."""
        self._written = time.monotonic()
        if self._file is not None:
            record = f'{{"done": {self.done}, "total": {self.total}}}'.ljust(RECORD_BYTES - 1) + "\n"
            os.pwrite(self._file, record.encode("ascii"), 0)
