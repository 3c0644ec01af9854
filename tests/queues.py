"""A scheduler or a whole service of its own on a home, and what a test wants to do with it: submit, look, kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from segserve import process
from segserve.api import Session
from segserve.config import load
from segserve.journal import JobRecord
from segserve.layout import AttemptDir, Home
from segserve.pipeline import Context, submit
from segserve.process import Identity
from tests.executors import make_shell_executor
from tests.servers import free_port

CONFIG = """\
[queue]
tries = {tries}
backoff_s = 0.2
longest_backoff_s = 5.0
lease_s = {lease_s}
cpu_slots = {slots}
"""


class QueueAtWork:
    """`python -m segserve.scheduler` on a home, with an executor that is a shell command and two images."""

    def __init__(self, home: Home, folder: Path, *, tries: int = 3, lease_s: float = 60.0, slots: int = 2) -> None:
        self.home, self.folder = home, folder
        folder.mkdir(exist_ok=True)
        config = folder / "config.toml"
        config.write_text(CONFIG.format(tries=tries, lease_s=lease_s, slots=slots))
        os.environ["SEGSERVE_CONFIG"] = str(config)
        self.ctx = Context(home, load())
        make_shell_executor(folder / "executor")
        for index in range(2):
            (folder / "images").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / "images" / f"{index}.png"), np.full((40, 60), index, np.uint8))
        self.words = [sys.executable, "-m", "segserve.scheduler", "--alone"]
        self.log = home.workers_log
        self.program: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start who works on the queue; do not wait until it does."""
        with self.log.open("ab") as log:
            self.program = subprocess.Popen(self.words, stdout=log, stderr=log)
        return self.program

    def kill(self) -> None:
        """`kill -9` of who works on the queue, if that lives."""
        if self.program is not None and self.program.poll() is None:
            self.program.kill()
            self.program.wait()

    def submit(self, *, repo: str = "", user: str = "anna", timeout: float | None = None, **parameters: Any) -> str:
        """Put a job into the queue and return its id."""
        request = Session(self.ctx).request(
            repo or str(self.folder / "executor"),
            [self.folder / "images"],
            kind="local",
            gpus=0,
            parameters=parameters,
            timeout=timeout,
        )
        return submit(self.ctx, request, gpus=0, user=user).job_id

    def get(self, job_id: str) -> JobRecord:
        """What the journal knows."""
        return self.ctx.journal.get(job_id)

    def wait(self, *jobs: str, until: Callable[[JobRecord], bool] = lambda record: record.state.final) -> None:
        """Wait until all of them are so far; what the workers have said is shown when they do not get there."""
        deadline = time.monotonic() + 180
        while not all(until(self.get(job)) for job in jobs):
            if time.monotonic() > deadline:
                states = {job: self.get(job) for job in jobs}
                raise AssertionError(f"{states}\n{self.home.workers_log.read_text()[-3000:]}")
            time.sleep(0.05)

    def attempt(self, job_id: str) -> AttemptDir:
        """The folder of the latest attempt."""
        return self.home.job(job_id).attempt(self.get(job_id).attempt)

    def wait_for_executor(self, job_id: str) -> None:
        """Wait until the command of the executor runs."""
        self.wait(job_id, until=lambda record: record.attempt > 0 and self.executor_runs(job_id))

    def executor_runs(self, job_id: str) -> bool:
        """Whether the executor has been started and its attempt has not ended."""
        attempt = self.attempt(job_id)
        started = attempt.log.exists() and "Running command" in attempt.log.read_text(errors="replace")
        return started and not attempt.outcome.exists()

    def worker(self, job_id: str) -> Identity:
        """The process that drives a job."""
        return Identity(**json.loads(self.get(job_id).owner))

    def supervisor(self, job_id: str) -> Identity:
        """The process that watches over its executor."""
        return Identity(**json.loads(self.attempt(job_id).supervisor.read_text()))

    def close(self) -> None:
        """End everything that works for this home."""
        self.kill()
        for record in self.ctx.journal.open_jobs():
            self.ctx.journal.queue.cancel(record.job_id)
        process.end(lambda: process.marked("SEGSERVE_HOME", str(self.home.path)), grace=1.0)
        self.ctx.journal.close()


class ServiceAtWork(QueueAtWork):
    """`segserve serve` on a home, always at the same address, with a scheduler of its own."""

    def __init__(self, home: Home, folder: Path, *, tries: int, lease_s: float, slots: int) -> None:
        super().__init__(home, folder, tries=tries, lease_s=lease_s, slots=slots)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.words = [sys.executable, "-m", "segserve", "serve", "--port", str(self.port)]
        self.log = folder / "service.log"

    def keep(self) -> None:
        """Start it again if it has ended by itself, as systemd does: on a full disk it cannot begin."""
        if self.program is not None and self.program.poll() is not None:
            self.start()

    def listens(self) -> bool:
        """Whether it takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def schedulers(self) -> list[Identity]:
        """The process that works on the queue; the one of a service that was killed may be about to end."""
        marked = process.marked("SEGSERVE_HOME", str(self.home.path))
        found = [one.pid for one in marked if _words(one)[-2:] == ["-m", "segserve.scheduler"]]
        return [identity for pid in found if (identity := identity_of(pid))]


def _words(one: psutil.Process) -> list[str]:
    try:
        return one.cmdline()
    except psutil.Error:
        return []


def identity_of(pid: int) -> Identity | None:
    """None if it has gone meanwhile."""
    try:
        return process.identity(pid)
    except ProcessLookupError:
        return None


def kill(identity: Identity, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that lives, and when it is deadly, wait for it to die."""
    assert identity.send(how)
    while how is signal.SIGKILL and identity.alive:
        time.sleep(0.01)
