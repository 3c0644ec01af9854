"""The queue in the journal: who is next, what is tried again, what is one job; and what a claim costs."""

from __future__ import annotations

import collections
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segserve.environments.base import BuildOptions
from segserve.errors import ExecutorFailed, NotFound, RepositoryUnreachable
from segserve.inputs import Selection
from segserve.journal import Claim, Journal, Submission, Submitted
from segserve.journal.queue import KeyReused
from segserve.model import JobState, Resources
from segserve.pipeline import Request, wire
from segserve.refs import parse
from tests.test_journal import in_processes


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "segserve.db")


def submit(journal: Journal, job_id: str, **facts: Any) -> Submitted:
    return journal.queue.submit(Submission(**{"job_id": job_id, "request": "{}", "lane": "cpu", **facts}))


def take(journal: Journal, lane: str = "cpu") -> Claim | None:
    return journal.queue.take(lane, owner='{"pid": 1}', lease_s=60)


def order(journal: Journal, lane: str = "cpu") -> list[str]:
    """All that wait, in the order in which they are taken; each ends before the next is taken."""
    taken = []
    while (claim := take(journal, lane)) is not None:
        taken.append(claim.job_id)
        journal.move(claim.job_id, claim.fence, JobState.FAILED)
    return taken


def test_from_the_queue_to_a_driver(journal: Journal) -> None:
    assert take(journal) is None
    assert submit(journal, "job", user="anna", priority=3) == Submitted("job", new=True)
    record = journal.get("job")
    assert (record.state, record.job, record.fence, record.attempt) == (JobState.QUEUED, None, 0, 0)
    claim = take(journal)
    assert claim == Claim("job", fence=1, attempt=1)
    record = journal.get("job")
    assert (record.state, record.owner, record.tries, record.user) == (JobState.PREPARING, '{"pid": 1}', 1, "anna")
    assert 50 < record.lease_until - time.time() < 61
    (attempt,) = journal.attempts("job")
    assert (attempt.number, attempt.fence, attempt.state, attempt.attached) == (1, 1, JobState.PREPARING, False)
    assert journal.queue.driven() == {"cpu": 1}
    assert take(journal) is None
    journal.move("job", 1, JobState.CANCELLED)
    record = journal.get("job")
    assert (record.owner, record.lease_until) == ("", 0)


def test_higher_priorities_first_then_whoever_was_served_longest_ago(journal: Journal) -> None:
    for number in range(3):
        submit(journal, f"a{number}", user="anna")
    for number in range(2):
        submit(journal, f"b{number}", user="ben")
    submit(journal, "c0", user="cleo", priority=-1)
    submit(journal, "b9", user="ben", priority=1)
    assert order(journal) == ["b9", "a0", "b0", "a1", "b1", "a2", "c0"]


def test_who_has_fewer_running_is_next(journal: Journal) -> None:
    for number in range(3):
        submit(journal, f"a{number}", user="anna")
    submit(journal, "b0", user="ben")
    first = take(journal)
    assert first is not None
    assert first.job_id == "a0"
    journal.move("a0", first.fence, JobState.FAILED)  # served a moment ago, but nothing of hers runs any more
    running = [claim.job_id for claim in (take(journal), take(journal), take(journal)) if claim]
    assert running == ["b0", "a1", "a2"]


def test_lanes_do_not_wait_for_each_other(journal: Journal) -> None:
    submit(journal, "big", lane="gpu", priority=9)
    submit(journal, "small")
    assert order(journal, "cpu") == ["small"]
    assert journal.queue.waiting() == {"gpu": 1}
    assert order(journal, "gpu") == ["big"]


