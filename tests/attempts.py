"""Attempts at tiny executors that are shell commands, driven without the pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from segserve import process
from segserve.backends import local
from segserve.layout import AttemptDir
from segserve.model import COOKIE, LaunchPlan, Outcome, outcome_from_json
from tests.servers import new_run
from tests.waiting import wait_for

# The command of somebody: it starts an attempt, says so, and waits for its end.
DRIVER = """\
import sys, time
from pathlib import Path
from segserve import devices
from segserve.backends import local
from segserve.layout import AttemptDir
from segserve.model import plan_from_json
handle = local.preload(AttemptDir(Path(sys.argv[1])))
if len(sys.argv) > 2:
    plan = plan_from_json(Path(sys.argv[2]).read_text())
    gpus = [devices.Gpu(uuid, index, "Fake", 2**30, (9, 0)) for index, uuid in enumerate(plan.gpus)]
    folder = Path(sys.argv[2]).parent
    lease = devices.lease(len(gpus), job=plan.job_id, inventory=lambda: gpus, folder=folder)
    handle.start(plan, lease)
    lease.close()
print("started", flush=True)
time.sleep(600)
"""


def make_attempt(folder: Path, command: str, *, image: str = "", **files: str) -> AttemptDir:
    """An attempt's folder whose checkout is a project with the one entry point `main` (in docker), and more files."""
    attempt = AttemptDir(folder / "1")
    attempt.checkout.mkdir(parents=True)
    for name, text in files.items():
        (attempt.checkout / name).write_text(text)
    project: dict[str, Any] = {"name": "test", "entry_points": {"main": {"command": command}}}
    if image:
        project["docker_env"] = {"image": image}
    (attempt.checkout / "MLproject").write_text(json.dumps(project))
    return attempt


def make_plan(attempt: AttemptDir, server: str, **changes: Any) -> LaunchPlan:
    """A plan for it, with an MLflow run of its own."""
    facts: dict[str, Any] = {
        "job_id": f"job{os.getpid()}x{time.monotonic_ns()}",
        "number": 1,
        "fence": 7,
        "attached": True,
        "project": str(attempt.checkout),
        "entry": "main",
        "parameters": {},
        "tracking_uri": server,
        "experiment_id": "0",
        "run_id": new_run(server),
    }
    return LaunchPlan(**{**facts, **changes})


def run_attempt(
    folder: Path, server: str, command: str, *, script: str = "", **changes: Any
) -> tuple[AttemptDir, LaunchPlan, Outcome]:
    """Run a command to its end; `script` becomes a file of that name beside it."""
    attempt = make_attempt(folder, command, script=script)
    handle = local.preload(attempt)
    plan = make_plan(attempt, server, **changes)
    handle.start(plan)
    outcome = handle.wait()
    handle.abandon()
    return attempt, plan, outcome


def drive(attempt: AttemptDir, plan_file: Path | None) -> subprocess.Popen[str]:
    """A process that has started the attempt (or only preloaded it) and is its parent."""
    words = [sys.executable, "-c", DRIVER, str(attempt.path), *([str(plan_file)] if plan_file else [])]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    driver = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "started\n"
    return driver


def kill(driver: subprocess.Popen[str]) -> None:
    """`kill -9`."""
    driver.kill()
    driver.wait()
    if driver.stdout is not None:
        driver.stdout.close()


def living(plan: LaunchPlan) -> list[str]:
    """The names of what lives of an attempt."""
    return [one.name() for one in process.marked(COOKIE, plan.cookie)]


def outcome_of(attempt: AttemptDir) -> Outcome:
    """The outcome, as soon as it is there."""
    wait_for(attempt.outcome.exists)
    return outcome_from_json(attempt.outcome.read_text())
