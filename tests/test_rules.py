"""Rules and geometry against shapely, OpenCV and counting."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from segserve_sdk import contours

from segserve.findings import Finding, Severity
from segserve.format import Document, check, geometry, rings, rules
from segserve.format.document import Builder

NAMES = ("FEW", "FLAT", "SIMPLE", "TOUCHING", "KEYHOLE", "CROSSED")


def document(*images: list[Any]) -> Document:
    builder = Builder()
    for image in images:
        builder.add_image(image, ["Cell"] * len(image), [float("nan")] * len(image))
    return builder.build("m", "0.2")


def found(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.place.json_path) for finding in findings]


SQUARE = [(0, 0), (4, 0), (4, 4), (0, 4)]
RINGS: dict[str, tuple[str, list[tuple[float, float]]]] = {
    "empty": ("FEW", []),
    "one point": ("FEW", [(1, 1)]),
    "two points": ("FEW", [(0, 0), (1, 1)]),
    "two points again and again": ("FEW", [(0, 0), (1, 1), (0, 0), (1, 1), (0, 0)]),
    "the same point": ("FEW", [(3, 3)] * 5),
    "line": ("FLAT", [(0, 0), (3, 0), (5, 0)]),
    "line there and back": ("FLAT", [(0, 0), (3, 1), (6, 2), (3, 1)]),
    "square": ("SIMPLE", SQUARE),
    "closed square": ("SIMPLE", [*SQUARE, SQUARE[0]]),
    "doubled points": ("SIMPLE", [point for point in SQUARE for _ in range(2)]),
    "bow-tie": ("CROSSED", [(0, 0), (4, 4), (4, 0), (0, 4)]),
    "pentagram": ("CROSSED", [(0, 3), (6, 3), (1, 7), (3, 0), (5, 7)]),
    "twice around": ("CROSSED", SQUARE * 2),
    "two squares against each other": (
        "CROSSED",
        [*SQUARE, (0, 0), (-4, 0), (-4, -4), (0, -4), (0, 0), (-4, 0), (-4, -4), (0, -4)],
    ),
    "equal areas that cancel": ("CROSSED", [*SQUARE, *SQUARE, (0, 0), (0, -4), (-4, -4), (-4, 0)]),
    "fractional bow-tie": ("CROSSED", [(0.5, 0.25), (4.5, 4.25), (4.5, 0.25), (0.5, 4.25)]),
    "hourglass that touches": ("TOUCHING", [(0, 0), (2, 2), (4, 0), (4, 4), (2, 2), (0, 4)]),
    "spur": ("TOUCHING", [(0, 0), (4, 0), (8, 0), (4, 0), (4, 4), (0, 4)]),
    "keyhole": (
        "KEYHOLE",
        [(0, 0), (10, 0), (10, 10), (0, 10), (0, 5), (3, 5), (3, 7), (7, 7), (7, 3), (3, 3), (3, 5), (0, 5)],
    ),
    "hole that touches the outline": ("KEYHOLE", [(0, 0), (10, 0), (10, 10), (0, 10), (0, 0), (3, 7), (7, 7), (7, 3)]),
}


def test_each_kind_of_ring_is_told_from_the_others() -> None:
    everything = document([ring for _, ring in RINGS.values()])
    kinds = rules.classify(everything.coordinates, everything.offsets)
    assert {name: NAMES[kind] for name, kind in zip(RINGS, kinds, strict=True)} == {
        name: kind for name, (kind, _) in RINGS.items()
    }


def test_simple_is_what_shapely_calls_valid() -> None:
    rng = np.random.default_rng(7)
    rings = [ring for _, ring in RINGS.values() if len(set(ring)) > 2]
    rings += [[(int(x), int(y)) for x, y in rng.integers(0, 7, (rng.integers(3, 9), 2))] for _ in range(2000)]
    rings += [[(float(x), float(y)) for x, y in rng.uniform(0, 7, (rng.integers(3, 7), 2))] for _ in range(500)]
    rings = [ring for ring in rings if len(set(ring)) > 2]
    everything = document(rings)
    kinds = rules.classify(everything.coordinates, everything.offsets)
    valid = np.array([shapely.Polygon(ring).is_valid for ring in rings])
    assert np.array_equal(kinds == rules.SIMPLE, valid)
    assert 200 < valid.sum() < len(rings) - 200


def test_a_ring_that_crosses_itself_covers_other_ground_than_its_signed_area() -> None:
    """The winding numbers, judged by brute force: every pixel of a fine grid."""
    rng = np.random.default_rng(3)
    for _ in range(150):
        ring = rng.integers(0, 6, (rng.integers(4, 8), 2)).astype(float)
        if len(np.unique(ring, axis=0)) < 3:
            continue
        kind = int(rules.classify(ring, np.array([0, len(ring)]))[0])
        grid = np.arange(0.013, 6, 0.0917)
        x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
        owner = np.zeros(x.size, np.int64)
        windings = set(rings._winding(x, y, owner, ring, np.array([0, len(ring)]), np.array([0])).tolist())
        seen = max(windings | {0}) - min(windings | {0})
        assert seen <= {rules.FLAT: 0, rules.CROSSED: 99}.get(kind, 1)
        if seen > 1:
            assert kind == rules.CROSSED


def blobs(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    noise = cv2.GaussianBlur(rng.random((48, 48)).astype(np.float32), (0, 0), float(rng.choice([0.4, 0.8, 1.5, 3])))
    return (noise > np.quantile(noise, rng.choice([0.5, 0.6, 0.8]))).astype(np.uint8)


def test_what_opencv_traces_is_never_called_crossed_and_its_pixels_are_counted_exactly() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(60):
        mask = blobs(rng)
        contours = [contour[:, 0] for contour in cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]]
        traced = document([[tuple(point) for point in ring.tolist()] for ring in contours])
        kinds = rules.classify(traced.coordinates, traced.offsets)
        odd = rules.odd_rings(traced.coordinates, traced.offsets)
        areas = geometry.pixel_areas(traced.coordinates, traced.offsets, odd=odd)
        boxes = geometry.pixel_boxes(traced.coordinates, traced.offsets)
        for number, ring in enumerate(contours):
            filled = cv2.fillPoly(np.zeros_like(mask), [ring], 1)
            assert areas[number] == filled.sum()
            assert tuple(boxes[number]) == cv2.boundingRect(ring)
            covered, (x, y) = geometry.covered(ring.astype(float))
            assert np.array_equal(covered, filled[y : y + covered.shape[0], x : x + covered.shape[1]].astype(bool))
            seen.add(NAMES[kinds[number]])
    assert seen >= {"FEW", "FLAT", "SIMPLE", "TOUCHING"}
    assert "CROSSED" not in seen


def test_what_the_sdk_traces_is_never_called_crossed_and_its_pixels_are_counted_exactly() -> None:
    """Keyholes, half-integer outlines of thin parts, several parts per label."""
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(40):
        mask = blobs(rng)
        parts = cv2.connectedComponents(mask, connectivity=8)[1]
        found = contours.trace(parts)
        kinds = rules.classify(found.coordinates, found.offsets)
        areas = geometry.pixel_areas(found.coordinates, found.offsets, odd=kinds != rules.SIMPLE)
        assert np.array_equal(areas, np.bincount(parts.ravel())[found.labels])
        seen.update(NAMES[kind] for kind in kinds)
    assert seen == {"SIMPLE", "TOUCHING", "KEYHOLE"}


def test_pixels_of_keyholes_are_counted_without_their_hole() -> None:
    ring = document([RINGS["keyhole"][1], RINGS["hole that touches the outline"][1], RINGS["bow-tie"][1]])
    odd = rules.odd_rings(ring.coordinates, ring.offsets)
    assert odd.tolist() == [True, True, True]
    assert geometry.pixel_areas(ring.coordinates, ring.offsets, odd=odd).tolist() == [121 - 9, 97, 17]


def test_corner_outline_has_the_area_of_the_pixels() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:25, 7:37] = 1
    (contour,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    ring = contour[:, 0].astype(float)
    assert geometry.areas(ring, np.array([0, len(ring)])).tolist() == [551.0]
    (outline,) = geometry.corner_outline(ring)
    assert sorted(map(tuple, outline.tolist())) == [(7, 5), (7, 25), (37, 5), (37, 25)]
    assert geometry.areas(outline, np.array([0, len(outline)])).tolist() == [600.0]


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_corner_outlines_of_traced_rings(seed: int) -> None:
    mask = blobs(np.random.default_rng(seed))
    for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][:8]:
        outlines = geometry.corner_outline(contour[:, 0].astype(float))
        areas = [float(geometry.signed_areas(loop, np.array([0, len(loop)]))[0]) for loop in outlines]
        assert len(outlines) == 1  # eight-connected, without holes: one outline
        assert sum(areas) == cv2.fillPoly(np.zeros_like(mask), [contour], 1).sum()


def test_corner_outline_of_a_keyhole_has_a_hole() -> None:
    outer, hole = geometry.corner_outline(np.array(RINGS["keyhole"][1], float))
    assert geometry.signed_areas(outer, np.array([0, len(outer)])).tolist() == [121.0]
    assert geometry.signed_areas(hole, np.array([0, len(hole)])).tolist() == [-9.0]


def test_half_integer_outlines_measure_as_their_pixels() -> None:
    """An object of one pixel is written as its corner outline."""
    pixel = document([[(2.5, 6.5), (3.5, 6.5), (3.5, 7.5), (2.5, 7.5)]])
    assert geometry.pixel_areas(pixel.coordinates, pixel.offsets).tolist() == [1.0]
    assert geometry.pixel_boxes(pixel.coordinates, pixel.offsets).tolist() == [[3, 7, 1, 1]]
    assert geometry.centroids(pixel.coordinates, pixel.offsets).tolist() == [[3.0, 7.0]]


def test_centroids() -> None:
    some = document([SQUARE, [(5, 5)], [(0, 0), (4, 0), (8, 0), (4, 0)], [], [(100, 0), (103, 0), (100, 3)]])
    expected = [[2, 2], [5, 5], [4, 0], [np.nan, np.nan], [101, 1]]
    assert np.allclose(geometry.centroids(some.coordinates, some.offsets), expected, equal_nan=True)
    assert geometry.areas(some.coordinates, some.offsets).tolist() == [16, 0, 0, 0, 4.5]


def test_measures_of_nothing() -> None:
    nothing = document([], [])
    for measure in (geometry.areas, geometry.pixel_areas, geometry.centroids, geometry.pixel_boxes, geometry.boxes):
        assert len(measure(nothing.coordinates, nothing.offsets)) == 0
    assert check(document()) == []


def test_rings_are_reported_with_their_paths() -> None:
    names = ["keyhole", "bow-tie", "one point", "line", "square", "spur"]
    findings = check(document([], [RINGS[name][1] for name in names]), names=["a.tif", "b.tif"])
    assert found(findings) == [
        ("too-few-points", "$.segmentation_data[1][2]"),
        ("zero-area", "$.segmentation_data[1][3]"),
        ("self-intersection", "$.segmentation_data[1][1]"),
        ("keyhole", "$.segmentation_data[1][0]"),
        ("touches-itself", "$.segmentation_data[1][5]"),
    ]
    assert {finding.place.image for finding in findings} == {"b.tif"}
    assert [finding.severity for finding in findings] == [Severity.ERROR] * 3 + [Severity.NOTE] * 2


def test_a_run_forgives_what_one_object_gets_wrong() -> None:
    bad = document([RINGS["bow-tie"][1], [(1, 1)], SQUARE, SQUARE, [(90, 90), (200, 90), (95, 99)]])
    strict = check(bad, [(100, 100)])
    assert {finding.severity for finding in strict} == {Severity.ERROR}
    lenient = check(bad, [(100, 100)], strict=False)
    assert found(lenient) == found(strict)
    assert {finding.severity for finding in lenient} == {Severity.WARNING}


@pytest.mark.parametrize(
    ("ring", "outside"),
    [
        ([(0, 0), (19, 0), (19, 9), (0, 9)], False),
        ([(-0.5, -0.5), (19.5, -0.5), (19.5, 9.5), (-0.5, 9.5)], False),
        ([(-0.6, 0), (5, 0), (5, 5)], True),
        ([(0, 0), (20, 0), (20, 5)], True),
        ([(0, 0), (5, 0), (5, 10)], True),
    ],
)
def test_the_image_reaches_half_a_pixel_beyond_its_outer_centres(ring: list[Any], outside: bool) -> None:
    assert found(check(document([ring]), [(10, 20)])) == (
        [("outside-image", "$.segmentation_data[0][0]")] if outside else []
    )


def test_swapped_axes_are_told_from_stray_points() -> None:
    wide = [(10, 100), (10, 100), (10, 100)]
    right = [[(60, 2), (80, 2), (80, 8)], [(2, 2), (5, 2), (5, 5)]]
    swapped = [[(y, x) for x, y in ring] for ring in right]
    stray = [[(60, 2), (80, 2), (80, 12)], [(2, 2), (5, 2), (5, 5)]]
    findings = check(document(swapped, right, stray), wide)
    assert found(findings) == [
        ("swapped-axes", "$.segmentation_data[0]"),
        ("outside-image", "$.segmentation_data[2][0]"),
    ]
    overlapping = [[(2, 2), (8, 2), (8, 12)]]  # fits when swapped, but lies mostly inside: no proof
    assert found(check(document(overlapping), [(10, 100)])) == [("outside-image", "$.segmentation_data[0][0]")]


def test_duplicates_are_found_whatever_way_they_run() -> None:
    triangle = [(1, 1), (5, 1), (3, 4)]
    mirrored = [(1, 1), (5, 1), (3, 1.5), (3, 4)]
    same = [triangle, mirrored, [(3, 4), (1, 1), (5, 1)], [(5, 1), (1, 1), (3, 4)], [(1, 1), (5, 1), (1, 4)]]
    assert found(check(document(same, [triangle]))) == [
        ("duplicate-object", "$.segmentation_data[0][2]"),
        ("duplicate-object", "$.segmentation_data[0][3]"),
    ]


def test_counts_and_emptiness() -> None:
    assert found(check(document([SQUARE], []), [(9, 9)])) == [("image-count-mismatch", "$")]
    assert found(check(document([], []), [(9, 9), (9, 9)])) == [("suspicious-emptiness", "$")]
    assert check(document([], [SQUARE]), [(9, 9), (9, 9)]) == []


def test_hostile_coordinates_do_no_harm() -> None:
    far = 2.0**31
    rings = [[(-far, -far), (far, far), (far, -far), (-far, far)], [(0, 0), (1e-300, 0), (0, 1e-300)], [(far, far)] * 3]
    hostile = document(rings)
    findings = check(hostile, [(10, 10)], strict=False)
    assert {finding.rule for finding in findings} >= {"self-intersection", "outside-image", "too-few-points"}
    odd = rules.odd_rings(hostile.coordinates, hostile.offsets)
    assert np.isfinite(geometry.pixel_areas(hostile.coordinates, hostile.offsets, odd=odd)).all()
    geometry.pixel_boxes(hostile.coordinates, hostile.offsets)


lattice = st.tuples(st.integers(0, 6), st.integers(0, 6))
anywhere = st.tuples(*[st.floats(-1e3, 1e3, allow_nan=False, width=32)] * 2)
nearly = st.tuples(*[st.sampled_from([0.0, 1.0, 1 + 1e-15, 1 - 1e-15, 1e-300, 2.0, 3e-17, 1e9, 1e9 + 1e-6])] * 2)
loops = st.one_of(*(st.lists(point, min_size=3, max_size=12) for point in (lattice, anywhere, nearly)))


@given(st.lists(loops, min_size=1, max_size=8), st.booleans())
@settings(max_examples=400, deadline=None)
def test_verdicts_equal_those_of_shapely(loops: list[Any], around: bool) -> None:
    """Also for rings sorted around their middle, which the quick look of numpy recognises."""
    if around:
        middles = [np.mean(loop, axis=0) for loop in loops]
        loops = [
            sorted(loop, key=lambda point: float(np.arctan2(point[1] - middle[1], point[0] - middle[0])))
            for loop, middle in zip(loops, middles, strict=True)
        ]
    everything = document(loops)
    kinds = rules.classify(everything.coordinates, everything.offsets)
    quick = rings.star_shaped(everything.coordinates, everything.offsets)
    valid = np.array([len(set(loop)) > 2 and shapely.Polygon(loop).is_valid for loop in loops])
    assert np.array_equal(kinds == rules.SIMPLE, valid)
    assert not (quick & ~valid).any()
    check(everything, [(5, 5)], pairs=True)


def test_the_quick_look_recognises_round_cells_and_no_others() -> None:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 30 + 100
    closed = np.concatenate([circle, circle[:1]])
    doubled = np.repeat(circle, 2, axis=0)
    twice = np.concatenate([circle, circle])
    bent = np.array([(0, 0), (10, 0), (10, 10), (9, 10), (9, 1), (1, 1), (1, 10), (0, 10)], float)
    some = document(
        [ring.tolist() for ring in (circle, circle[::-1], closed, doubled, twice, bent, circle[:2], circle[:0])]
    )
    assert rings.star_shaped(some.coordinates, some.offsets).tolist() == [True] * 4 + [False] * 4
    assert rules.classify(some.coordinates, some.offsets).tolist() == [2, 2, 2, 2, 5, 2, 0, 0]
