"""The threshold executor: quality on images with truth, odd images, and the entry point with a real MLflow server."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml
from skimage import filters

from segserve import project
from segserve.errors import InvalidParameters
from tests.nuclei import average_precision, nuclei
from tests.repositories import make_repository

REPOSITORY = Path(__file__).parent.parent
EXECUTOR = REPOSITORY / "executors" / "threshold"
SOURCES = ("main.py", "segment.py", "thresholds.py", "watershed.py", "MLProject")


def _module() -> ModuleType:
    """The executor's `segment`, imported as its `main.py` does: its folder comes first on the path."""
    sys.path.insert(0, str(EXECUTOR))
    try:
        return importlib.import_module("segment")
    finally:
        sys.path.remove(str(EXECUTOR))


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
@pytest.mark.parametrize("method", threshold.CHOICES["method"])
@pytest.mark.parametrize("seeds", threshold.CHOICES["seeds"])
def test_images_without_anything_have_no_objects(shape: tuple[int, ...], value: int, method: str, seeds: str) -> None:
    labels, scores = threshold.segment(np.full(shape, value, np.uint8), threshold.Settings(method=method, seeds=seeds))
    assert labels.shape == shape[:2]
    assert labels.max() == len(scores) == 0


def test_noise_has_no_objects() -> None:
    random = np.random.default_rng(0)
    for image in (random.normal(1000, 30, (256, 256)), random.poisson(3, (300, 300)).astype(np.uint16)):
        assert threshold.segment(image)[0].max() == 0


