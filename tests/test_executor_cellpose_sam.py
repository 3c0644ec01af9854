"""executors/cellpose-sam in its real environment, with random weights: its own cannot be had without a network."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from segserve import project
from tests.commands import Command, run_of

pytest_plugins = ["tests.command_fixtures"]

REPOSITORY = Path(__file__).parent.parent
EXECUTOR = REPOSITORY / "executors" / "cellpose-sam"
REF = f"{REPOSITORY}#executors/cellpose-sam:"


def test_the_project_is_in_order() -> None:
    loaded = project.load(EXECUTOR)
    assert loaded.findings == ()
    assert project.select(loaded, "main").images_parameter == "input_images"
    assert project.select(loaded, "train").images_parameter is None
    assert loaded.manifest.texts()["citation"].startswith("Pachitariu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cell.png"
    disc = cv2.circle(np.full((64, 48), 20, np.uint8), (24, 30), 12, 200, -1)
    cv2.imwrite(str(path), disc)
    return path


@pytest.mark.executors
@pytest.mark.network
def test_the_whole_executor_with_random_weights(here: Path, image: Path, segserve: Command) -> None:
    words = ["-P", "model=new", "-P", "cellprob_threshold=-6", "-P", "flow_threshold=0", "-P", "min_size=1"]
    done = segserve("run", f"{REF}main", image, *words, "-o", "out", "--json", "--gpus", "none")
    assert done.code == 0, done.err
    document = json.loads((here / "out" / "output.json").read_text())
    assert len(document["segmentation_data"]) == 1
    assert all(0 < item["score"] < 1 for item in document["segmentation_data"][0])
    params = {param["key"]: param["value"] for param in run_of(done.document["mlflow"])["data"]["params"]}
    assert (params["weights.sha256"], params["device.used"]) == ("random", "cpu")


@pytest.mark.executors
@pytest.mark.network
def test_wrong_settings_and_foreign_weights_are_said(here: Path, image: Path, segserve: Command) -> None:
    done = segserve("run", f"{REF}main", image, "-P", "precision=int4", "-P", "tile_overlap=3", "--gpus", "none")
    assert done.code == 2  # before anything is built
    assert "2 problems with the parameters" in done.err
    assert "bfloat16" in done.err
    done = segserve("run", f"{REF}main", image, "-P", "model=cpsum", "--gpus", "none")
    assert done.code == 4
    assert "There is no model 'cpsum'. It can be a name (cpsam_v2, cpsam, new)" in done.err
    tiny = REPOSITORY / "executors" / "cellpose" / "models" / "tiny_cells"
    done = segserve("run", f"{REF}main", image, "-P", f"model={tiny}", "--gpus", "none")
    assert done.code == 4
    assert "holds no network of Cellpose 4" in done.err
