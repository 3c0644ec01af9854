"""executors/cellpose: its own modules without torch, and the whole executor in its real environment."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from segserve_sdk import weights

from segserve import api, comparison, project
from tests.commands import Command, run_of
from tests.servers import call
from tests.weights import place

pytest_plugins = ["tests.command_fixtures"]

REPOSITORY = Path(__file__).parent.parent
EXECUTOR = REPOSITORY / "executors" / "cellpose"
REF = f"{REPOSITORY}#executors/cellpose:"
NAMES = ("cyto3", "size_cyto3.npy")
TINY = "models/tiny_cells"


def module(name: str) -> ModuleType:
    """One of the executor's modules, imported as its `main.py` does: its folder comes first on the path."""
    sys.path.insert(0, str(EXECUTOR))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXECUTOR))


network, pairs, settings, synthetic, training = (
    module(name) for name in ("network", "pairs", "settings", "synthetic", "training")
)


def test_the_project_agrees_with_the_code() -> None:
    loaded = project.load(EXECUTOR)
    assert loaded.findings == ()
    declared = {name: one.default for name, one in project.select(loaded, "main").parameters.items()}
    assert set(declared) == {"input_images", "label", *settings.Settings._fields}
    for name, value in settings.Settings()._asdict().items():
        given = declared[name] or ""
        if isinstance(value, str | bool):
            assert given.lower() == str(value).lower(), name
        else:
            assert float(given) == value, name
    for name, allowed in settings.CHOICES.items():
        for entry in ("main", "train"):
            assert project.select(loaded, entry).parameters[name].options == allowed
    assert project.select(loaded, "train").images_parameter is None


def test_the_shipped_model_is_small() -> None:
    assert (EXECUTOR / TINY).stat().st_size < 2_000_000


def test_settings_that_make_no_sense_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXECUTOR)  # where MLflow starts it
    wrong = settings.problems(settings.Settings(model="none", channel="pink", diameter=-1, tile=3, device="tpu"))
    assert [text.split(" ")[0] for text in wrong] == ["channel", "device", "diameter", "tile", "There"]
    assert settings.problems(settings.Settings(model=TINY)) == ()
    assert settings.channels_of("green", "blue") == (2, 3)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Unseen synthetic cells: 4 images of 192 pixels and their label images."""
    synthetic.write(tmp_path / "cells", range(1000, 1004), 192)
    return tmp_path / "cells" / "images", tmp_path / "cells" / "truth"


def test_pairs_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = folders
    (labels / "1001.png").rename(labels / "1001_masks.png")
    found = pairs.read(images, labels)
    assert [pair.name for pair in found] == ["1000", "1001", "1002", "1003"]
    assert found[1].labels.max() == len(np.unique(found[1].labels)) - 1 > 10
    together = tmp_path / "together"
    together.mkdir()
    for pair in found:
        cv2.imwrite(str(together / f"{pair.name}.png"), pair.image)
        cv2.imwrite(str(together / f"{pair.name}_cp_masks.png"), pair.labels.astype(np.uint16))
    assert all((a.labels == b.labels).all() for a, b in zip(found, pairs.read(together, together), strict=True))
    cv2.imwrite(str(labels / "1003_masks.png"), found[3].labels.astype(np.uint16))
    with pytest.raises(ValueError, match="are both '1003': leave one of them out"):
        pairs.read(images, labels)
    (labels / "1003_masks.png").unlink()
    (labels / "1002.png").unlink()
    with pytest.raises(ValueError, match="no partner in the other folder: 1002"):
        pairs.read(images, labels)


def environment() -> Path:
    """The Python of the executor's environment, built if need be."""
    with api.session() as session:
        built = session.build_environment(session.request(f"{REF}main"))
    return Path(built["location"]) / "bin" / "python"


