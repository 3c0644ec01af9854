"""Our numbers beside those of cellpose.metrics, stardist.matching and pycocotools, in an environment of their own."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import uv

from segserve import evaluate
from segserve.environments.indexes import host_settings
from segserve.evaluate import Objects, Ranked

pytestmark = pytest.mark.network

WITHOUT_DEPENDENCIES = ("cellpose>=3.1", "stardist>=0.9", "csbdeep>=0.8")  # else: torch and TensorFlow
NEEDED = (
    *("pycocotools>=2.0.8", "numpy", "scipy", "numba", "tqdm", "scikit-image", "six", "matplotlib"),
    *("opencv-python-headless", "fastremap", "fill-voids"),
)
THRESHOLDS = (0.1, 0.3, 0.5, 0.55, 0.65, 0.75, 0.9, 1.0)
STACK = "overlapping"
CLOSE: dict[str, Any] = {"rel": 0, "abs": 1e-6}


@pytest.fixture(scope="session")
def reference_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the three references."""
    folder = tmp_path_factory.mktemp("references") / "venv"
    variables = host_settings().environment()
    python = folder / "bin" / "python"
    install = [uv.find_uv_bin(), "pip", "install", "-q", "--python", str(python)]
    for command in (
        [uv.find_uv_bin(), "venv", "-q", "--python", "3.11", str(folder)],
        [*install, *NEEDED],
        [*install, "--no-deps", *WITHOUT_DEPENDENCIES],
    ):
        subprocess.run(command, env=variables, check=True, timeout=600)
    return python


def blobs(seed: int, count: int, side: int = 256) -> np.ndarray[Any, Any]:
    """Ellipses that overlap and touch; the last one wins; values are dense from 1."""
    random = np.random.default_rng(seed)
    image = np.zeros((side, side), np.int32)
    for value in range(1, count + 1):
        centre, axes = random.integers(0, side, 2).tolist(), random.integers(2, 16, 2).tolist()
        cv2.ellipse(image, centre, axes, int(random.integers(180)), 0, 360, value, -1)
    return dense(image)


