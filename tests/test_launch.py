"""The supervisor with real processes, the real mlflow and a real tracking server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from segserve.backends import local
from segserve.launch.executor import docker_arguments, explain
from segserve.launch.log import Log
from segserve.model import COOKIE, GO, Ending, LaunchPlan, to_json
from tests.attempts import drive, kill, living, make_attempt, make_plan, outcome_of, run_attempt
from tests.servers import status_of
from tests.waiting import wait_for


def test_an_executor_that_succeeds(tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_SECRET", "a")
    monkeypatch.setenv("MLFLOW_FOO", "b")
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    attempt, plan, outcome = run_attempt(
        tmp_path,
        mlflow_server,
        "env -0 > env; ls -l /proc/self/fd > fds; pwd; echo to stderr >&2",
        path=("/one/bin", "/two/bin"),
        variables={"CACHE_FOLDER": "/cache"},
    )
    assert (outcome.ending, outcome.exit_code, outcome.fence) == (Ending.SUCCEEDED, 0, 7)
    assert 0 < outcome.started <= outcome.ended
    assert status_of(mlflow_server, plan.run_id) == "FINISHED"
    log = attempt.log.read_text()
    assert f"{attempt.checkout}\n" in log
    assert "to stderr\n" in log
    lines = (attempt.checkout / "env").read_text().split("\0")
    seen = dict(line.split("=", 1) for line in lines if line)
    assert seen[COOKIE] == plan.cookie
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["PATH"].startswith("/one/bin:/two/bin:")
    assert seen["CACHE_FOLDER"] == "/cache"
    assert seen["MLFLOW_RUN_ID"] == plan.run_id
    assert seen["MLFLOW_TRACKING_URI"].startswith("http://127.0.0.1:")  # the gate, see test_gate
    assert seen["MLFLOW_TRACKING_URI"] != mlflow_server
    assert seen["HTTPS_PROXY"] == "http://proxy:1"
    assert not {"SEGSERVE_SECRET", "MLFLOW_FOO", "VIRTUAL_ENV", "PYTHONPATH"} & seen.keys()
    assert "socket:" not in (attempt.checkout / "fds").read_text()  # the control connection stays ours
    assert not attempt.heartbeat.with_suffix(".tmp").exists()


@pytest.mark.parametrize(("command", "code", "says"), [("exit 3", 3, "code 3"), ("kill -9 $$", -9, "SIGKILL")])
def test_an_executor_that_fails(tmp_path: Path, mlflow_server: str, command: str, code: int, says: str) -> None:
    _, plan, outcome = run_attempt(tmp_path, mlflow_server, command)
    assert (outcome.ending, outcome.exit_code) == (Ending.FAILED, code)
    assert says in outcome.message
    assert status_of(mlflow_server, plan.run_id) == "FAILED"


def test_a_project_that_mlflow_refuses(tmp_path: Path, mlflow_server: str) -> None:
    attempt, _, outcome = run_attempt(tmp_path, mlflow_server, "true", entry="other")
    assert (outcome.ending, outcome.exit_code, outcome.started) == (Ending.FAILED, None, 0.0)
    assert "MLflow could not run the project" in outcome.message
    assert "Could not find other" in outcome.message
    assert "Traceback" in attempt.log.read_text()


def test_a_time_limit_ends_what_ignores_sigterm(tmp_path: Path, mlflow_server: str) -> None:
    stubborn = "trap '' TERM; while true; do sleep 0.2; done"
    attempt, plan, outcome = run_attempt(tmp_path, mlflow_server, stubborn, timeout_s=0.5)
    assert outcome.ending is Ending.TIMED_OUT
    assert 3.4 < outcome.ended - outcome.started < 10
    assert not living(plan)
    assert "[segserve] It ran longer than 0.5 s." in attempt.log.read_text()


HUNGRY = "import time; held = bytearray(300_000_000); print('held', flush=True); time.sleep(300)"


def test_an_executor_that_takes_more_memory_than_it_may_is_ended(tmp_path: Path, mlflow_server: str) -> None:
    attempt, plan, outcome = run_attempt(
        tmp_path, mlflow_server, f"{sys.executable} -I script", script=HUNGRY, memory_gb=0.2, control_groups=False
    )
    assert (outcome.ending, outcome.message) == (Ending.EXCEEDED, "It used more memory than the 0.2 GB that it may.")
    assert "[segserve] It used more memory" in attempt.log.read_text()
    assert not living(plan)
    assert status_of(mlflow_server, plan.run_id) == "FAILED"


def test_an_executor_that_starts_more_processes_than_it_may_is_ended(tmp_path: Path, mlflow_server: str) -> None:
    _, plan, outcome = run_attempt(
        tmp_path, mlflow_server, "for i in $(seq 30); do sleep 300 & done; wait", processes=10, control_groups=False
    )
    assert outcome.message == "It started more than the 10 processes that it may."
    assert not living(plan)


def test_cancel(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "setsid sleep 300 & sleep 300")
    assert not local.cancel(attempt)
    handle = local.preload(attempt)
    assert not local.cancel(attempt)  # not launched: its driver has to be stopped
    plan = make_plan(attempt, mlflow_server)
    handle.start(plan)
    wait_for(lambda: living(plan).count("sleep") == 2)
    began = time.monotonic()
    assert local.cancel(attempt, wait=True)
    assert time.monotonic() - began < 60
    assert handle.wait().ending is Ending.CANCELLED
    assert not living(plan)
    assert not local.cancel(attempt)
    handle.abandon()


def test_an_attached_attempt_ends_with_its_parent(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "(setsid sleep 300 &); sleep 300")
    plan = make_plan(attempt, mlflow_server)
    (tmp_path / "plan").write_text(to_json(plan))
    driver = drive(attempt, tmp_path / "plan")
    wait_for(lambda: living(plan).count("sleep") == 2)
    kill(driver)
    wait_for(lambda: not living(plan))
    assert outcome_of(attempt).ending is Ending.ORPHANED


def test_a_detached_attempt_survives_its_parent(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, "for i in $(seq 300); do [ -e stop ] && exit; sleep 0.1; done")
    plan = make_plan(attempt, mlflow_server, attached=False)
    (tmp_path / "plan").write_text(to_json(plan))
    driver = drive(attempt, tmp_path / "plan")
    wait_for(lambda: living(plan))
    kill(driver)
    time.sleep(0.5)
    assert local.recover(attempt) == local.ALIVE
    (attempt.checkout / "stop").touch()
    outcome = outcome_of(attempt)
    assert (outcome.ending, outcome.exit_code) == (Ending.SUCCEEDED, 0)
    assert local.recover(attempt) == outcome


def test_a_supervisor_that_is_never_told_to_start_ends_silently(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, "true")
    driver = drive(attempt, None)
    wait_for(attempt.supervisor.exists)
    pid = json.loads(attempt.supervisor.read_text())["pid"]
    kill(driver)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert attempt.log.read_text() == ""
    assert not attempt.outcome.exists()


def test_a_defect_of_the_supervisor_is_in_the_log(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, "true")
    handle = local.preload(attempt)
    handle._control.sendall(GO)  # without a plan
    assert handle.wait().ending is Ending.LOST
    assert "attempt.json" in attempt.log.read_text()
    handle.release()


def test_what_an_executor_leaves_behind_is_ended(tmp_path: Path, mlflow_server: str) -> None:
    attempt, plan, outcome = run_attempt(tmp_path, mlflow_server, "(setsid sleep 300 &); (env -i setsid sleep 301 &)")
    assert outcome.ending is Ending.SUCCEEDED
    assert not living(plan)
    assert "2 of its processes have not" in attempt.log.read_text()
    assert outcome.ended - outcome.started < 10


def test_secrets_never_reach_the_log(tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)  # somebody's server
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correcthorsebattery")
    script = (
        "echo my $MLFLOW_TRACKING_PASSWORD; echo token $MLFLOW_TRACKING_TOKEN.; "
        "echo https://me:hunter22@host/x; printf password=; sleep 1; echo swordfish; "
        "printf half; sleep 1; echo ' and half'; printf '\\377\\000 garbage\\n'"
    )
    attempt, _, outcome = run_attempt(tmp_path, mlflow_server, "bash script", script=script)
    assert outcome.ending is Ending.SUCCEEDED
    log = attempt.log.read_bytes()
    for secret in (b"correcthorse", b"hunter22", b"swordfish"):
        assert secret not in log
    assert b"my ***\n" in log  # that of the gate
    assert b"token .\n" in log  # that of the server ends with the supervisor
    assert b"password=***\n" in log
    assert b"half and half\n" in log
    assert b"\x00 garbage\n" in log


def test_200_megabytes_of_output(tmp_path: Path, mlflow_server: str) -> None:
    attempt, _, outcome = run_attempt(tmp_path, mlflow_server, "yes 'epoch 3 loss 0.123' | head -c 200000000; echo end")
    assert outcome.ending is Ending.SUCCEEDED
    assert attempt.log.stat().st_size > 200_000_000
    with attempt.log.open("rb") as stream:
        stream.seek(-4000, os.SEEK_END)
        assert b"end\n" in stream.read()
    assert outcome.ended - outcome.started < 30
    attempt.log.unlink()


def _logged(path: Path, limit: int, words: list[bytes], pause: float = 0.0) -> None:
    """What a child process writes through a log of its own (pytest holds descriptors 1 and 2 here)."""
    pid = os.fork()
    if pid == 0:
        log = Log(path, limit=limit)
        log.attach()
        for word in words:
            os.write(1, word)
            time.sleep(pause)
        log.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_log_over_its_limit_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [b"line %06d %s\n" % (number, b"x" * 80) for number in range(20_000)]
    _logged(path, 100_000, [*lines, b"token=abcdef\n", b"the error\n"])
    text = path.read_text()
    assert text.startswith("line 000000")
    assert "is over 100000 bytes" in text
    assert "bytes are left out here" in text
    assert text.endswith("token=***\nthe error\n")
    assert len(text) < 500_000


def test_a_full_disk_does_not_stop_the_executor() -> None:
    _logged(Path("/dev/full"), 10_000_000, [b"x" * 60_000 + b"\n"] * 50)


def test_a_line_that_never_ends_is_cut(tmp_path: Path) -> None:
    _logged(tmp_path / "log", 10_000_000, [b"x" * 50_000] * 10)
    assert (tmp_path / "log").read_text() == "x" * 500_000


def _plan(**changes: object) -> LaunchPlan:
    facts = {"job_id": "j", "number": 2, "fence": 3, "attached": True, "project": "", "entry": "", "parameters": {}}
    facts |= {"tracking_uri": "", "experiment_id": "", "run_id": ""}
    return LaunchPlan(**{**facts, **changes})


def test_docker_gets_label_and_gpus() -> None:
    arguments = docker_arguments(_plan(docker_args={"network": "host"}, gpus=("GPU-a", "GPU-b")))
    assert arguments["label"] == "segserve.attempt=j.2.3"
    assert shlex.split(arguments["gpus"]) == ['"device=GPU-a,GPU-b"']
    assert arguments["network"] == "host"
    assert "gpus" not in docker_arguments(_plan(docker_args={}))


def test_explanations() -> None:
    error = RuntimeError("x")
    assert explain(error, 137) == "The executor was ended by SIGKILL (exit code 137)."
    assert explain(error, -signal.SIGSEGV) == "The executor was ended by SIGSEGV (exit code -11)."
    assert explain(error, 2) == "The executor ended with exit code 2."
