"""The journal with real files and real processes."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segserve import journal as module
from segserve.errors import BackendError, ExecutorFailed, NotFound, UsageError
from segserve.journal import IllegalMove, Journal, StaleFence, file_system, new_job_id, refuse_network_file_system
from segserve.model import EnvironmentSpec, Job, JobState, Resources
from segserve.refs import Pin


def make_job(job_id: str | None = None) -> Job:
    return Job(
        id=job_id or new_job_id(),
        pin=Pin("https://host/group/executor", "0" * 40, ""),
        entry="main",
        parameters={"size": "ü"},
        images_parameter="input_images",
        environment=EnvironmentSpec("uv", "conda.yaml", "key"),
        resources=Resources(gpus=1),
        created="2026-11-20T00:00:00+00:00",
    )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "home" / "segserve.db")


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in that many processes at once; all must succeed."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(number)
                code = 0
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count


def test_a_job_on_its_way(journal: Journal) -> None:
    job = make_job()
    journal.create(job)
    record = journal.get(job.id)
    assert (record.job, record.state, record.fence, record.error) == (job, JobState.QUEUED, 0, {})
    fence = journal.claim(job.id)
    assert fence == 1
    journal.move(job.id, fence, JobState.PREPARING)
    attempt = journal.new_attempt(job.id, fence, attached=True)
    assert (attempt.number, attempt.state, attempt.slot) == (1, JobState.PREPARING, "")
    journal.assign(job.id, fence, 1, "GPU-a,GPU-b")
    journal.move(job.id, fence, JobState.RUNNING, run_id="r", run_url="http://u")
    journal.move(job.id, fence, JobState.COLLECTING)
    journal.move(job.id, fence, JobState.COLLECTING)  # said twice
    journal.move(job.id, fence, JobState.SUCCEEDED, result=Path("/result"), warnings=["password=hunter22", "ü"])
    record = journal.get(job.id)
    assert (record.state, record.run_id, record.run_url, record.result) == (
        JobState.SUCCEEDED,
        "r",
        "http://u",
        "/result",
    )
    assert record.warnings == ("password=***", "ü")
    assert record.updated >= record.created
    (attempt,) = journal.attempts(job.id)
    assert (attempt.state, attempt.slot, attempt.error, attempt.attached) == (
        JobState.SUCCEEDED,
        "GPU-a,GPU-b",
        "",
        True,
    )
    with pytest.raises(UsageError, match="has ended: succeeded"):
        journal.claim(job.id)
    with pytest.raises(IllegalMove):
        journal.move(job.id, fence, JobState.SUCCEEDED)


def test_only_the_moves_of_the_table(journal: Journal) -> None:
    job = make_job()
    journal.create(job)
    fence = journal.claim(job.id)
    with pytest.raises(IllegalMove, match="from queued to succeeded"):
        journal.move(job.id, fence, JobState.SUCCEEDED, result="x")
    assert journal.get(job.id).state is JobState.QUEUED
    assert journal.get(job.id).result == ""
    with pytest.raises(IllegalMove, match="already"):
        journal.create(job)


def test_a_stale_fence_writes_nothing(journal: Journal) -> None:
    job = make_job()
    journal.create(job)
    old = journal.claim(job.id)
    journal.move(job.id, old, JobState.PREPARING)
    new = journal.claim(job.id)
    assert new == old + 1
    writes: list[Callable[[], object]] = [
        lambda: journal.move(job.id, old, JobState.RUNNING),
        lambda: journal.note(job.id, old, run_id="x"),
        lambda: journal.new_attempt(job.id, old, attached=True),
        lambda: journal.assign(job.id, old, 1, "GPU"),
        lambda: journal.move(job.id, new + 1, JobState.RUNNING),
    ]
    for write in writes:
        with pytest.raises(StaleFence):
            write()
    record = journal.get(job.id)
    assert (record.state, record.run_id, journal.attempts(job.id)) == (JobState.PREPARING, "", [])
    journal.move(job.id, new, JobState.RUNNING)


def test_failure_and_retry(journal: Journal) -> None:
    job = make_job()
    journal.create(job)
    fence = journal.claim(job.id)
    journal.move(job.id, fence, JobState.PREPARING)
    journal.new_attempt(job.id, fence, attached=False)
    journal.move(job.id, fence, JobState.RUNNING)
    error = ExecutorFailed("it broke: token=abc", hint="mend it", quote="Traceback")
    journal.move(job.id, fence, JobState.QUEUED, error=error)
    assert journal.get(job.id).error == {
        "code": "ExecutorFailed",
        "message": "it broke: token=***",
        "hint": "mend it",
        "quote": "Traceback",
    }
    fence = journal.claim(job.id)
    journal.move(job.id, fence, JobState.PREPARING)
    assert journal.new_attempt(job.id, fence, attached=False).number == 2
    journal.move(job.id, fence, JobState.FAILED, error=OSError("secret=x"))
    first, second = journal.attempts(job.id)
    assert (first.state, first.error, first.fence) == (JobState.FAILED, "ExecutorFailed", 1)
    assert (second.state, second.error, second.fence) == (JobState.FAILED, "OSError", 2)
    assert journal.get(job.id).error["message"] == "secret=***"


def test_finding_a_job(journal: Journal) -> None:
    for name in ("261120-143015-k3f9a", "261120-143016-zzzzz", "261121-090000-k3x9a"):
        journal.create(make_job(name))
    assert journal.get("261121").job_id == "261121-090000-k3x9a"
    assert journal.get("K3F9A").job_id == "261120-143015-k3f9a"
    with pytest.raises(NotFound, match=r"261120-143016-zzzzz, 261120-143015-k3f9a"):
        journal.get("2611")
    for name in ("", "%", "_61120", "nothing", "261120-143015-k3f9a-more"):
        with pytest.raises(NotFound):
            journal.get(name)
    with pytest.raises(NotFound):
        journal.claim("261121")  # writing asks for the whole id


def test_lists(journal: Journal) -> None:
    names = [f"26112{n}-000000-aaaaa" for n in range(5)]
    for name in names:
        journal.create(make_job(name))
        time.sleep(0.002)
    journal.move(names[1], journal.claim(names[1]), JobState.CANCELLED)
    assert [record.job_id for record in journal.jobs()] == names[::-1]
    assert [record.job_id for record in journal.jobs(limit=2)] == [names[4], names[3]]
    assert [record.job_id for record in journal.jobs(None, JobState.CANCELLED)] == [names[1]]
    assert [record.job_id for record in journal.open_jobs()] == [names[0], *names[2:]]


def test_ids_sort_by_time_and_are_unique() -> None:
    ids = [new_job_id(1.7e9 + second) for second in range(0, 10**8, 10**5)]
    assert ids == sorted(ids)
    assert len({new_job_id(1.7e9) for _ in range(500)}) == 500
    assert new_job_id(1.7e9).startswith("231114-221320-")


def test_twenty_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "segserve.db"

    def work(number: int) -> None:
        journal = Journal(path)  # all of them create it
        for count in range(5):
            job = make_job(f"job-{number}-{count}")
            journal.create(job)
            fence = journal.claim(job.id)
            journal.move(job.id, fence, JobState.PREPARING)
            journal.new_attempt(job.id, fence, attached=True)
            journal.move(job.id, fence, JobState.FAILED)

    in_processes(20, work)
    assert len(Journal(path).jobs(None, JobState.FAILED)) == 100
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")) == []


def test_of_all_who_claim_only_the_last_can_write(tmp_path: Path) -> None:
    path = tmp_path / "segserve.db"
    Journal(path).create(make_job("job"))

    def work(number: int) -> None:
        journal = Journal(path)
        fence = journal.claim("job")
        (tmp_path / f"fence{fence}").touch(exist_ok=False)  # no two get the same
        time.sleep(0.5)
        try:
            journal.note("job", fence, run_id=str(fence))
        except StaleFence:
            assert fence < 8
        else:
            assert fence == 8

    in_processes(8, work)
    assert Journal(path).get("job").run_id == "8"


def test_opening_is_quick(journal: Journal) -> None:
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        Journal(journal.path).close()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.005


def test_the_file_is_private_and_in_wal_mode(journal: Journal) -> None:
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    with sqlite3.connect(journal.path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_an_older_journal_is_migrated(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.create(make_job("job"))
    journal.close()
    more = ("ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 5", "CREATE INDEX i ON jobs (priority)")
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, more))
    monkeypatch.setattr(module, "VERSION", 2)
    in_processes(5, lambda _: Journal(journal.path).close())
    with sqlite3.connect(journal.path) as connection:
        assert connection.execute("SELECT priority FROM jobs").fetchone() == (5,)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()
    assert Journal(journal.path).get("job").state is JobState.QUEUED


def test_a_newer_journal_is_refused(journal: Journal) -> None:
    with sqlite3.connect(journal.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BackendError, match="newer segserve"):
        Journal(journal.path)


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    share = tmp_path / "my share"
    (share / "local").mkdir(parents=True)
    (tmp_path / "link").symlink_to(share)
    shown = str(share).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {shown} nfs4 rw 0 0\n/dev/sdb1 {shown}/local xfs rw 0 0\n"
        f"/dev/sdc1 {shown}2 btrfs rw 0 0\n"
    )
    assert file_system(share / "segserve.db", mounts) == "nfs4"
    assert file_system(tmp_path / "link" / "segserve.db", mounts) == "nfs4"
    assert file_system(share / "local" / "segserve.db", mounts) == "xfs"
    assert file_system(tmp_path / "my share2", mounts) == "btrfs"
    assert file_system(tmp_path / "segserve.db", mounts) == "ext4"
    with pytest.raises(BackendError, match="network file system") as caught:
        refuse_network_file_system(share / "segserve.db", mounts)
    assert "SEGSERVE_HOME" in caught.value.hint
    refuse_network_file_system(share / "local" / "segserve.db", mounts)
