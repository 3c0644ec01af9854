"""The segmentor executor in its real environment, by `segserve run`: from annotated images to a running service."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mlflow import MlflowClient
from segmentor import shapes
from segserve_sdk import contours

import segserve
from segserve import api
from segserve.errors import ExecutorFailed
from segserve.pipeline import Result
from tests.image import base_image
from tests.nuclei import average_precision
from tests.servers import free_port

REPOSITORY = Path(__file__).parent.parent
EXECUTOR = f"{REPOSITORY}#executors/segmentor"
SIZE = 64
# A small network on small images learns the shapes within half a minute on a CPU.
SMALL = (
    "model.network.features=[8,8,16,32,64,8] processing.tile=64 training.learning_rate=5e-3 "
    "training.workers=0 training.threads=1 training.accelerator=cpu"
)
EPOCHS = 18


class Workshop:
    """A home, an environment, a data set and a trained model that the tests of this file share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        drawn = folder / "drawn"
        shapes.write_cvat(drawn, 40, seed=0, size=SIZE)
        self.prepared = self.run("prepare", source=drawn)
        self.data = self.prepared.folder / "artifacts" / "data"
        self.trained = self.run("train", data=self.data, overrides=f"{SMALL} training.epochs={EPOCHS}")
        self.model = self.trained.folder / "artifacts" / "model"
        self.uri = f"runs:/{self.trained.run_url.rpartition('/')[2]}/model"

    def run(self, entry: str, images: Path | None = None, **parameters: Any) -> Result:
        """One `segserve run` of this repository's executor."""
        self.count += 1
        output = self.folder / f"result{self.count}"
        given = [images] if images else []
        return segserve.run(f"{EXECUTOR}:{entry}", given, parameters=parameters, output=output)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("segmentor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_HOME", str(folder / "home"))
        yield Workshop(folder)
        with api.session() as session:
            session.stop_ui()


@pytest.fixture
def shared(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("SEGSERVE_HOME", str(workshop.folder / "home"))
    return workshop


def _unseen(folder: Path, count: int = 4, size: int = 150) -> list[tuple[Path, Any]]:
    """Images that no part of the data set has, larger than a tile."""
    folder.mkdir()
    scenes = []
    for number in range(count):
        image, truth = shapes.scene(5000 + number, size)
        cv2.imwrite(str(folder / f"{number}.png"), image)
        scenes.append((folder / f"{number}.png", truth))
    return scenes


@pytest.mark.executors
@pytest.mark.network
def test_prepare_and_train_leave_everything_in_mlflow(shared: Workshop) -> None:
    counts = {part: len(list((shared.data / part).glob("*.png"))) for part in ("train", "val", "test")}
    assert counts == {"train": 28, "val": 8, "test": 4}
    artifacts = shared.trained.folder / "artifacts"
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert {f"model/{name}" for name in ("best.ckpt", "last.ckpt", "model.onnx", "export.json")} <= files
    assert {"samples.png", "hydra/config.yaml", "hydra/overrides.yaml"} <= files
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in files)
    picture = cv2.imread(str(artifacts / "samples.png"))
    assert picture is not None
    assert picture.std() > 20
    curve = _curve(shared.trained, "val/iou")
    assert [step for step, _ in curve] == sorted(step for step, _ in curve)
    assert len(curve) == EPOCHS
    assert max(value for _, value in curve) >= 0.9
    parameters = _mlflow_run(shared.trained)["data"]["params"]
    assert {"key": "config/training/epochs", "value": str(EPOCHS)} in parameters


@pytest.mark.executors
@pytest.mark.network
def test_the_trained_model_finds_unseen_objects(shared: Workshop, tmp_path: Path) -> None:
    """`segserve run … -P model=runs:/<id>/model`: IoU ≥ 0.9 of the pixels, AP ≥ 0.9 of the objects, right classes."""
    scenes = _unseen(tmp_path / "unseen")
    result = shared.run("main", tmp_path / "unseen", model=shared.uri)
    document = json.loads((result.folder / "output.json").read_text())
    for (path, truth), objects in zip(scenes, document["segmentation_data"], strict=True):
        rings = [(number, entry["contour_coordinates"]) for number, entry in enumerate(objects, 1)]
        found = contours.mask(rings, truth.instances.shape)
        both, either = (found > 0) & (truth.instances > 0), (found > 0) | (truth.instances > 0)
        assert both.sum() / either.sum() >= 0.9, path.name
        assert average_precision(found, truth.instances) >= 0.9, path.name
        kinds = np.array([0, *(1 + shapes.CLASSES.index(entry["label"]) for entry in objects)])[found]
        assert (kinds == truth.class_map())[both].mean() >= 0.95
        assert all(0 < entry["score"] <= 1 for entry in objects)


