"""`segserve run` from end to end: real git, real uv environments, a real MLflow server, real processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import segserve
from segserve import api, layout
from segserve.cli import main
from segserve.errors import SegserveError
from tests.executors import make_executor

pytest_plugins = ["tests.command_fixtures"]
# Environments come from the configured package index; all tests share a home.
pytestmark = [pytest.mark.network, pytest.mark.usefixtures("here")]


def test_the_main_job(tmp_path: Path, images: Path) -> None:
    sha = make_executor(tmp_path / "executor")
    result = segserve.run(f"{tmp_path / 'executor'}#main", [images], parameters={"size": 12})
    assert result.pin.sha == sha
    assert [Path(image.source).name for image in result.images] == ["cells1.png", "cells2.png", "cells10.png"]
    assert result.counts == (1, 2, 1)
    document = json.loads((result.folder / "output.json").read_text())
    assert document["format_version"] == "0.2"
    assert document["model"].endswith(f"#{sha[:7]}")
    rows = list(csv.DictReader((result.folder / "objects.csv").open()))
    assert [row["file"].rsplit("/")[-1] for row in rows] == ["cells1.png", "cells2.png", "cells2.png", "cells10.png"]
    assert float(rows[0]["area_px"]) == 13 * 13  # a ring of 12×12 through pixel centres covers 13×13 pixels
    assert [row["mean_intensity"] for row in rows] == ["10", "20", "20", "100"]
    assert len(list((result.folder / "overlays").glob("*.png"))) == 3
    assert (result.folder / "report" / "index.html").exists()
    assert sha in (result.folder / "segserve.lock").read_text()


def test_the_mlflow_run_holds_the_same(tmp_path: Path, images: Path) -> None:
    from mlflow import MlflowClient

    sha = make_executor(tmp_path / "executor")
    result = segserve.run(f"{tmp_path / 'executor'}", [images])
    uri, run_id = result.run_url.split("/#/")[0], result.run_url.rsplit("/", 1)[1]
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["segserve.commit"] == sha
    assert run.data.tags["segserve.entry_point"] == "main"
    assert run.data.tags["segserve.inputs_digest"]
    assert run.data.params["size"] == "10"
    assert run.data.metrics["objects"] == 4
    names = {item.path for item in client.list_artifacts(run_id)}
    assert {"output.json", "results.json", "overlays", "report", "logs", "segserve.lock", "validation.json"} <= names
    report = {item.path for item in client.list_artifacts(run_id, "report")}
    assert report == {"report/summary.md", "report/index.html", "report/objects.csv"}


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("crash", 4, "the model file is empty"),
        ("out_of_memory", 4, "memory"),
        ("no_output", 5, "output.json"),
        ("bad_polygons", 5, "$.segmentation_data[0][0].contour_coordinates"),
        ("wrong_count", 5, "4"),
        ("half_written", 5, "output.json"),
    ],
)
def test_failures_name_whose_turn_it_is(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], kind: str, code: int, message: str
) -> None:
    make_executor(tmp_path / kind, kind)
    assert main(["run", str(tmp_path / kind), str(images), "--json"]) == code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert error["exit_code"] == code
    assert message in err
    with api.session() as session:
        job = session.jobs(everything=True, limit=1)[0]
        assert job["state"] == "failed"
        facts = session.show(job["job"])
    from mlflow import MlflowClient

    uri, run_id = facts["mlflow"].split("/#/")[0], facts["mlflow"].rsplit("/", 1)[1]
    assert MlflowClient(tracking_uri=uri).get_run(run_id).info.status == "FAILED"


def test_output_that_was_not_logged_is_found_and_said(tmp_path: Path, images: Path) -> None:
    make_executor(tmp_path / "executor", "not_logged")
    result = segserve.run(str(tmp_path / "executor"), [images])
    assert result.counts == (1, 2, 1)
    assert any("log_artifact" in warning or "working directory" in warning for warning in result.warnings)


def test_format_0_1_is_upgraded(tmp_path: Path, images: Path) -> None:
    make_executor(tmp_path / "executor", "format_0_1")
    result = segserve.run(str(tmp_path / "executor"), [images / "cells1.png"])
    assert json.loads((result.folder / "output.json").read_text())["format_version"] == "0.2"
    assert result.counts == (1,)


def test_info_entry_point_needs_no_images(tmp_path: Path) -> None:
    make_executor(tmp_path / "executor")
    result = segserve.run(f"{tmp_path / 'executor'}#info")
    assert result.images == ()
    assert "tester" in (result.folder / "artifacts" / "output.json").read_text()


def test_a_time_limit_ends_a_hanging_executor(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "executor", "hang")
    assert main(["run", str(tmp_path / "executor"), str(images), "--timeout", "6"]) == 4
    assert "time limit" in capsys.readouterr().err


def test_uncommitted_changes_run_and_are_tagged(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "executor"
    sha = make_executor(folder)
    text = (folder / "main.py").read_text()
    (folder / "main.py").write_text(text.replace("(1, 20)[:1 + index % 2]", "(1, 20, 40)"))
    result = segserve.run(str(folder), [images])
    assert result.counts == (3, 3, 3)
    assert result.pin.sha != sha
    committed = segserve.run(str(folder), [images], committed=True)
    assert committed.counts == (1, 2, 1)
    assert committed.pin.sha == sha


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["#mian"], 2, "Did you mean 'main'?"),
        (["-P", "sise=3"], 2, "Did you mean 'size'?"),
        (["-P", "size=abc"], 2, "size"),
        (["@nowhere"], 3, "nowhere"),
    ],
)
def test_wrong_words_are_refused_before_anything_slow(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    make_executor(tmp_path / "executor")
    ref = str(tmp_path / "executor") + (words.pop(0) if words[0][0] in "#@" else "")
    jobs = layout.home().jobs
    before = set(jobs.iterdir())
    assert main(["run", ref, str(images), *words]) == code
    assert message in capsys.readouterr().err
    assert set(jobs.iterdir()) == before


def test_foreign_files_are_listed_all_at_once(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "executor")
    (images / "notes.txt").write_text("not an image")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["run", str(tmp_path / "executor"), str(images)]) == 2
    err = capsys.readouterr().err
    assert "notes.txt" in err
    assert "broken.png" in err


def test_results_never_overwrite(tmp_path: Path, images: Path) -> None:
    make_executor(tmp_path / "executor")
    first = segserve.run(str(tmp_path / "executor"), [images])
    second = segserve.run(str(tmp_path / "executor"), [images])
    assert first.folder != second.folder
    with pytest.raises(SegserveError, match="exists already"):
        segserve.run(str(tmp_path / "executor"), [images], output=first.folder)


def test_dry_run_and_info_build_nothing(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = "python: '3.11'\ndependencies:\n  - mlflow-skinny\n  - surely-never-installed==1\n"
    sha = make_executor(tmp_path / "executor", python_env=env)
    assert main(["run", str(tmp_path / "executor"), str(images), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["commit"] == sha
    assert plan["images"] == 3
    assert plan["built"] is False
    assert main(["info", str(tmp_path / "executor"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in info["entry_points"]} == {"main", "info"}


def test_a_failed_build_ends_the_run_as_failed(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = "python: '3.11'\ndependencies:\n  - surely-never-published-anywhere==1\n"
    make_executor(tmp_path / "executor", python_env=env)
    assert main(["run", str(tmp_path / "executor"), str(images)]) == 3
    assert "surely-never-published-anywhere" in capsys.readouterr().err
    with api.session() as session:
        assert session.jobs(everything=True, limit=1)[0]["state"] == "failed"


def test_somebodys_own_tracking_server_is_used(
    tmp_path: Path, images: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its artifacts are proxied: nothing of it lies where we could simply read it."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    client = MlflowClient(tracking_uri=mlflow_server)
    client.create_experiment("theirs", artifact_location="mlflow-artifacts:/theirs")
    make_executor(tmp_path / "executor")
    result = segserve.run(str(tmp_path / "executor"), [images], experiment="theirs")
    assert result.counts == (1, 2, 1)
    assert result.run_url.startswith(mlflow_server)
    assert result.warnings == ()
    run = client.get_run(result.run_url.rsplit("/", 1)[1])
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"output.json", "overlays", "report", "logs"} <= names


def test_exports_come_with_the_result(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "executor")
    assert main(["run", str(tmp_path / "executor"), str(images), "--to", "qupaht"]) == 2
    assert "Did you mean 'qupath'?" in capsys.readouterr().err
    result = segserve.run(str(tmp_path / "executor"), [images], exports="qupath,labels")
    collections = sorted((result.folder / "exports" / "qupath").iterdir())
    assert len(collections) == 3
    assert len(json.loads(collections[0].read_text())["features"]) == 1
    assert len(list((result.folder / "exports" / "labels").glob("*.tif"))) == 3
