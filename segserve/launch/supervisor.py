"""One attempt, from `go` to outcome.json. The steps are told in the package's docstring."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from segserve import devices, process, redact, sandbox
from segserve.errors import BackendError
from segserve.fetching.addresses import Policy
from segserve.gate import Door, Elsewhere, Gate, Outside, Rules
from segserve.launch import executor
from segserve.launch.limits import Limits
from segserve.launch.log import Log
from segserve.layout import AttemptDir
from segserve.model import (
    COOKIE,
    GATE_PORTS,
    GO,
    Ending,
    LaunchPlan,
    Outcome,
    Sandbox,
    plan_from_json,
    to_json,
    write_atomically,
)
from segserve.tracking import TrackingServer, address

HEARTBEAT_SECONDS = 2.0
FIRST_SECONDS = 0.2  # between the first heartbeats
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
THREAD_SECONDS = 10.0  # for mlflow to take note that its process is dead (its tracking server may be gone)
OUTCOME_SECONDS = 30.0  # for a full disk to be emptied
_MOST_LEASES = 64
_PR_SET_CHILD_SUBREAPER = 36
_WNOTHREAD = 0x20000000  # wait(2): only children of the calling thread
_REASONS = {
    Ending.CANCELLED: "It was cancelled.",
    Ending.ORPHANED: "The command that it was attached to has gone.",
}


class _Stopped(Exception):
    """The attempt is being ended: nothing new is started."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m segserve.launch", description=__doc__)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--control-fd", type=int, required=True)
    arguments = parser.parse_args(argv)
    supervisor = Supervisor(AttemptDir(arguments.attempt), socket.socket(fileno=arguments.control_fd))
    code = 1
    try:
        code = supervisor.run()
    except Exception:  # a defect of ours: it goes into the log, and no outcome says LOST to whoever looks next
        traceback.print_exc()
        supervisor.abandon()
    # Not sys.exit: threads may still wait for a tracking server, and mlflow's exit handlers for more than that.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Supervisor:
    """The process that owns one attempt."""

    plan: LaunchPlan

    def __init__(self, attempt: AttemptDir, control: socket.socket) -> None:
        self._attempt = attempt
        self._control = control
        secrets = [value for name, value in os.environ.items() if redact.SECRET_NAME.search(name)]
        self._log = Log(attempt.log, secrets=secrets)
        self._wake_end, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._cookie = ""  # that of the plan, once it is known
        self._why: Ending | None = None  # why it is ended before it ends by itself
        self._limits = Limits(attempt, self._log.say)
        self._elsewhere: Elsewhere | None = None
        self._over = False  # the executor has ended by itself, it is too late to stop it
        self._started = 0.0  # of the executor, seconds since the epoch
        self._deadline = float("inf")  # monotonic
        self._beaten = 0.0

    def run(self) -> int:
        """Everything; the exit code says only whether the supervisor itself did its work."""
        control_number = self._control.fileno()
        os.set_inheritable(control_number, False)
        _become_subreaper()
        self._install_signals()  # first: who cancels a job that is about to start must not kill us with the default
        self._log.attach()
        executor.preload()
        held = self._await_go()
        if held is None:
            self._log.close()
            return 0
        if not self._attempt.supervisor.exists():
            write_atomically(self._attempt.supervisor, to_json(process.identity()))
        self.plan = plan_from_json(self._attempt.plan.read_text(encoding="utf-8"))
        self._cookie = self.plan.cookie
        # MLflow prints the command with all its values.
        self._log.hide([value for name, value in self.plan.parameters.items() if redact.value(name, value) != value])
        gate = self._open_gate()
        ports = self._open_door(self.plan.sandbox, gate) if self.plan.sandbox else ()
        self._enclose(ports, executor.enter(self.plan, gate.variables))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        sys.addaudithook(self._audit)
        with_executor = ThreadPoolExecutor(1, thread_name_prefix="executor")
        future = with_executor.submit(executor.run, self.plan, self._attempt.storage)
        future.add_done_callback(lambda _: self._wake_up())
        self._watch(future)
        self._end(future)
        self._bring()
        outcome = self._judge(future, before)
        self._log.close()
        self._publish(outcome)
        devices.clear(held[: len(self.plan.gpus)])  # behind the leases: the hold on the tracking server
        return 0

    def _open_gate(self) -> Gate:
        """The one way from the executor to MLflow. Credentials for the server end here."""
        server = TrackingServer(self.plan.tracking_uri, False, address.taken_out(os.environ))
        rules = Rules(
            self.plan.experiment_id,
            self.plan.run_id,
            self.plan.artifact_uri,
            self.plan.job_id,
            self.plan.parameters.values(),
        )
        if (
            self.plan.docker_args is None
            and self.plan.sandbox
            and str(self._attempt.elsewhere) in self.plan.sandbox.writable
        ):
            self._elsewhere = Elsewhere(self._attempt.elsewhere)
        shut_in = self.plan.sandbox is not None or self.plan.docker_args is not None
        gate = Gate(server, rules, self._log.say, self._limits.upload, shut_in=shut_in, elsewhere=self._elsewhere)
        self._log.hide([gate.password])
        gate.open()
        return gate

    def _open_door(self, plan: Sandbox, gate: Gate) -> tuple[int, ...]:
        """Wait for the sockets of the sandbox, at these ports; the gate's is the same inside as outside."""
        # While the environment is still ours: it may name a proxy.
        outside = Outside(Policy(allow=plan.allow), self._log.say) if plan.network else None
        serve = [gate.serve, *([outside.serve] if outside else [])]

        def take(listening: Sequence[socket.socket]) -> None:
            for one, listener in zip(serve, listening, strict=True):
                one(listener)

        Door(self._attempt.door, take, len(serve)).open()
        return (gate.port, sandbox.OUTSIDE_PORT)[: len(serve)]

    def _enclose(self, ports: Sequence[int], inside: Mapping[str, str]) -> None:
        """Into the environment, the executor's by now: walls. In docker the container's arguments do most of it.

        `inside` are variables that count behind the walls only.
        """
        doors, prefix, plan = self._limits.enclose(self.plan), list[str](), self.plan.sandbox
        if self.plan.docker_args is not None:
            if plan:
                os.environ[GATE_PORTS] = ",".join(map(str, ports))
                os.environ |= sandbox.proxies(plan)
            return
        if plan:
            prefix = sandbox.command(
                plan,
                project=Path(self.plan.project),
                door=self._attempt.door,
                ports=ports,
                processes=self._limits.processes_unbounded,
                memory=self._limits.memory_bytes,
                variables=inside,
            )
            sandbox.enter(plan)
        sandbox.take_over(self._attempt.shell, prefix=prefix, doors=doors, file_bytes=self._limits.output_bytes)

    def abandon(self) -> None:
        """Leave nothing behind after a defect of ours."""
        process.end(self._living, grace=GRACE_SECONDS)
        self._limits.close()
        self._log.close()

    def _await_go(self) -> list[int] | None:
        message, held, _, _ = socket.recv_fds(self._control, len(GO), _MOST_LEASES + 1, socket.MSG_CMSG_CLOEXEC)
        return held if message == GO else None

    def _install_signals(self) -> None:
        # Handlers, not SIG_IGN: that would be inherited by the executor.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stop(Ending.CANCELLED)

    def _stop(self, why: Ending) -> None:
        if self._why is None and not self._over:
            self._why = why
        self._wake_up()

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):  # full: it will wake up
            os.write(self._wake, b"!")

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        # mlflow has no hook for the moment at which it starts the executor, Python has:
        # https://docs.python.org/3/library/audit_events.html
        if event != "subprocess.Popen" or threading.current_thread() is threading.main_thread():
            return
        if self._why is not None:
            raise _Stopped("the attempt is being ended")
        if list(values[1][:2]) == ["bash", "-c"]:
            self._started = time.time()
            if self.plan.timeout_s > 0:
                self._deadline = time.monotonic() + self.plan.timeout_s
            self._wake_up()

    def _watch(self, future: Future[None]) -> None:
        """Return when the executor has ended, or `self._why` says why it has to."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_end, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            while not future.done() and self._why is None:
                self._beat()
                until = min(self._deadline, self._beaten + self._pause())
                for key, _ in selector.select(max(0.0, until - time.monotonic())):
                    if key.fileobj is self._control:
                        self._hear(selector)
                    else:
                        os.read(self._wake_end, 1024)
                if time.monotonic() >= self._deadline and not future.done():
                    self._stop(Ending.TIMED_OUT)
        self._over = True

    def _hear(self, selector: selectors.BaseSelector) -> None:
        try:
            gone = not self._control.recv(1024)
        except ConnectionResetError:
            gone = True
        if gone:
            selector.unregister(self._control)
            if self.plan.attached:
                self._stop(Ending.ORPHANED)

    def _pause(self) -> float:
        """Seconds from one heartbeat to the next: few at first, so that the memory of a quick executor is seen."""
        if not self._started:
            return HEARTBEAT_SECONDS
        return min(HEARTBEAT_SECONDS, max(FIRST_SECONDS, (time.time() - self._started) / 4))

    def _beat(self) -> None:
        now = time.monotonic()
        if now < self._beaten + self._pause():
            return
        self._beaten = now
        self._reap()
        pids = [one.pid for one in self._living()]
        if self._limits.look(pids):
            self._stop(Ending.EXCEEDED)
        living = [(pid, started) for pid in pids if (started := _start_time(pid)) is not None]
        text = json.dumps({"time": time.time(), "boot_id": process.boot_id(), "processes": living})
        scratch = self._attempt.heartbeat.with_suffix(".tmp")
        with suppress(OSError):  # a full disk is no reason to die; no fsync: after a power cut it means nothing
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(self._attempt.heartbeat)

    def _living(self) -> list[psutil.Process]:
        marked = process.marked(COOKIE, self._cookie) if self._cookie else []
        found = [*process.descendants(), *marked, *self._limits.processes()]
        return list({one.pid: one for one in found}.values())

    def _reap(self) -> None:
        # Orphans are adopted by our main thread. Without WNOTHREAD this would take from mlflow's thread the exit code
        # of the executor (and subprocess takes a missing one for 0).
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG | _WNOTHREAD)[0]:
                pass

    def _end(self, future: Future[None]) -> None:
        """End everything that lives of the attempt: all of it if it was stopped, else what the executor left behind."""
        if self._why is None and self._limits.verdict():
            self._why = Ending.EXCEEDED
        if self._why is not None:
            self._log.say(f"{self._reason()} Ending the executor.")
        elif left := self._living():
            self._log.say(f"The executor has ended, but {len(left)} of its processes have not: ending them.")
        if self._why is Ending.EXCEEDED:  # no time for it to take more
            self._limits.kill()
        deadline = time.monotonic() + THREAD_SECONDS
        while True:
            refusing = process.end(self._living, grace=GRACE_SECONDS)
            if refusing:
                self._log.say(f"Processes that cannot be ended: {', '.join(str(one.pid) for one in refusing)}.")
            if future.done() or time.monotonic() > deadline:
                break
            with suppress(TimeoutError):
                future.exception(timeout=0.1)
        self._end_containers()
        self._limits.close()
        self._reap()

    def _end_containers(self) -> None:
        if self.plan.docker_args is None:
            return
        from segserve.environments import dockerengine

        try:
            dockerengine.kill(self.plan.cookie)
        except BackendError as error:
            self._log.say(f"{error.message} {error.hint}")

    def _bring(self) -> None:
        try:
            if self._elsewhere is not None:
                self._elsewhere.bring()
        except (OSError, RecursionError) as error:  # folders within folders within folders
            self._log.say(f"Files of runs and models that it has created could not be stored: {error}")

    def _reason(self) -> str:
        if self._why is Ending.TIMED_OUT:
            return f"It ran longer than {self.plan.timeout_s:g} s."
        if self._why is Ending.EXCEEDED:
            return self._limits.verdict()
        return _REASONS[self._why] if self._why else ""

    def _judge(self, future: Future[None], before: resource.struct_rusage) -> Outcome:
        error = future.exception() if future.done() else None
        code = executor.exit_code(error) if future.done() else None
        ending, message = self._why, self._reason()
        if ending is None:
            # 0 with an error: the executor ended well, but mlflow could not tell the tracking server. Ours will try.
            ending = Ending.SUCCEEDED if code == 0 else Ending.FAILED
            if sentence := self._limits.too_large_a_file(code):
                ending, message = Ending.EXCEEDED, sentence
            elif error is not None:
                message = executor.explain(error, code)
                if code is None:
                    traceback.print_exception(error)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Outcome(
            fence=self.plan.fence,
            ending=ending,
            exit_code=code,
            message=redact.text(message),
            started=self._started,
            ended=time.time(),
            max_rss_bytes=self._memory(usage.ru_maxrss * 1024),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime, 3),
        )

    def _memory(self, reported: int) -> int:
        # A child begins as a copy of us, and the kernel counts that as its own: it never reports less than we
        # have. Then what the heartbeats have seen is nearer to the truth; 0 if the executor was too quick.
        ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(reported if reported > ours else 0, self._limits.most_memory)

    def _publish(self, outcome: Outcome) -> None:
        deadline = time.monotonic() + OUTCOME_SECONDS
        while True:
            try:
                write_atomically(self._attempt.outcome, to_json(outcome))
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return


def _become_subreaper() -> None:
    # Daemons of the executor are reparented to us instead of init, so that walking down from us finds them (prctl(2)).
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _start_time(pid: int) -> float | None:
    with suppress(ProcessLookupError):
        return process.identity(pid).start_time
    return None
