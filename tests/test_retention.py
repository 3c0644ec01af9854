"""What is kept of jobs that have ended, with real jobs of a real queue."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve.layout import Home
from segserve.pipeline import retention, reuse
from segserve.store import locked
from tests.commands import Command
from tests.queues import QueueAtWork

pytest_plugins = ["tests.command_fixtures"]

DAY = 86400.0


@pytest.fixture
def work(home: Home, tmp_path: Path) -> Iterator[QueueAtWork]:
    one = QueueAtWork(home, tmp_path / "queue")
    yield one
    one.close()


def done_jobs(work: QueueAtWork, count: int) -> list[str]:
    work.start()
    jobs = [work.submit(mark=f"m{number}") for number in range(count)]
    work.wait(*jobs)
    for job in jobs:  # whoever drove it has tidied up
        with locked(work.home.job(job).lock):
            pass
    return sorted(jobs, key=lambda job: work.get(job).updated)


def test_by_age_by_size_and_orphans(work: QueueAtWork, home: Home, segserve: Command) -> None:
    jobs = done_jobs(work, 3)
    now = time.time()
    orphan = home.jobs / "260101-000000-aaaaa"
    (orphan / "uploads").mkdir(parents=True)
    (orphan / "uploads" / "a.png").write_bytes(b"x" * 1000)

    def collected(**limits: float) -> list[tuple[str, str]]:
        found = retention.collect(work.ctx, **{"days": 0, "max_gb": 0, **limits}, dry_run=True)
        return [(one.job_id, one.why) for one in found]

    assert collected() == []
    assert collected(days=2) == []
    assert [job for job, why in collected(days=2, now=now + 3 * DAY) if "3 days ago" in why] == jobs
    assert collected(now=now + 2 * DAY) == [(orphan.name, "an upload that became no job")]
    sizes = {job: sum(f.lstat().st_size for f in home.job(job).path.rglob("*") if not f.is_dir()) for job in jobs}
    limit = (sizes[jobs[1]] + sizes[jobs[2]] + 10) / 2**30
    assert [job for job, _ in collected(max_gb=limit)] == [jobs[0]]  # the oldest, and no more than needed
    os.utime(orphan, (now - 2 * DAY, now - 2 * DAY))
    for key, job in (("gone", jobs[0]), ("kept", jobs[1]), ("elsewhere", "260101-000000-bbbbb")):
        reuse.remember(home, key, job)
    done = segserve("gc", "--max-gb", limit, "--json")
    assert done.code == 0
    assert [one["job"] for one in done.document["removed"]] == [orphan.name, jobs[0]]
    assert not orphan.exists()
    assert [file.stem for file in home.reuse.iterdir()] == ["kept"]  # nothing speaks of results that have gone
    assert not home.job(jobs[0]).path.exists()
    assert (home.job(jobs[1]).result / "output.json").exists()
    assert list(home.temporary.iterdir()) == []
    assert json.loads(segserve("show", jobs[0], "--json").out)["state"] == "succeeded"  # the journal remembers


def test_open_and_held_jobs_stay(work: QueueAtWork, home: Home) -> None:
    (ended,) = done_jobs(work, 1)
    running = work.submit(nap=60)
    work.wait_for_executor(running)
    waiting = [work.submit(nap=61 + number) for number in range(3)]
    later = time.time() + 100 * DAY
    with locked(home.job(ended).lock):
        assert retention.collect(work.ctx, days=1, max_gb=1e-9, now=later) == []
    removed = retention.collect(work.ctx, days=1, max_gb=1e-9, now=later)
    assert [one.job_id for one in removed] == [ended]
    assert home.job(running).path.exists()
    for job in (running, *waiting):
        work.ctx.journal.queue.cancel(job)
    work.wait(running, *waiting)
    assert str(work.get(running).state) == "cancelled"


def test_the_scheduler_does_it_too(work: QueueAtWork, home: Home) -> None:
    (job,) = done_jobs(work, 1)
    work.kill()
    os.environ["SEGSERVE_RETENTION__MAX_GB"] = "1e-9"
    work.start()  # it looks at its start, and every five minutes
    deadline = time.monotonic() + 90
    while home.job(job).path.exists():
        assert time.monotonic() < deadline, home.workers_log.read_text()[-2000:]
        time.sleep(0.1)
