"""Limits of an attempt: walls of real control groups, and what is looked at."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from segserve import cgroups
from segserve.backends import local
from segserve.launch.output import Output, size_on_disk
from segserve.model import Ending, Outcome, Sandbox, to_json
from tests.attempts import drive, kill, living, make_attempt, make_plan, run_attempt
from tests.servers import status_of
from tests.waiting import wait_for

# Takes memory as fast as it can be written to; a heartbeat would see it too late.
BOMB = """\
import os, time
print("bomb", os.getpid(), flush=True)
held = []
while True:
    held.append(b"x" * 2**25)
"""


def groups_of(plan_cookie: str) -> list[Path]:
    """The folders of an attempt's group that exist."""
    return [folder for folder in cgroups.plan(plan_cookie).folders if folder.exists()]


@pytest.mark.sandbox
def test_the_kernel_ends_what_takes_memory_faster_than_anybody_looks(tmp_path: Path, mlflow_server: str) -> None:
    attempt, plan, outcome = run_attempt(
        tmp_path, mlflow_server, f"exec {sys.executable} -I script", script=BOMB, memory_gb=0.2
    )
    assert (outcome.ending, outcome.message) == (Ending.EXCEEDED, "It used more memory than the 0.2 GB that it may.")
    assert 0 < outcome.max_rss_bytes < 0.21 * 2**30  # it never had more
    assert not living(plan)
    assert not groups_of(plan.cookie)
    assert not attempt.group.exists()
    assert status_of(mlflow_server, plan.run_id) == "FAILED"


@pytest.mark.sandbox
def test_a_fork_bomb_stops_at_its_limit(tmp_path: Path, mlflow_server: str) -> None:
    """As root, too, whom RLIMIT_NPROC does not bind."""
    script = "bomb() { bomb | bomb & }; bomb; sleep 300"
    began = time.monotonic()
    _, plan, outcome = run_attempt(tmp_path, mlflow_server, "bash script", script=script, processes=60)
    assert (outcome.ending, outcome.message) == (
        Ending.EXCEEDED,
        "It started more than the 60 processes and threads that it may.",
    )
    assert time.monotonic() - began < 120
    assert not living(plan)
    assert not groups_of(plan.cookie)


@pytest.mark.sandbox
def test_within_its_limits_an_executor_notices_nothing(tmp_path: Path, mlflow_server: str) -> None:
    attempt, plan, outcome = run_attempt(
        tmp_path, mlflow_server, "cat /proc/self/cgroup; which bash", memory_gb=1.0, processes=50
    )
    assert outcome.ending is Ending.SUCCEEDED, attempt.log.read_text()
    log = attempt.log.read_text()
    assert f"/segserve-{plan.cookie}" in log
    assert str(attempt.shell) not in log  # PATH is what it was
    assert "no walls" not in log
    assert not groups_of(plan.cookie)


@pytest.mark.sandbox
def test_in_a_sandbox_files_that_are_memory_count(tmp_path: Path, mlflow_server: str) -> None:
    checkout = tmp_path / "1" / "checkout"
    script = """
        for folder in /tmp /dev/shm; do echo "$folder $(($(stat -f -c '%b * %S' $folder)))"; done
        head -c 120000000 /dev/zero >/tmp/first; echo half
        head -c 120000000 /dev/zero >/dev/shm/second; sleep 300
    """
    attempt, plan, outcome = run_attempt(
        tmp_path,
        mlflow_server,
        "sh script",
        script=script,
        memory_gb=0.2,
        sandbox=Sandbox(read_only=(), writable=(str(checkout),), home=str(checkout)),
    )
    log = attempt.log.read_text()
    assert (outcome.ending, outcome.message) == (Ending.EXCEEDED, "It used more memory than the 0.2 GB that it may."), (
        log
    )
    sizes = dict(line.split() for line in log.splitlines() if line.startswith(("/tmp ", "/dev/shm ")))
    assert all(abs(int(size) - 0.2 * 2**30) < 2**16 for size in sizes.values()), sizes
    assert len(sizes) == 2
    assert "half" in log
    assert not groups_of(plan.cookie)


@pytest.mark.sandbox
def test_whoever_finds_the_supervisor_killed_removes_its_group(tmp_path: Path, mlflow_server: str) -> None:
    # Without cookie, in a session of its own: only the group still knows it.
    attempt = make_attempt(tmp_path, "(env -i setsid sleep 300 &); touch ready; sleep 300")
    plan = make_plan(attempt, mlflow_server, attached=False, processes=50)
    (tmp_path / "plan").write_text(to_json(plan))
    driver = drive(attempt, tmp_path / "plan")
    group = cgroups.plan(plan.cookie)
    wait_for((attempt.checkout / "ready").exists)
    wait_for(lambda: len(group.processes()) >= 2)
    supervisor = local._identity(attempt)
    kill(driver)
    assert supervisor is not None
    supervisor.send(9)
    wait_for(lambda: not supervisor.alive)
    outcome = local.recover(attempt)
    assert isinstance(outcome, Outcome)
    assert outcome.ending is Ending.LOST
    assert not group.processes()
    assert not groups_of(plan.cookie)


def test_an_executor_that_writes_more_than_it_may_is_ended(tmp_path: Path, mlflow_server: str) -> None:
    mebibyte = 2**10
    script = "for i in $(seq 8); do head -c 500000 /dev/zero >file$i; done; echo written; sleep 300"
    checkout = tmp_path / "1" / "checkout"
    attempt, plan, outcome = run_attempt(
        tmp_path, mlflow_server, "sh script", script=script, output_gb=1 / mebibyte, written=(str(checkout),)
    )
    assert outcome.ending is Ending.EXCEEDED
    assert outcome.message == "It wrote more than the 0.000976562 GB that it may."
    assert "written" in attempt.log.read_text()
    assert not living(plan)


def test_the_kernel_ends_what_writes_more_into_one_file(tmp_path: Path, mlflow_server: str) -> None:
    _, _, outcome = run_attempt(tmp_path, mlflow_server, "exec head -c 3000000 /dev/zero >file", output_gb=0.001)
    assert outcome.ending is Ending.EXCEEDED
    assert outcome.message == "It wrote a file larger than the 0.001 GB that it may."
    assert (tmp_path / "1" / "checkout" / "file").stat().st_size <= 0.001 * 2**30


def test_only_what_is_added_counts(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "old").write_bytes(b"x" * 500_000)
    (tmp_path / "progress").touch()
    output = Output([str(tmp_path / "cache"), str(tmp_path / "progress"), str(tmp_path / "missing")], 200_000)
    output.watch()
    wait_for(lambda: output.walks)
    (tmp_path / "cache" / "new").write_bytes(b"x" * 150_000)
    (tmp_path / "cache" / "again").hardlink_to(tmp_path / "cache" / "new")
    (tmp_path / "cache" / "link").symlink_to("/usr")
    with (tmp_path / "cache" / "hole").open("wb") as stream:
        stream.truncate(2**30)
    walks = output.walks
    wait_for(lambda: output.walks >= walks + 2)
    assert not output.exceeded
    (tmp_path / "progress").write_bytes(b"x" * 100_000)
    wait_for(lambda: output.exceeded)


def test_walking_many_files_takes_little_of_the_time(tmp_path: Path) -> None:
    for number in range(4_000):
        (tmp_path / f"{number}").touch()
    began, used = time.monotonic(), time.thread_time()
    assert size_on_disk(str(tmp_path)) < 2**20
    assert time.thread_time() - used < 0.05 * (time.monotonic() - began)
