"""What an attempt may take of memory, processes and disk: by walls of the kernel where it has any, else by looking."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from segserve import cgroups
from segserve.launch.output import Output
from segserve.layout import AttemptDir
from segserve.model import LaunchPlan, write_atomically

_NO_GROUP = cgroups.Group(())


class Limits:
    """Those of one attempt. `say` is for its log. Containers have the limits of their engine, not these groups."""

    _plan: LaunchPlan

    def __init__(self, attempt: AttemptDir, say: Callable[[str], None]) -> None:
        self._attempt, self._say = attempt, say
        self._group = _NO_GROUP
        self._output = Output((), 0)
        self._hit = ""  # the sentence
        self.most_memory = 0  # bytes, as seen at heartbeats: of all its processes, or without a group of the largest

    def enclose(self, plan: LaunchPlan) -> tuple[Path, ...]:
        """Make the control group, if there is something to bound and the kernel lets us; the doors to it."""
        self._plan = plan
        self._output = Output(plan.written, self.output_bytes)
        self._output.watch()
        memory, processes = self.memory_bytes, plan.processes
        if plan.docker_args is not None or not (memory or processes):
            return ()
        problem = "`sandbox.control_groups` is off"
        if plan.control_groups:
            try:
                group = cgroups.plan(plan.cookie)
                write_atomically(self._attempt.group, group.to_json())  # first: whoever finds us dead looks there
                group.make(memory=memory, processes=processes)
            except cgroups.Unavailable as unavailable:
                problem = str(unavailable)
            else:
                self._group = group
                return group.doors
        if memory or plan.sandbox:
            self._say(f"The limits are no walls: memory and processes are looked at every few seconds; {problem}.")
        return ()

    @property
    def output_bytes(self) -> int:
        """The most that it may write; 0: no limit."""
        return int(self._plan.output_gb * 2**30)

    @property
    def memory_bytes(self) -> int:
        """The most memory of all its processes together; 0: no limit."""
        return int(self._plan.memory_gb * 2**30)

    @property
    def processes_unbounded(self) -> int:
        """The limit of processes, if the control group does not see to it."""
        return 0 if self._group.bounds("pids") else self._plan.processes

    def upload(self, size: int) -> bool:
        """Count bytes of an upload; false if they are too many."""
        return self._output.upload(size)

    def processes(self) -> list[psutil.Process]:
        """What lives in the group."""
        return self._group.processes()

    def look(self, pids: Sequence[int]) -> str:
        """The sentence on the limit that was hit, or nothing. `pids` are those of all that lives of the attempt."""
        self.most_memory = max([self.most_memory, self._group.memory(), *map(_peak_memory, pids)])
        return self.verdict() or self._seen(pids)

    def verdict(self) -> str:
        """The same without looking at processes: also for when it has ended."""
        limit = self._group.hit()
        if limit == "memory":
            self._hit = self._memory_sentence
            self.most_memory = max(self.most_memory, self.memory_bytes)  # it had all of it
        elif limit == "pids":
            self._hit = f"It started more than the {self._plan.processes} processes and threads that it may."
        elif self._output.exceeded:
            self._hit = f"It wrote more than the {self._plan.output_gb:g} GB that it may."
        return self._hit

    def too_large_a_file(self, code: int | None) -> str:
        """The sentence for an executor that the kernel has ended for writing more than that into one file."""
        if code not in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ):
            return ""
        return f"It wrote a file larger than the {self._plan.output_gb:g} GB that it may."

    def _seen(self, pids: Iterable[int]) -> str:
        """Where the kernel heeds nothing. This is no wall: between two looks it can take more."""
        pids = list(pids)
        limit = self.memory_bytes
        if limit and not self._group.bounds("memory") and sum(map(_memory, pids)) > limit:
            self._hit = self._memory_sentence
        elif self._plan.processes and not self._group.bounds("pids") and len(pids) > self._plan.processes:
            self._hit = f"It started more than the {self._plan.processes} processes that it may."
        return self._hit

    @property
    def _memory_sentence(self) -> str:
        return f"It used more memory than the {self._plan.memory_gb:g} GB that it may."

    def kill(self) -> None:
        """End all that is in the group at once."""
        self._group.kill()

    def close(self) -> None:
        """End what is left in the group, and remove it."""
        self._group.kill()
        if self._group.remove():
            with suppress(OSError):
                self._attempt.group.unlink(missing_ok=True)
        else:
            self._say("Its control group cannot be removed: processes of it hang in the kernel.")


def _memory(pid: int) -> int:
    """Bytes of a process; what it shares with others counts for each by its part."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _peak_memory(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
