"""Registered executors and pipelines get their environments before anybody asks: one at a time, behind everything else.

`python -m segserve.server.prewarm` builds, and writes down how it goes (`Home.prewarm`); it ends when its stdin does.
`Prewarming` is the server's side: it starts that program, and anew whenever config.toml has changed. Executors that
come with segserve are built when they are first used: nobody asked this machine for gigabytes of them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from segserve import api, config, process, redact
from segserve.api.requests import CONFIGURED, registered
from segserve.config import ExecutorSettings, Settings
from segserve.errors import SegserveError, UsageError
from segserve.layout import Home
from segserve.model import write_atomically
from segserve.tracking.embedded import with_import_path

logger = logging.getLogger(__name__)

_NICE = 10
_OTHERS = "--others"
_PIPELINE = "pipeline "  # and its slug, which no executor is called
_LOOK_SECONDS = 2.0
_PATIENCE_SECONDS = (60.0, 300.0, 1800.0)  # before what failed for no fault of its own is tried again


class Warmth(StrEnum):
    """How far the environment of an executor is."""

    READY = "ready"
    BUILDING = "building"
    WAITING = "waiting"  # for its turn
    FAILED = "failed"
    ON_DEMAND = "on demand"  # built when it is first used


def states(home: Home) -> dict[str, dict[str, str]]:
    """Short name → `state` (a `Warmth`); of one that failed, `message`, `hint` and `quote`, too."""
    try:
        found: dict[str, dict[str, str]] = json.loads(home.prewarm.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def chosen(settings: Settings) -> dict[str, str]:
    """The names that are built in advance, and what they stand for; pipelines come first, all their stages."""
    off = {name for name, one in settings.executors.items() if isinstance(one, ExecutorSettings) and not one.prewarm}
    rows = registered(settings).values()
    found = {row.name: row.ref for row in rows if row.origin == CONFIGURED and row.name not in off}
    return {**{f"{_PIPELINE}{slug}": slug for slug in settings.pipelines}, **found}


class Prewarming:
    """The program that builds, started again when the configuration changes. It ends with us, whatever ends us.

    A change of `[executors]` counts from then on: new names can be used without a restart. `others`: the server is not
    the local user's alone, and builds are shut in as jobs of others are.
    """

    def __init__(self, session: api.Session, *, others: bool) -> None:
        self._session, self._others = session, others
        self._file = session.config or config.default_path()
        self._stopping = threading.Event()
        self._seen = self._changed()
        self._process = self._start()
        threading.Thread(target=self._watch, name="prewarming", daemon=True).start()

    def stop(self) -> None:
        """End it, and what it builds."""
        self._stopping.set()
        self._end()

    def _start(self) -> process.Popen[bytes] | None:
        home, names = self._session.ctx.home, chosen(self._session.ctx.settings)
        write_atomically(home.prewarm, json.dumps({name: {"state": Warmth.WAITING} for name in names}))
        if not names:
            return None
        variables = {**os.environ, **({"SEGSERVE_CONFIG": str(self._file.absolute())} if self._file.exists() else {})}
        with open(home.workers_log, "ab", opener=_private) as log:
            return process.spawn(
                [sys.executable, "-P", "-m", "segserve.server.prewarm", *([_OTHERS] if self._others else [])],
                cwd=home.path,
                env=with_import_path(variables),
                stdin=process.PIPE,
                stdout=log,
                stderr=log,
            )

    def _end(self) -> None:
        if self._process is None:
            return
        with suppress(OSError):
            assert self._process.stdin is not None  # it was started with a pipe
            self._process.stdin.close()
        self._process.wait()

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            now = self._changed()
            if now == self._seen:
                continue
            self._seen = now
            try:
                executors = config.load(self._session.config).executors
            except UsageError as wrong:
                logger.warning("The configuration has changed and is not taken over: %s", wrong.message)
                continue
            ctx = self._session.ctx
            ctx.settings = ctx.settings.model_copy(update={"executors": executors})
            self._end()
            if not self._stopping.is_set():
                self._process = self._start()

    def _changed(self) -> tuple[int, int]:
        try:
            found = self._file.stat()
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size)


class _Builder:
    """Builds one after the other; the file says how it goes."""

    def __init__(self, session: api.Session, names: Mapping[str, str], *, others: bool) -> None:
        self._session, self._names, self._others = session, names, others
        self._states: dict[str, dict[str, Any]] = {name: {"state": Warmth.WAITING} for name in names}

    def run(self) -> None:
        """Until all are built, or have failed for a reason that stays."""
        left = list(self._names)
        for patience in (*_PATIENCE_SECONDS, None):
            left = [name for name in left if not self._build(name)]
            if not left or patience is None:
                return
            time.sleep(patience)

    def _build(self, name: str) -> bool:
        """Whether there is nothing more to do for it."""
        self._say(name, state=Warmth.BUILDING)
        try:
            if name.startswith(_PIPELINE):
                built = self._session.build_pipeline(self._names[name], others=self._others)[-1]
            else:
                request = replace(self._session.request(name), others=self._others)
                built = self._session.build_environment(request)
        except SegserveError as failure:
            self._say(name, state=Warmth.FAILED, message=failure.message, hint=failure.hint, quote=failure.quote)
            logger.warning("The environment of '%s' could not be built: %s", name, failure.message)
            return not failure.retryable
        self._say(name, state=Warmth.READY, key=built["key"])
        return True

    def _say(self, name: str, **state: str) -> None:
        self._states[name] = state
        write_atomically(self._session.ctx.home.prewarm, json.dumps(self._states, ensure_ascii=False))


def main() -> None:
    """Entry point of the process."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    os.nice(_NICE)
    handler = logging.StreamHandler()
    handler.setFormatter(redact.LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    with api.session() as session:
        _Builder(session, chosen(session.ctx.settings), others=_OTHERS in sys.argv[1:]).run()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # what is being built is on a leash, and ends with us (`process`)


def _private(path: str | Path, flags: int) -> int:
    return os.open(path, flags, 0o600)


if __name__ == "__main__":
    main()