def test_another_try_after_a_while(journal: Journal) -> None:
    submit(journal, "job")
    first = take(journal)
    assert first is not None
    error = RepositoryUnreachable("no answer: token=abc", hint="wait")
    journal.queue.put_back("job", first.fence, delay=0.3, error=error)
    record = journal.get("job")
    assert (record.state, record.tries, record.error["message"]) == (JobState.QUEUED, 1, "no answer: token=***")
    assert (record.owner, record.lease_until) == ("", 0)
    assert take(journal) is None
    assert journal.queue.waiting() == {"cpu": 1}
    deadline = time.monotonic() + 10
    while (second := take(journal)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert second == Claim("job", fence=2, attempt=2)
    assert time.time() >= record.not_before
    one, two = journal.attempts("job")
    assert (one.state, one.error, two.state) == (JobState.FAILED, "RepositoryUnreachable", JobState.PREPARING)
    journal.queue.put_back("job", 2, error=None, counted=False)  # its worker was asked to stop
    assert journal.get("job").tries == 1
    assert take(journal) == Claim("job", fence=3, attempt=3)


def test_what_ran_and_cannot_be_collected_now_stays_where_it_is(journal: Journal) -> None:
    submit(journal, "job")
    assert take(journal)
    journal.move("job", 1, JobState.RUNNING)
    journal.move("job", 1, JobState.COLLECTING)
    journal.queue.postpone("job", 1, delay=60, error=OSError("full"))
    record = journal.get("job")
    assert (record.state, record.tries, record.owner) == (JobState.COLLECTING, 2, "")
    assert record.not_before > time.time() + 50
    assert take(journal) is None
    assert journal.queue.driven() == {}  # it holds no slot: others may run
    assert journal.queue.states() == {JobState.COLLECTING: 1}


def test_changes_of_state_are_counted_with_their_seconds(journal: Journal) -> None:
    for name in ("one", "two"):
        submit(journal, name)
        assert take(journal)
        journal.move(name, 1, JobState.RUNNING)
        time.sleep(0.05)
        journal.note(name, 1, run_id="r")  # no change of state
        journal.move(name, 1, JobState.COLLECTING)
        journal.move(name, 1, JobState.SUCCEEDED if name == "one" else JobState.FAILED)
    counted = {(one.old, one.new): one for one in journal.queue.passages()}
    assert {step: one.times for step, one in counted.items()} == {
        (JobState.QUEUED, JobState.PREPARING): 2,
        (JobState.PREPARING, JobState.RUNNING): 2,
        (JobState.RUNNING, JobState.COLLECTING): 2,
        (JobState.COLLECTING, JobState.SUCCEEDED): 1,
        (JobState.COLLECTING, JobState.FAILED): 1,
    }
    ran = counted[JobState.RUNNING, JobState.COLLECTING].seconds
    assert 0.1 <= ran < 30
    assert counted[JobState.COLLECTING, JobState.FAILED].seconds <= ran


def test_a_key_stands_for_one_request_also_when_that_joins_no_other(journal: Journal) -> None:
    assert submit(journal, "one", user="anna", key="k", key_digest="d").new
    assert submit(journal, "two", user="anna", key="k", key_digest="d") == Submitted("one", new=False)
    with pytest.raises(KeyReused):
        submit(journal, "three", user="anna", key="k", key_digest="other")


@pytest.mark.parametrize("reached", list(JobState))
def test_cancel_in_every_state(journal: Journal, reached: JobState) -> None:
    submit(journal, "job")
    way = {
        JobState.QUEUED: [],
        JobState.PREPARING: [],
        JobState.WAITING: [JobState.WAITING],
        JobState.RUNNING: [JobState.RUNNING],
        JobState.COLLECTING: [JobState.RUNNING, JobState.COLLECTING],
        JobState.SUCCEEDED: [JobState.RUNNING, JobState.COLLECTING, JobState.SUCCEEDED],
        JobState.FAILED: [JobState.FAILED],
        JobState.CANCELLED: [JobState.CANCELLED],
    }[reached]
    if reached is not JobState.QUEUED:
        take(journal)
    for state in way:
        journal.move("job", 1, state)
    said = journal.queue.cancel("job")
    if reached is JobState.QUEUED:
        assert said is journal.get("job").state is JobState.CANCELLED
        assert take(journal) is None
    elif reached.final:
        assert said is journal.get("job").state is reached
    else:
        assert said is reached
        assert not journal.queue.wanted("job", 1)
        if reached in (JobState.PREPARING, JobState.WAITING, JobState.RUNNING):
            journal.queue.put_back("job", 1, error=None)  # nobody wants another try
            assert journal.get("job").state is JobState.CANCELLED
    with pytest.raises(NotFound):
        journal.queue.cancel("jo")


def test_the_same_request_again_joins_the_open_job(journal: Journal) -> None:
    assert submit(journal, "one", user="anna", digest="d").new
    assert submit(journal, "two", user="anna", digest="d") == Submitted("one", new=False)
    assert submit(journal, "three", user="ben", digest="d").new  # somebody else's
    assert submit(journal, "four", user="anna", digest="").new
    assert submit(journal, "five", user="anna", digest="").new  # nothing is known of what is in them
    claims = [take(journal), take(journal)]
    assert {claim.job_id for claim in claims if claim} == {"one", "three"}
    assert submit(journal, "six", user="anna", digest="d") == Submitted("one", new=False)  # it runs
    journal.queue.cancel("one")
    assert submit(journal, "seven", user="anna", digest="d").new
    journal.move("one", 1, JobState.CANCELLED)
    assert submit(journal, "eight", user="anna", digest="d") == Submitted("seven", new=False)


def test_a_client_that_comes_back_gets_the_result_that_waits_for_it(journal: Journal) -> None:
    assert submit(journal, "one", digest="d", awaited=True).new
    assert take(journal)
    for state in (JobState.RUNNING, JobState.COLLECTING, JobState.SUCCEEDED):
        journal.move("one", 1, state)
    assert submit(journal, "two", digest="d").new  # somebody who asks for a new job gets one
    journal.queue.cancel("two")
    assert submit(journal, "three", digest="d", awaited=True) == Submitted("one", new=False)
    journal.queue.delivered("one")
    assert submit(journal, "four", digest="d", awaited=True).new


def test_an_idempotency_key_is_the_same_job_for_ever(journal: Journal) -> None:
    assert submit(journal, "one", user="anna", key="k", digest="d").new
    claim = take(journal)
    assert claim is not None
    journal.move("one", claim.fence, JobState.FAILED)
    assert submit(journal, "two", user="anna", key="k", digest="d") == Submitted("one", new=False)
    assert submit(journal, "three", user="ben", key="k", digest="d").new
    with pytest.raises(KeyReused):
        submit(journal, "four", user="anna", key="k", digest="other")
    assert [record.job_id for record in journal.jobs(user="anna")] == ["one"]


def test_many_workers_take_every_job_once(tmp_path: Path) -> None:
    path = tmp_path / "segserve.db"
    journal = Journal(path)
    for number in range(60):
        submit(journal, f"job-{number}", user=f"user-{number % 7}", priority=number % 3)

    def work(number: int) -> None:
        mine = Journal(path)
        while (claim := take(mine)) is not None:
            (tmp_path / claim.job_id).touch(exist_ok=False)  # nobody else has it
            mine.move(claim.job_id, claim.fence, JobState.FAILED, error=ExecutorFailed(str(number)))

    in_processes(6, work)
    assert len(journal.jobs(None, JobState.FAILED)) == 60


def test_a_claim_costs_the_same_from_100_to_100000_rows(tmp_path: Path) -> None:
    """Counted in sqlite's own instructions, which no other load on the machine can change."""
    steps = {size: _instructions_of_a_claim(tmp_path / str(size), size) for size in (100, 100_000)}
    print(steps)
    assert steps[100_000] < 1.2 * steps[100]


def _instructions_of_a_claim(path: Path, size: int) -> float:
    journal = Journal(path)
    _fill(path, size)
    counted: collections.Counter[str] = collections.Counter()
    connection = journal.queue._database._connection
    connection.set_progress_handler(lambda: counted.update(["instructions"]), 1)
    claims = [take(journal) for _ in range(20)]
    connection.set_progress_handler(None, 1)
    assert all(claims)
    return counted["instructions"] / len(claims)


def _fill(path: Path, size: int) -> None:
    """So many jobs of ten users: half of them wait, a few for another try, the others have ended."""
    states = ("queued", "succeeded")
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO jobs (id, job, state, created, updated, lane, user, priority, not_before)"
            " VALUES (?, '', ?, ?, 0, 'cpu', ?, 0, ?)",
            (
                (f"job-{n:06}", states[n % 2], float(n), f"user-{n // 2 % 10}", 0 if n % 100 else 4e9)
                for n in range(size)
            ),
        )
    connection.close()


