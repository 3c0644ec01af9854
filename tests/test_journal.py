"""The journal with real files and real processes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segserve.errors import BackendError, NotFound, UsageError
from segserve.journal import (
    IllegalMove,
    Journal,
    StaleFence,
    file_system,
    new_job_id,
    refuse_network_file_system,
    schema,
)
from segserve.model import EnvironmentSpec, Job, JobState, Resources, to_json
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
    fence = journal.begin(job)
    record = journal.get(job.id)
    assert (record.job, record.state, record.fence, record.error) == (job, JobState.PREPARING, fence, {})
    (attempt,) = journal.attempts(job.id)
    assert (attempt.number, attempt.state, attempt.slot, record.attempt) == (1, JobState.PREPARING, "", 1)
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
    fence = journal.begin(job)
    with pytest.raises(IllegalMove, match="from preparing to succeeded"):
        journal.move(job.id, fence, JobState.SUCCEEDED, result="x")
    assert journal.get(job.id).state is JobState.PREPARING
    assert journal.get(job.id).result == ""
    with pytest.raises(IllegalMove, match="already"):
        journal.begin(job)


def test_a_stale_fence_writes_nothing(journal: Journal) -> None:
    job = make_job()
    old = journal.begin(job)
    new = journal.claim(job.id)
    assert new == old + 1
    writes: list[Callable[[], object]] = [
        lambda: journal.move(job.id, old, JobState.RUNNING),
        lambda: journal.note(job.id, old, run_id="x"),
        lambda: journal.accept(job, old),
        lambda: journal.assign(job.id, old, 1, "GPU"),
        lambda: journal.queue.renew(job.id, old, 60.0),
        lambda: journal.queue.wanted(job.id, old),
        lambda: journal.queue.put_back(job.id, old, error=None),
        lambda: journal.queue.postpone(job.id, old, delay=1.0, error=OSError()),
        lambda: journal.move(job.id, new + 1, JobState.RUNNING),
    ]
    for write in writes:
        with pytest.raises(StaleFence):
            write()
    record = journal.get(job.id)
    assert (record.state, record.run_id, journal.attempts(job.id)[0].slot) == (JobState.PREPARING, "", "")
    journal.move(job.id, new, JobState.RUNNING)


def test_finding_a_job(journal: Journal) -> None:
    for name in ("261120-143015-k3f9a", "261120-143016-zzzzz", "261121-090000-k3x9a"):
        journal.begin(make_job(name))
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
        journal.begin(make_job(name))
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
            fence = journal.begin(job)
            journal.move(job.id, fence, JobState.FAILED)

    in_processes(20, work)
    assert len(Journal(path).jobs(None, JobState.FAILED)) == 100
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")) == []


def test_of_all_who_claim_only_the_last_can_write(tmp_path: Path) -> None:
    path = tmp_path / "segserve.db"
    Journal(path).begin(make_job("job"))

    def work(number: int) -> None:
        journal = Journal(path)
        fence = journal.claim("job")
        (tmp_path / f"fence{fence}").touch(exist_ok=False)  # no two get the same
        time.sleep(0.5)
        try:
            journal.note("job", fence, run_id=str(fence))
        except StaleFence:
            assert fence < 9
        else:
            assert fence == 9

    in_processes(8, work)
    assert Journal(path).get("job").run_id == "9"


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


# What the first version of the journal wrote (commit 7f5a35c), one job in every state; it had one attempt per job.
FIRST_VERSION = """
INSERT INTO jobs (id, job, state, fence, created, updated, run_id, run_url, result)
VALUES (:id, :job, :state, 2, 1.5, 2.5, 'run', 'http://run', '/result');
INSERT INTO attempts (job_id, number, fence, host, slot, state, attached, started)
VALUES (:id, 1, 2, 'host', 'GPU-a', :state, 1, 2.0);
"""


def test_a_journal_of_the_first_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "segserve.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in schema.MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute("PRAGMA user_version = 1")
    jobs = {state: make_job(f"261120-000000-{state}") for state in JobState}
    for state, job in jobs.items():
        for statement in FIRST_VERSION.split(";\n")[:2]:
            connection.execute(statement, {"id": job.id, "job": to_json(job), "state": state.value})
    connection.close()
    in_processes(5, lambda _: Journal(path).close())
    journal = Journal(path)
    for state, job in jobs.items():
        record = journal.get(job.id)
        assert (record.job, record.state, record.fence, record.result) == (job, state, 2, "/result")
        assert (record.attempt, record.tries, record.lane, record.request) == (1, 1, "", "")
        assert [(attempt.number, attempt.slot) for attempt in journal.attempts(job.id)] == [(1, "GPU-a")]
    assert len(journal.begun_jobs()) == 5  # one that was written down and never begun, too: nobody would take it
    assert journal.queue.take("cpu", owner="{}", lease_s=60) is None
    fence = journal.claim(jobs[JobState.RUNNING].id)
    journal.move(jobs[JobState.RUNNING].id, fence, JobState.FAILED)


def test_every_version_is_the_one_before_and_something_more() -> None:
    """A released version never changes: journals that had it would differ from new ones."""
    first = hashlib.sha256("".join(schema.MIGRATIONS[0]).encode()).hexdigest()
    assert first == "a263f097a8e03cd39302fbb76776def974b23cedf355e864beaa3ab0cc41fb17"


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
