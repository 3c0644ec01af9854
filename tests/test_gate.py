"""The gate with a real MLflow server behind it, and executors that try to get around it."""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segserve.gate import Gate, Rules
from segserve.launch.output import Output
from segserve.model import Ending
from segserve.tracking import TrackingServer
from tests.attempts import run_attempt
from tests.pythons import make_environment
from tests.servers import call, new_run, status_of


def gate_to(
    server: str,
    run_id: str,
    experiment_id: str = "0",
    artifact_uri: str = "",
    take: Callable[[int], bool] = lambda _: True,
) -> tuple[Gate, list[str]]:
    said: list[str] = []
    rules = Rules(experiment_id, run_id, artifact_uri, "job1")
    gate = Gate(TrackingServer(server, False, {}), rules, said.append, take)
    gate.open()
    return gate, said


def through(
    gate: Gate, method: str, path: str, body: bytes | None = None, *, password: str | None = None, **headers: str
) -> tuple[int, bytes]:
    """One request; status and body, also of a refusal."""
    pair = f"attempt:{gate.password if password is None else password}"
    authorization = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    request = urllib.request.Request(gate.uri + path, body, {**authorization, **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post(gate: Gate, name: str, message: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    status, content = through(gate, "POST", f"/api/2.0/mlflow/{name}", json.dumps(message).encode())
    return status, json.loads(content)


def test_calls_reach_the_server_and_answers_come_back(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    gate, said = gate_to(mlflow_server, run_id)
    assert post(gate, "runs/log-metric", {"run_id": run_id, "key": "cells", "value": 3, "timestamp": 1}) == (200, {})
    status, content = through(gate, "GET", f"/api/2.0/mlflow/runs/get?run_id={run_id}")
    assert status == 200
    assert json.loads(content)["run"]["data"]["metrics"][0]["value"] == 3
    status, answer = post(gate, "runs/log-metric", {"run_id": run_id, "key": "cells"})
    assert status == 400  # the server's own refusal, in its own words
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert said == []


def test_a_stranger_on_the_same_machine_is_refused(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    gate, said = gate_to(mlflow_server, run_id)
    status, content = through(gate, "GET", f"/api/2.0/mlflow/runs/get?run_id={run_id}", password="guess")
    assert status == 401
    assert "MLFLOW_TRACKING_PASSWORD" in json.loads(content)["message"]
    assert len(said) == 1


def test_refusals_are_readable_and_bounded(mlflow_server: str) -> None:
    run_id, other = new_run(mlflow_server), new_run(mlflow_server)
    gate, said = gate_to(mlflow_server, run_id)
    for _ in range(30):
        status, answer = post(gate, "runs/update", {"run_id": other, "status": "FAILED"})
        assert status == 403
    assert answer["error_code"] == "PERMISSION_DENIED"
    assert other in answer["message"]
    assert "may only use its own run" in answer["message"]
    assert len(said) == 20
    assert "not shown" in said[-1]
    assert status_of(mlflow_server, other) == "RUNNING"


def test_the_experiment_is_shown_by_name_only_if_it_is_its_own(mlflow_server: str) -> None:
    mine, others = (
        call(mlflow_server, "POST", "experiments/create", {"name": f"{name} {time.time_ns()}"})["experiment_id"]
        for name in ("mine", "others")
    )
    name = call(mlflow_server, "GET", f"experiments/get?experiment_id={others}")["experiment"]["name"]
    gate, _ = gate_to(mlflow_server, new_run(mlflow_server), mine)
    path = f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name.replace(' ', '%20')}"
    status, content = through(gate, "GET", path)
    assert status == 403
    assert f"'{name}' is not the one of this run" in json.loads(content)["message"]
    assert through(gate, "GET", f"/api/2.0/mlflow/experiments/get?experiment_id={mine}")[0] == 200


def test_proxied_artifacts_of_its_own_run_go_both_ways(mlflow_server: str) -> None:
    experiment = call(
        mlflow_server,
        "POST",
        "experiments/create",
        {"name": f"proxied {time.time_ns()}", "artifact_location": f"mlflow-artifacts:/gate{time.time_ns()}"},
    )["experiment_id"]
    runs = [call(mlflow_server, "POST", "runs/create", {"experiment_id": experiment})["run"]["info"] for _ in range(2)]
    mine, other = (run["artifact_uri"].partition(":/")[2] for run in runs)
    gate, _ = gate_to(mlflow_server, runs[0]["run_id"], experiment, runs[0]["artifact_uri"])
    content = bytes(range(256)) * 40_000  # 10 MB, in many pieces
    base = "/api/2.0/mlflow-artifacts/artifacts"
    assert through(gate, "PUT", f"{base}/{mine}/deep/a%20b.bin", content)[0] == 200
    status, listed = through(gate, "GET", f"{base}?path={mine}/deep")
    assert (status, json.loads(listed)["files"][0]["path"]) == (200, "a b.bin")
    assert through(gate, "GET", f"{base}/{mine}/deep/a%20b.bin") == (200, content)
    assert through(gate, "PUT", f"{base}/{other}/output.json", b"{}")[0] == 403
    assert through(gate, "PUT", f"{base}/{other}/output.json", content)[0] == 403  # also when it is long
    assert through(gate, "GET", f"{base}?path={other}")[0] == 403
    assert "files" not in call(mlflow_server, "GET", f"artifacts/list?run_id={runs[1]['run_id']}")


def test_files_in_parts_become_files_in_one(mlflow_server: str, tmp_path: Path, monkeypatch: Any) -> None:
    """What parts are for, a store elsewhere that is reached past the gate, an executor cannot have."""
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    place = f"mlflow-artifacts:/gate{time.time_ns()}"
    name = {"name": f"parts {time.time_ns()}", "artifact_location": place}
    experiment = call(mlflow_server, "POST", "experiments/create", name)["experiment_id"]
    run = call(mlflow_server, "POST", "runs/create", {"experiment_id": experiment})["run"]["info"]
    gate, said = gate_to(mlflow_server, run["run_id"], experiment, run["artifact_uri"])
    for variable, value in gate.variables.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "loaded").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"x" * 100_000)
    repository = MlflowArtifactsRepository(run["artifact_uri"], tracking_uri=gate.uri)
    repository.log_artifact(str(tmp_path / "weights.bin"), "model")
    loaded = repository.download_artifacts("model", str(tmp_path / "loaded"))
    assert (Path(loaded) / "weights.bin").read_bytes() == b"x" * 100_000
    files = call(mlflow_server, "GET", f"artifacts/list?run_id={run['run_id']}&path=model")["files"]
    assert [(one["path"], int(one["file_size"])) for one in files] == [("model/weights.bin", 100_000)]
    assert said == []
    # A server whose store is elsewhere offers parts by itself, and clients would take no "no" any more.
    said_of_itself = json.loads(urllib.request.urlopen(f"{mlflow_server}/api/3.0/mlflow/server-info").read())
    offered = {name for name in said_of_itself if name.startswith("multipart_")}
    assert len(offered) == 2
    here = Rules.here(json.dumps({**said_of_itself, **dict.fromkeys(offered, True)}).encode())
    assert {name for name, value in json.loads(here).items() if value is True} & offered == set()
    status, content = through(gate, "GET", "/api/3.0/mlflow/server-info")
    assert (status, json.loads(content)) == (200, json.loads(here))


def test_uploads_count_against_what_the_attempt_may_write(mlflow_server: str) -> None:
    place = f"mlflow-artifacts:/gate{time.time_ns()}"
    name = {"name": f"full {time.time_ns()}", "artifact_location": place}
    experiment = call(mlflow_server, "POST", "experiments/create", name)["experiment_id"]
    run = call(mlflow_server, "POST", "runs/create", {"experiment_id": experiment})["run"]["info"]
    output = Output((), 1_000_000)
    gate, said = gate_to(mlflow_server, run["run_id"], experiment, run["artifact_uri"], output.upload)
    path = f"/api/2.0/mlflow-artifacts/artifacts/{run['artifact_uri'].partition(':/')[2]}"
    assert through(gate, "PUT", f"{path}/first", b"x" * 600_000)[0] == 200
    assert not output.exceeded
    status, content = through(gate, "PUT", f"{path}/second", b"x" * 600_000)
    assert status == 413
    assert "`sandbox.output_gb`" in json.loads(content)["message"]
    assert "has written and uploaded all that it may" in said[0]
    assert output.exceeded  # its supervisor ends it
    connection = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=60)
    pair = base64.b64encode(f"attempt:{gate.password}".encode()).decode()
    pieces = (b"x" * 10_000 for _ in range(10))
    connection.request("PUT", f"{path}/third", pieces, {"Authorization": f"Basic {pair}"}, encode_chunked=True)
    assert connection.getresponse().status == 413  # without a length, too
    connection.close()
    files = call(mlflow_server, "GET", f"artifacts/list?run_id={run['run_id']}")["files"]
    assert [one["path"] for one in files] == ["first"]


def test_one_that_is_shut_in_is_told_where_files_of_others_stay(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    said: list[str] = []
    gate = Gate(TrackingServer(mlflow_server, False, {}), Rules("0", run_id), said.append, lambda _: True, shut_in=True)
    gate.open()
    assert post(gate, "runs/create", {"experiment_id": "0"})[0] == 200
    assert post(gate, "runs/create", {"experiment_id": "0"})[0] == 200
    (sentence,) = said
    assert sentence.startswith("A run was created. Values and tags of it are stored, its files are not")


def test_no_server_behind_it_is_worth_another_try() -> None:
    gate, _ = gate_to("http://127.0.0.1:9", "a" * 32)
    status, content = through(gate, "GET", f"/api/2.0/mlflow/runs/get?run_id={'a' * 32}")
    assert status == 503
    assert "does not answer" in json.loads(content)["message"]


def test_many_at_once(mlflow_server: str) -> None:
    run_id = new_run(mlflow_server)
    gate, _ = gate_to(mlflow_server, run_id)
    statuses: list[int] = []

    def log(number: int) -> None:
        for step in range(5):
            message = {"run_id": run_id, "key": f"m{number}", "value": step, "timestamp": 1, "step": step}
            statuses.append(post(gate, "runs/log-metric", message)[0])

    threads = [threading.Thread(target=log, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 30


# What somebody would write into an executor to get at other runs; each line is tried on its own and says how it ended.
ATTACK = """\
import os, sys, mlflow
from mlflow.tracking import MlflowClient

other, theirs = sys.argv[1:]
client = MlflowClient()
tries = {
    "delete": lambda: client.delete_run(other),
    "end": lambda: client.set_terminated(other, "FAILED"),
    "tag": lambda: client.set_tag(other, "mlflow.note.content", "changed"),
    "metric": lambda: client.log_metric(other, "cells", 7),
    "read": lambda: client.get_run(other),
    "artifacts": lambda: client.list_artifacts(other),
    "download": lambda: mlflow.artifacts.download_artifacts(run_id=other, artifact_path="output.json"),
    "search": lambda: client.search_experiments(),
    "runs": lambda: client.search_runs(["0"]),
    "register": lambda: client.create_registered_model("mine"),
    "rename": lambda: client.rename_experiment("0", "mine"),
    "commit": lambda: client.set_tag(os.environ["MLFLOW_RUN_ID"], "segserve.commit", "0" * 40),
}
for name, attempt in tries.items():
    try:
        attempt()
    except Exception as error:
        print(f"{name}: refused, {error}", flush=True)
    else:
        print(f"{name}: DONE", flush=True)
with mlflow.start_run():
    mlflow.log_param("mine", 1)
    with mlflow.start_run(nested=True):
        mlflow.log_metric("loss", 0.5)
print("credentials:", sorted(name for name in os.environ if "TRACKING" in name), theirs in str(os.environ))
"""


def test_an_executor_that_tries_to_change_another_run(
    tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)  # as for somebody's own server with a token
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correcthorsebattery")
    other = new_run(mlflow_server)
    call(mlflow_server, "POST", "runs/set-tag", {"run_id": other, "key": "segserve.commit", "value": "f" * 40})
    before = call(mlflow_server, "GET", f"runs/get?run_id={other}")
    attempt, plan, outcome = run_attempt(
        tmp_path, mlflow_server, f"{sys.executable} script {other} correcthorsebattery", script=ATTACK
    )
    log = attempt.log.read_text()
    assert outcome.ending is Ending.SUCCEEDED, log
    assert "DONE" not in log
    assert log.count(": refused, ") == 12, log
    assert log.count("[segserve] The gate to MLflow refused") >= 10, log
    assert call(mlflow_server, "GET", f"runs/get?run_id={other}") == before
    run = call(mlflow_server, "GET", f"runs/get?run_id={plan.run_id}")["run"]
    assert {"key": "mine", "value": "1"} in run["data"]["params"]
    children = call(
        mlflow_server,
        "POST",
        "runs/search",
        {"experiment_ids": ["0"], "filter": f"tags.`mlflow.parentRunId` = '{plan.run_id}'"},
    )["runs"]
    assert [child["data"]["metrics"][0]["key"] for child in children] == ["loss"]
    names = "['MLFLOW_TRACKING_PASSWORD', 'MLFLOW_TRACKING_URI', 'MLFLOW_TRACKING_USERNAME']"
    assert f"credentials: {names} False" in log


# What executors of 2021 pin: 1.22 has calls of its own (run_uuid, JSON without a charset), and no proxied artifacts.
OLD_CLIENT = """
import mlflow
with mlflow.start_run():
    mlflow.log_params({"p": 1, "q": 2})
    mlflow.log_metric("loss", 0.5)
    mlflow.set_tags({"a": "b"})
    mlflow.log_artifact("script")
    print(mlflow.tracking.MlflowClient().list_artifacts(mlflow.active_run().info.run_id)[0].path)
print("mlflow", mlflow.__version__)
"""


@pytest.mark.network
def test_mlflow_1_22_passes(tmp_path: Path, mlflow_server: str) -> None:
    packages = ["mlflow-skinny==1.22.0", "setuptools<70", "protobuf<3.21"]
    programs = make_environment(tmp_path / "old", "3.8", *packages)
    attempt, plan, outcome = run_attempt(
        tmp_path, mlflow_server, "python script", script=OLD_CLIENT, path=(str(programs),)
    )
    log = attempt.log.read_text()
    assert outcome.ending is Ending.SUCCEEDED, log
    assert "script\nmlflow 1.22.0" in log
    assert "refused" not in log
    data = call(mlflow_server, "GET", f"runs/get?run_id={plan.run_id}")["run"]["data"]
    assert {entry["key"]: entry["value"] for entry in data["params"]} == {"p": "1", "q": "2"}
