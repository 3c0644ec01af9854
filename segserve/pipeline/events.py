"""What is said while a job from the queue is driven, in a file of the job: anybody can follow it, also after a restart.

One JSON object a line: `{"time": seconds since the epoch, "kind": "phase" | "note" | "warning" | "progress", …}` with
`text`, or `done`, `total` and `what`. Lines of build and executor are in their logs.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from segserve import redact

_PROGRESS_SECONDS = 0.5


class EventFile:
    """A reporter (`context.Reporter`) that appends to the events of one job."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reported = 0.0  # monotonic, of the latest progress

    def phase(self, text: str) -> None:
        """A new step begins."""
        self._say(kind="phase", text=redact.text(text))

    def note(self, text: str) -> None:
        """Worth knowing."""
        self._say(kind="note", text=redact.text(text))

    def warn(self, text: str) -> None:
        """Worth acting on."""
        self._say(kind="warning", text=redact.text(text))

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total`; the first, the last, and some between."""
        now = time.monotonic()
        if done in (0, total) or now - self._reported > _PROGRESS_SECONDS:
            self._reported = now
            self._say(kind="progress", done=done, total=total, what=what)

    def line(self, text: str) -> None:
        """Nothing: the logs have it."""

    def _say(self, **event: Any) -> None:
        text = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
        with suppress(OSError):  # a full disk does not end a job because of what could be said about it
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
