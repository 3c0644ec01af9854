"""What passes the gate to MLflow and what does not, call by call, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve.gate.rules import MOST_CHILDREN, Passed, Refused, Rules

OWN, OTHER = "a" * 32, "b" * 32
MODEL = f"m-{'c' * 32}"
API = "/api/2.0/mlflow"
PROXIED = "/api/2.0/mlflow-artifacts/artifacts"
ROOT = f"7/{OWN}/artifacts"


def rules() -> Rules:
    return Rules("7", OWN, f"mlflow-artifacts:/{ROOT}", "job1")


def post(name: str, message: Any, which: Rules | None = None) -> Passed:
    return (which or rules()).judge("POST", f"{API}/{name}", json.dumps(message).encode())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/update", {"run_id": OWN, "status": "FINISHED"}),
        ("runs/update", {"run_uuid": OWN, "run_id": OWN, "end_time": 3}),  # as mlflow 1.22 writes it
        ("runs/log-metric", {"run_id": OWN, "key": "runId", "value": 1.0, "timestamp": 1}),
        ("runs/log-parameter", {"run_id": OWN, "key": "experiment_id", "value": "9"}),
        ("runs/log-batch", {"run_id": OWN, "tags": [{"key": "a", "value": OTHER}], "metrics": [], "params": []}),
        ("runs/set-tag", {"run_id": OWN, "key": "mlflow.note.content", "value": "x"}),
        ("runs/log-inputs", {"run_id": OWN, "datasets": [{"dataset": {"name": "d", "source": "{}"}}]}),
        ("runs/log-model", {"run_id": OWN, "model_json": "{}"}),
    ],
)
def test_calls_on_its_own_run_pass_unchanged(name: str, message: dict[str, Any]) -> None:
    passed = post(name, message)
    assert passed.target == f"{API}/{name}"
    assert json.loads(passed.body or b"") == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/update", {"run_id": OTHER, "status": "FAILED"}),
        ("runs/update", {"run_uuid": OTHER}),
        ("runs/update", {"run_uuid": OWN, "runId": OTHER}),  # protobuf reads both spellings
        ("runs/update", {"run_id": OWN, "run_uuid": OTHER}),
        ("runs/update", {"run_id": [OWN, OTHER]}),
        ("runs/update", {"run_id": {"a": OWN}}),
        ("runs/update", {"status": "FAILED"}),
        ("runs/update", {"RunId": OWN}),
        ("runs/log-batch", {"run_id": OWN, "metrics": [{"key": "a", "value": 1, "modelId": MODEL}]}),
        ("runs/outputs", {"run_id": OWN, "models": [{"model_id": MODEL}]}),
        ("runs/delete", {"run_id": OWN}),
        ("runs/delete", {"run_id": OTHER}),
        ("runs/restore", {"run_id": OTHER}),
        ("runs/search", {"experiment_ids": ["7"]}),
        ("runs/set-tag", {"run_id": OWN, "key": "segserve.commit", "value": "0" * 40}),
        ("runs/delete-tag", {"run_id": OWN, "key": "segserve.job"}),
        ("runs/set-tag", {"run_id": OWN, "key": "mlflow.parentRunId", "value": OTHER}),
        ("runs/log-batch", {"run_id": OWN, "tags": [{"key": "segserve.job", "value": "x"}]}),
        ("experiments/search", {"max_results": 10}),
        ("experiments/create", {"name": "x"}),
        ("experiments/delete", {"experiment_id": "7"}),
        ("experiments/set-experiment-tag", {"experiment_id": "7", "key": "a", "value": "b"}),
        ("registered-models/create", {"name": "mine"}),
        ("model-versions/create", {"name": "mine", "source": "s3://x", "run_id": OWN}),
        ("logged-models", {"experiment_id": "8", "name": "m"}),
        ("logged-models/search", {"experiment_ids": ["7"]}),
        (f"logged-models/{MODEL}/params", {"params": []}),
        ("runs/create", {"experiment_id": "8"}),
        ("runs/create", {"experiment_id": "7", "tags": [{"key": "mlflow.parentRunId", "value": OTHER}]}),
        ("../mlflow/runs/update", {"run_id": OWN}),
        ("runs/update?run_id=" + OTHER, {"status": "FAILED"}),
    ],
)
def test_everything_else_is_refused(name: str, message: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        post(name, message)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", f"{API}/runs/get?run_id={OTHER}"),
        ("GET", f"{API}/runs/get?run_id={OWN}&run_id={OTHER}"),
        ("GET", f"{API}/runs/get?run_id={OWN}&run_uuid={OTHER}"),
        ("GET", f"{API}/runs/get"),
        ("GET", f"{API}/artifacts/list?run_id={OTHER}"),
        ("GET", f"{API}/experiments/get?experiment_id=8"),
        ("GET", f"{API}/experiments/search?max_results=3"),
        ("GET", f"{API}/metrics/get-history-bulk-interval?run_ids={OTHER}"),
        ("GET", f"/get-artifact?run_id={OTHER}&path=x"),
        ("GET", f"/ajax-api/2.0/mlflow/runs/get?run_id={OWN}"),
        ("GET", "/graphql"),
        ("GET", f"{PROXIED}?path=7/{OTHER}/artifacts"),
        ("GET", f"{PROXIED}?path=7"),
        ("GET", f"{PROXIED}"),
        ("GET", f"{PROXIED}?path={ROOT}&path=7"),
        ("GET", f"{PROXIED}/7/{OTHER}/artifacts/output.json"),
        ("GET", f"{PROXIED}/{ROOT}/../../{OTHER}/artifacts/output.json"),
        ("GET", f"{PROXIED}/{ROOT}/%2e%2e/x"),
        ("GET", f"{PROXIED}/{ROOT}/%252e%252e/x"),
        ("GET", f"{PROXIED}/{ROOT}/a%5c..%5cb"),
        ("PUT", f"{PROXIED}/7/{OTHER}/artifacts/output.json"),
        ("DELETE", f"{PROXIED}/7/{OTHER}/artifacts"),
        ("POST", f"/api/2.0/mlflow-artifacts/mpu/complete/{ROOT}/x"),
        ("DELETE", f"{API}/logged-models/{MODEL}"),
        ("GET", f"{API}/logged-models/{MODEL}"),
    ],
)
def test_other_calls_are_refused(method: str, target: str) -> None:
    with pytest.raises(Refused):
        rules().judge(method, target, b"")


def test_reading_its_own() -> None:
    one = rules()
    assert one.judge("GET", f"{API}/runs/get?run_uuid={OWN}&run_id={OWN}", b"").body == b""
    assert one.judge("GET", f"{API}/experiments/get?experiment_id=7", b"").target.endswith("experiment_id=7")
    assert one.judge("GET", f"{PROXIED}?path={ROOT}", b"").target == f"{PROXIED}?path=7%2F{OWN}%2Fartifacts"
    assert one.judge("PUT", f"{PROXIED}/{ROOT}/a%20b.txt", None).target == f"{PROXIED}/{ROOT}/a%20b.txt"
    assert one.judge("GET", "/version", b"").target == "/version"


def test_a_run_that_it_creates_is_a_child_of_its_own() -> None:
    one = rules()
    passed = post("runs/create", {"experiment_id": "7", "tags": [{"key": "segserve.commit", "value": "lie"}]}, one)
    message = json.loads(passed.body or b"")
    assert message["experiment_id"] == "7"
    assert message["tags"] == [
        {"key": "mlflow.parentRunId", "value": OWN},
        {"key": "segserve.job", "value": "job1"},
    ]
    one.learn(passed, json.dumps({"run": {"info": {"run_id": OTHER, "artifact_uri": "file:///x"}}}).encode())
    assert post("runs/log-metric", {"run_id": OTHER, "key": "a", "value": 1}, one)
    nested = {"experiment_id": "7", "tags": [{"key": "mlflow.parentRunId", "value": OTHER}]}
    assert post("runs/create", nested, one).creates == "run"


def test_the_runs_that_it_may_create_are_bounded() -> None:
    one = rules()
    for number in range(MOST_CHILDREN):
        passed = post("runs/create", {}, one)
        one.learn(passed, json.dumps({"run": {"info": {"run_id": f"{number:032x}"}}}).encode())
    with pytest.raises(Refused, match="1000 runs"):
        post("runs/create", {}, one)


def test_a_logged_model_belongs_to_its_run() -> None:
    one = rules()
    passed = post("logged-models", {"name": "m"}, one)
    assert json.loads(passed.body or b"") == {"name": "m", "experiment_id": "7", "source_run_id": OWN}
    uri = f"mlflow-artifacts:/7/models/{MODEL}/artifacts"
    one.learn(passed, json.dumps({"model": {"info": {"model_id": MODEL, "artifact_uri": uri}}}).encode())
    assert one.judge("PATCH", f"{API}/logged-models/{MODEL}", b'{"status": "LOGGED_MODEL_READY"}')
    assert one.judge("PUT", f"{PROXIED}/7/models/{MODEL}/artifacts/MLmodel", None)
    assert post("runs/outputs", {"run_id": OWN, "models": [{"model_id": MODEL}]}, one)


def named(*parameters: str) -> Rules:
    return Rules("7", OWN, f"mlflow-artifacts:/{ROOT}", "job1", parameters)


def test_a_run_that_a_parameter_names_is_read_and_never_changed() -> None:
    one, elsewhere = named("0.5", f"runs:/{OTHER}/model"), f"mlflow-artifacts:/8/{OTHER}/artifacts"
    place = f"{PROXIED}/8/{OTHER}/artifacts/model/weights"
    with pytest.raises(Refused, match="not one of its own"):
        one.judge("GET", place, b"")
    passed = one.judge("GET", f"{API}/runs/get?run_id={OTHER}&run_uuid={OTHER}", b"")
    answer = {"info": {"artifact_uri": elsewhere}, "outputs": {"model_outputs": [{"model_id": MODEL}]}}
    one.found(passed, json.dumps({"run": answer}).encode())
    assert one.judge("GET", f"{API}/artifacts/list?run_id={OTHER}&path=model", b"")
    assert one.judge("GET", place, b"")
    assert one.judge("GET", f"{API}/logged-models/{MODEL}", b"").finds == "model"
    for method, target in (("PUT", place), ("DELETE", place), ("PATCH", f"{API}/logged-models/{MODEL}")):
        with pytest.raises(Refused):
            one.judge(method, target, None if method == "PUT" else b"{}")
    for name, message in (
        ("runs/update", {"run_id": OTHER, "status": "FAILED"}),
        ("runs/set-tag", {"run_id": OTHER, "key": "a", "value": "b"}),
        ("runs/create", {"tags": [{"key": "mlflow.parentRunId", "value": OTHER}]}),
        ("runs/outputs", {"run_id": OWN, "models": [{"model_id": MODEL}]}),
    ):
        with pytest.raises(Refused):
            post(name, message, one)
    for text in (f"runs:/{OTHER}x", f"see runs:/{OTHER}/model", f"runs://{OTHER}/model", OTHER):
        with pytest.raises(Refused):
            named(text).judge("GET", f"{API}/runs/get?run_id={OTHER}", b"")


def test_a_registered_model_that_a_parameter_names_is_found() -> None:
    one = named("models:/cells/3")
    with pytest.raises(Refused):
        one.judge("GET", f"{API}/model-versions/get?name=other&version=3", b"")
    passed = one.judge("GET", f"{API}/model-versions/get-download-uri?name=cells&version=3", b"")
    one.found(passed, json.dumps({"artifact_uri": f"mlflow-artifacts:/8/{OTHER}/artifacts/model"}).encode())
    assert one.judge("GET", f"{PROXIED}/8/{OTHER}/artifacts/model/weights", b"")
    with pytest.raises(Refused):
        one.judge("GET", f"{PROXIED}/8/{OTHER}/artifacts/other", b"")
    version = one.judge("GET", f"{API}/model-versions/get?name=cells&version=3", b"")
    one.found(version, json.dumps({"model_version": {"source": f"models:/{MODEL}"}}).encode())
    assert one.judge("GET", f"{API}/logged-models/{MODEL}", b"")
    with pytest.raises(Refused):
        post("model-versions/create", {"name": "cells", "source": "s3://x"}, one)


def test_an_experiment_by_name_is_shown_only_if_it_is_its_own() -> None:
    one = rules()
    passed = one.judge("GET", f"{API}/experiments/get-by-name?experiment_name=segserve", b"")
    one.check_experiment(passed, b'{"experiment": {"experiment_id": "7"}}')
    with pytest.raises(Refused, match="'segserve' is not the one"):
        one.check_experiment(passed, b'{"experiment": {"experiment_id": "8"}}')


def test_json_within_json_and_no_json() -> None:
    double = json.dumps(json.dumps({"run_id": OWN, "status": "FINISHED"})).encode()
    assert rules().judge("POST", f"{API}/runs/update", double).body == b'{"run_id": "' + OWN.encode() + (
        b'", "status": "FINISHED"}'
    )
    for body in (b"{", b"[]", b"3", b"\xff", b"[" * 100_000, json.dumps(json.dumps({"run_id": OTHER})).encode()):
        with pytest.raises(Refused):
            rules().judge("POST", f"{API}/runs/update", body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([OWN, OTHER]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["run_id", "runId", "run_uuid", "a", "models", "model_id"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(
    message=_JSON,
    name=st.sampled_from(["runs/update", "runs/get", "runs/log-batch", "runs/create", "logged-models", "x"]),
)
def test_whatever_is_posted_is_refused_or_names_only_its_own(message: Any, name: str) -> None:
    try:
        passed = post(name, message)
    except Refused:
        return
    sent = json.loads(passed.body or b"")
    assert isinstance(sent, dict)
    for field in ("run_id", "runId", "run_uuid"):
        assert sent.get(field, OWN) == OWN
    assert OTHER not in [sent.get(field) for field in ("model_id", "modelId")]
