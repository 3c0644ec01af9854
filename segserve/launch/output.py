"""How much an attempt has written: its folders are walked again and again, slowly, and uploads are counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence

PAUSE_SECONDS = 2.0  # between two walks
_SLICE_SECONDS = 0.005  # of walking, then a rest
_REST = 60  # times as long: walking takes less than 2 % of the time


class Output:
    """What is added to `folders` (files may be among them), and what is uploaded, against a limit in bytes (0: none).

    This is no wall: what is written between two walks, or deleted while it is open, is not seen. Files of an earlier
    time (a cache) do not count, and hard links count once.
    """

    def __init__(self, folders: Sequence[str], limit: int) -> None:
        self._folders, self._limit = folders, limit
        self.walks = 0  # that are done
        self._written = 0
        self._uploaded = 0
        self._lock = threading.Lock()

    @property
    def exceeded(self) -> bool:
        """Whether it was too much."""
        return bool(self._limit) and self._written + self._uploaded > self._limit

    def watch(self) -> None:
        """Begin to walk, in a thread that ends with this process."""
        if self._limit and self._folders:
            threading.Thread(target=self._walk, name="output", daemon=True).start()

    def upload(self, size: int) -> bool:
        """Count bytes that are about to be uploaded; false if they are too many. They count all the same."""
        with self._lock:
            self._uploaded += size
        return not self.exceeded

    def _walk(self) -> None:
        before = [size_on_disk(folder) for folder in self._folders]
        while True:
            self.walks += 1
            time.sleep(PAUSE_SECONDS)
            now = [size_on_disk(folder) for folder in self._folders]
            self._written = sum(max(0, new - old) for new, old in zip(now, before, strict=True))


def size_on_disk(path: str) -> int:
    """Bytes of a file, or of all below a folder. Rests most of the time: see `_REST`."""
    total, linked = 0, set[tuple[int, int]]()
    rested = time.monotonic()
    for one in _below(path):
        if one.st_nlink == 1 or (one.st_dev, one.st_ino) not in linked:
            total += one.st_blocks * 512
        if one.st_nlink > 1:
            linked.add((one.st_dev, one.st_ino))
        if (taken := time.monotonic() - rested) > _SLICE_SECONDS:
            time.sleep(taken * _REST)
            rested = time.monotonic()
    return total


def _below(path: str) -> Iterator[os.stat_result]:
    """Everything below a path, itself included; links are not followed. What cannot be looked at is left out."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            yield os.lstat(folder)
            entries = os.scandir(folder)
        except OSError:  # gone meanwhile, or a file
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)
                except OSError:
                    continue
