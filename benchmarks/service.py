"""`segserve serve` beside the usual way, a FastAPI handler that calls `mlflow.projects.run`, in one run.

    python benchmarks/service.py [--quick]

The peer is `upstream_service.py`: one uvicorn process, MLflow's default sqlite store, a prepared environment. Both get
the same executor and images. Measured are: `/livez` and `/metrics` while nothing and while jobs run (the ratio of the
99th percentiles); images for 1, 4 and 16 clients at once; submissions per second beside a handler that only puts a row
into sqlite; the milliseconds of a claim with 100 and with 100,000 rows in the journal.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from segserve.journal import Journal, Submission
from tests.executors import PYTHON_ENV, make_executor, make_shell_executor
from tests.repositories import git
from tests.services import Service

CLIENTS = (1, 4, 16)
PEER_LINE = "Uvicorn running on "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests, 1 and 4 clients only")
    quick = parser.parse_args().quick
    clients = CLIENTS[:2] if quick else CLIENTS
    with tempfile.TemporaryDirectory(prefix="segserve-bench-") as name:
        scratch = Path(name)
        make_executor(scratch / "executor", python_env=PYTHON_ENV.replace("mlflow-skinny", "mlflow"))
        git(scratch / "executor", "remote", "add", "origin", "https://example.org/executor.git")
        make_shell_executor(scratch / "shell")
        with Service(scratch / "home", scratch) as service:
            ours = Ours(service, scratch)
            ours.predict(1)  # builds the environment, starts the tracking server
            with peer(scratch) as url:
                theirs = Theirs(url)
                theirs.predict(1)
                answers(ours, theirs, 100 if quick else 400)
                images(ours, theirs, clients, 2 if quick else 3)
                submissions(ours, theirs, clients, 100 if quick else 400)
    claims()


def answers(ours: Side, theirs: Side, count: int) -> None:
    """Milliseconds of the small routes, idle and beside jobs that follow each other without a pause."""
    print("| route | service | idle p50 (ms) | idle p99 | busy p50 | busy p99 | busy ÷ idle, p99 |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for route in ("/livez", "/metrics"):
        for side in (theirs, ours):
            idle = sorted(side.latencies(route, count))
            with side.busy():
                busy = sorted(side.latencies(route, count))
            cells = [f"{1e3 * quantile(values, q):.1f}" for values in (idle, busy) for q in (0.5, 0.99)]
            ratio = quantile(busy, 0.99) / quantile(idle, 0.99)
            print(f"| `{route}` | {side.name} | {' | '.join(cells)} | {ratio:.1f}× |", flush=True)


def images(ours: Side, theirs: Side, clients: tuple[int, ...], repeat: int) -> None:
    """Seconds until so many clients, who ask at once for one image each, all have their result."""
    print("\n| clients | usual way (s) | segserve (s) | ratio |\n|---:|---:|---:|---:|")
    for count in clients:
        pairs = [(at_once(theirs.predict, count), at_once(ours.predict, count)) for _ in range(repeat)]
        peer_s, ours_s = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        print(f"| {count} | {peer_s:.1f} | {ours_s:.1f} | {ours_s / peer_s:.2f}× |", flush=True)


def submissions(ours: Ours, theirs: Theirs, clients: tuple[int, ...], count: int) -> None:
    """Requests a second; the queue's two slots are taken by jobs that sleep."""
    print("\n| clients | bare insert (1/s) | `POST /jobs` (1/s) | ratio |\n|---:|---:|---:|---:|")
    ours.fill_slots()
    for each in clients:
        rates = [rate(submit, count, each) for submit in (theirs.submit, ours.submit)]
        print(f"| {each} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.2f}× |", flush=True)


def rate(submit: Callable[[], object], count: int, clients: int) -> float:
    """Requests a second of so many clients, who share `count` of them."""
    share = count // clients
    return share * clients / at_once(lambda _: [submit() for _ in range(share)], clients)


