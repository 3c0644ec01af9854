"""Who copies PNGs: this process for some, one small program per core for thousands (see `pngcopy`)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, cast

from segserve import process
from segserve.errors import BackendError
from segserve.inputs import pngcopy
from segserve.inputs.pngcopy import Answer, Copier, Order

_MANY = 1000  # files; for fewer, starting a program costs more than it saves


class _Copies(Protocol):
    def copy_all(self, orders: Sequence[Order]) -> list[Answer]:
        """An answer to each order."""

    def close(self) -> None:
        """No more orders come."""


class Copiers:
    """Copies for `threads` threads at once, each batch by one who is free. A context manager."""

    def __init__(self, folder: Path, threads: int, files: int) -> None:
        """`files` is how many there will be in all."""
        cores = min(threads, _cores())
        self._all: list[_Copies] = []
        if cores > 1 and files >= _MANY:
            self._all += [_Program(folder) for _ in range(cores)]
        else:
            self._all += [_Here(folder) for _ in range(threads)]
        self._free: queue.SimpleQueue[_Copies] = queue.SimpleQueue()
        for one in self._all:
            self._free.put(one)

    def __enter__(self) -> Copiers:
        """They have been started already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them all."""
        for one in self._all:
            one.close()

    def copy(self, orders: Sequence[Order]) -> list[Answer]:
        """An answer to each order.

        Raises:
            BackendError: a program that copies has died.
        """
        one = self._free.get()
        try:
            return one.copy_all(orders)
        finally:
            self._free.put(one)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class _Here:
    def __init__(self, folder: Path) -> None:
        self._copier = Copier(str(folder))

    def copy_all(self, orders: Sequence[Order]) -> list[Answer]:
        return [self._copier.copy(order) for order in orders]

    def close(self) -> None:
        """Nothing to end."""


class _Program:
    def __init__(self, folder: Path) -> None:
        argv = [sys.executable, "-I", "-S", pngcopy.__file__, str(folder)]
        self._process = process.spawn(argv, stdin=process.PIPE, stdout=process.PIPE)

    def copy_all(self, orders: Sequence[Order]) -> list[Answer]:
        stdin, stdout = self._pipes()
        line = b""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(orders).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        if not line.endswith(b"\n"):
            raise BackendError("A process that copies images has ended early.", hint="Was it killed? Run again.")
        return [Answer(*words) for words in json.loads(line)]

    def close(self) -> None:
        """The end of its stdin is the end of the program."""
        for stream in self._pipes():
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        return cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
