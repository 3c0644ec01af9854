"""objects.csv: what is measured is what scikit-image measures on the same pixels of the original files."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from skimage import measure

from segserve import format as polygons
from segserve import report
from segserve.collect import collect
from segserve.evaluate import runs, shape
from segserve.format.document import Builder, Document
from segserve.inputs import Selection, originals, plan, stage
from segserve.report import intensities, measures
from segserve.report.tables import COLUMNS
from tests import masks

Labels = npt.NDArray[Any]
regionprops: Any = measure.regionprops  # scikit-image has no types
crofton: Any = measure.perimeter_crofton


def table(folder: Path, files: list[Path], labels: list[Labels], **selection: Any) -> list[dict[str, str]]:
    """objects.csv of a result whose objects are those of label masks, one per staged image."""
    inputs = folder / "inputs"
    images = stage(plan(files, Selection(**selection)), inputs, folder / "inputs.json")
    output = folder / "output.json"
    output.write_bytes(polygons.encode(masks.document(labels)))
    written = report.write(
        folder / "result",
        collect(output, images),
        images,
        inputs,
        {},
        overlays=0,
        originals=[image.source for image in images],
    )
    assert not [finding for finding in written.findings if finding.rule == "not-measured"]
    with (folder / "result" / "objects.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def nuclei(seed: int, rows: int = 90, columns: int = 120, count: int = 8) -> Labels:
    """Ellipses that do not touch, one of them with a hole, one pixel and a line."""
    random = np.random.default_rng(seed)
    labels = np.zeros((rows, columns), np.int32)
    for number in range(count):
        centre = (15 + 28 * (number % 4), 20 + 35 * (number // 4))
        axes = tuple(int(value) for value in random.integers(6, 12, 2))
        cv2.ellipse(labels, centre, axes, float(random.uniform(0, 180)), 0, 360, number + 1, -1)
    labels[18:22, 14:17] = 0
    labels[80, 100] = count + 1
    labels[85, 60:75] = count + 2
    return labels


@settings(max_examples=150, deadline=None)
@given(mask=masks.random_masks())
def test_the_perimeter_is_croftons(mask: Labels) -> None:
    found = runs.of_mask(mask)
    count = int(mask.max())
    lengths = shape.perimeters(shape.crossings(found, count))
    for number in range(count):
        assert lengths[number] == pytest.approx(crofton(np.pad(mask == number + 1, 1), directions=4))


def test_discs_and_squares_of_any_pixel_size_have_their_perimeter() -> None:
    for radius in (8, 20, 60):  # of 10 pixels and more across
        for size in ((1.0, 1.0), (0.5, 0.5), (0.3, 0.65), (1.5, 0.8)):
            x, y = ((np.arange(-250, 251) + 0.29) * step for step in size)  # at no special place of the grid
            disc = (np.hypot(x[None, :], y[:, None]) <= radius).astype(np.int32)
            (length,) = shape.perimeters(shape.crossings(runs.of_mask(disc), 1), size)
            area = np.count_nonzero(disc) * size[0] * size[1]
            assert length == pytest.approx(2 * math.pi * radius, rel=0.03)
            assert 4 * math.pi * area / length**2 == pytest.approx(1, abs=0.06)
    square = np.zeros((60, 60), np.int32)
    square[10:50, 10:50] = 1
    (length,) = shape.perimeters(shape.crossings(runs.of_mask(square), 1))
    assert 0.75 < 4 * math.pi * 1600 / length**2 < 0.9  # pi / 4 = 0.785 on paper; along rows it is 6 % short


def test_every_column_is_what_scikit_image_says(tmp_path: Path) -> None:
    labels = nuclei(1)
    random = np.random.default_rng(2)
    pixels = random.integers(0, 60000, (3, *labels.shape)).astype(np.uint16)
    path = tmp_path / "cells.ome.tif"
    size = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(path, pixels, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "DAPI"]}, **size})
    rows = table(tmp_path, [path], [labels], channel="GFP")
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [name for name in rows[0] if name not in COLUMNS] == [
        f"{what}_{channel}" for channel in ("DAPI c0", "GFP", "DAPI c2") for what in ("mean", "integrated")
    ]
    found = regionprops(labels, np.moveaxis(pixels, 0, -1))
    scaled = regionprops(labels, spacing=(0.5, 0.25))
    assert len(rows) == len(found) == 10
    for row, one, um in zip(rows, found, scaled, strict=True):
        value = {name: float(text) for name, text in row.items() if name not in ("file", "image", "label") and text}
        top, left, bottom, right = one.bbox
        assert value["area_px"] == one.area
        assert value["perimeter_px"] == pytest.approx(one.perimeter_crofton, abs=1e-3)
        assert value["circularity"] == pytest.approx(4 * math.pi * one.area / one.perimeter_crofton**2, abs=1e-3)
        assert [value[f"bbox_{name}"] for name in ("x", "y", "width", "height")] == [
            left,
            top,
            right - left,
            bottom - top,
        ]
        assert value["area_um2"] == pytest.approx(um.area, abs=1e-3)
        assert [value[f"bbox_{name}_um"] for name in ("x", "y", "width", "height")] == pytest.approx(
            [left * 0.25, top * 0.5, (right - left) * 0.25, (bottom - top) * 0.5], abs=1e-3
        )
        for number, channel in enumerate(("DAPI c0", "GFP", "DAPI c2")):
            assert value[f"mean_{channel}"] == pytest.approx(one.intensity_mean[number], rel=1e-8)
            assert value[f"integrated_{channel}"] == one.image_intensity[..., number].sum(dtype=np.int64)
        # The centre of area of a ring and the centre of gravity of its pixels differ by less than half a pixel.
        assert value["centroid_x_um"] == pytest.approx((one.centroid[1] + 0.5) * 0.25, abs=0.125)
        assert value["centroid_y_um"] == pytest.approx((one.centroid[0] + 0.5) * 0.5, abs=0.25)


def test_without_a_pixel_size_there_are_no_micrometres(tmp_path: Path) -> None:
    labels = nuclei(3)
    cv2.imwrite(str(tmp_path / "cells.png"), labels.astype(np.uint8))
    rows = table(tmp_path, [tmp_path / "cells.png"], [labels])
    for row in rows:
        assert {row[name] for name in COLUMNS if "um" in name} == {""}
        assert float(row["mean_intensity"]) == int(row["object_id"])


def test_intensities_are_those_of_the_original_not_of_what_was_staged(tmp_path: Path) -> None:
    """Floats are scaled to 16 bits for the executor; a projection is measured on the projection."""
    labels = nuclei(4)
    random = np.random.default_rng(5)
    pixels = random.normal(3e-3, 1e-3, (2, 3, *labels.shape)).astype(np.float32)
    pixels[0, :, 20, 44] = np.nan
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TZYX"})
    rows = table(tmp_path, [path], [labels, labels], z="max")
    for t in range(2):
        projected = np.fmax.reduce(pixels[t]).astype(np.float64)
        for row, region in zip(rows[10 * t : 10 * t + 10], regionprops(labels), strict=True):
            values = projected[labels == region.label]
            assert float(row["mean_intensity"]) == pytest.approx(np.nanmean(values), rel=1e-7)
            assert float(row["integrated_intensity"]) == pytest.approx(np.nansum(values), rel=1e-7)


def test_colours_inverted_grey_and_other_channels(tmp_path: Path) -> None:
    labels = nuclei(6)
    random = np.random.default_rng(7)
    colour = random.integers(0, 255, (*labels.shape, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), colour[..., ::-1])
    tifffile.imwrite(tmp_path / "b.tif", colour[..., 1], photometric="miniswhite")
    rows = table(tmp_path, [tmp_path / "a.png", tmp_path / "b.tif"], [labels, labels])
    assert list(rows[0])[len(COLUMNS) :] == [
        f"{what}_{channel}" for channel in ("r", "g", "b", "intensity") for what in ("mean", "integrated")
    ]
    for row, region in zip(rows, [*regionprops(labels, colour)] * 2, strict=True):
        if row["image"] == "00000.png":
            assert [float(row[f"mean_{name}"]) for name in "rgb"] == pytest.approx(region.intensity_mean, rel=1e-8)
            assert row["mean_intensity"] == ""
        else:  # 0 is white in this file; what is bright has a high number here, too
            assert float(row["mean_intensity"]) == pytest.approx(255 - region.intensity_mean[1], rel=1e-8)
            assert row["mean_r"] == ""


def test_an_original_that_has_changed_or_gone_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = nuclei(8)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        cv2.imwrite(str(path), labels.astype(np.uint8))
    images = stage(plan(paths), tmp_path / "inputs", tmp_path / "inputs.json")
    os.utime(paths[0], ns=(0, 1))
    paths[2].unlink()
    document = masks.document([labels] * 3)
    found, problems = intensities.measure(document, images, [image.source for image in images])
    measured = np.isfinite(found.means[:, 0])
    assert (measured == (document.image_index == 1)).all()
    assert [(finding.rule, finding.place.image) for finding in problems] == [
        ("not-measured", str(paths[0])),
        ("not-measured", str(paths[2])),
    ]
    assert "has changed since" in problems[0].message
    assert "cannot be opened" in problems[1].message
    monkeypatch.setattr(intensities, "MOST_FINDINGS", 1)
    _, problems = intensities.measure(document, images, [image.source for image in images])
    assert [finding.message for finding in problems[1:]] == ["1 more originals could not be measured."]


def test_rings_beyond_the_image_and_rings_without_end(tmp_path: Path) -> None:
    """Pixels outside the image do not count; a ring that crosses more rows than memory has is not measured."""
    far = 2.0**31
    builder = Builder()
    over_the_edge = [(-5, -5), (-5, 4), (4, 4), (4, -5)]
    zigzag = [(float(x), far if x % 2 else -far) for x in range(20)]
    outside = [(50, 50), (50, 60), (60, 60), (60, 50)]
    builder.add_image([over_the_edge, zigzag, outside], ["a"] * 3, [0.5] * 3)
    document = builder.build("m", "0.2")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((30, 30), 7, np.uint8))
    images = stage(plan([tmp_path / "a.png"]), tmp_path / "inputs", tmp_path / "inputs.json")
    measured = measures.measure(document, images)
    assert measured.perimeters[0] == pytest.approx(crofton(np.pad(np.ones((5, 5)), 1), directions=4))
    assert np.isnan(measured.perimeters[1:]).all()
    found, _ = intensities.measure(document, images, [image.source for image in images])
    assert found.sums[0, 0] == 25 * 7
    assert np.isnan(found.sums[1:, 0]).all()


def test_many_objects_are_measured_in_batches_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(1, 401, dtype=np.int32).reshape(20, 20).repeat(5, axis=0).repeat(5, axis=1)
    cv2.imwrite(str(tmp_path / "a.png"), labels.astype(np.uint16))
    images = stage(plan([tmp_path / "a.png"]), tmp_path / "inputs", tmp_path / "inputs.json")
    document = masks.document([labels])
    paths = [image.source for image in images]
    whole = measures.measure(document, images), intensities.measure(document, images, paths)[0]
    monkeypatch.setattr(measures, "BATCH", 100)
    monkeypatch.setattr(intensities, "CHUNK", 40)
    assert sum(1 for _ in measures.pixels_of(document, 0, 400)) > 30
    again = measures.measure(document, images), intensities.measure(document, images, paths)[0]
    assert np.array_equal(whole[0].perimeters, again[0].perimeters)
    assert np.array_equal(whole[1].sums, again[1].sums)
    assert np.array_equal(again[1].means[:, 0], np.arange(1, 401))


def test_every_channel_of_every_plane_of_a_stack(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 2, dtype=np.uint16).reshape(2, 3, 2, 1, 1).repeat(8, axis=3).repeat(9, axis=4)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TZCYX"})
    images = stage(plan([path], Selection(channel=1)), tmp_path / "inputs", tmp_path / "inputs.json")
    assert {tuple(image.sizes.items()) for image in images} == {(("T", 2), ("Z", 3), ("C", 2))}
    with originals.opened(str(path), images[0].modified) as original:
        for image in images:
            found = [(index, int(plane[0, 0])) for index, _, plane in original.channels(image)]
            assert isinstance(image.z, int)
            assert found == [(c, int(pixels[image.t or 0, image.z, c, 0, 0])) for c in range(2)]


def test_measuring_needs_no_more_memory_than_a_plane(tmp_path: Path) -> None:
    """40 planes of 1 MB and their objects: not held together."""
    import tracemalloc

    labels = np.zeros((512, 512), np.int32)
    labels[10:500, 10:500] = 1
    pixels = np.full((40, 512, 512), 9, np.float32)
    tifffile.imwrite(tmp_path / "movie.tif", pixels, imagej=True, metadata={"axes": "TYX"})
    images = stage(plan([tmp_path / "movie.tif"]), tmp_path / "inputs", tmp_path / "inputs.json")
    document = masks.document([labels] * 40)
    tracemalloc.start()
    found, problems = intensities.measure(document, images, [image.source for image in images])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not problems
    assert (found.means == 9).all()
    assert peak < 20e6
    assert isinstance(document, Document)