@pytest.mark.parametrize(("count", "share", "tested"), [(1, 0.2, "a"), (2, 0.2, "a"), (4, 0.25, "c"), (9, 0.2, "df")])
def test_what_is_held_out(count: int, share: float, tested: str) -> None:
    everything = [pairs.Pair(name, np.zeros(1), np.zeros(1)) for name in "abcdefghi"[:count]]
    learn, test = training.split(everything, share)
    assert "".join(pair.name for pair in test) == tested
    assert count == 1 or not {pair.name for pair in learn} & {pair.name for pair in test}
    assert training.split(everything, 0) == (everything, everything[:1])


@pytest.mark.executors
@pytest.mark.network
def test_unseen_cells_are_found(here: Path, folders: tuple[Path, Path], segserve: Command) -> None:
    done = segserve("run", f"{REF}main", folders[0], "-P", f"model={TINY}", "-o", "out", "--json", "--gpus", "none")
    assert done.code == 0, done.err
    pooled = comparison.compare(here / "out", folders[1], (0.5,)).pooled.as_dict()
    assert pooled["at"][0]["ap"] >= 0.75, pooled
    items = [
        item for image in json.loads((here / "out" / "output.json").read_text())["segmentation_data"] for item in image
    ]
    assert all(0.5 < item["score"] <= 1 for item in items)  # logistic of more than cellprob_threshold 0
    params = {param["key"]: param["value"] for param in run_of(done.document["mlflow"])["data"]["params"]}
    assert params["weights.sha256"] == weights.digest_of(EXECUTOR / TINY)


@pytest.mark.executors
@pytest.mark.network
def test_the_example_images(here: Path, segserve: Command) -> None:
    images = REPOSITORY / "examples" / "images"
    done = segserve("run", f"{REF}main", images, "-P", f"model={TINY}", "--json", "--gpus", "none")
    assert done.code == 0, done.err
    counts = {Path(image["file"]).name: image["objects"] for image in done.document["images"]}
    assert set(counts) == {"cell.png", "coins.png", "tissue.png", "tissue-nuclei.tif"}
    assert all(counts.values())


@pytest.mark.executors
@pytest.mark.network
def test_what_was_trained_runs_by_its_run(here: Path, folders: tuple[Path, Path], segserve: Command) -> None:
    images, labels = folders
    words = [f"{REF}train", "-P", f"images={images}", "-P", f"labels={labels}", "-P", f"model={TINY}"]
    words += ["-P", "epochs=2", "-P", "crop=96", "-P", "learning_rate=0.001", "-P", "held_out=0.25"]
    trained = segserve("run", *words, "-o", "trained", "--json", "--gpus", "none")
    assert trained.code == 0, trained.err
    url = trained.document["mlflow"]
    run = run_of(url)
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert metrics["ap.50"] >= 0.75  # it began with a good one and took small steps
    assert metrics["loss.train"] > 0
    history = call(
        url.split("/#/")[0], "GET", f"metrics/get-history?run_id={run['info']['run_id']}&metric_key=loss.train"
    )
    assert [point["step"] for point in history["metrics"]] == [0, 1]
    facts = json.loads((here / "trained" / "artifacts" / "model" / "model.json").read_text())
    assert facts["held_out"] == ["1002"]
    assert facts["sha256"] != weights.digest_of(EXECUTOR / TINY)
    model = f"runs:/{run['info']['run_id']}/model"
    done = segserve("run", f"{REF}main", images, "-P", f"model={model}", "-o", "out", "--json", "--gpus", "none")
    assert done.code == 0, done.err
    params = {param["key"]: param["value"] for param in run_of(done.document["mlflow"])["data"]["params"]}
    assert params["weights.sha256"] == facts["sha256"]
    assert comparison.compare(here / "out", labels, (0.5,)).pooled.as_dict()["at"][0]["ap"] >= 0.75


