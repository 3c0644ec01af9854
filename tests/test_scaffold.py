"""`segserve new`: what it writes is right as it stands; docs/writing-an-executor.md can be followed word by word."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from segserve import api, kit, manifest, project, scaffold
from segserve.cli import main
from segserve.environments.pip import uv
from segserve.layout import Home
from tests import weights
from tests.image import base_image
from tests.repositories import git

pytest_plugins = ["tests.command_fixtures"]

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "writing-an-executor.md"


@pytest.fixture
def _tools(python_on_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`segserve`, `python` and `mlflow` of this environment; a server that is started ends with the test."""
    monkeypatch.chdir(tmp_path)
    yield
    with api.session() as session:
        session.stop_ui()


def bash(line: str, folder: Path) -> str:
    done = subprocess.run(["bash", "-ec", line], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def runner_parameters(file: Path) -> set[str]:
    """Annotated names in the body of the first class; the file itself may need torch."""
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    return {item.target.id for item in classes[0].body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}  # fmt: skip


@pytest.mark.parametrize("env", scaffold.ENVIRONMENTS)
@pytest.mark.parametrize("template", scaffold.METHODS)
def test_what_it_writes_is_right(template: str, env: str, tmp_path: Path) -> None:
    made = api.new(tmp_path / "My-method_2", template=template, env=env)
    loaded = project.load(made)
    assert loaded.findings == ()
    assert manifest.load(made, made).findings == ()
    assert loaded.environment.kind == {"uv": "python"}.get(env, env)
    main_entry = project.select(loaded, "main")
    assert set(main_entry.parameters) == {"input_images", *runner_parameters(made / "main.py")}
    assert all(f"{{{name}}}" in main_entry.command for name in main_entry.parameters)
    for file in made.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")
    for file in (made / ".gitlab-ci.yml", made / ".github" / "workflows" / "check.yml"):
        assert "./ci.sh" in yaml.safe_dump(yaml.safe_load(file.read_text()))
    bash("bash -n ci.sh", made)
    assert (made / "wheels" / kit.file_name()).exists()
    assert git(made, "status", "--porcelain") == ""
    assert git(made, "rev-list", "--count", "HEAD") == "1"
    tracked = git(made, "ls-files").splitlines()
    assert {"MLProject", "LICENSE", "README.md", "segserve.toml", "tests/test_executor.py"} <= set(tracked)
    for name in tracked:
        if not name.endswith((".png", ".whl")):
            assert not re.search(r"\{\{|\{%|[ \t]$", (made / name).read_text(), re.MULTILINE), name
    assert main(["check", str(made), "--fail-on", "warning"]) == 0


def test_names_and_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert main(["new", str(tmp_path / "used")]) == 2
    assert main(["new", str(tmp_path / "2fast")]) == 2
    assert main(["new", str(tmp_path / "used" / "file" / "below")]) == 2
    assert main(["new", str(tmp_path / "x"), "--template", "unet"]) == 2
    assert not (tmp_path / "2fast").exists()


def test_without_an_identity_git_still_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    made = api.new(tmp_path / "blobs")
    assert git(made, "rev-list", "--count", "HEAD") == "1"


@pytest.mark.network
@pytest.mark.usefixtures("_tools")
def test_an_untouched_template_passes_its_own_ci(tmp_path: Path) -> None:
    made = api.new(tmp_path / "network", template="onnx", env="conda")
    said = bash("./ci.sh", made)
    assert "7 objects in 1 image" in said
    assert "3 passed" in said


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.usefixtures("_tools")
def test_the_torch_template_passes_its_own_ci(tmp_path: Path) -> None:
    assert "3 passed" in bash("./ci.sh", api.new(tmp_path / "network", template="torch"))


@pytest.mark.docker
@pytest.mark.usefixtures("_tools")
def test_the_docker_template_passes_its_own_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a base image that holds its packages already: no registry is needed, nothing in the repository is changed."""
    made = api.new(tmp_path / "network", env="docker")
    needed = [line for line in (made / "requirements.txt").read_text().splitlines() if line and line[0] not in "#."]
    monkeypatch.setenv("BASE", base_image(tmp_path / "base", ("pip", *needed), ("git",)))
    said = bash("./ci.sh", made)
    assert "7 objects in 1 image" in said
    assert "3 passed" in said
    subprocess.run(["docker", "rmi", "network:1"], check=True, capture_output=True)


@pytest.mark.executors
@pytest.mark.network
@pytest.mark.usefixtures("_tools")
def test_the_cellpose_template_passes_its_own_ci(tmp_path: Path, home: Home) -> None:
    """In its real environment; the weights, which cannot be downloaded here, are those of executors/cellpose."""
    made = api.new(tmp_path / "cells", template="cellpose")
    with api.session() as session:
        built = session.build_environment(session.request(str(made)))
    tiny = ROOT / "executors" / "cellpose" / "models" / "tiny_cells"
    python = Path(built["location"]) / "bin" / "python"
    cached = weights.place(home.path, made, "https://www.cellpose.org/models/cyto3")
    subprocess.run([python, "-c", weights.WIDEN, tiny, cached], check=True)
    said = bash("./ci.sh", made)
    assert "7 objects in 1 image" in said
    assert "3 passed" in said
    assert git(made, "status", "--porcelain") == ""


@pytest.mark.network
@pytest.mark.usefixtures("_tools")
def test_it_runs_under_plain_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mlflow's own environment manager, a database of its own, and nothing of segserve on the way."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    made = api.new(tmp_path / "blobs")
    bash("mlflow run . --env-manager uv -P input_images=example -P min_area=200", made)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")  # mlflow keeps the address that another test has set
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["min_area"] == "200"
    assert "output.json" in [item.path for item in client.list_artifacts(run.info.run_id)]
    assert git(made, "status", "--porcelain") == ""


_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILES = {"python": "main.py", "yaml": "MLProject", "toml": "segserve.toml"}


@pytest.mark.network
@pytest.mark.usefixtures("_tools")
def test_the_guide_can_be_followed(tmp_path: Path) -> None:
    """Every block in order: commands are run, files are written. Only `cd` changes the folder."""
    folder, said = tmp_path, {}
    for kind, text in _BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        if kind != "console":
            (folder / _FILES[kind]).write_text(text)
            continue
        for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
            if line.startswith("cd "):
                folder = folder / line[3:]
            else:
                said[line] = bash(line, folder)
    assert "7 objects" in said["segserve run . example"]
    assert "3 passed" in said["./ci.sh"]
    assert "largest" in said["segserve info ."]
    assert "no findings" in said["segserve check ."]
    limited = int(re.findall(r"(\d+) objects? in", said["segserve run . example -P largest=300"])[0])
    assert 0 < limited < 7
    report = sorted((folder / "segserve-results").glob("*/report/summary.md"))[-1].read_text()
    assert "10.1234/blob.1" in report
    assert git(folder, "status", "--porcelain") == ""


@pytest.mark.network
def test_everything_of_this_ships_with_segserve(tmp_path: Path) -> None:
    subprocess.run([uv(), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT)], check=True)
    (built,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(built).namelist())
    source = ROOT / "segserve"
    data = [
        *(path for path in (source / "templates").rglob("*") if path.is_file()),
        source / "registry" / "shipped.toml",
    ]
    data += (ROOT / "executors").glob("*/segserve_*/requirements.txt")
    assert len(data) > 20
    for path in data:
        name = re.sub("^executors/(sdk|modules)/", "", path.relative_to(ROOT).as_posix())
        assert name in names
