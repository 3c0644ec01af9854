"""Models by name, file, URL and MLflow URI."""

import hashlib
import importlib
from pathlib import Path

import numpy as np
import pytest
from segserve_sdk import output, sources

NAMES = ("small", "large")


@pytest.mark.parametrize(
    "model",
    ["small", "model.pt", "runs:/abc/model", "models:/cells/3", "https://host.example/x",
     f"https://host.example/x#sha256={'a' * 64}"],
)  # fmt: skip
def test_what_a_model_can_be(model, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"1")
    assert sources.problem(model, NAMES, base=tmp_path) == ""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("smal", "There is no model 'smal'. It can be a name (small, large), a file"),
        ("http://host.example/x", "begins with https://"),
        ("https://host.example/x#sha256=12", "64 hex digits"),
    ],
)
def test_what_it_cannot_be(model, said, tmp_path):
    assert said in sources.problem(model, NAMES, base=tmp_path)
    with pytest.raises(sources.NoModel):
        sources.find(model, NAMES, base=tmp_path)


def test_names_and_files(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"1")
    assert sources.find("small", NAMES, lambda name: tmp_path / name) == tmp_path / "small"
    assert sources.find("model.pt", NAMES, base=tmp_path) == tmp_path / "model.pt"
    assert sources.find(str(tmp_path / "model.pt")) == tmp_path / "model.pt"


def test_a_url_with_a_hash_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_FOLDER", str(tmp_path))
    digest = hashlib.sha256(b"weights").hexdigest()
    kept = tmp_path / "weights" / digest[:16] / "x.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert sources.find(f"https://host.example/x.pt#sha256={digest}") == kept


def test_what_a_run_has_logged(tmp_path, monkeypatch):
    mlflow = importlib.import_module("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = mlflow.create_experiment("models", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        for name in ("one/weights", "one/model.json", "two/a.pt", "two/b.pt"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(name)
        mlflow.log_artifacts("one", "one")
        mlflow.log_artifacts("two", "two")
    uri = f"runs:/{run.info.run_id}"
    assert sources.find(f"{uri}/one").read_text() == "one/weights"
    assert sources.find(f"{uri}/two/b.pt").read_text() == "two/b.pt"
    with pytest.raises(sources.NoModel, match="holds 2 files"):
        sources.find(f"{uri}/two")
    with pytest.raises(sources.NoModel, match="could not be had from MLflow"):
        sources.find(f"{uri}/three")


def test_mean_scores():
    labels = np.array([[0, 1, 1], [0, 3, 3]])
    probability = np.array([[0.9, 0.2, 0.4], [0.9, 1.0, 0.5]])
    assert output.mean_scores(labels, probability).tolist() == [0.3, 0.0, 0.75]
    assert output.mean_scores(np.zeros((2, 2), int), np.ones((2, 2))).tolist() == []
