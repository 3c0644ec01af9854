"""Requests made from the description of a real service, valid and not: none of them is answered by 500.

Every route of `/openapi.json` takes part, those of tomorrow too. `SEGSERVE_SEED` repeats a run, `SEGSERVE_FUZZ_SECONDS`
makes it longer.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from segserve.layout import Home
from segserve.tokens import Scope, Tokens
from tests.executors import make_shell_executor
from tests.services import Service
from tests.uploads import files

SEED = int(os.environ.get("SEGSERVE_SEED") or random.randrange(2**32))
SECONDS = float(os.environ.get("SEGSERVE_FUZZ_SECONDS") or 25)
BATCH, LEAST = 10, 3
LIMITS = "sync_wait_s = 0.3\nmax_body_mb = 8\npatience_s = 10"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzz")
    make_shell_executor(folder / "executor")
    settings = f'{LIMITS}\n[repositories]\nallow = ["file://{folder}/"]\n[data_roots]\n"{folder}" = ["*"]'
    token = Tokens(Home(folder / "home").ensure().tokens).add("chef", scopes=[Scope.ADMIN])[1]
    with Service(folder / "home", folder, server=settings) as service:
        service.http = service.as_(token)  # no address on the network that somebody thinks of may be asked
        yield service


@pytest.fixture(scope="module")
def jobs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ids of jobs that are there: one with a result, one without; most requests would otherwise find none."""
    executor = service.home.parent / "executor"
    made = []
    for mark in ("good", "crash"):
        form = {"executor": str(executor), "env": "local", "gpus": "0", "parameters": f'{{"mark": "{mark}"}}'}
        made.append(service.http.post("/jobs", data=form, files=files("a.png", "b.png")).json()["job"])
    assert [service.wait(job)["state"] for job in made] == ["succeeded", "failed"]
    return made


def test_nothing_that_the_description_allows_or_forbids_is_a_500(service: Service, jobs: list[str]) -> None:
    print(f"seed {SEED}: SEGSERVE_SEED={SEED} repeats this")
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) >= 15
    failures: list[str] = []
    counts = {
        operation.label: _calls(service, operation, jobs, SECONDS / len(operations), failures)
        for operation in sorted(operations, key=lambda one: one.label)
    }
    print("\n".join(f"{number:5} {label}" for label, number in counts.items()))
    said = "".join(service.said)
    assert not failures, "\n\n".join(failures) + f"\n\n{said}"
    assert "Traceback" not in said
    assert min(counts.values()) >= LEAST, counts
    assert service.http.get("/livez").status_code == 200
    assert service.http.get("/status").json()["working"]


def _calls(service: Service, operation: Any, jobs: list[str], limit_s: float, failures: list[str]) -> int:
    """Call one route for so many seconds; returns how often."""
    http = service.http
    until, number, executor = time.monotonic() + limit_s, 0, str(service.home.parent / "executor")
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

    def call(case: Any, job: str) -> None:
        nonlocal number
        if job and "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = job
        elif job and isinstance(case.body, dict) and "executor" in case.body:
            case.body["executor"] = executor
        elif job and "repo" in (case.query or {}):
            case.query["repo"] = f"file://{executor}"
        answer = case.call(timeout=300, headers=dict(http.headers))
        number += 1
        if answer.status_code == 500:
            failures.append(f"{case.as_curl_command()}\n{answer.text[:500]}")
        if answer.status_code == 202 and "new" in answer.text:  # it is the answer that counts here
            http.delete(answer.json()["url"])

    while (time.monotonic() < until or number < LEAST) and not failures:
        few = settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        seed(SEED + number)(few(given(cases, st.sampled_from((*jobs, "")))(call)))()
    return number
