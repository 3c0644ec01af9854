"""What every place to run an attempt has to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol

from segserve.devices import Lease
from segserve.layout import AttemptDir
from segserve.model import LaunchPlan, Outcome

ALIVE: Final = "alive"
Alive = Literal["alive"]


class Handle(Protocol):
    """An attempt that this process has begun."""

    def start(self, plan: LaunchPlan, lease: Lease, *, hold: int | None = None) -> None:
        """Launch. From now on the supervisor holds the lease, too, and keeps the descriptor `hold` open."""

    def poll(self) -> Outcome | None:
        """How it ended, or None while it runs."""

    def wait(self, *, tick: Callable[[], None] | None = None) -> Outcome:
        """Wait for the end. `tick` is called several times a second and may raise to give up waiting."""

    def release(self) -> None:
        """Leave a detached attempt to itself."""

    def abandon(self) -> None:
        """Want nothing more of it: one that was not started, or is attached, ends."""


class Backend(Protocol):
    """A kind of place. Everything but `preload` works on the attempt's folder alone, from any process."""

    def preload(self, attempt: AttemptDir) -> Handle:
        """Prepare a launch while the plan is not known yet."""

    def recover(self, attempt: AttemptDir) -> Outcome | Alive:
        """The truth about an attempt whose driver has gone; ends what a dead supervisor has left."""

    def cancel(self, attempt: AttemptDir, *, wait: bool = False) -> bool:
        """Ask a launched attempt to end; false if none runs."""

    def follow(self, attempt: AttemptDir, *, until: Callable[[], bool], pause: float = 0.1) -> Iterator[str]:
        """The lines of its log as they come, until `until()` and all is read."""
