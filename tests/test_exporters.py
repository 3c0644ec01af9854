"""Every export, read back by a reader that is not ours: the same objects, pixel by pixel."""

from __future__ import annotations

import csv
import json
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import ome_types
import pytest
import roifile
import shapely
import tifffile
from hypothesis import given, settings
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segserve.exporters import EXPORTERS, Results, export_all, outline
from tests import masks

Mask = npt.NDArray[np.bool_]


def filled(geometry: shapely.Geometry, shape: tuple[int, int]) -> Mask:
    """Pixels whose centres lie in a geometry in corner coordinates."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(shapely.contains_xy(geometry, columns + 0.5, rows + 0.5))


def even_odd(ring: npt.NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Pixels whose centres lie in a ring that may walk to and fro, by matplotlib's crossing count."""
    from skimage.measure import points_in_poly

    rows, columns = np.mgrid[: shape[0], : shape[1]]
    points = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
    return np.asarray(points_in_poly(points, ring)).reshape(shape)


# ------------------------------------------------------------- one reader per target: (image index, object, mask)

Read = Iterator[tuple[int, Mask, float]]


def read_qupath(folder: Path, results: Results) -> Read:
    for index, image in enumerate(results.images):
        found = json.loads((folder / f"{Path(image.source).stem}.qupath.json").read_text())
        assert found["type"] == "FeatureCollection"
        for feature in found["features"]:
            geometry = shapely.geometry.shape(feature["geometry"])
            assert geometry.is_valid, shapely.is_valid_reason(geometry)
            assert str(uuid.UUID(feature["id"])) == feature["id"]
            yield index, filled(geometry, image.shape), geometry.area


def read_imagej(folder: Path, results: Results) -> Read:
    for index, image in enumerate(results.images):
        path = folder / f"{Path(image.source).stem}-RoiSet.zip"
        rois = roifile.roiread(path) if zipfile.ZipFile(path).namelist() else []
        for roi in rois:
            geometry = shapely.Polygon()
            for ring in roi.coordinates(multi=True):
                geometry = geometry.symmetric_difference(shapely.Polygon(ring))
            yield index, filled(geometry, image.shape), geometry.area


def read_coco(folder: Path, results: Results) -> Read:
    found = COCO(folder / "coco.json")
    for annotation in found.loadAnns(found.getAnnIds()):
        encoded = found.annToRLE(annotation)
        decoded = found.annToMask(annotation).astype(bool)
        assert annotation["bbox"] == coco_mask.toBbox(encoded).tolist()
        assert annotation["area"] == coco_mask.area(encoded)
        yield annotation["image_id"] - 1, decoded, float(annotation["area"])


def read_labels(folder: Path, results: Results) -> Read:
    for index, image in enumerate(results.images):
        mask = tifffile.imread(folder / f"{Path(image.source).stem}-labels.ome.tif")
        assert mask.shape == image.shape
        for value in np.unique(mask[mask > 0]):
            yield index, mask == value, float((mask == value).sum())


def read_cvat(folder: Path, results: Results) -> Read:
    """As pycocotools reads polygons, which is what CVAT does; runs as the documentation of the form says."""
    for image in ET.parse(folder / "annotations.xml").iter("image"):
        rows, columns = int(image.get("height", "")), int(image.get("width", ""))
        for shape in image:
            if shape.tag == "polygon":
                points = [float(value) for pair in shape.get("points", "").split(";") for value in pair.split(",")]
                mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points], rows, columns))).astype(bool)
                area = shapely.Polygon(np.reshape(points, (-1, 2))).area
            else:
                runs = [int(run) for run in shape.get("rle", "").split(",")]
                left, top, width, height = (int(shape.get(key, "")) for key in ("left", "top", "width", "height"))
                mask = np.zeros((rows, columns), bool)
                box = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
                mask[top : top + height, left : left + width] = box
                area = float(box.sum())
            yield int(image.get("id", "")), mask, area


def read_label_studio(folder: Path, results: Results) -> Read:
    for index, task in enumerate(json.loads((folder / "label-studio.json").read_text())):
        for region in task["predictions"][0]["result"]:
            size = np.array((region["original_width"], region["original_height"]))
            ring = np.array(region["value"]["points"]) * size / 100
            yield index, even_odd(ring, results.images[index].shape), abs(signed_area(ring))


def read_omero(folder: Path, results: Results) -> Read:
    for index, image in enumerate(results.images):
        path = folder / f"{Path(image.source).stem}.ome.xml"
        found = ome_types.from_xml(path, validate=True)
        assert [reference.id for reference in found.images[0].roi_refs] == [roi.id for roi in found.rois]
        for roi in found.rois:
            (polygon,) = roi.union
            ring = np.array([[float(value) for value in pair.split(",")] for pair in polygon.points.split()])
            yield index, even_odd(ring, image.shape), abs(signed_area(ring))


def read_napari(folder: Path, results: Results) -> Read:
    for index, image in enumerate(results.images):
        with (folder / f"{Path(image.source).stem}-shapes.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        for number in dict.fromkeys(row["index"] for row in rows):
            points = [(float(row["axis-1"]), float(row["axis-0"])) for row in rows if row["index"] == number]
            yield index, even_odd(np.array(points) + 0.5, image.shape), abs(signed_area(np.array(points)))


def signed_area(ring: npt.NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


READERS: dict[str, Callable[[Path, Results], Read]] = {
    "qupath": read_qupath,
    "imagej": read_imagej,
    "coco": read_coco,
    "labels": read_labels,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "omero": read_omero,
    "napari": read_napari,
}


def round_trip(target: str, results: Results) -> None:
    """IoU 1.0 for every object, and the area of what was written is the number of its pixels."""
    with tempfile.TemporaryDirectory() as name:
        exported = export_all(results, [target], Path(name))
        assert not exported.findings
        assert all(path.exists() for path in exported.paths)
        found = list(READERS[target](Path(name) / target, results))
    assert len(found) == len(results.document)
    numbers = dict.fromkeys(range(len(results.images)), 0)
    for index, mask, area in found:
        numbers[index] += 1
        wanted = masks.truth(results, index) == numbers[index]
        assert np.array_equal(mask, wanted), (index, numbers[index])
        assert area == pytest.approx(int(wanted.sum()), abs=1e-6)


def test_there_is_a_reader_for_every_target() -> None:
    assert list(READERS) == list(EXPORTERS)


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_hard_objects_come_back_pixel_by_pixel(target: str) -> None:
    round_trip(target, masks.results([masks.hard_mask(), np.zeros((5, 7), np.int32), masks.hard_mask().T]))


@pytest.mark.parametrize("target", list(EXPORTERS))
@settings(max_examples=60, deadline=None)
@given(mask=masks.random_masks())
def test_any_mask_comes_back_pixel_by_pixel(target: str, mask: masks.Labels) -> None:
    round_trip(target, masks.results([mask]))


@settings(max_examples=300, deadline=None)
@given(mask=masks.random_masks())
def test_outlines_are_valid_and_count_pixels(mask: masks.Labels) -> None:
    solid = mask > 0
    parts = outline.polygons(solid)
    shapes = [shapely.Polygon(polygon[0], polygon[1:]) for polygon in parts]
    assert all(shape.is_valid for shape in shapes)
    assert sum(shape.area for shape in shapes) == solid.sum()
    if parts:
        assert signed_area(outline.keyhole(parts).astype(float)) == solid.sum()
        steps = np.abs(np.diff(outline.keyhole(parts), axis=0, append=outline.keyhole(parts)[:1]))
        assert (steps.min(axis=1) == 0).all()  # along pixel borders only
