"""One request with a long body, which Ctrl-C ends properly: before all of it has gone nothing has happened, and after
that the server may have begun something whose name only its answer says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_ANSWER_SECONDS = 30.0
_Answer = TypeVar("_Answer")


class _GivenUp(Exception):
    """Nobody wants it to be sent any more."""


@dataclass
class Sending(Generic[_Answer]):
    """`send(check)` in a thread of its own; it calls `check` before whatever can still be left undone."""

    send: Callable[[Callable[[], None]], _Answer]

    def wait(self, taken: Callable[[_Answer | None], None]) -> _Answer:
        """The answer. When this is interrupted after all, `taken` gets the answer, or None when there was none in time.

        Raises:
            KeyboardInterrupt: in between.
            Exception: whatever `send` raises.
        """
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._answer: list[_Answer] = []
        self._failure: list[BaseException] = []
        threading.Thread(target=self._run, name="sending", daemon=True).start()
        try:
            self._ended.wait()  # not join(): an interrupted one takes the thread for ended (bpo-45274)
        except KeyboardInterrupt:
            self._stopped.set()
            ended = self._ended.wait(_ANSWER_SECONDS)
            if self._answer or not ended:
                taken(self._answer[0] if self._answer else None)
            raise
        if self._failure:
            raise self._failure[0]
        return self._answer[0]

    def _run(self) -> None:
        try:
            self._answer.append(self.send(self._check))
        except BaseException as failure:  # it is raised where it is waited for
            self._failure.append(failure)
        finally:
            self._ended.set()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise _GivenUp
