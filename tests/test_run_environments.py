"""`segserve run` with every kind of environment, from end to end."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import segserve
from segserve import api
from segserve.backends import local
from segserve.layout import AttemptDir
from segserve.model import Progress
from tests.channel import make_channel
from tests.commands import run_of
from tests.executors import MAIN, MLPROJECT, make_executor
from tests.image import base_image
from tests.pythons import need_python
from tests.repositories import make_repository


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 60), index, np.uint8))
    return folder


@pytest.fixture(autouse=True)
def _stop_server(home: object) -> Iterator[None]:
    yield
    with api.session() as session:
        session.stop_ui()


@pytest.mark.network
def test_mlflow_1_30_on_python_3_8(tmp_path: Path, images: Path) -> None:
    """What public executors pin: a Python patch that cannot be had, an MLflow older than the server."""
    need_python("3.8")
    conda = """\
        name: old
        channels: [defaults]
        dependencies:
          - python=3.8.5
          - pip
          - pip:
            - mlflow==1.30.1
            - numpy<1.20
    """
    files = {
        "conda.yaml": conda,
        "MLProject": MLPROJECT.format(name="old").replace("python_env: python_env", "conda_env: conda"),
    }
    make_executor(tmp_path / "executor", **files)
    result = segserve.run(str(tmp_path / "executor"), [images])
    assert result.counts == (1, 2, 1)
    assert any("3.8.5" in warning for warning in result.warnings)
    packages = (result.folder / "segserve.lock").read_text()
    assert "mlflow==1.30.1" in packages


@pytest.mark.conda
def test_a_conda_environment(tmp_path: Path, images: Path) -> None:
    channel = make_channel(tmp_path / "channel")
    conda = f"channels: [{channel}]\ndependencies: [python, pip, greeting=1, pip: [mlflow-skinny]]\n"
    main = MAIN.format(
        behaviour="import greeting; assert sys.executable.startswith(sys.prefix) and 'envs' in sys.prefix", after=""
    )
    make_executor(
        tmp_path / "executor",
        **{
            "conda.yaml": conda,
            "main.py": main,
            "MLProject": MLPROJECT.format(name="c").replace("python_env: python_env", "conda_env: conda"),
        },
    )
    result = segserve.run(str(tmp_path / "executor"), [images])
    assert result.counts == (1, 2, 1)
    assert "greeting" in (result.folder / "segserve.lock").read_text()


@pytest.mark.docker
def test_a_docker_environment(tmp_path: Path, images: Path) -> None:
    image = base_image(tmp_path)
    main = MAIN.replace('return subprocess.check_output(["git", *words]).decode().strip()', 'return "no-git-in-image"')
    model = tmp_path / "model.txt"
    model.write_text("weights")
    project = (
        MLPROJECT.format(name="d")
        .replace("python_env: python_env.yaml", f"docker_env: {{image: {image}}}")
        .replace("size: {type", "model: path\n      size: {type")
        .replace("--size", "--model {model} --size")
    )
    behaviour = "assert open(arguments.model).read() == 'weights'\nassert os.path.exists('/.dockerenv')"
    behaviour += """
assert len(json.load(open(os.environ['SEGSERVE_INPUTS']))['images']) == 3
os.pwrite(os.open(os.environ['SEGSERVE_PROGRESS'], os.O_WRONLY), b'{"done": 3, "total": 3}', 0)
"""
    main = main.format(behaviour=behaviour, after="").replace('"--size"', '"--model")\nparser.add_argument("--size"')
    make_repository(tmp_path / "executor", {"MLProject": project, "main.py": main})
    result = segserve.run(str(tmp_path / "executor"), [images], parameters={"model": model}, memory=2, cpus=1)
    assert result.counts == (1, 2, 1)
    rows = list(csv.DictReader((result.folder / "objects.csv").open()))
    assert len(rows) == 4
    (attempt,) = (tmp_path / "segserve-home" / "jobs").glob("*/1")
    assert local.progress(AttemptDir(attempt)) == Progress(3, 3)
    shutil.rmtree(tmp_path / "segserve-home" / "jobs")  # nothing in it belongs to another user


ALONE = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print("outside:", error, flush=True)
assert os.listdir("/sys/class/net") == ["lo"]
mlflow.log_metric("alone", 1)
try:
    mlflow.search_experiments()
except Exception as error:
    print("search:", error, flush=True)
try:
    open(os.path.join(os.environ["CACHE_FOLDER"], "x"), "w")
except OSError as error:
    print("cache:", error, flush=True)
"""


@pytest.mark.docker
def test_a_container_without_network_reaches_its_own_run_only(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSERVE_SANDBOX__KIND", "bubblewrap")
    image = base_image(tmp_path)
    main = MAIN.replace('return subprocess.check_output(["git", *words]).decode().strip()', 'return "no-git-in-image"')
    project = MLPROJECT.format(name="d").replace("python_env: python_env.yaml", f"docker_env: {{image: {image}}}")
    main = main.format(behaviour=ALONE, after="")
    make_repository(tmp_path / "executor", {"MLProject": project, "main.py": main})
    result = segserve.run(str(tmp_path / "executor"), [images])
    assert result.counts == (1, 2, 1)
    (log,) = (tmp_path / "segserve-home" / "jobs").glob("*/1/log")
    said = log.read_text()
    assert "outside: [Errno 101] Network is unreachable" in said
    assert "An executor may only use its own run." in said.partition("search:")[2]
    assert "cache: [Errno 30] Read-only file system" in said
    metrics = {entry["key"]: entry["value"] for entry in run_of(result.run_url)["data"]["metrics"]}
    assert metrics["alone"] == 1


@pytest.mark.docker
def test_a_docker_run_is_cancelled_with_its_container(tmp_path: Path, images: Path) -> None:
    import subprocess

    image = base_image(tmp_path)
    project = MLPROJECT.format(name="d").replace("python_env: python_env.yaml", f"docker_env: {{image: {image}}}")
    make_repository(tmp_path / "executor", {"MLProject": project, "main.py": "import time\ntime.sleep(600)\n"})
    with api.session() as session:
        started = session.run(session.request(str(tmp_path / "executor"), [images], detach=True))

        def containers() -> list[str]:
            words = ["docker", "ps", "-q", "--filter", "label=segserve.attempt"]
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()

        import time

        deadline = time.monotonic() + 60
        while not containers() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert containers()
        assert session.cancel(started.job_id)["state"] == "cancelled"
        assert containers() == []


@pytest.mark.network
def test_local_wheels_never_point_into_a_checkout(tmp_path: Path, images: Path) -> None:
    """`-e ./helper` in a requirement file: built as a wheel, so that it survives the checkout of the job."""
    make_executor(
        tmp_path / "executor",
        **{
            "python_env.yaml": 'python: "3.11"\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n',
            "requirements.txt": "mlflow-skinny\n-e ./helper\n",
            "helper/pyproject.toml": '[project]\nname = "helper"\nversion = "1"\n',
            "helper/helper.py": "SIDE = 4\n",
            "main.py": "import helper; assert 'checkout' not in helper.__file__, helper.__file__\n"
            + MAIN.format(behaviour="", after=""),
        },
    )
    first = segserve.run(str(tmp_path / "executor"), [images])
    second = segserve.run(str(tmp_path / "executor"), [images])
    assert first.counts == second.counts == (1, 2, 1)
    with api.session() as session:
        assert len(session.environments()) == 1
    assert json.loads((second.folder / "results.json").read_text())
