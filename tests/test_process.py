"""Commands, identities and the ending of process trees, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from segserve import process


@pytest.fixture
def cookie() -> Iterator[dict[str, str]]:
    """An environment that marks what a test starts; all of it is gone at the end."""
    value = f"test.{os.getpid()}.{time.monotonic_ns()}"
    yield {**os.environ, "SEGSERVE_ATTEMPT": value}
    process.end(lambda: process.marked("SEGSERVE_ATTEMPT", value), grace=0)


def test_run_returns_both_streams() -> None:
    done = process.run(["bash", "-c", "cat; echo err >&2"], stdin="ü" * 200_000)
    assert (done.code, done.stdout, done.stderr) == (0, "ü" * 200_000, "err\n")


def test_a_command_may_ignore_its_input() -> None:
    assert process.run(["true"], stdin="x" * 500_000).code == 0


def test_lines_come_as_they_are_written() -> None:
    lines: list[tuple[float, str]] = []
    began = time.monotonic()
    done = process.run(
        ["bash", "-c", "echo one; echo two >&2; sleep 0.5; printf 'a\\r\\nend'"],
        on_line=lambda line: lines.append((time.monotonic() - began, line)),
    )
    assert [line for _, line in lines] == ["one", "two", "a", "end"]
    assert lines[1][0] + 0.3 < lines[2][0]
    assert done.stdout == "one\ntwo\na\r\nend"


def test_a_failed_command_says_what_it_printed_without_secrets() -> None:
    with pytest.raises(process.CommandFailed) as caught:
        process.run(["bash", "-c", "echo token=abc; exit 3"])
    assert caught.value.completed.code == 3
    assert "exit code 3" in str(caught.value)
    assert "abc" not in str(caught.value)
    assert process.run(["false"], check=False).code == 1


@pytest.mark.parametrize("command", ["echo first; sleep 60 & sleep 60", "while true; do echo first; done"])
def test_a_time_limit_kills_the_whole_group(command: str, cookie: dict[str, str]) -> None:
    began = time.monotonic()
    with pytest.raises(process.CommandTimedOut) as caught:
        process.run(["bash", "-c", command], timeout=0.5, env=cookie)
    assert 0.5 <= time.monotonic() - began < 40
    assert caught.value.completed.stdout.startswith("first\n")
    assert not process.marked("SEGSERVE_ATTEMPT", cookie["SEGSERVE_ATTEMPT"])


@pytest.mark.parametrize("chatty", ["sleep 60", "while true; do echo again; sleep 0.01; done"])
def test_a_daemon_that_keeps_the_pipe_is_not_waited_for(chatty: str, cookie: dict[str, str]) -> None:
    began = time.monotonic()
    done = process.run(["bash", "-c", f"setsid bash -c '{chatty}' & echo ready"], env=cookie)
    assert time.monotonic() - began < 40
    assert "ready\n" in done.stdout


def test_an_exception_in_between_kills_the_command(cookie: dict[str, str]) -> None:
    def on_line(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(["bash", "-c", "echo x; sleep 60"], on_line=on_line, env=cookie)
    assert not process.marked("SEGSERVE_ATTEMPT", cookie["SEGSERVE_ATTEMPT"])


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        process.run(["no-such-program-anywhere"])


def test_identity() -> None:
    child = subprocess.Popen(["sleep", "60"])
    identity = process.identity(child.pid)
    assert identity.alive
    assert process.identity().alive
    assert not replace(identity, start_time=identity.start_time + 1).alive
    assert not replace(identity, boot_id="another").alive
    assert not replace(identity, start_time=0.0).send(signal.SIGKILL)
    assert child.poll() is None
    assert identity.send(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.alive  # a zombie
    assert not identity.send(signal.SIGTERM)
    child.wait()
    assert not identity.alive
    assert not identity.send(signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        process.identity(child.pid)


def test_an_odd_name_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z 1 ("
    odd.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(odd), "60"])
    try:
        assert process.identity(child.pid).alive
        assert abs(process.identity(child.pid).start_time - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
    finally:
        child.kill()
        child.wait()


def test_what_is_marked_is_found_by_whole_value_or_beginning(cookie: dict[str, str]) -> None:
    value = cookie["SEGSERVE_ATTEMPT"]
    child = process.spawn(["sleep", "60"], env=cookie)
    try:
        time.sleep(0.05)
        for sought in (value, value[: value.rindex(".") + 1]):
            assert [one.pid for one in process.marked("SEGSERVE_ATTEMPT", sought)] == [child.pid]
        assert not process.marked("SEGSERVE_ATTEMPT", value[:-1])
        assert not process.marked("ATTEMPT", value)
    finally:
        child.kill()
        child.wait()


def test_ending_a_tree_that_resists(cookie: dict[str, str]) -> None:
    value = cookie["SEGSERVE_ATTEMPT"]
    program = f'{sys.executable} -c "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"'
    root = process.spawn(["bash", "-c", f"setsid {program} & setsid sleep 60 & sleep 60"], env=cookie)
    while len(process.marked("SEGSERVE_ATTEMPT", value)) < 4:
        time.sleep(0.02)
    time.sleep(0.3)
    began = time.monotonic()
    assert process.end(lambda: process.marked("SEGSERVE_ATTEMPT", value), grace=0.5) == []
    assert 0.4 < time.monotonic() - began < 40
    root.wait()


def test_a_process_whose_first_thread_has_ended_lives() -> None:
    program = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    child = process.spawn([sys.executable, "-c", program])
    identity = process.identity(child.pid)
    while b") Z " not in Path(f"/proc/{child.pid}/stat").read_bytes():
        time.sleep(0.02)
    assert identity.alive
    assert child.pid in [one.pid for one in process.descendants()]
    child.kill()
    child.wait()
    assert not identity.alive


def test_what_refuses_to_die_is_reported() -> None:
    immortal = [psutil.Process()]
    signalled: list[signal.Signals] = []

    class Watched(psutil.Process):
        def send_signal(self, sig: int) -> None:
            signalled.append(signal.Signals(sig))

    immortal = [Watched(os.getpid())]
    assert process.end(lambda: immortal, grace=0.1, patience=0.1) == immortal
    assert signalled[0] is signal.SIGTERM
    assert set(signalled[1:]) == {signal.SIGKILL}
