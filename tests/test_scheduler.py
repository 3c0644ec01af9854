"""The queue at work: a real scheduler, real workers, supervisors and executors, and `kill -9` of each of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve.layout import Home
from segserve.model import JobState
from segserve.pipeline import cancel
from segserve.store import locked
from tests.commands import status_of
from tests.queues import QueueAtWork, kill


@pytest.fixture
def queue(home: Home, tmp_path: Path, mlflow_server: str) -> Iterator[QueueAtWork]:
    os.environ["MLFLOW_TRACKING_URI"] = mlflow_server
    work = QueueAtWork(home, tmp_path / "work")
    yield work
    work.close()


@pytest.fixture
def impatient(queue: QueueAtWork) -> Iterator[QueueAtWork]:
    """The same with leases of a few seconds: a worker that is starved by the machine may lose its job, too."""
    work = QueueAtWork(queue.home, queue.folder, lease_s=6.0)
    yield work
    work.close()


def starts(queue: QueueAtWork, job_id: str) -> int:
    """How often the executor of a job was started, over all its attempts."""
    logs = sorted(queue.home.job(job_id).path.glob("*/log"))
    return sum(log.read_text(errors="replace").count("Running command") for log in logs)


def test_jobs_run_to_their_ends(queue: QueueAtWork) -> None:
    good, bad, slow = queue.submit(), queue.submit(mark="crash"), queue.submit(nap=60, timeout=1.0)
    gone = queue.submit(repo=(queue.folder / "nowhere").as_uri())
    queue.start()
    queue.wait(good, bad, slow, gone)
    record = queue.get(good)
    assert (record.state, record.tries, record.attempt, record.error) == (JobState.SUCCEEDED, 1, 1, {})
    assert Path(record.result) == queue.home.job(good).result
    assert (Path(record.result) / "output.json").exists()
    assert status_of(record.run_url) == "FINISHED"
    # What the executor did is not tried again; what the machine or a remote did, is.
    assert (queue.get(bad).error["code"], queue.get(bad).tries) == ("ExecutorFailed", 1)
    assert (queue.get(slow).error["code"], queue.get(slow).tries) == ("RunTimedOut", 1)
    assert (queue.get(gone).error["code"], queue.get(gone).tries) == ("RepositoryUnreachable", 3)
    assert [status_of(queue.get(job).run_url) for job in (bad, slow)] == ["FAILED", "FAILED"]
    assert [attempt.error for attempt in queue.ctx.journal.attempts(gone)] == ["RepositoryUnreachable"] * 3


def test_whoever_is_killed_the_job_ends_with_one_result(queue: QueueAtWork) -> None:
    queue.start()
    of_worker, of_supervisor = queue.submit(nap=4), queue.submit(nap=4)
    queue.wait_for_executor(of_worker)
    kill(queue.worker(of_worker))
    queue.wait_for_executor(of_supervisor)
    kill(queue.supervisor(of_supervisor))
    queue.kill()
    queue.start()
    queue.wait(of_worker, of_supervisor)
    record = queue.get(of_worker)
    assert (record.state, record.attempt, starts(queue, of_worker)) == (JobState.SUCCEEDED, 1, 1)  # it ran on
    record = queue.get(of_supervisor)
    assert record.error == {}  # that of the first attempt stands there
    assert (record.state, record.attempt, starts(queue, of_supervisor)) == (JobState.SUCCEEDED, 2, 2)  # once more
    first, second = queue.ctx.journal.attempts(of_supervisor)
    assert (first.state, first.error, second.state) == (JobState.FAILED, "AttemptLost", JobState.SUCCEEDED)


def test_what_a_worker_published_before_it_was_killed_is_no_second_result(queue: QueueAtWork) -> None:
    """It was killed between the folder and the row: nobody knows of that folder."""
    queue.start()
    job = queue.submit(nap=3)
    queue.wait_for_executor(job)
    folder = queue.home.job(job)
    (folder.result / "overlays").mkdir(parents=True)
    (folder.path / ".result.1.partial").mkdir()
    queue.wait(job)
    record = queue.get(job)
    assert record.state is JobState.SUCCEEDED
    assert [str(one) for one in folder.path.glob("*result*")] == [record.result]
    assert (folder.result / "output.json").exists()


def test_a_worker_that_is_suspended_past_its_lease_is_replaced(impatient: QueueAtWork) -> None:
    queue = impatient
    queue.start()
    job = queue.submit(nap=2)
    queue.wait_for_executor(job)
    worker = queue.worker(job)
    kill(worker, signal.SIGSTOP)
    queue.wait(job)
    assert queue.get(job).state is JobState.SUCCEEDED
    assert not worker.alive
    assert starts(queue, job) == 1


def test_stopping_the_scheduler_hands_everything_over(queue: QueueAtWork) -> None:
    scheduler = queue.start()
    running = queue.submit(nap=5)
    queue.wait_for_executor(running)
    fence = queue.get(running).fence
    scheduler.send_signal(signal.SIGTERM)
    assert scheduler.wait(40) == 0
    waiting = queue.submit()
    assert queue.executor_runs(running)
    assert queue.get(running).state is JobState.RUNNING
    queue.start()
    queue.wait(running, waiting)
    record = queue.get(running)
    assert (record.state, record.tries, record.attempt) == (JobState.SUCCEEDED, 1, 1)
    assert record.fence > fence
    assert queue.get(waiting).state is JobState.SUCCEEDED


def test_cancelled_wherever_it_is(impatient: QueueAtWork) -> None:
    queue = impatient
    queued = queue.submit()
    assert cancel(queue.ctx, queued) is JobState.CANCELLED
    queue.start()
    running, orphan = queue.submit(nap=60), queue.submit(nap=60)
    queue.wait_for_executor(running)
    queue.ctx.journal.queue.cancel(running)  # only the word: its worker hears it
    queue.wait_for_executor(orphan)
    kill(queue.worker(orphan), signal.SIGSTOP)
    queue.ctx.journal.queue.cancel(orphan)  # its worker cannot hear it: whoever takes over does
    queue.wait(running, orphan)
    for job in (running, orphan):
        assert queue.get(job).state is JobState.CANCELLED
        assert status_of(queue.get(job).run_url) == "KILLED"
        assert not queue.supervisor(job).alive


def test_secrets_of_a_request_are_in_no_row_and_gone_at_the_end(queue: QueueAtWork) -> None:
    secret = "hunter2hunter2"
    good = queue.submit(mark=f"token={secret}")
    folder = queue.home.job(good)
    assert secret in folder.secrets.read_text()
    assert folder.secrets.stat().st_mode & 0o077 == 0
    queue.start()
    queue.wait(good)
    assert queue.get(good).state is JobState.SUCCEEDED
    with locked(folder.lock):  # its worker has cleared up, too
        pass
    for path in (p for p in queue.home.path.rglob("*") if p.is_file() and "repos" not in p.parts):
        assert secret.encode() not in path.read_bytes(), path


def test_there_is_one_scheduler_per_home(queue: QueueAtWork) -> None:
    queue.start()
    job = queue.submit()
    queue.wait(job, until=lambda record: record.state is not JobState.QUEUED)
    second = subprocess.run(
        [sys.executable, "-m", "segserve.scheduler", "--alone"], check=False, capture_output=True, text=True
    )
    assert second.returncode != 0
    assert "works on" in second.stderr
    queue.wait(job)