def dense(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values without gaps, as cellpose.metrics expects them (a gap counts there as an object in `mask_ious`)."""
    return np.unique(np.append(0, image.ravel()), return_inverse=True)[1][1:].reshape(image.shape).astype(np.int32)


def disturbed(image: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Some objects moved, some lost, some cut in two, some joined, some invented."""
    random = np.random.default_rng(seed)
    result = np.roll(image, random.integers(-3, 4, 2).tolist(), (0, 1))
    values = random.permutation(np.arange(1, image.max() + 1))
    result[np.isin(result, values[: len(values) // 10])] = 0
    for value in values[len(values) // 10 : len(values) // 5]:
        rows, columns = np.nonzero(result == value)
        half = columns > columns.mean() if len(columns) else np.empty(0, bool)
        result[rows[half], columns[half]] = result.max() + 1
    for one, other in zip(values[-20:-10], values[-10:], strict=False):
        result[result == one] = other
    for _ in range(5):
        row, column = random.integers(0, image.shape[0] - 8, 2)
        result[row : row + 6, column : column + 8] = result.max() + 1
    return dense(result)


def boxes(seed: int, count: int) -> np.ndarray[Any, Any]:
    """Overlapping boxes, of which many are the same: (count, 32, 32)."""
    random = np.random.default_rng(seed)
    stack = np.zeros((count, 32, 32), bool)
    for mask in stack:
        (row, column), (height, width) = random.integers(0, 6, 2) * 4, random.integers(1, 4, 2) * 4
        mask[row : row + height, column : column + width] = True
    return stack


def cases() -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(prediction, truth) by name."""
    truth = blobs(1, 60)
    exact = np.zeros((20, 40), np.int32)
    exact[0:13, 0] = 1  # 13 of 20 pixels: an IoU of exactly 0.65
    whole = np.zeros((20, 40), np.int32)
    whole[0:20, 0] = 1
    pixel = np.zeros((16, 16), np.int32)
    pixel[3, 7] = 1
    checks = np.arange(1, 257, dtype=np.int32).reshape(16, 16)
    checks[0, 0] = 0
    checks = dense(checks)
    random = np.random.default_rng(5)
    return {
        "same": (truth, truth),
        "moved": (np.roll(truth, 2, 0), truth),
        "disturbed": (disturbed(truth, 2), truth),
        "dense": (disturbed(blobs(3, 400), 4), blobs(3, 400)),
        "noise": (dense(random.integers(0, 9, (32, 32))), dense(random.integers(0, 12, (32, 32)))),
        "exactly": (exact, whole),
        **{f"random{seed}": (disturbed(blobs(seed, 30, 96), seed), blobs(seed, 30, 96)) for seed in range(10, 22)},
        "pixel": (pixel, pixel),
        "pixels": (np.roll(checks, 1, 1), checks),
        "nothing_found": (np.zeros_like(pixel), pixel),
        "nothing_there": (pixel, np.zeros_like(pixel)),
    }


@pytest.fixture(scope="session")
def both(reference_python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The images with everything we need about them, and the references' answer."""
    random = np.random.default_rng(0)
    images, arrays = {}, {}
    for name, (pred, true) in sorted(cases().items()):
        n_pred, n_true = int(pred.max()), int(true.max())
        scores = random.integers(0, 40, n_pred) / 40  # with ties
        kinds = random.integers(1, 4, n_pred), random.integers(1, 4, n_true)
        images[name] = (pred, true, scores, *kinds)
        parts = zip(("pred", "true", "scores", "pred_kinds", "true_kinds"), images[name], strict=True)
        arrays |= {f"{name}_{part}": array for part, array in parts}
    pred, true = boxes(1, 60), boxes(2, 50)
    images[STACK] = (pred, true, random.integers(0, 9, 60) / 9, np.ones(60, int), np.ones(50, int))
    parts = zip(("pred", "true", "scores", "pred_kinds", "true_kinds"), images[STACK], strict=True)
    arrays |= {f"{STACK}_{part}": array for part, array in parts}
    folder = tmp_path_factory.mktemp("cases")
    np.savez(folder / "cases.npz", **arrays)
    script = Path(__file__).with_name("reference_metrics.py")
    command = [str(reference_python), str(script), str(folder / "cases.npz"), json.dumps(THRESHOLDS)]
    done = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True)
    return images, json.loads(done.stdout)


def tallied(pred: np.ndarray[Any, Any], true: np.ndarray[Any, Any]) -> evaluate.Tally:
    return evaluate.tally(evaluate.overlap(Objects.from_labels(pred), Objects.from_labels(true)), THRESHOLDS)


OURS_TO_STARDIST = {
    "ap": "accuracy",
    "mean_matched_iou": "mean_matched_score",
    "mean_true_iou": "mean_true_score",
    **{name: name for name in ("tp", "fp", "fn", "precision", "recall", "f1", "panoptic_quality")},
}


@pytest.mark.parametrize("name", sorted(cases()))
def test_as_stardist(name: str, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    images, answer = both
    ours = tallied(*images[name][:2])
    for index, theirs in enumerate(answer["images"][name]["stardist"]):
        own = ours.at(index)
        assert {key: own[key] for key in OURS_TO_STARDIST} == pytest.approx(
            {key: theirs[other] for key, other in OURS_TO_STARDIST.items()}, **CLOSE
        ), THRESHOLDS[index]


def test_pooled_as_stardist(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    images, answer = both
    pooled = evaluate.pool([tallied(*images[name][:2]) for name in sorted(set(images) - {STACK})])
    for index, theirs in enumerate(answer["pooled"]):
        own = pooled.at(index)
        for key, other in OURS_TO_STARDIST.items():
            assert own[key] == pytest.approx(theirs[other], **CLOSE), (key, THRESHOLDS[index])


@pytest.mark.parametrize("name", sorted(cases()))
def test_as_cellpose(name: str, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    images, answer = both
    pred, true = images[name][:2]
    theirs, ours = answer["images"][name]["cellpose"], tallied(pred, true)
    own = [ours.at(index) for index in range(len(THRESHOLDS))]
    for key in ("tp", "fp", "fn", "ap"):
        assert [one[key] for one in own] == pytest.approx(theirs[key], **CLOSE), key
    if theirs["aji"] is not None:  # cellpose fails without objects
        assert ours.overall()["aji_cellpose"] == pytest.approx(theirs["aji"], **CLOSE)


@pytest.mark.parametrize(("most", "by_name"), [(100, True), (None, True), (None, False)])
def test_as_pycocotools(most: int | None, by_name: bool, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    images, answer = both
    ranked = []
    for name in sorted(set(images) - {STACK}):
        pred, true, scores, pred_kinds, true_kinds = images[name]
        table = evaluate.overlap(Objects.from_labels(pred), Objects.from_labels(true))
        if by_name:
            one, two = Objects.from_labels(pred), Objects.from_labels(true)
            named = [
                Objects(side.ids, tuple(map(str, kinds)), side.scores, side.form, side.shape)
                for side, kinds in ((one, pred_kinds), (two, true_kinds))
            ]
            table = table.same_name(*named)
        ranked.append(Ranked(table, scores, tuple(map(str, pred_kinds)), tuple(map(str, true_kinds))))
    ours = evaluate.coco_scores(ranked, THRESHOLDS, max_detections=most, by_name=by_name)
    theirs = answer["coco"][str(most or 10**6)] if by_name else answer["coco_one_class"]
    assert ours is not None
    assert ours.ap == pytest.approx(theirs["ap"], **CLOSE)
    assert ours.recall == pytest.approx(theirs["recall"], **CLOSE)
    assert not math.isnan(ours.mean_ap)


def of_masks(stack: np.ndarray[Any, Any]) -> Objects:
    owner, row, column = np.nonzero(stack)
    return Objects.from_runs(evaluate.runs.of_pixels(owner, row, column), len(stack), shape=stack.shape[1:])


def test_overlapping_objects_as_pycocotools(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    images, answer = both
    pred, true, scores, *_ = images[STACK]
    table = evaluate.overlap(of_masks(pred), of_masks(true))
    ours = evaluate.coco_scores([Ranked(table, scores, ("",) * len(pred), ("",) * len(true))], THRESHOLDS)
    assert ours is not None
    assert ours.ap == pytest.approx(answer["coco_overlapping"]["ap"], **CLOSE)
    assert ours.recall == pytest.approx(answer["coco_overlapping"]["recall"], **CLOSE)
    assert len(set(ours.ap)) > 4


def test_oddities_of_the_references_are_as_documented(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found = both[1]["oddities"]
    full = np.arange(1, 5).reshape(2, 2)
    assert found["without_background"]["fp"] == found["without_background"]["fn"] == [-1]
    assert found["without_background"]["ap"] == [2]
    assert tallied(full, full).at(0)["ap"] == 1
    assert math.isnan(found["cellpose_empty"][0])
    assert found["stardist_empty"] == 0
    assert found["id_from_0"] == 0
    assert found["id_from_1"] == pytest.approx(1)
    assert found["areas"] == [16, 200]
    assert found["code"]
