"""Files of child runs and logged models, from a real sandbox to the folders where a real MLflow keeps artifacts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from segserve.backends import local
from segserve.layout import AttemptDir
from segserve.model import Ending, Sandbox
from tests.attempts import make_attempt, make_plan
from tests.servers import call

SCRIPT = """
import os, mlflow
client = mlflow.MlflowClient()
with mlflow.start_run():
    with mlflow.start_run(nested=True) as child:
        mlflow.log_text("of the child", "deep/notes.txt")
        os.symlink("/etc/passwd", os.path.join(mlflow.get_artifact_uri(), "link"))
        assert client.list_artifacts(child.info.run_id)[0].path == "deep"
    model = mlflow.initialize_logged_model(name="cells")
    with open("weights.bin", "w") as stream:
        stream.write("weights")
    client.log_model_artifact(model.model_id, "weights.bin")
    loaded = mlflow.artifacts.download_artifacts(f"models:/{model.model_id}")
    assert os.listdir(loaded) == ["weights.bin"]
    print("IDS", child.info.run_id, model.model_id, flush=True)
"""


@pytest.mark.sandbox
def test_files_of_child_runs_and_models_arrive(tmp_path: Path, mlflow_server: str) -> None:
    attempt = make_attempt(tmp_path, f"{sys.executable} script", script=SCRIPT)
    attempt.elsewhere.mkdir()
    writable = (str(attempt.checkout), str(attempt.elsewhere))
    shown = Sandbox(read_only=(sys.prefix, sys.base_prefix), writable=writable, home=str(attempt.checkout))
    handle = local.preload(attempt)
    handle.start(make_plan(attempt, mlflow_server, sandbox=shown))
    outcome = handle.wait()
    handle.abandon()
    log = AttemptDir(attempt.path).log.read_text()
    assert outcome.ending is Ending.SUCCEEDED, log
    child, model = next(line for line in log.splitlines() if line.startswith("IDS")).split()[1:]
    info = call(mlflow_server, "GET", f"runs/get?run_id={child}")["run"]["info"]
    folder = Path(info["artifact_uri"].removeprefix("file://"))
    assert not folder.is_relative_to(attempt.path)
    assert (folder / "deep" / "notes.txt").read_text() == "of the child"
    assert not (folder / "link").is_symlink()
    assert not (folder / "link").exists()
    place = call(mlflow_server, "GET", f"logged-models/{model}")["model"]["info"]["artifact_uri"]
    assert (Path(place.removeprefix("file://")) / "weights.bin").read_text() == "weights"
    assert "was created" not in log
    assert not attempt.elsewhere.exists()
