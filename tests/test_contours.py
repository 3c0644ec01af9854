"""Mask → polygons → mask is exact, and every ring is what a per-label `cv2.findContours` gives."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segserve_sdk import contours, images, output

MASKS = arrays.arrays(
    np.int32,
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    elements=st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3]),
)
BLOBS = st.tuples(st.integers(0, 10**6), st.integers(2, 60), st.integers(2, 60), st.floats(0.5, 4), st.integers(1, 5))


def blobs(seed: int, rows: int, columns: int, sigma: float, count: int) -> np.ndarray:
    """Smooth random labels that touch each other, with holes and islands in them."""
    field = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(rows, columns)), (0, 0), sigma)
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    return np.floor(field * (count + 1) * 0.999).astype(np.int32)


def check(labels: np.ndarray) -> None:
    found = contours.polygons(labels)
    back = contours.mask(found, labels.shape)
    assert (back == labels).all(), labels
    parts = 0
    for value in np.unique(labels[labels > 0]).tolist():
        alone = (labels == value).astype(np.uint8)
        parts += cv2.connectedComponents(alone, connectivity=8)[0] - 1
    assert len(found) == parts
    for _, ring in found:
        assert ring.dtype == np.float64
        assert len(ring) >= 3
        assert abs(_area(ring)) > 0
        assert (ring != np.roll(ring, 1, axis=0)).any(axis=1).all()  # no point twice in a row


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


@settings(max_examples=300, deadline=None)
@given(labels=MASKS)
def test_random_masks_come_back(labels: np.ndarray) -> None:
    check(labels)


@settings(max_examples=100, deadline=None)
@given(shape=BLOBS)
def test_nested_and_touching_blobs_come_back(shape: tuple[int, int, int, float, int]) -> None:
    check(blobs(*shape))


# cv2 begins with the ring of a hole at another of its leftmost points, depending on what lies around it.
TWO_HOLES = np.array(
    [[2, 2, 2, 2, 2, 0, 2], [2, 2, 2, 2, 0, 2, 2], [2, 2, 2, 2, 1, 2, 2], [2, 2, 0, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2, 2]],
    np.int32,
)
HALVES = {"_HALVED": 0, "_WORKERS": 2, "_ACROSS": 1e9}


@pytest.mark.parametrize(
    "settings_",
    [
        {"_FEW": 0},
        {"_SMALL": 0, "_ROOMY": 0},
        {"_SMALL": 0, "_ROOMY": 0, "_FEW": 0},
        HALVES,
        {**HALVES, "_ACROSS": 0},
        {**HALVES, "_SMALL": 0, "_ROOMY": 0},
    ],
)
@settings(max_examples=100, deadline=None)
@given(labels=MASKS, shape=BLOBS)
@example(labels=TWO_HOLES, shape=(0, 2, 2, 1.0, 1))
def test_every_way_through_gives_the_same(
    settings_: dict[str, float], labels: np.ndarray, shape: tuple[int, int, int, float, int]
) -> None:
    """With and without the rings around background, holes traced one by one or all again, halves: a matter of speed."""
    for mask in (labels, blobs(*shape)):
        usual = contours.trace(mask)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings_.items():
                patch.setattr(contours, name, value)
            other = contours.trace(mask)
        assert np.array_equal(usual.labels, other.labels)
        assert np.array_equal(usual.offsets, other.offsets)
        assert np.array_equal(usual.coordinates, other.coordinates)


def test_many_labels_with_holes_and_a_label_far_beyond_their_number() -> None:
    labels = np.zeros((200, 300), np.uint32)
    for number in range(150):
        cv2.circle(mask := np.zeros((200, 300), np.uint8), (10 + 20 * (number % 15), 10 + 20 * (number // 15)), 8, 1, 4)
        labels[mask > 0] = 2**31 - 1 if number == 77 else number + 1
    check(labels)


@settings(max_examples=150, deadline=None)
@given(labels=MASKS)
def test_the_rule_of_the_closed_ring_says_the_same_without_cv2(labels: np.ndarray) -> None:
    back = np.zeros_like(labels)
    for value, ring in contours.polygons(labels):
        back[contours._covered(ring, labels.shape)] = value
    assert (back == labels).all()


@settings(max_examples=150, deadline=None)
@given(labels=MASKS)
def test_parts_without_holes_are_exactly_cv2s(labels: np.ndarray) -> None:
    found = contours.polygons(labels)
    for value in np.unique(labels[labels > 0]).tolist():
        theirs, tree = cv2.findContours((labels == value).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        ours = {ring.tobytes() for label, ring in found if label == value}
        for ring, (_, _, child, parent) in zip(theirs, tree[0], strict=True):
            if parent < 0 and child < 0 and cv2.contourArea(ring) > 0:
                assert ring[:, 0, :].astype(np.float64).tobytes() in ours


def test_a_hole_is_a_keyhole_in_the_same_ring() -> None:
    labels = np.zeros((7, 7), np.uint16)
    labels[1:6, 1:6] = 300
    labels[3, 3] = 0
    ((value, ring),) = contours.polygons(labels)
    assert value == 300
    assert _area(ring) == 16 - 2  # the square through the centres less the diamond around the hole
    assert [1.0, 3.0] in ring.tolist()  # the bridge ends on the outer ring


def test_a_hole_that_another_label_fills_to_the_brim() -> None:
    labels = np.full((9, 9), 2, np.int32)
    labels[3:6, 3:6] = 5
    check(labels)
    assert len(contours.polygons(labels)[0][1]) > 4


@pytest.mark.parametrize(
    "cells", [[(2, 2)], [(2, 2), (2, 3), (2, 4)], [(1, 1), (2, 2), (3, 3)], [(1, 3), (2, 2), (2, 1)]]
)
def test_flat_parts_are_their_corner_outline(cells: list[tuple[int, int]]) -> None:
    labels = np.zeros((6, 6), np.int32)
    for row, column in cells:
        labels[row, column] = 1
    ((_, ring),) = contours.polygons(labels)
    assert abs(_area(ring)) == len(cells)
    assert (ring % 1 == 0.5).all()
    check(labels)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_every_integer_type(kind: type) -> None:
    labels = np.zeros((6, 8), kind)
    labels[1:4, 2:5] = 1
    top = 1 if kind is bool else int(np.iinfo(kind).max) // 2
    labels[4:6, 6:8] = top
    assert {value for value, _ in contours.polygons(labels)} == {1, top}
    assert (contours.mask(((1 + (v > 1), r) for v, r in contours.polygons(labels)), labels.shape) > 0).sum() == 13


def test_what_is_no_label_mask_is_refused_and_empty_ones_are_empty() -> None:
    for wrong in (np.zeros((3, 3)), np.zeros((3, 3, 3), int), np.full((3, 3), -1)):
        with pytest.raises(ValueError, match="label mask"):
            contours.trace(wrong)
    for shape in ((0, 0), (0, 5), (4, 4)):
        traced = contours.trace(np.zeros(shape, np.uint8))
        assert len(traced.labels) == 0
        assert traced.offsets.tolist() == [0]
        assert traced.coordinates.shape == (0, 2)


def test_the_mask_is_not_changed() -> None:
    labels = blobs(1, 30, 30, 2, 4)
    before = labels.copy()
    contours.trace(labels)
    assert (labels == before).all()


def test_rings_of_any_kind_are_painted_by_the_rule() -> None:
    triangle = [(0.2, 0.2), (9.7, 3.1), (4.0, 9.9)]
    rows, columns = np.nonzero(contours.mask([(1, triangle)], (12, 12)))
    for x in range(12):
        for y in range(12):
            inside = cv2.pointPolygonTest(np.float32(triangle).reshape(-1, 1, 2), (x, y), False) >= 0
            assert inside == ((y, x) in set(zip(rows.tolist(), columns.tolist(), strict=True)))
    outside = contours.mask(
        [(1, [(-5, -5), (-5, 3), (3, 3), (3, -5)]), (2, [(100, 100), (101, 100), (101, 101)])], (6, 6)
    )
    assert outside.sum() == 16
    assert contours.mask([(1, [(2, 2)])], (5, 5)).sum() == 1
    with pytest.raises(ValueError, match="finite"):
        contours.mask([(1, [(0, 0), (np.nan, 1), (2, 2)])], (5, 5))


def test_labels_are_ascending_and_parts_go_from_top_to_bottom() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[7:9, 1:3], labels[1:3, 5:8], labels[4:6, 4:6] = 1, 2, 1
    traced = contours.trace(labels)
    assert traced.labels.tolist() == [1, 1, 2]
    assert traced.coordinates[traced.offsets[0]].tolist() == [4, 4]


# ------------------------------------------------------------------------------------- the rest of the kit


def test_images_come_in_sorted_order_as_rgb(tmp_path: Path) -> None:
    for name, value in (("010", 1), ("002", 2)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 5, 3), (value, 0, 200), np.uint8))
    (tmp_path / "notes.txt").write_text("")
    found = images.paths(tmp_path)
    assert [path.name for path in found] == ["002.png", "010.png"]
    assert images.read(found[0])[0, 0].tolist() == [200, 0, 2]
    assert images.paths(found[0]) == [found[0]]
    with pytest.raises(ValueError, match="cannot read"):
        images.read(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no images found"):
        images.paths(tmp_path / "absent")


def test_output_is_format_0_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
    url = "https://user:secret@host.example/group/repo.git"
    subprocess.run(["git", "remote", "add", "origin", url], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((6, 6), np.int32)
    labels[1:4, 1:4], labels[5, 5] = 1, 2
    items = output.objects(labels, scores=[0.5, 1], label=["a", "b"])
    output.write_output("output.json", output.provenance(), [items, []])
    document = json.loads(Path("output.json").read_text())
    assert document["model"].startswith("https://host.example/group/repo.git#")
    assert len(document["model"].partition("#")[2]) >= 7
    assert document["format_version"] == "0.2"
    assert document["segmentation_data"][0][0] == {
        "label": "a",
        "contour_coordinates": [[1, 1], [1, 3], [3, 3], [3, 1]],
        "type": "Polygon",
        "score": 0.5,
    }
    assert document["segmentation_data"][0][1]["contour_coordinates"][0] == [4.5, 4.5]
    assert document["segmentation_data"][1] == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.write_output("bad.json", "m", [output.objects(labels, scores=[float("nan"), 1])])
    assert not Path("bad.json").exists()


def test_a_thin_closed_line_is_outlined_with_its_hole() -> None:
    """A membrane of one pixel: the rings outside and inside enclose the same area, a keyhole would have none."""
    labels = np.zeros((40, 40), np.uint8)
    cv2.circle(labels, (20, 20), 15, 7, 1, cv2.LINE_8)
    diamond = np.zeros((5, 5), np.uint8)
    diamond[[1, 2, 2, 3], [2, 1, 3, 2]] = 1
    for mask in (labels, diamond):
        check(mask)
        ((_, ring),) = contours.polygons(mask)
        assert abs(_area(ring)) == np.count_nonzero(mask)