def claims() -> None:
    """Milliseconds of one claim, the commit to the disk included."""
    print("\n| rows in the journal | a claim (ms) |\n|---:|---:|")
    for size in (100, 10_000, 100_000):
        with tempfile.TemporaryDirectory(prefix="segserve-bench-") as name:
            journal = Journal(Path(name) / "segserve.db")
            with journal.queue._database.transaction() as connection:  # a hundred thousand single commits take long
                rows = ((f"job-{n:06}", float(n), f"user-{n % 10}") for n in range(size))
                connection.executemany(
                    "INSERT INTO jobs (id, job, state, created, updated, lane, user, priority, not_before)"
                    " VALUES (?, '', 'queued', ?, 0, 'cpu', ?, 0, 0)",
                    rows,
                )
            journal.queue._database.read("PRAGMA wal_checkpoint(TRUNCATE)")
            journal.queue.submit(Submission(job_id="last", request="{}", lane="cpu"))
            seconds = [timed(lambda: journal.queue.take("cpu", owner="bench", lease_s=60)) for _ in range(50)]  # noqa: B023
            print(f"| {size:,} | {1e3 * statistics.median(seconds):.2f} |", flush=True)


class Side:
    """One of the two services."""

    name: str
    url: str

    def predict(self, number: int) -> None:
        """Segment one image that nobody else asks for."""
        image = np.roll(_NOISE, next(_NUMBERS))
        files = [("files", ("data.png", bytes(cv2.imencode(".png", image)[1]), "image/png"))]
        httpx.post(
            f"{self.url}/batch-image-prediction/", params=self.query(), files=files, timeout=600
        ).raise_for_status()

    def query(self) -> dict[str, str]:
        return {}

    def latencies(self, route: str, count: int) -> list[float]:
        """Seconds of requests, one every 20 ms, on a connection that stays open."""
        with httpx.Client(base_url=self.url) as client:
            client.get(route)
            seconds = []
            for _ in range(count):
                seconds.append(timed(lambda: client.get(route).raise_for_status()))
                time.sleep(0.02)
        return seconds

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Jobs run, one after another."""
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                self.predict(0)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(1.0)
        yield
        ended.set()
        thread.join()


class Ours(Side):
    name = "segserve"

    def __init__(self, service: Service, scratch: Path) -> None:
        self.url, self.http = service.url, service.http
        self._scratch = scratch
        cv2.imwrite(str(scratch / "image.png"), _NOISE)

    def query(self) -> dict[str, str]:
        return {"repo": str(self._scratch / "executor"), "parameters": '{"size": 20}'}

    def fill_slots(self) -> None:
        jobs = [self._post(nap=3600 + number, mark="fill") for number in range(2)]
        while any(self.http.get(f"/jobs/{job}").json()["state"] != "running" for job in jobs):
            time.sleep(0.5)

    def submit(self) -> None:
        self._post(nap=0, mark=f"n{next(_NUMBERS)}")

    def _post(self, **parameters: object) -> str:
        request = {"executor": str(self._scratch / "shell"), "env": "local", "gpus": "0", "parameters": parameters}
        answer = self.http.post("/jobs", json={**request, "images": [str(self._scratch / "image.png")]})
        return str(answer.raise_for_status().json()["job"])


class Theirs(Side):
    name = "usual way"

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=120)

    def submit(self) -> None:
        request = {"executor": "shell", "env": "local", "gpus": "0", "parameters": {"nap": 0, "mark": "n"}}
        self._http.post("/rows", json={**request, "images": ["image.png"]}).raise_for_status()


@contextmanager
def peer(scratch: Path) -> Iterator[str]:
    """`upstream_service.py` in a process of its own, with the environment that segserve has built first on its path."""
    work = scratch / "peer"
    work.mkdir()
    python = next((scratch / "home" / "envs").glob("*/*/prefix/bin/python"))
    variables = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "EXECUTOR": str(scratch / "executor"),
        "WORK": str(work),
        "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    words = [sys.executable, "-m", "uvicorn", "upstream_service:app", "--port", "0", "--no-access-log"]
    log = work / "log"
    with log.open("w") as stream, subprocess.Popen(words, cwd=work, env=variables, stdout=stream, stderr=stream) as app:
        try:
            yield _address(app, log)
        finally:
            app.terminate()


def _address(app: subprocess.Popen[bytes], log: Path) -> str:
    while PEER_LINE not in (text := log.read_text()):
        if app.poll() is not None:
            raise SystemExit(text)
        time.sleep(0.1)
    return text.split(PEER_LINE)[1].split()[0]


_NUMBERS = itertools.count(1)
_NOISE = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)


def at_once(work: Callable[[int], object], count: int) -> float:
    with ThreadPoolExecutor(count) as pool:
        return timed(lambda: list(pool.map(work, range(count))))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    main()