def test_real_crowded_nuclei_are_found_with_the_defaults() -> None:
    folder = REPOSITORY / "examples" / "annotated" / "crowded-nuclei"
    image = cv2.imread(str(folder / "images" / "nuclei.png"), cv2.IMREAD_UNCHANGED)
    truth = cv2.imread(str(folder / "truth" / "nuclei.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None
    assert truth is not None
    assert image.shape == (512, 512)
    assert truth.max() > 100
    assert average_precision(threshold.segment(image)[0], truth.astype(np.int32)) >= 0.8  # the issue asks for 0.75


def quality(image: np.ndarray, truth: np.ndarray, **settings: object) -> float:
    """AP at 0.5 of bright objects."""
    labels, _ = threshold.segment(image, threshold.Settings(invert="no", **settings))
    return average_precision(labels, truth)


def painted(seed: int, brightness: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei on even ground, the first as bright as the first number, and so on in turn; and their label mask."""
    _, labels = nuclei(seed, uneven=0)
    light = np.append(0, np.resize(brightness, labels.max())).astype(np.float32)
    random = np.random.default_rng(seed)
    image = cv2.GaussianBlur(0.15 + light[labels], (0, 0), 1.0)
    image = random.poisson(image * 2000) / 2000 + random.normal(0, 0.01, image.shape)
    return np.clip(image * 20_000, 0, 65535).astype(np.uint16), labels


def domes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Round objects, brightest in the middle, so close in rows and columns that their outlines have merged."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:256, 0:256]
    tallest, labels = np.zeros((256, 256)), np.zeros((256, 256), np.int32)
    for number, (row, column) in enumerate(np.ndindex(9, 9), 1):
        away = (rows - 30 - 22 * row - random.uniform(-2, 2)) ** 2
        away += (columns - 30 - 22 * column - random.uniform(-2, 2)) ** 2
        dome = 1 - away / 14**2
        labels[dome > tallest] = number
        tallest = np.maximum(tallest, dome)
    image = 0.2 + np.sqrt(tallest) + random.normal(0, 0.02, tallest.shape)
    return np.clip(image * 20_000, 0, 65535).astype(np.uint16), labels


@pytest.mark.parametrize("seed", range(2))
def test_local_follows_uneven_light(seed: int) -> None:
    image, truth = nuclei(seed, uneven=1.5)
    assert quality(image, truth, method="local", background="keep") >= 0.85
    assert quality(image, truth, method="otsu", background="keep") < 0.5


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["otsu", "li"])
def test_background_removal_lets_one_threshold_do(method: str, seed: int) -> None:
    image, truth = nuclei(seed, uneven=1.5)
    assert quality(image, truth, method=method, background="remove") >= 0.95
    assert quality(image, truth, method=method, background="keep") < 0.5


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", threshold.CHOICES["method"])
def test_every_method_finds_equally_bright_objects_on_even_ground(method: str, seed: int) -> None:
    assert quality(*painted(seed, [1.0]), method=method, background="keep") >= 0.95


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["multi-otsu", "triangle"])
def test_multi_otsu_and_triangle_find_the_faint_class_beside_the_bright_one(method: str, seed: int) -> None:
    image, truth = painted(seed, [0.15, 1.0])
    assert quality(image, truth, method=method, background="keep") >= 0.95
    assert quality(image, truth, method="otsu", background="keep") <= 0.55
    assert quality(image, truth, method="li", background="keep") <= 0.55


@pytest.mark.parametrize("seed", range(2))
def test_li_and_triangle_find_objects_of_every_brightness(seed: int) -> None:
    image, truth = painted(seed, np.geomspace(0.15, 1, 7).tolist())
    for method in ("li", "triangle"):
        assert quality(image, truth, method=method, background="keep") >= 0.95
    assert quality(image, truth, method="otsu", background="keep") <= 0.75
    assert quality(image, truth, method="multi-otsu", background="keep") <= 0.9


@pytest.mark.parametrize("seed", range(2))
def test_log_seeds_part_objects_whose_outlines_have_merged(seed: int) -> None:
    image, truth = domes(seed)
    assert quality(image, truth, method="otsu", seeds="log", diameter=28) >= 0.9
    assert quality(image, truth, method="otsu", seeds="distance", diameter=28) < 0.2


def test_thresholds_lie_where_their_definitions_say() -> None:
    thresholds = sys.modules["thresholds"]
    image = painted(0, [0.3, 1.0])[0].astype(np.float64)
    image = (image - image.min()) / (image.max() - image.min())
    for name in ("otsu", "li"):
        assert thresholds.GLOBAL[name](image) == pytest.approx(getattr(filters, f"threshold_{name}")(image), abs=0.005)
    assert thresholds.multi_otsu(image) == pytest.approx(filters.threshold_multiotsu(image)[0], abs=0.01)
    assert thresholds.triangle(image) == pytest.approx(filters.threshold_triangle(image, 1024), abs=0.02)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "ootsu"}, "method is 'ootsu'; it can be local, otsu, li, triangle, multi-otsu."),
        ({"background": "yes"}, "background is 'yes'; it can be remove, keep."),
        ({"seeds": "peaks"}, "seeds is 'peaks'; it can be distance, log."),
        ({"diameter": -3.0}, "diameter is -3; it is a number of pixels, 0 or more."),
        ({"split": 2.0}, "split is 2; it lies between 0 and 1."),
        ({"sensitivity": 0.0}, "sensitivity is 0; it is above 0."),
        ({"min_area": 50.0, "max_area": 10.0}, "max_area (10) is less than min_area (50)."),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        threshold.segment(np.zeros((8, 8), np.uint8), threshold.Settings(**given))


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
    assert declared["input_images"] is None
    assert set(declared) == {"input_images", "label", *threshold.Settings._fields}
    for name, allowed in threshold.CHOICES.items():
        assert project.select(own, "main").parameters[name].options == allowed
    with pytest.raises(InvalidParameters, match="method"):  # before anything is built
        project.check_parameters(project.select(own, "main"), {"method": "ootsu"}, images=True)
    for folder in (REPOSITORY, EXECUTOR):
        conda = yaml.safe_load((folder / "conda.yaml").read_text())
        path = conda["dependencies"][-1]["pip"][-1]
        assert (folder / path).resolve() == REPOSITORY / "executors" / "sdk"


def test_the_entry_point_writes_format_0_2_with_provenance(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    make_repository(checkout, {name: (EXECUTOR / name).read_bytes() for name in SOURCES})
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
        [sys.executable, "main.py", str(images), "--label", "nucleus", "--method", "li", "--seeds", "log"],
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
    assert re.search(r"^2/2 .*: 5 objects in", done.stdout, re.MULTILINE), done.stdout


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


def test_the_entry_point_names_every_wrong_setting(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "executors" / "sdk")}
    done = subprocess.run(
        [sys.executable, str(EXECUTOR / "main.py"), str(tmp_path), "--method", "best", "--invert", "maybe"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "method is 'best'; it can be local, otsu" in done.stderr
    assert "invert is 'maybe'; it can be auto, yes, no." in done.stderr