@pytest.mark.executors
@pytest.mark.network
def test_evaluate_per_image_and_pooled(shared: Workshop) -> None:
    result = shared.run("evaluate", data=shared.data, model=shared.model)
    folder = result.folder / "artifacts" / "evaluation"
    with (folder / "evaluation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    images = {row["image"] for row in rows}
    assert len(images) == 5  # four, and all of them
    assert len(rows) == 5 * 3
    assert len(list((folder / "overlays").glob("*.png"))) == 4
    pooled = {row["class"]: row for row in rows if row["image"] == "(all)"}
    assert set(pooled) == {"disc", "bar", "(all)"}
    for row in pooled.values():
        assert float(row["iou"]) >= 0.9
        # Both are of the same counts, so that one follows from the other.
        assert float(row["dice"]) == pytest.approx(2 * float(row["iou"]) / (1 + float(row["iou"])), abs=1e-4)


@pytest.mark.executors
@pytest.mark.network
def test_export_verifies_what_it_writes(shared: Workshop) -> None:
    result = shared.run("export", model=shared.model, data=shared.data)
    report = json.loads((result.folder / "artifacts" / "model" / "export.json").read_text())
    assert set(report["verified"]) == {"random", "validation", "test"}
    for found in report["verified"].values():
        assert found["largest"] <= 1e-4
        assert found["pixels_of_another_class"] == 0
    exported = (result.folder / "artifacts" / "model" / "model.onnx").read_bytes()
    assert b"stack_trace" not in exported  # with the paths of whoever trained it
    with pytest.raises(ExecutorFailed) as caught:  # no two libraries add up in the same order
        shared.run("export", model=shared.model, tolerance=1e-12)
    assert "differs by" in caught.value.message + caught.value.quote


@pytest.mark.executors
@pytest.mark.network
def test_training_goes_on_where_it_ended(shared: Workshop) -> None:
    further = f"{SMALL} training.epochs={EPOCHS + 2}"
    result = shared.run("train", data=shared.data, resume=shared.uri, overrides=further)
    curve = _curve(result, "val/iou")
    assert len(curve) == 2
    steps = [step for step, _ in _curve(shared.trained, "val/iou")]
    assert min(step for step, _ in curve) > max(steps)
    assert min(value for _, value in curve) >= 0.85  # from scratch, two epochs reach half of that


def _python_of_the_executor() -> Path:
    with api.session() as session:
        built = session.build_environment(session.request(f"{EXECUTOR}:main", ()))
    return Path(built["location"]) / "bin" / "python"


@pytest.mark.executors
@pytest.mark.network
def test_training_stops_early_and_under_plain_mlflow(shared: Workshop, tmp_path: Path) -> None:
    """Nothing is learned at a rate of 0, so that `patience` epochs after the first one it is over."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    bins = [str(_python_of_the_executor().parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    variables = {**os.environ, "PATH": os.pathsep.join(bins), "MLFLOW_TRACKING_URI": uri}
    words = [str(Path(sys.executable).with_name("mlflow")), "run", str(REPOSITORY / "executors" / "segmentor")]
    overrides = f"{SMALL} training.epochs=9 training.patience=2".replace("learning_rate=5e-3", "learning_rate=0")
    words += ["-e", "train", "--env-manager", "local", "-P", f"data={shared.data}", "-P", f"overrides={overrides}"]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(uri)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "val/iou")) == 3
    assert "model/model.onnx" in [item.path for item in client.list_artifacts(run.info.run_id, "model")]


@pytest.mark.executors
@pytest.mark.network
def test_the_documented_commands_in_order(shared: Workshop, tmp_path: Path) -> None:
    """All of docs/segmentor.md but docker's, which have a test of their own; only folders are others here."""
    images = tmp_path / "images"
    _unseen(images, 2)
    text = (REPOSITORY / "docs" / "segmentor.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines() if line
    ]
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY / 'executors' / 'segmentor'}{os.pathsep}{REPOSITORY / 'executors' / 'sdk'}",
    }
    runs: dict[str, str] = {}
    for command in commands:
        if command.startswith(("docker ", "curl ")):
            continue
        line = command.replace("cd executors/", f"cd {REPOSITORY}/executors/").replace(" .#", f" {REPOSITORY}#")
        line = line.replace("/tmp/annotated", str(tmp_path / "annotated")).replace(" images/", f" {images}")
        line = re.sub(r"runs:/<id>/(\w+)", lambda match: f"runs:/{runs[match[1]]}/{match[1]}", line)
        if "segmentor.train -m" in line:
            line = f"PATH={_python_of_the_executor().parent}:$PATH MLFLOW_TRACKING_URI=sqlite:///m.db {line}"
        done = subprocess.run(["bash", "-ec", line], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        run = re.search(r"/runs/(\w+)", done.stdout)
        folder = re.search(r"^Result +(.+)$", done.stdout, re.MULTILINE)
        if run and folder and ":prepare" in line:
            runs["data"], variables["DATA"] = run[1], f"{folder[1]}/artifacts/data"
        elif run and ":train" in line:
            runs["model"] = run[1]
    assert len(commands) == 12
    assert (tmp_path / "deployed" / "artifacts" / "deployment" / "Dockerfile").is_file()
    # The sweep: one dated folder, in it one folder for each network, with its model.
    models = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("outputs/*/*/*/model/model.onnx"))
    assert [re.sub(r"\d+-\d+-\d+", "D", model) for model in models] == [
        f"outputs/D/D/{number}/model/model.onnx" for number in (0, 1)
    ]
    (result,) = tmp_path.glob("segserve-results/*/output.json")
    assert len(json.loads(result.read_text())["segmentation_data"]) == 2


