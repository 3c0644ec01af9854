"""The threshold executor: quality on images with truth, odd images, and the entry point with a real MLflow server."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml

from segserve import project
from tests.nuclei import average_precision, nuclei
from tests.repositories import make_repository

REPOSITORY = Path(__file__).parent.parent
EXECUTOR = REPOSITORY / "executors" / "threshold"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("threshold_segment", EXECUTOR / "segment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


threshold = _module()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["sixteen-bit", "eight-bit", "dark", "colour", "large", "small", "sparse"])
def test_separated_nuclei_are_found_with_the_defaults(kind: str, seed: int) -> None:
    sizes = {"large": (14, 35.0), "small": (150, 6.0), "sparse": (6, 9.0)}
    count, radius = sizes.get(kind, (60, 11.0))
    image, truth = nuclei(seed, count=count, radius=radius)
    given = {
        "eight-bit": (image >> 8).astype(np.uint8),
        "dark": 65535 - image,
        "colour": np.dstack([image >> 8] * 3).astype(np.uint8),
    }.get(kind, image)
    labels, scores = threshold.segment(given)
    assert labels.dtype == np.int32
    assert len(scores) == labels.max()
    assert ((scores > 0) & (scores <= 1)).all()
    assert average_precision(labels, truth) >= 0.95
    assert average_precision(labels, truth, 0.7) >= 0.9


@pytest.mark.parametrize("seed", range(3))
def test_touching_nuclei_are_cut(seed: int) -> None:
    image, truth = nuclei(seed, count=120, gap=-3)
    labels, _ = threshold.segment(image)
    assert average_precision(labels, truth) >= 0.9
    joined, _ = threshold.segment(image, threshold.Settings(split=0))
    assert joined.max() < labels.max()


@pytest.mark.parametrize("seed", [112, 114, 120, 137])
def test_a_few_nuclei_on_uneven_ground_are_not_taken_for_dark_ones(seed: int) -> None:
    image, truth = nuclei(seed, count=6, radius=9)
    for given in (image, 65535 - image):
        assert average_precision(threshold.segment(given)[0], truth) == 1


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 300), (300, 1), (2, 2), (40, 40, 3)])
def test_images_without_anything_have_no_objects(shape: tuple[int, ...], value: int) -> None:
    labels, scores = threshold.segment(np.full(shape, value, np.uint8))
    assert labels.shape == shape[:2]
    assert labels.max() == len(scores) == 0


def test_noise_has_no_objects() -> None:
    random = np.random.default_rng(0)
    for image in (random.normal(1000, 30, (256, 256)), random.poisson(3, (300, 300)).astype(np.uint16)):
        assert threshold.segment(image)[0].max() == 0


def test_settings_do_what_they_say() -> None:
    image, truth = nuclei(1)
    areas = np.bincount(truth.ravel())[1:]
    middle = float(np.median(areas))
    small, _ = threshold.segment(image, threshold.Settings(max_area=middle))
    large, _ = threshold.segment(image, threshold.Settings(min_area=middle))
    assert np.bincount(small.ravel())[1:].max() <= middle
    assert np.bincount(large.ravel())[1:].min() >= middle
    strict, _ = threshold.segment(image, threshold.Settings(sensitivity=0.4))
    assert (strict > 0).sum() < (truth > 0).sum()
    wrong, _ = threshold.segment(image, threshold.Settings(invert="yes"))
    assert average_precision(wrong, truth) < 0.1


@pytest.mark.parametrize(("name", "low", "high"), [("coins.png", 24, 24), ("cell.png", 1, 1), ("tissue.png", 30, 60)])
def test_the_example_images(name: str, low: int, high: int) -> None:
    image = cv2.imread(str(REPOSITORY / "examples" / "images" / name), cv2.IMREAD_UNCHANGED)
    assert image is not None
    labels, _ = threshold.segment(image[..., ::-1] if image.ndim == 3 else image)
    assert low <= labels.max() <= high


def test_both_projects_say_the_same_and_agree_with_the_code() -> None:
    root, own = project.load(REPOSITORY), project.load(EXECUTOR)
    assert project.select(root, "main").parameters == project.select(own, "main").parameters
    assert project.select(own, "main").images_parameter == "input_images"
    assert root.findings == own.findings == ()
    declared = {name: p.default for name, p in project.select(own, "main").parameters.items()}
    for name, value in threshold.DEFAULTS._asdict().items():
        assert declared[name] == value or float(declared[name] or "nan") == value
    for folder in (REPOSITORY, EXECUTOR):
        conda = yaml.safe_load((folder / "conda.yaml").read_text())
        path = conda["dependencies"][-1]["pip"][-1]
        assert (folder / path).resolve() == REPOSITORY / "executors" / "sdk"


def test_the_entry_point_writes_format_0_2_with_provenance(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    make_repository(checkout, {name: (EXECUTOR / name).read_bytes() for name in ("main.py", "segment.py", "MLProject")})
    subprocess.run(
        ["git", "remote", "add", "origin", "https://me:secret@host.example/group/repo"], cwd=checkout, check=True
    )
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        image, _ = nuclei(number, size=128, count=4 + number)
        cv2.imwrite(str(images / f"{number:03d}.png"), image)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "executors" / "sdk"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    done = subprocess.run(
        [sys.executable, "main.py", str(images), "--label", "nucleus"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((checkout / "output.json").read_text())
    assert document["format_version"] == "0.2"
    assert document["model"].startswith("https://host.example/group/repo#")
    assert [len(image) for image in document["segmentation_data"]] == [4, 5]
    item = document["segmentation_data"][0][0]
    assert (item["label"], item["type"]) == ("nucleus", "Polygon")
    assert 0 < item["score"] <= 1
    assert "2/2 5 objects" in done.stdout


def test_a_folder_without_images_is_said(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "executors" / "sdk")}
    done = subprocess.run(
        [sys.executable, str(EXECUTOR / "main.py"), str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "no images found" in done.stderr