def test_a_request_comes_back_from_the_queue_as_it_was() -> None:
    request = Request(
        ref=parse("https://user:hunter22@host/group/executor@v1#sub:main"),
        images=("a.png", "ü.tif"),
        parameters={"size": "3", "api_token": "abcdefgh"},
        selection=Selection(channel="DAPI", first=3),
        build=BuildOptions(kind="uv", channels=("conda-forge",), mirrors={"a": "b"}),
        resources=Resources(gpus=1, timeout_s=60.0),
        output=Path("/somewhere"),
        exports=("coco",),
        tags={"a": "b"},
    )
    text, secrets = wire.to_json(request), wire.secrets_of(request)
    assert "hunter22" not in text + repr(request.ref)
    assert "abcdefgh" not in text
    back = wire.from_json(text, secrets)
    assert back == request
    assert back.ref.credentials == request.ref.credentials
    assert wire.from_json(text).parameters == {"size": "3", "api_token": "***"}
    plain = replace(request, parameters={"size": "3"})
    assert wire.digest(request, {"a": "1"}) == ""
    same = wire.digest(plain, {"a": "1"})
    assert same == wire.digest(replace(plain, output=None, tags={}), {"a": "1"}) != ""
    assert same != wire.digest(replace(plain, parameters={"size": "4"}), {"a": "1"})
    assert same != wire.digest(plain, {"a": "2"})