@pytest.mark.executors
@pytest.mark.network
def test_the_script_trains_and_the_import_compiles_nothing(here: Path) -> None:
    python = environment()
    script = [str(python), str(EXECUTOR / "make_tiny_model.py"), "--epochs", "5", "--images", "16"]
    done = subprocess.run([*script, "-o", str(here / "tiny")], capture_output=True, text=True, env=_variables(here))
    assert done.returncode == 0, done.stderr
    first = re.search(r"train_loss=([\d.]+)", done.stderr)
    assert first is not None
    assert float(done.stdout.rsplit("loss ", 1)[1]) < float(first[1])
    program = (
        "import json, sys, torch, network; network.cellpose(); from cellpose import dynamics\n"
        "early = [n for n, f in vars(dynamics).items() if hasattr(f, 'signatures') and f.signatures]\n"
        "model = network.load(__import__('pathlib').Path(sys.argv[1]), torch.device('cpu'))\n"
        "print(json.dumps([early, model.nbase]))"
    )
    words = [str(python), "-c", program, str(here / "tiny")]
    done = subprocess.run(words, cwd=EXECUTOR, capture_output=True, text=True, env=_variables(here))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [2, 8, 16, 32, 64]]


@pytest.mark.executors
@pytest.mark.network
def test_a_file_that_is_no_model_is_said_to_be_none(here: Path, folders: tuple[Path, Path], segserve: Command) -> None:
    (here / "weights").write_bytes(b"no weights")
    done = segserve("run", f"{REF}main", folders[0], "-P", f"model={here / 'weights'}", "--gpus", "none")
    assert done.code == 4
    assert "holds no weights that can be loaded" in done.err
    done = segserve("run", f"{REF}main", folders[0], "-P", "model=cito3", "--gpus", "none")
    assert done.code == 4
    assert "There is no model 'cito3'" in done.err


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


@pytest.mark.executors
@pytest.mark.network
def test_a_model_by_name_with_its_estimate_of_diameters(
    here: Path, shared_home: Path, folders: tuple[Path, Path], segserve: Command
) -> None:
    cached = [place(shared_home, REPOSITORY, f"{network.URL}/{name}", subdir="executors/cellpose") for name in NAMES]
    shutil.copyfile(EXECUTOR / TINY, cached[0])
    size = cached[1]
    parameters = {"A": np.zeros(256), "smean": np.zeros(256), "ymean": 0.0, "diam_mean": 30.0}
    np.save(size, np.array(parameters, object))
    done = segserve("run", f"{REF}main", folders[0], "-o", "out", "--json", "--gpus", "none")
    assert done.code == 0, done.err
    assert comparison.compare(here / "out", folders[1], (0.5,)).pooled.as_dict()["at"][0]["ap"] >= 0.75
    np.save(size, np.array(_Bomb(), object))  # who could put this there could run anything as the user
    done = segserve("run", f"{REF}main", folders[0], "--gpus", "none")
    assert done.code == 4
    assert "arrays and numbers are expected" in done.err


@pytest.mark.gpu
@pytest.mark.network
def test_on_a_gpu(here: Path, folders: tuple[Path, Path], segserve: Command) -> None:
    words = ["-P", f"model={TINY}", "-P", "device=cuda", "-o", "out", "--json", "--gpus", "1"]
    done = segserve(
        "run", f"{REF}main", folders[0], *words, "--env", "local"
    )  # torch for CUDA, as found on the machine
    assert done.code == 0, done.err
    params = {param["key"]: param["value"] for param in run_of(done.document["mlflow"])["data"]["params"]}
    assert params["device.used"].startswith("cuda")
    assert comparison.compare(here / "out", folders[1], (0.5,)).pooled.as_dict()["at"][0]["ap"] >= 0.75


def _variables(here: Path) -> dict[str, Any]:
    sdk = str(REPOSITORY / "executors" / "sdk")
    return {**os.environ, "CACHE_FOLDER": str(here / "cache"), "PYTHONPATH": sdk, "PYTHONDONTWRITEBYTECODE": "1"}