@pytest.mark.executors
@pytest.mark.network
@pytest.mark.parametrize(
    ("entry", "parameters", "message"),
    [
        ("evaluate", {"data": "drawn", "model": "model"}, "dataset.json is not there"),
        ("train", {"data": "data", "overrides": "model.network._target_=os.getcwd"}, "os.getcwd is none of"),
        ("train", {"data": "data", "resume": "model", "overrides": "training.epochs=3"}, "ask for more"),
        ("evaluate", {"data": "data", "model": "drawn"}, "model.onnx is not there"),
        ("deploy", {"model": "checkpoint"}, "is no ONNX model"),
        ("prepare", {"source": "model"}, "is none of cvat"),
    ],
)
def test_errors_say_what_is_wrong(shared: Workshop, entry: str, parameters: dict[str, str], message: str) -> None:
    places = {"drawn": shared.folder / "drawn", "data": shared.data, "model": shared.model}
    places["checkpoint"] = shared.model / "best.ckpt"
    given = {name: places.get(value, value) for name, value in parameters.items()}
    with pytest.raises(ExecutorFailed) as caught:
        shared.run(entry, **given)
    assert message in f"{caught.value.message} {caught.value.quote}"


@pytest.mark.executors
@pytest.mark.network
def test_the_model_that_ships_on_the_example_images(shared: Workshop) -> None:
    """It has seen drawings only, and finds most nuclei, bright on dark and dark on bright."""
    result = shared.run("main", REPOSITORY / "examples" / "images")
    counts = {Path(image.source).name: count for image, count in zip(result.images, result.counts, strict=True)}
    assert set(counts) == {"cell.png", "coins.png", "tissue.png", "tissue-nuclei.tif"}
    assert 40 <= counts["tissue-nuclei.tif"] <= 90
    assert 40 <= counts["tissue.png"] <= 110
    smaller = shared.run("main", REPOSITORY / "examples" / "images" / "coins.png", scale=0.25)
    assert smaller.counts[0] < counts["coins.png"] / 2  # fewer pieces


