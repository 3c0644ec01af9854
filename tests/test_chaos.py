"""20 commands at once; `kill -9` of command, supervisor and executor at random moments. The seed is printed."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from tests.executors import make_executor

pytestmark = [pytest.mark.slow, pytest.mark.network]

SEGSERVE = [sys.executable, "-m", "segserve"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 60), index, np.uint8))
    return folder


@pytest.fixture(autouse=True)
def _stop_server(home: object) -> Iterator[None]:
    yield
    subprocess.run([*SEGSERVE, "ui", "--stop"], check=False, capture_output=True)


def living(home: Path) -> list[str]:
    """Processes that work for jobs of this home (the tracking server does not)."""
    found = []
    for process in psutil.process_iter():
        try:
            cookie = process.environ().get("SEGSERVE_ATTEMPT")
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        ours = any(str(home / "jobs") in word for word in words)
        if process.status() != psutil.STATUS_ZOMBIE and (
            ours or (cookie and (home / "jobs" / cookie.split(".")[0]).exists())
        ):
            found.append(f"{process.pid} {' '.join(words)}")
    return found


def test_20_runs_at_once(tmp_path: Path, images: Path) -> None:
    """One clone, one build, 20 results."""
    make_executor(tmp_path / "executor")
    url = (tmp_path / "executor").as_uri()
    runs = [
        subprocess.Popen(
            [*SEGSERVE, "run", url, str(images), "--json", "-o", str(tmp_path / f"result-{number}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(20)
    ]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 20, [err for _, err in outputs]
    documents = [json.loads(out) for out, _ in outputs]
    assert len({document["job"] for document in documents}) == 20
    assert len({document["mlflow"] for document in documents}) == 20
    assert all([image["objects"] for image in document["images"]] == [1, 2, 1] for document in documents)
    home = Path(os.environ["SEGSERVE_HOME"])
    assert len(list((home / "repos").glob("*.git"))) == 1
    assert len(list((home / "envs").glob("*/environment.json"))) == 1
    builds = [err for _, err in outputs if "Building the environment" in err]
    assert len(builds) == 1


@pytest.mark.parametrize("victim", ["command", "supervisor", "executor"])
def test_kill_9_at_random_moments(tmp_path: Path, images: Path, victim: str) -> None:
    seed = int(os.environ.get("SEGSERVE_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    moments = random.Random(seed)
    home = Path(os.environ["SEGSERVE_HOME"])
    make_executor(tmp_path / "executor", "slow")
    for round_number in range(int(os.environ.get("SEGSERVE_CHAOS_ROUNDS", "4"))):
        run = subprocess.Popen(
            [*SEGSERVE, "run", str(tmp_path / "executor"), str(images), "-P", "label=slowly"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(moments.uniform(0.0, 8.0))
        hit = _kill(victim, run, home)
        if victim == "command" or not hit:
            run.kill()
        out, _ = run.communicate(timeout=60)
        if victim == "supervisor":  # the next command cleans up behind a supervisor that was killed itself
            subprocess.run([*SEGSERVE, "ps"], check=True, capture_output=True)
        deadline = time.monotonic() + 10
        while living(home) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert living(home) == [], f"seed {seed}, round {round_number}: {out}"
    done = subprocess.run(
        [*SEGSERVE, "run", str(tmp_path / "executor"), str(images), "--json", "-P", "label=at-once"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [image["objects"] for image in json.loads(done.stdout)["images"]] == [1, 2, 1]
    jobs = json.loads(subprocess.run([*SEGSERVE, "ps", "-a", "--json"], check=True, capture_output=True).stdout)
    assert {job["state"] for job in jobs} <= {"succeeded", "failed", "cancelled"}
    counts = collections.Counter((job["state"], _mlflow_status(job["job"])) for job in jobs)
    print(f"seed {seed}: {dict(counts)}")
    right = {("succeeded", "FINISHED"), ("failed", "FAILED"), ("cancelled", "KILLED")}
    assert {pair for pair in counts if pair[1]} <= right  # "" has no run: killed before one was made


def _mlflow_status(job: str) -> str:
    from mlflow import MlflowClient

    facts = json.loads(subprocess.run([*SEGSERVE, "show", job, "--json"], check=True, capture_output=True).stdout)
    if not facts["mlflow"]:
        return ""
    address, run_id = facts["mlflow"].split("/#/")[0], facts["mlflow"].rsplit("/", 1)[1]
    return str(MlflowClient(tracking_uri=address).get_run(run_id).info.status)


def _kill(victim: str, run: subprocess.Popen[str], home: Path) -> bool:
    """Kill the command itself, or its supervisor, or a process of the executor; false when there is none (yet)."""
    if victim == "command":
        run.kill()
        return True
    supervisors = [p for p in psutil.Process(run.pid).children(recursive=True) if _is_supervisor(p)]
    if not supervisors:
        return False
    targets = supervisors if victim == "supervisor" else supervisors[0].children(recursive=True)
    for process in targets[:1]:
        os.kill(process.pid, signal.SIGKILL)
    return bool(targets)


def _is_supervisor(process: psutil.Process) -> bool:
    try:
        return "segserve.launch" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
