"""The local backend: what survives which death, and how the next command finds the truth."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segserve import devices, process, tracking
from segserve.backends import local
from segserve.devices import Gpu
from segserve.errors import BackendError, NoSlot
from segserve.layout import AttemptDir, Home, JobDir
from segserve.model import CONTAINER_LABEL, Ending, LaunchPlan, outcome_from_json, to_json
from segserve.tracking import record
from tests.attempts import drive, kill, living, make_attempt, make_plan, outcome_of
from tests.image import base_image
from tests.waiting import wait_for

FAKE = Gpu("GPU-fake", 0, "Fake", 2**30, (9, 0))
# Two that keep the cookie, one in a session of its own; one that has thrown its whole environment away.
TREE = "(setsid sleep 300 &); (env -i setsid sleep 301 &); trap '' TERM; sleep 302; sleep 303"


def _supervisor(attempt: AttemptDir) -> process.Identity:
    return process.Identity(**json.loads(attempt.supervisor.read_text()))


def _in_heartbeat(attempt: AttemptDir) -> list[int]:
    if not attempt.heartbeat.exists():
        return []
    return [pid for pid, _ in json.loads(attempt.heartbeat.read_text())["processes"]]


def test_what_a_killed_supervisor_leaves_is_ended_by_the_next_command(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, TREE)
    plan = make_plan(attempt, mlflow_server, attached=False)
    (tmp_path / "plan").write_text(to_json(plan))
    driver = drive(attempt, tmp_path / "plan")
    wait_for(lambda: len(_in_heartbeat(attempt)) == 4)
    processes = _in_heartbeat(attempt)
    kill(driver)
    assert _supervisor(attempt).send(signal.SIGKILL)
    wait_for(lambda: not _supervisor(attempt).alive)
    assert all(Path(f"/proc/{pid}").exists() for pid in processes)
    began = time.monotonic()
    outcome = local.recover(attempt)
    assert time.monotonic() - began < 60
    assert outcome == outcome_from_json(attempt.outcome.read_text())
    assert (outcome.ending, outcome.fence) == (Ending.LOST, 7)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
    assert local.recover(attempt) == outcome


def test_waiting_for_a_supervisor_that_is_killed(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "sleep 300")
    handle = local.preload(attempt)
    plan = make_plan(attempt, mlflow_server)
    handle.start(plan)
    assert handle.poll() is None
    wait_for(lambda: living(plan))
    _supervisor(attempt).send(signal.SIGKILL)
    assert handle.wait().ending is Ending.LOST
    assert not living(plan)
    handle.abandon()


def test_giving_up_before_the_launch(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "true")
    handle = local.preload(attempt)
    supervisor = _supervisor(attempt)
    assert supervisor.alive
    handle.abandon()
    assert not supervisor.alive
    assert local.recover(attempt) == outcome_of(attempt)
    assert outcome_of(attempt).ending is Ending.LOST
    with pytest.raises(BackendError, match="before it was told to start"):
        _dead(tmp_path / "other").start(make_plan(attempt, mlflow_server))


def _dead(folder: Path) -> local.Handle:
    attempt = make_attempt(folder, "true")
    handle = local.preload(attempt)
    _supervisor(attempt).send(signal.SIGKILL)
    wait_for(lambda: not _supervisor(attempt).alive)
    return handle


def test_a_tick_may_give_up_waiting(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "sleep 300")
    handle = local.preload(attempt)
    plan = make_plan(attempt, mlflow_server)
    handle.start(plan)

    def tick() -> None:
        if living(plan):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handle.wait(tick=tick)
    handle.abandon()
    assert outcome_of(attempt).ending is Ending.ORPHANED


def test_after_a_restart_of_the_machine_nothing_is_ended(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, "true")
    attempt.plan.write_text(to_json(replace(_unlaunched_plan(attempt), fence=3)))
    myself = process.identity()
    attempt.supervisor.write_text(to_json(replace(myself, boot_id="an earlier one")))
    beat = {"boot_id": "an earlier one", "processes": [[myself.pid, myself.start_time]]}
    attempt.heartbeat.write_text(json.dumps(beat))
    outcome = local.recover(attempt)
    assert outcome != local.ALIVE
    assert (outcome.ending, outcome.fence) == (Ending.LOST, 3)
    assert "restarted" in outcome.message


def _unlaunched_plan(attempt: AttemptDir) -> LaunchPlan:
    return LaunchPlan("job", 1, 1, True, str(attempt.checkout), "main", {}, "http://127.0.0.1:1", "0", "run")


def test_a_lease_lives_exactly_as_long_as_the_supervisor(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(
        tmp_path, "echo $CUDA_VISIBLE_DEVICES > gpu; for i in $(seq 300); do [ -e stop ] && exit; sleep 0.1; done"
    )
    plan = make_plan(attempt, mlflow_server, attached=False, gpus=[FAKE.uuid])
    (tmp_path / "plan").write_text(to_json(plan))
    driver = drive(attempt, tmp_path / "plan")
    wait_for((attempt.checkout / "gpu").exists)
    kill(driver)
    time.sleep(0.2)

    def lease() -> devices.Lease:
        return devices.lease(1, job="other", wait=False, inventory=lambda: [FAKE], folder=tmp_path)

    with pytest.raises(NoSlot, match=f"held by .*{plan.job_id}, pid {_supervisor(attempt).pid}"):
        lease()
    (attempt.checkout / "stop").touch()
    assert outcome_of(attempt).ending is Ending.SUCCEEDED
    wait_for(lambda: not _supervisor(attempt).alive)
    assert (attempt.checkout / "gpu").read_text() == "GPU-fake\n"
    assert (tmp_path / "GPU-fake.lock").read_text() == ""
    lease().close()


def test_what_a_killed_supervisor_left_on_a_gpu_keeps_it(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "sleep 300")
    plan = make_plan(attempt, mlflow_server, gpus=(FAKE.uuid,))
    handle = local.preload(attempt)
    with devices.lease(1, job=plan.job_id, inventory=lambda: [FAKE], folder=tmp_path) as lease:
        handle.start(plan, lease)
    wait_for(lambda: living(plan))
    _supervisor(attempt).send(signal.SIGKILL)
    wait_for(lambda: not _supervisor(attempt).alive)
    with pytest.raises(NoSlot, match="what a killed job left"):
        devices.lease(1, job="other", wait=False, inventory=lambda: [FAKE], folder=tmp_path)
    assert local.recover(attempt) != local.ALIVE
    devices.lease(1, job="other", wait=False, inventory=lambda: [FAKE], folder=tmp_path).close()
    handle.release()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return base_image(tmp_path_factory.mktemp("image"))


def _containers(plan: LaunchPlan) -> list[str]:
    words = ["docker", "ps", "-aq", "--filter", f"label={CONTAINER_LABEL}={plan.cookie}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.docker
@pytest.mark.parametrize("end", ["cancel", "kill"])
def test_no_container_is_left(tmp_path: Path, mlflow_server: str, image: str, end: str) -> None:
    attempt = make_attempt(tmp_path, "sleep 300", image=image)
    plan = make_plan(attempt, mlflow_server, docker_args={"network": "host"}, job_id=f"docker-{end}-{time.time_ns()}")
    handle = local.preload(attempt)
    handle.start(plan)
    wait_for(lambda: _containers(plan))
    if end == "cancel":
        assert local.cancel(attempt)
        assert handle.wait().ending is Ending.CANCELLED
    else:
        _supervisor(attempt).send(signal.SIGKILL)
        assert handle.wait().ending is Ending.LOST
    assert not _containers(plan)
    handle.abandon()


def test_following_a_log(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    looks = 0

    def until() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            attempt.log.write_bytes(b"one\nt\xc3")
        if looks == 4:
            with attempt.log.open("ab") as stream:
                stream.write(b"\xb6wo\r\n10%\r20%\r\n\x1b[31mred\x1b[0m \x1b]0;title\x07\x00end")
        return looks > 6

    lines = local.follow(attempt, until=until, pause=0.001)
    assert list(lines) == ["one", "töwo", "10%", "20%", "red end"]


def test_the_environment_of_an_executor() -> None:
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_HOME": "/cuda",
        "HTTPS_PROXY": "p",
        "no_proxy": "q",
        "LD_PRELOAD": "x",
        "SSH_AUTH_SOCK": "x",
        "GITHUB_TOKEN": "x",
        "SEGSERVE_HOME": "x",
        "MLFLOW_TRACKING_TOKEN": "secret",
        "MLFLOW_RUN_ID": "x",
    }
    assert sorted(local.clean_environment(given)) == ["CUDA_HOME", "HTTPS_PROXY", "LC_ALL", "PATH", "no_proxy"]
    external = local.clean_environment({**given, "MLFLOW_TRACKING_URI": "https://somewhere"})
    assert external["MLFLOW_TRACKING_TOKEN"] == "secret"
    assert "MLFLOW_TRACKING_URI" not in external


@pytest.mark.parametrize("background", [False, True])
def test_interrupting_whoever_drives_a_job(tmp_path: Path, background: bool) -> None:
    job = JobDir(tmp_path)
    assert not local.interrupt_driver(job)
    program = "import signal, sys, time; from pathlib import Path; from segserve.store import locked\n"
    program += f"signal.signal(signal.SIGINT, signal.{'SIG_IGN' if background else 'default_int_handler'})\n"
    program += "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    driver = subprocess.Popen(
        [sys.executable, "-c", program, str(job.lock)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent,
    )
    assert driver.stdout is not None
    driver.stdout.readline()
    assert local.interrupt_driver(job)
    assert driver.wait(10) != 0
    driver.stdout.close()
    assert not local.interrupt_driver(job)


def test_the_hold_on_the_tracking_server_lives_with_the_supervisor(
    tmp_path: Path, home: Home, mlflow_server: str
) -> None:
    """A detached attempt logs at its end, maybe hours after the command that started it has gone."""
    attempt = make_attempt(tmp_path / "attempt", "sleep 600")
    handle = local.preload(attempt)
    with tracking.hold(home) as hold:
        handle.start(make_plan(attempt, mlflow_server, attached=False), hold=hold)
    handle.release()
    with record.exclusive_hold(home) as nobody:
        assert not nobody
    assert local.cancel(attempt, wait=True)

    def nobody_holds() -> bool:
        with record.exclusive_hold(home) as nobody:
            return nobody

    wait_for(nobody_holds)
