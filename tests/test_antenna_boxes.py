"""Boxes are corners of pixels, crops what lies in them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segserve.antenna import boxes
from segserve.antenna.line import StageFailed, document


def of(*rings: list[tuple[float, float]], shape: tuple[int, int] = (50, 60)) -> list[tuple[float, ...]]:
    objects = [{"label": "a", "type": "Polygon", "contour_coordinates": ring} for ring in rings]
    return boxes.boxes(document(json.dumps([objects]).encode(), 1), shape)


def test_a_box_has_the_pixels_of_its_polygon() -> None:
    mask = np.zeros((50, 60), bool)
    mask[4:9, 10:31] = True
    (box,) = of([(10, 4), (10, 8), (30, 8), (30, 4)])
    assert box == (10, 4, 31, 9)
    assert boxes.crop(mask, box).all()
    assert boxes.crop(mask, box).sum() == mask.sum()


def test_boxes_stay_in_the_image() -> None:
    assert of([(-5, -5), (-5, 3), (80, 3)], [(70, 70), (70, 75), (75, 75)]) == [(0, 0, 60, 4), (59, 49, 60, 50)]
    assert of([(1.4, 1.6), (2.6, 1.6), (2.6, 3.4)]) == [(1, 2, 4, 4)]
    assert of() == []


@pytest.mark.parametrize(
    ("box", "margin", "shape"),
    [
        ((2, 3, 6, 5), 0, (2, 4)),
        ((2, 3, 6, 5), 2, (6, 8)),
        ((0, 0, 60, 50), 9, (50, 60)),
        ((-9, -9, 3, 3), 0, (3, 3)),
        ((70, 3, 90, 5), 0, (2, 0)),
        ((1e300, 0, 1e301, 5), 0, (5, 0)),
        ((2.5, 2.5, 3.5, 3.5), 0, (2, 2)),
    ],
)
def test_crops(box: tuple[float, float, float, float], margin: int, shape: tuple[int, int]) -> None:
    assert boxes.crop(np.zeros((50, 60)), box, margin).shape == shape


@pytest.mark.parametrize(
    "found", [b"", b"null", b"{}", b"[[]]", b'[[{"label": 1}]]', b'[[],[{"label": "a"}]]', b"[[],"]
)
def test_what_a_stage_says_is_checked(found: bytes) -> None:
    with pytest.raises(StageFailed):
        document(found, 2)
