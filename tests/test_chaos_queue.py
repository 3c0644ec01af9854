"""The service under fire: `kill -9` of the service, its scheduler, workers, supervisors, executors; suspended workers;
MLflow killed; a full disk. Meanwhile one client submits over HTTP, and asks again until it has an answer; another one
puts jobs into the queue as a command does. The seed and the counts are printed.

`SEGSERVE_CHAOS_KILLS=3000` makes it a long run, `SEGSERVE_SEED` repeats one (its moments still depend on the machine).
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from segserve import process, tracking
from segserve.layout import Home
from segserve.model import COOKIE, JobState
from segserve.process import Identity
from segserve.tracking import record as tracking_record
from tests.commands import run_of
from tests.queues import ServiceAtWork, identity_of
from tests.servers import call

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SEGSERVE_CHAOS_KILLS", "60"))
SEED = int(os.environ.get("SEGSERVE_SEED", random.SystemRandom().randrange(10**6)))  # tests see no such variable
SLOTS = 3
TRIES = 1000  # nobody is to run out of them here: how many there are is tested elsewhere
# How often which of them happens. A full disk and a new tracking server take seconds each.
WEIGHTS = {
    "worker": 5,
    "supervisor": 4,
    "executor": 3,
    "service": 2,
    "scheduler": 2,
    "suspend": 2,
    "tracking": 1,
    "disk": 1,
}
LONGEST_PAUSE = 10.0  # seconds
AGAIN = {429, 500, 502, 503, 507}  # what a client answers by asking again


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled. Only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Client(threading.Thread):
    """Submits over HTTP while the queue has room, half with paths and half with uploads. Each request has a key and is
    sent until it is answered, whatever has become of the service. While there is no room it sends earlier ones again.
    """

    def __init__(self, queue: ServiceAtWork, seed: int) -> None:
        super().__init__(name="client", daemon=True)
        self.queue, self.random = queue, random.Random(seed)
        self.jobs: dict[str, str] = {}  # key → job
        self.answers: collections.Counter[int | str] = collections.Counter()
        self.wrong: list[str] = []
        self.sending = threading.Event()  # a request is on its way
        self._bodies: dict[str, dict[str, Any]] = {}  # key → what was sent
        self._over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self.queue.url, timeout=60) as http:
            while not self._over.wait(0.2):
                if self.jobs and len(self.queue.ctx.journal.open_jobs()) >= SLOTS + 2:
                    self._submit(http, self.random.choice(list(self.jobs)))
                else:
                    self._submit(http, f"key-{len(self.jobs)}")

    def close(self) -> None:
        """No further request; the one that is on its way is answered first."""
        self._over.set()
        self.join(120)
        assert not self.is_alive()

    def _submit(self, http: httpx.Client, key: str) -> None:
        body = self._bodies.setdefault(key, self._body(key, upload=self.random.random() < 0.5))
        while (answer := self._send(http, key, body)) is None or answer.status_code in AGAIN:
            time.sleep(0.2)
        job = answer.json().get("job", "")
        if answer.status_code != 202 or self.jobs.setdefault(key, job) != job:
            self.wrong.append(f"{key} {answer.status_code} {answer.text}")
            self._over.set()

    def _send(self, http: httpx.Client, key: str, body: dict[str, Any]) -> httpx.Response | None:
        self.sending.set()
        try:
            answer = http.post("/jobs", headers={"Idempotency-Key": key}, **body)
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return None
        finally:
            self.sending.clear()
        self.answers[answer.status_code] += 1
        return answer

    def _body(self, key: str, *, upload: bool) -> dict[str, Any]:
        parameters = {"nap": round(self.random.uniform(0, 3), 1), "mark": key}
        fields: dict[str, Any] = {"executor": str(self.queue.folder / "executor"), "env": "local", "gpus": "0"}
        images = sorted((self.queue.folder / "images").iterdir())
        if upload:
            files = [("images", (image.name, image.read_bytes(), "image/png")) for image in images]
            return {"data": {**fields, "parameters": json.dumps(parameters)}, "files": files}
        return {"json": {**fields, "parameters": parameters, "images": [str(image) for image in images]}}


class Monkey:
    """Does one bad thing at a time to a queue at work, and looks at what lives meanwhile."""

    def __init__(self, queue: ServiceAtWork, client: Client, seed: int) -> None:
        self.queue, self.client, self.random = queue, client, random.Random(seed)
        self.done: collections.Counter[str] = collections.Counter()
        self.most_alive = 0
        self.doubles: list[str] = []
        self._moved = 0

    def pause(self) -> None:
        """A random time, and until some job has got further: on a busy machine nobody would, and only the same young
        processes would be hit again and again.
        """
        time.sleep(self.random.uniform(0.3, 2.5))
        deadline = time.monotonic() + LONGEST_PAUSE
        while self._moves() == self._moved and time.monotonic() < deadline:
            time.sleep(0.1)
        self._moved = self._moves()

    def _moves(self) -> int:
        return sum(passage.times for passage in self.queue.ctx.journal.queue.passages())

    def act(self) -> None:
        """One of the bad things, to somebody who lives now; nothing if there is nobody."""
        self.queue.keep()
        what = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if getattr(self, f"_{what}")():
            self.done[what] += 1

    def look(self) -> None:
        """Executors that live now: one per job, no more than there are slots."""
        alive = collections.defaultdict(set)
        for one in psutil.process_iter():
            try:
                cookie = one.environ().get(COOKIE, "")
            except (psutil.Error, OSError):
                continue
            job_id = cookie.split(".")[0]
            if cookie and (self.queue.home.jobs / job_id).exists():
                alive[job_id].add(cookie)
        self.most_alive = max(self.most_alive, len(alive))
        self.doubles += [f"{job}: {cookies}" for job, cookies in alive.items() if len(cookies) > 1]

    def _service(self) -> bool:
        if not self.queue.listens():
            return False
        self.client.sending.wait(5)
        time.sleep(self.random.uniform(0, 0.05))
        self.queue.kill()
        self.queue.start()
        return True

    def _scheduler(self) -> bool:
        return self._signal(self.queue.schedulers(), signal.SIGKILL)

    def _worker(self) -> bool:
        return self._signal(self._workers(), signal.SIGKILL)

    def _suspend(self) -> bool:
        return self._signal(self._workers(), signal.SIGSTOP)

    def _supervisor(self) -> bool:
        return self._signal(self._supervisors(), signal.SIGKILL)

    def _executor(self) -> bool:
        below = [child.pid for parent in self._supervisors() for child in process.descendants(parent.pid)]
        return self._signal([identity for pid in below if (identity := identity_of(pid))], signal.SIGKILL)

    def _tracking(self) -> bool:
        known = tracking_record.read(self.queue.home)
        return known is not None and self._signal([known.identity], signal.SIGKILL)

    def _disk(self) -> bool:
        ballast = self.queue.home.path.parent / "ballast"
        with ballast.open("wb") as stream, suppress(OSError):
            while True:
                os.write(stream.fileno(), bytes(1 << 20))
        time.sleep(self.random.uniform(0.5, 2.0))
        ballast.unlink()
        return True

    def _workers(self) -> list[Identity]:
        owners = [record.owner for record in self.queue.ctx.journal.begun_jobs() if record.owner]
        return [Identity(**json.loads(owner)) for owner in owners]

    def _supervisors(self) -> list[Identity]:
        found = []
        for record in self.queue.ctx.journal.begun_jobs():
            file = self.queue.attempt(record.job_id).supervisor
            if file.exists():
                found.append(Identity(**json.loads(file.read_text())))
        return found

    def _signal(self, targets: list[Identity], how: signal.Signals) -> bool:
        living = [one for one in targets if one.alive]
        return bool(living) and self.random.choice(living).send(how)


def test_every_accepted_job_ends_whatever_is_killed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"seed {SEED}")
    monkeypatch.setenv("SEGSERVE_HOME", str(disk / "home"))
    queue = ServiceAtWork(Home(disk / "home").ensure(), disk / "work", tries=TRIES, lease_s=5.0, slots=SLOTS)
    client = Client(queue, SEED + 1)
    monkey = Monkey(queue, client, SEED)
    queue.start()
    jobs = [queue.submit()]
    try:
        queue.wait(*jobs)  # everything is loaded once before the first shot
        client.start()
        began = time.monotonic()
        while sum(monkey.done.values()) < KILLS:
            while len(queue.ctx.journal.open_jobs()) < SLOTS - 1:
                nap, user = round(monkey.random.uniform(0, 3), 1), monkey.random.choice("abc")
                jobs.append(queue.submit(nap=nap, user=user, mark=f"direct-{len(jobs)}"))
            monkey.pause()
            monkey.look()
            monkey.act()
        seconds = time.monotonic() - began
        client.close()
        _one_job_for_each_request(queue, client, jobs)
        jobs += client.jobs.values()
        _wait_for_all(queue, jobs, monkey)
        _check(queue, monkey, jobs, f"seed {SEED}: {sum(monkey.done.values())} in {seconds:.0f} s")
    finally:
        queue.close()
        tracking.stop_server(queue.home)


def _one_job_for_each_request(queue: ServiceAtWork, client: Client, direct: list[str]) -> None:
    """However often it was sent. What a killed service had taken in by half has left no job."""
    print(f"{len(client.jobs)} jobs over HTTP, answers: {dict(client.answers)}")
    assert client.wrong == []
    everything = [record.job_id for record in queue.ctx.journal.jobs(limit=100_000)]
    assert sorted(everything) == sorted([*direct, *client.jobs.values()])


def _wait_for_all(queue: ServiceAtWork, jobs: list[str], monkey: Monkey) -> None:
    deadline = time.monotonic() + 240
    while queue.ctx.journal.open_jobs():
        assert time.monotonic() < deadline, [queue.get(job) for job in jobs if not queue.get(job).state.final]
        queue.keep()
        monkey.look()
        time.sleep(0.3)


def _check(queue: ServiceAtWork, monkey: Monkey, jobs: list[str], title: str) -> None:
    records = [queue.get(job) for job in jobs]
    states = collections.Counter(str(record.state) for record in records)
    errors = collections.Counter(record.error["code"] for record in records if record.state is JobState.FAILED)
    attempts = sum(record.attempt for record in records)
    print(f"{title}: {dict(monkey.done)}")
    print(f"{len(jobs)} jobs, {attempts} attempts: {dict(states)}, failed by {dict(errors)}")
    print(f"most tries of a job: {max(record.tries for record in records)}")
    print(f"most alive at a time: {monkey.most_alive} of {SLOTS}")
    assert all(record.state.final for record in records)
    # Killed executors end their jobs; machine and network never do.
    assert set(errors) <= {"ExecutorFailed"}
    assert monkey.doubles == []
    assert monkey.most_alive <= SLOTS
    for record in records:
        results = list(queue.home.job(record.job_id).path.glob("result*"))
        if record.state is JobState.SUCCEEDED:
            assert [str(folder) for folder in results] == [record.result]
            document = json.loads((results[0] / "output.json").read_text())
            assert [len(image) for image in document["segmentation_data"]] == [1, 1]
        else:
            assert results == []
    _nothing_lives(queue)
    _mlflow_agrees(queue, {record.job_id: record.state for record in records})


def _nothing_lives(queue: ServiceAtWork) -> None:
    deadline = time.monotonic() + 20
    while left := [one for one in process.marked("SEGSERVE_HOME", str(queue.home.path)) if _drives(one)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _drives(one: psutil.Process) -> bool:
    """A supervisor, or a worker that is no spare: both have a job's folder in words or in the journal."""
    try:
        return "segserve.launch" in one.cmdline()
    except psutil.Error:
        return False


def _mlflow_agrees(queue: ServiceAtWork, states: dict[str, JobState]) -> None:
    """Every run has ended as its job has; those of earlier attempts have failed. The scheduler sees to it."""
    queue.kill()
    queue.start()  # looks after MLflow at its start
    server = tracking.resolve(queue.home).uri
    deadline = time.monotonic() + 60
    while True:
        found = call(server, "POST", "runs/search", {"experiment_ids": ["1"], "max_results": 1000}).get("runs", [])
        statuses = collections.Counter(run["info"]["status"] for run in found)
        if "RUNNING" not in statuses:
            break
        assert time.monotonic() < deadline, statuses
        time.sleep(0.5)
    print(f"MLflow: {dict(statuses)}")
    for job, state in states.items():
        url = queue.get(job).run_url
        if url:
            right = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}[state]
            # A server that died in the very moment of the end could not be told; then the scheduler says how it ended.
            assert run_of(url)["info"]["status"] == right, (job, state)