@pytest.mark.executors
@pytest.mark.network
def test_the_deployed_app_answers(shared: Workshop, tmp_path: Path) -> None:
    folder = shared.run("deploy", model=shared.uri).folder / "artifacts" / "deployment"
    port = free_port()
    words = [str(_python_of_the_executor()), "-m", "uvicorn", "app:app", "--port", str(port)]
    # Nothing of the executor is in reach: the folder is all that there is.
    variables = {"PATH": os.environ["PATH"], "MAX_BYTES": "200000", "MAX_PIXELS": "40000"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(words, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            _check_service(f"http://127.0.0.1:{port}", server, tmp_path)
            _check_refusals(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait()


@pytest.mark.docker
@pytest.mark.network
def test_the_deployment_folder_builds_and_answers_in_docker(tmp_path: Path) -> None:
    """The Dockerfile as it is, on a base image that holds its packages already (no registry is needed)."""
    requirements = REPOSITORY / "executors" / "segmentor" / "deployment" / "requirements.txt"
    packages = [line for line in requirements.read_text().splitlines() if line]
    base = base_image(tmp_path, ("pip", "mlflow-skinny", *packages))
    folder = tmp_path / "out" / "deployed"
    folder.parent.mkdir()
    # `deploy` needs onnxruntime: the base image has it, and building the executor's environment is saved.
    mounts = ["-v", f"{REPOSITORY / 'executors'}:/executors:ro", "-v", f"{folder.parent}:/out"]
    mounts += ["-e", "PYTHONPATH=/executors/segmentor:/executors/sdk", "-e", "PYTHONDONTWRITEBYTECODE=1"]
    code = "from pathlib import Path; from segmentor import deploy as d; d.deploy(d.SHIPPED, Path('/out/deployed'))"
    subprocess.run(["docker", "run", "--rm", *mounts, base, "python", "-c", code], check=True)
    image = "segserve-test-segmentor"
    subprocess.run(["docker", "build", "-q", "--build-arg", f"BASE={base}", "-t", image, str(folder)], check=True)
    port = free_port()
    words = ["docker", "run", "--rm", "-d", "--label", "segserve.test", "-p", f"127.0.0.1:{port}:8000", image]
    container = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    try:
        _check_service(f"http://127.0.0.1:{port}", None, tmp_path, classes=["object"])
    finally:
        subprocess.run(["docker", "logs", container], check=False)
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)


def _check_service(
    address: str, server: subprocess.Popen[bytes] | None, folder: Path, classes: list[str] | None = None
) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert server is None or server.poll() is None, (folder / "log").read_text()
        try:
            status, health = _call(f"{address}/health")
            break
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert (status, health["status"]) == (200, "200")
    assert health["classes"] == (classes or list(shapes.CLASSES))
    image, truth = shapes.scene(7000, 120)
    status, answer = _post(address, cv2.imencode(".png", image)[1].tobytes())
    assert (status, answer["status"]) == (200, "200")
    assert (answer["width"], answer["height"]) == (120, 120)
    rings = [(number, entry["contour_coordinates"]) for number, entry in enumerate(answer["polygons"], 1)]
    assert average_precision(contours.mask(rings, truth.instances.shape), truth.instances) >= 0.7
    assert {entry["label"] for entry in answer["polygons"]} <= set(health["classes"])


def _check_refusals(address: str) -> None:
    good = cv2.imencode(".png", shapes.scene(1, 120)[0])[1].tobytes()
    noise = np.random.default_rng(0).integers(0, 255, (190, 190, 3), np.uint8)
    large = cv2.imencode(".png", np.zeros((300, 300), np.uint8))[1].tobytes()
    floats = cv2.imencode(".tif", np.zeros((9, 9), np.float32))[1].tobytes()
    for content, wanted, reason in (
        (b"GIF89a", 415, "no PNG, JPEG, TIFF or BMP"),
        (b"", 415, "no PNG"),
        (good[:200], 422, "damaged"),
        (floats, 422, "float32"),
        (large, 413, "more than 40,000 pixels"),
        (cv2.imencode(".bmp", noise)[1].tobytes() * 2, 413, "more than 200,000 bytes"),
    ):
        status, answer = _post(address, content)
        assert (status, answer["status"]) == (wanted, str(wanted)), answer
        assert reason in answer["detail"]
    assert _call(f"{address}/predict", b"", {"Content-Type": "multipart/form-data; boundary=x"})[0] == 422
    assert _post(address, good)[0] == 200  # and it goes on


def _post(address: str, content: bytes) -> tuple[int, dict[str, Any]]:
    mark = "----segmentor"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="m.png"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + content + f"\r\n--{mark}--\r\n".encode()
    return _call(f"{address}/predict", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})


def _call(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _mlflow_run(result: Result) -> dict[str, Any]:
    server, _, run_id = result.run_url.partition("/#/")[0], "", result.run_url.rpartition("/")[2]
    run: dict[str, Any] = _call(f"{server}/api/2.0/mlflow/runs/get?run_id={run_id}")[1]["run"]
    return run


def _curve(result: Result, metric: str) -> list[tuple[int, float]]:
    server, run_id = result.run_url.partition("/#/")[0], result.run_url.rpartition("/")[2]
    address = f"{server}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={metric}"
    return [(int(entry["step"]), float(entry["value"])) for entry in _call(address)[1]["metrics"]]
