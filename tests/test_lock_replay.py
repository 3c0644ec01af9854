"""`segserve lock` and `segserve replay`: real environments, real runs of older commits."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

import segserve
from segserve import lock, refs
from segserve.cli import main
from segserve.errors import InvalidRef, UsageError
from tests.corpus import GOOD
from tests.executors import PYTHON_ENV, make_executor
from tests.repositories import git, make_repository
from tests.services import Service

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.usefixtures("here", "python_on_path")


# ------------------------------------------------------------------------------------------------------------ lock


@pytest.mark.network
def test_a_lock_has_exact_packages_with_hashes_and_later_builds_take_them(
    tmp_path: Path, shared_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "executor"
    sha = make_executor(folder, **{"weights.pt": "numbers", "README.md": "x", "LICENSE": "x"})
    assert main(["lock", str(folder)]) == 0
    text = (folder / "segserve.lock").read_text()
    data, found = tomllib.loads(text), lock.read(folder / "segserve.lock")
    assert data["executor"]["commit"] == sha
    assert data["executor"]["tree"] == git(folder, "rev-parse", "HEAD^{tree}")
    assert list(found.weights) == ["weights.pt"]
    lines = found.here()
    assert any(line.startswith("mlflow-skinny==") for line in lines)
    assert all("--hash=sha256:" in line for line in lines)
    assert main(["check", str(folder)]) == 0
    capsys.readouterr()

    # Another version than the newest one, as an old lock has it: it is what is installed.
    click = next(line for line in lines if line.startswith("click=="))
    (folder / "segserve.lock").write_text(text.replace(click, "click==8.1.7"))
    assert main(["env", "build", str(folder), "--json"]) == 0
    assert "click==8.1.7" in json.loads(capsys.readouterr().out)["packages"]
    make_repository(folder, {}, message="locked")
    with Service(shared_home, tmp_path / "service") as service:
        image = {"images": ("a.png", bytes(cv2.imencode(".png", np.zeros((40, 60), np.uint8))[1]), "image/png")}
        accepted = service.http.post("/jobs", data={"executor": str(folder), "gpus": "0"}, files=image).json()
        assert service.wait(accepted["job"])["state"] == "succeeded"
        assert "click==8.1.7" in service.http.get(f"{accepted['url']}/files/segserve.lock").text
    assert main(["env", "build", str(folder), "--json", "--no-lock"]) == 0
    assert "click==8.1.7" not in json.loads(capsys.readouterr().out)["packages"]


def locked(folder: Path, **changes: str) -> Path:
    """The good executor with a lock that fits it."""
    make_repository(folder, {**GOOD, "weights.onnx": "numbers"})
    from segserve import environments, project

    loaded = project.load(folder)
    from segserve.model import Environment, EnvironmentSpec
    from segserve.refs import Pin

    text = lock.render_project(
        Pin("file:///x", "0" * 40, ""),
        "1" * 40,
        loaded.file,
        Environment(EnvironmentSpec("uv", "python_env.yaml", "k"), "/x"),
        environments.declaration(loaded),
        {lock.platform_name(): ("click==8.1.7",), "osx-arm64": ("click==8.1.6",)},
        "0.1.0",
    )
    (folder / "segserve.lock").write_text(text)
    for name, content in changes.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MLProject", GOOD["MLProject"].replace("default: 10", "default: 12")),
        ("python_env.yaml", GOOD["python_env.yaml"].replace("2.1.0", "2.1.1")),
        ("weights.onnx", "other numbers"),
    ],
)
def test_check_says_when_a_lock_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    folder = locked(tmp_path / "good")
    assert main(["check", str(folder), "--fail-on", "warning"]) == 0
    (folder / name).write_text(content)
    assert main(["check", str(folder)]) == 7
    assert f"error[stale-lock] {'The weights ' if name == 'weights.onnx' else ''}{name}" in capsys.readouterr().out


def test_a_stale_or_foreign_lock_is_ignored_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = locked(tmp_path / "good")
    keys = {}
    for case, words, text in (
        ("fits", [], ""),
        ("refused", ["--no-lock"], ""),
        ("stale", [], GOOD["python_env.yaml"].replace("2.1.0", "2.1.1")),
    ):
        if text:
            (folder / "python_env.yaml").write_text(text)
        assert main(["run", str(folder), "--dry-run", "--json", "-P", f"input_images={tmp_path}", *words]) == 0
        plan = json.loads(capsys.readouterr().out)
        keys[case] = plan["environment"]
        assert ("is stale and ignored" in str(plan["warnings"])) == (case == "stale")
    assert len(set(keys.values())) == 3
    (folder / "segserve.lock").write_text("version = 9\n")
    assert main(["run", str(folder), "--dry-run", "--json", "-P", f"input_images={tmp_path}"]) == 0
    assert "is ignored" in str(json.loads(capsys.readouterr().out)["warnings"])


@pytest.mark.parametrize(
    "text", ["", "version = 1", "x = [", "version = 1\n[executor]\ncommit=1\n[environment]\nkind=2"]
)
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "segserve.lock").write_text(text)
    with pytest.raises(UsageError, match="no lock file"):
        lock.read(tmp_path / "segserve.lock")


@pytest.mark.network
def test_rot_says_what_changed_since_the_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = locked(tmp_path / "good")
    assert main(["check", str(folder), "--rot", "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["rule"] == "solves-differently"
    assert "click 8.1.7 → 8." in finding["message"]
    assert "numpy – → 2.1.0" in finding["message"]
    (folder / "segserve.lock").unlink()
    (folder / "python_env.yaml").write_text(GOOD["python_env.yaml"] + "  - surely-never-published-anywhere==1\n")
    assert main(["check", str(folder), "--rot"]) == 7
    out = capsys.readouterr().out
    assert "error[cannot-be-solved]" in out
    assert "surely-never-published-anywhere" in out


def test_other_peoples_repositories_are_locked_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(tmp_path / "good", GOOD)
    assert main(["lock", f"{tmp_path / 'good'}@main"]) == 2
    assert "-o segserve.lock" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- replay


def test_a_job_of_an_older_commit_without_drift(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "executor"
    old = make_executor(folder)
    first = segserve.run(str(folder), [images], parameters={"size": 12}, kind="local")
    text = (folder / "main.py").read_text()
    make_repository(folder, {"main.py": text.replace("(1, 20)[:1 + index % 2]", "(1, 20, 40)")}, message="other")
    assert main(["replay", first.job_id, "--env", "local", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["commit"] == old
    assert document["locked"] is True
    assert document["drift"]["drift"] == 0
    assert document["notes"] == []
    again = json.loads((Path(document["result"]) / "output.json").read_text())
    assert again["segmentation_data"] == json.loads((first.folder / "output.json").read_text())["segmentation_data"]


def test_a_job_of_some_planes_takes_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = np.zeros((2, 3, 40, 60), np.uint8)  # z, c, rows, columns
    stack[:] = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1) * 10
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    make_executor(tmp_path / "executor")
    first = segserve.run(str(tmp_path / "executor"), [tmp_path / "stack.tif"], kind="local", channel=1, z="max")
    assert "--channel 1 --z max" in (first.folder / "report" / "index.html").read_text()
    (tmp_path / "mail").mkdir()
    alone = shutil.copy(first.folder / "output.json", tmp_path / "mail")
    by_hand = ["--images", str(tmp_path / "stack.tif"), "--channel", "1", "--z", "max"]
    for words in ([first.job_id], [str(alone), *by_hand]):
        assert main(["replay", *words, "--env", "local", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        (again,) = json.loads((Path(document["result"]) / "results.json").read_text())["images"]
        assert (again["c"], again["z"]) == (1, "max")
        assert document["drift"]["drift"] == 0


def test_an_output_json_by_the_short_commit_in_its_model_with_drift(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "executor"
    old = make_executor(folder)
    first = segserve.run(str(folder), [images], kind="local")
    make_repository(folder, {"main.py": "raise SystemExit('a newer commit')\n"}, message="newer")
    alone = tmp_path / "mail" / "output.json"
    alone.parent.mkdir()
    shutil.copy(first.folder / "output.json", alone)
    assert json.loads(alone.read_text())["model"].endswith(f"#{old[:7]}")
    assert main(["replay", str(alone), "--env", "local"]) == 2
    assert "--images" in capsys.readouterr().err
    assert main(["replay", str(alone), "--images", str(images), "--env", "local", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["commit"], document["locked"]) == (old, False)
    assert "no segserve.lock" in document["notes"][0]

    # The same commit with another size: the result is not the one in the file.
    words = ["replay", str(alone), "--images", str(images), "--env", "local", "-P", "size=20"]
    assert main(words) == 7
    assert "has changed" in capsys.readouterr().err
    assert main([*words, "--threshold", "1"]) == 0


def test_models_of_public_executors(tmp_path: Path) -> None:
    for text in ("https://github.com/g/r.git#dcded8b", "https://github.com/g/r.git@dcded8b"):
        ref = refs.from_model(text)
        assert (ref.repo, ref.rev) == (refs.parse("https://github.com/g/r.git").repo, "dcded8b")
    for text in ("", "cyto2", "https://github.com/g/r", "r#main", "--upload-pack=x#dcded8b\n"):
        with pytest.raises(InvalidRef):
            refs.from_model(text)


def test_images_that_have_gone_are_named(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "executor", python_env=PYTHON_ENV)
    first = segserve.run(str(tmp_path / "executor"), [images / "cells1.png"], kind="local")
    (images / "cells1.png").unlink()
    assert main(["replay", first.job_id, "--env", "local"]) == 2
    assert "cells1.png" in capsys.readouterr().err
    assert main(["replay", "20990101-nobody"]) == 2
