"""An attempt that runs is waited for; what it prints, and how far it is, goes to the reporter meanwhile."""

from __future__ import annotations

import threading

from segserve.backends import local
from segserve.layout import AttemptDir
from segserve.model import Outcome, Progress
from segserve.pipeline.context import Reporter

_FOLLOW_SECONDS = 0.05


class Watch:
    """`Watch(attempt, reporter).wait(handle)`."""

    def __init__(self, attempt: AttemptDir, reporter: Reporter) -> None:
        self._attempt, self._reporter = attempt, reporter
        self._ended = threading.Event()
        self._said: Progress | None = None  # by the executor

    def wait(self, handle: local.Handle) -> Outcome:
        """How the attempt has ended."""
        follower = threading.Thread(target=self._follow, daemon=True)
        follower.start()
        try:
            return handle.wait(tick=self._tell_progress)
        finally:
            self._ended.set()
            follower.join(timeout=2)

    def _follow(self) -> None:
        for line in local.follow(self._attempt, until=self._ended.is_set, pause=_FOLLOW_SECONDS):
            self._reporter.line(line)

    def _tell_progress(self) -> None:
        said = local.progress(self._attempt)
        if said is not None and said != self._said:
            self._said = said
            self._reporter.progress(said.done, said.total, "images")
