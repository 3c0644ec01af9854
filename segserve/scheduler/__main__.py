"""`python -m segserve.scheduler`: works on the queue of `$SEGSERVE_HOME` until SIGTERM, or until stdin ends.

A line on stdin says that there is something new; without one it looks every half second.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack

from segserve import config, devices, layout, redact
from segserve.errors import NoSlot, UsageError
from segserve.pipeline import Context
from segserve.scheduler import Scheduler, slots
from segserve.store import locked

LOOK_SECONDS = 0.5
STOP_SECONDS = 20.0


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m segserve.scheduler", description=__doc__)
    parser.add_argument("--alone", action="store_true", help="do not end with stdin")
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(redact.LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    home = layout.home().ensure()
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(home.scheduler_lock, blocking=False))
        except NoSlot:
            raise UsageError(f"A scheduler works on {home.path} already.") from None
        _work(home, stop, _pause_alone(stop) if arguments.alone else _pause_with_stdin)


def _work(home: layout.Home, stop: threading.Event, pause: Callable[[], bool]) -> None:
    ctx = Context(home, config.load())
    scheduler = Scheduler(ctx, slots(ctx.settings.queue, len(devices.visible())))
    while not stop.is_set():
        scheduler.look()
        if not pause():
            break
    scheduler.stop(STOP_SECONDS)


def _pause_alone(stop: threading.Event) -> Callable[[], bool]:
    return lambda: not stop.wait(LOOK_SECONDS)


def _pause_with_stdin() -> bool:
    """Wait for a word or for half a second; false when nobody is there any more."""
    return not select.select([sys.stdin], [], [], LOOK_SECONDS)[0] or bool(os.read(sys.stdin.fileno(), 65536))


if __name__ == "__main__":
    main()
