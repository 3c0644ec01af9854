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

import cv2
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

from segserve.errors import InvalidParameters
from segserve.exporters import EXPORTERS, Results, export_all, labels, outline, qupath, targets
from segserve.format.document import Builder
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
    rings = outline.keyholes(parts)
    assert sum(signed_area(ring.astype(float)) for ring in rings) == solid.sum()
    assert len(rings) == cv2.connectedComponents(solid.astype(np.uint8), connectivity=8)[0] - 1
    for ring in rings:
        steps = np.abs(np.diff(ring, axis=0, append=ring[:1]))
        assert ((steps == 0).sum(axis=1) == 1).all()  # along pixel borders only, and never on the spot
    filled_rings = [even_odd(ring, solid.shape) for ring in rings]
    assert np.array_equal(np.any([np.zeros_like(solid), *filled_rings], axis=0), solid)


# ---------------------------------------------------------------------------------- the shape of the originals


def stack_results(sizes: dict[str, int] | None = None) -> Results:
    """Times 0 and 2, slices 1 and 2 of one file, channel 1 of several; each plane has its own number of objects."""
    planes = []
    for count in (1, 2, 3, 0):
        mask = np.zeros((20, 30), np.int32)
        for number in range(count):
            mask[5 * number + 1 : 5 * number + 4, 3:9] = number + 1
        planes.append(mask)
    places = [(0, 1), (0, 2), (2, 1), (2, 2)]
    described = {"pixel_size_um": (0.25, 0.5), "source_dtype": "uint16"}
    images = [
        masks.image(number, mask, t=t, z=z, c=1, channel_name="DAPI", sizes=sizes or {}, **described)
        for number, (mask, (t, z)) in enumerate(zip(planes, places, strict=True))
    ]
    return Results(masks.document(planes, labels=("Cell", "Nucleus")), images)


def test_label_stacks_have_the_axes_and_the_pixel_size_of_the_source(tmp_path: Path) -> None:
    export_all(stack_results({"T": 4, "Z": 5, "C": 3}), ["labels"], tmp_path)
    with tifffile.TiffFile(tmp_path / "labels" / "cells-labels.ome.tif") as file:
        assert file.series[0].axes == "TZYX"
        stack = file.asarray()
        described = ome_types.from_xml(file.ome_metadata or "", validate=True)
    assert stack.shape == (4, 5, 20, 30)
    assert stack.dtype == np.uint16
    assert {place: int(stack[place].max()) for place in np.ndindex(4, 5) if stack[place].any()} == {
        (0, 1): 1,
        (0, 2): 2,
        (2, 1): 3,
    }
    pixels = described.images[0].pixels
    assert (pixels.physical_size_x, pixels.physical_size_y) == (0.25, 0.5)
    assert pixels.physical_size_x_unit.value == "µm"
    with (tmp_path / "labels" / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["t"], row["z"], row["value"]) for row in rows] == [
        ("0", "1", "1"),
        ("0", "2", "1"),
        ("0", "2", "2"),
        ("2", "1", "1"),
        ("2", "1", "2"),
        ("2", "1", "3"),
    ]


def test_an_upright_picture_that_is_stored_turned_is_said_to_be_one(tmp_path: Path) -> None:
    mask = masks.hard_mask()
    results = Results(masks.document([mask]), [masks.image(0, mask, "/data/photo.jpg", orientation=6)])
    (finding,) = export_all(results, ["qupath", "coco"], tmp_path).findings
    assert (finding.rule, finding.place.image) == ("export-orientation", "/data/photo.jpg")
    assert export_all(masks.results([mask]), ["qupath"], tmp_path).findings == ()


def test_rois_know_channel_slice_and_frame_and_have_names_of_their_own(tmp_path: Path) -> None:
    export_all(stack_results(), ["imagej"], tmp_path)
    path = tmp_path / "imagej" / "cells-RoiSet.zip"
    rois = roifile.roiread(path)
    places = [(roi.c_position, roi.z_position, roi.t_position) for roi in rois]
    assert places == [(2, 2, 1), (2, 3, 1), (2, 3, 1), (2, 2, 3), (2, 2, 3), (2, 2, 3)]
    names = zipfile.ZipFile(path).namelist()
    assert names == [f"{roi.name}.roi" for roi in rois]
    assert len(set(names)) == 6
    assert names[0] == "0001-Nucleus.roi"
    assert "score: 0.501" in rois[0].props


def test_objects_of_qupath_and_omero_know_their_plane(tmp_path: Path) -> None:
    export_all(stack_results(), ["qupath", "omero", "napari"], tmp_path)
    features = json.loads((tmp_path / "qupath" / "cells.qupath.json").read_text())["features"]
    planes = [feature["geometry"]["plane"] for feature in features]
    assert planes[0] == {"c": -1, "z": 1, "t": 0}
    assert planes[-1] == {"c": -1, "z": 1, "t": 2}
    assert len({feature["id"] for feature in features}) == 6
    assert features[0]["properties"]["classification"]["name"] == "Nucleus"
    assert features[0]["properties"]["measurements"]["score"] == 0.501
    shapes = [roi.union[0] for roi in ome_types.from_xml(tmp_path / "omero" / "cells.ome.xml", validate=True).rois]
    assert [(shape.the_t, shape.the_z, shape.the_c) for shape in shapes][::5] == [(0, 1, 1), (2, 1, 1)]
    rows = (tmp_path / "napari" / "cells-shapes.csv").read_text().splitlines()
    assert rows[0] == "index,shape-type,vertex-index,axis-0,axis-1,axis-2,axis-3"
    assert rows[1].startswith("0,polygon,0,0,1,")


def test_many_objects_are_detections_in_qupath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qupath, "MOST_ANNOTATIONS", 2)
    export_all(stack_results(), ["qupath"], tmp_path)
    features = json.loads((tmp_path / "qupath" / "cells.qupath.json").read_text())["features"]
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}


def test_sources_of_the_same_name_get_files_of_their_own(tmp_path: Path) -> None:
    mask = np.zeros((6, 6), np.int32)
    mask[1:3, 1:4] = 1
    sources = ["/a/x/img.tif", "/a/y/img.tif", "/b/x/img.tif", "/a/x/img.png", "/a/x/IMG.tiff", "/c/.hid den?.ome.tif"]
    images = [masks.image(number, mask, source) for number, source in enumerate(sources)]
    images.append(masks.image(6, mask, "/d/two.czi", series=0))
    images.append(masks.image(7, mask, "/d/two.czi", series=1))
    results = Results(masks.document([mask] * 8), images)
    names = [sheet.name for sheet in results.sheets]
    assert len({name.casefold() for name in names}) == 8
    assert names[-3:] == ["hid_den", "two_s0", "two_s1"]
    for target in EXPORTERS:
        paths = export_all(results, [target], tmp_path).paths
        assert len(set(paths)) == len(paths)
    found = COCO(tmp_path / "coco" / "coco.json")
    assert len({image["file_name"] for image in found.dataset["images"]}) == 8


def test_large_label_images_become_a_pyramid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    monkeypatch.setattr(labels, "LARGE", 100)
    monkeypatch.setattr(labels, "CHUNK", 16)
    monkeypatch.setattr(labels, "BAND", 10)
    monkeypatch.setattr(labels, "SMALL", 8)
    mask = masks.hard_mask()
    images = [masks.image(t, mask, t=t, pixel_size_um=(0.5, 0.25)) for t in range(2)]
    results = Results(masks.document([mask, np.zeros_like(mask)]), images)
    export_all(results, ["labels"], tmp_path)
    path = tmp_path / "labels" / "cells-labels.ome.zarr"
    location = parse_url(path / "labels" / "objects", mode="r")
    assert location is not None
    node = next(iter(Reader(location)()))
    levels = [np.asarray(level) for level in node.data]
    assert [level.shape for level in levels] == [(2, 48, 64), (2, 24, 32), (2, 12, 16), (2, 6, 8)]
    assert np.array_equal(levels[0][0], masks.truth(results, 0))
    assert not levels[0][1].any()
    for coarse, fine in zip(levels[1:], levels, strict=False):
        assert np.array_equal(coarse, fine[:, ::2, ::2])
    assert node.metadata["coordinateTransformations"][0][0]["scale"] == [1.0, 0.25, 0.5]
    assert [axis["name"] for axis in node.metadata["axes"]] == ["t", "y", "x"]


def test_more_objects_than_16_bits_can_tell_apart(tmp_path: Path) -> None:
    mask = np.zeros((520, 520), np.int32)
    mask[::2, ::2] = np.arange(1, 260 * 260 + 1).reshape(260, 260)
    results = masks.results([mask])
    export_all(results, ["labels"], tmp_path)
    found = tifffile.imread(tmp_path / "labels" / "cells0-labels.ome.tif")
    assert found.dtype == np.uint32
    assert np.array_equal(found, mask)


# ------------------------------------------------------------------------------------- what does not fit, and malice


def document_of(*rings: list[list[float]], label: str = "Cell") -> Results:
    builder = Builder()
    builder.add_image(rings, [label] * len(rings), [np.nan] * len(rings))
    mask = np.zeros((20, 30), np.int32)
    return Results(builder.build("model", "0.2"), [masks.image(0, mask)])


def test_objects_without_pixels_are_named_and_what_lies_outside_is_cut_off(tmp_path: Path) -> None:
    results = document_of(
        [[1.2, 1.2], [1.4, 1.2], [1.4, 1.4]],
        [[-5, -5], [3, -5], [3, 3], [-5, 3]],
        [[100, 100], [120, 100], [120, 120]],
        [[-2e9, 5], [2e9, 5], [2e9, 6], [-2e9, 6]],
        [[2, 9]],
    )
    for target in EXPORTERS:
        exported = export_all(results, [target], tmp_path)
        assert [finding.place.json_path for finding in exported.findings if finding.rule == "export-no-pixels"] == [
            "$.segmentation_data[0][0]",
            "$.segmentation_data[0][2]",
        ]
    found = COCO(tmp_path / "coco" / "coco.json")
    assert [annotation["area"] for annotation in found.loadAnns(found.getAnnIds())] == [16, 60, 1]


def test_overlapping_objects_are_whole_everywhere_but_in_label_images(tmp_path: Path) -> None:
    box = [[2, 2], [9, 2], [9, 9], [2, 9]]
    results = document_of(box, [[x + 4, y] for x, y in box])
    exported = export_all(results, list(EXPORTERS), tmp_path)
    assert [finding.rule for finding in exported.findings] == ["export-overlap"]
    assert exported.findings[0].message.startswith("32 pixels")
    for target in set(EXPORTERS) - {"labels"}:
        assert [round(area, 6) for _, _, area in READERS[target](tmp_path / target, results)] == [64.0, 64.0]


def test_names_and_labels_cannot_break_out(tmp_path: Path) -> None:
    evil = "=cmd|'/C calc'!A0\"><script>&\x00\x1b]]>\n../../etc/passwd\ud83d".encode("utf-8", "replace").decode()
    results = document_of([[2, 2], [9, 2], [9, 9], [2, 9]], label=evil)
    exported = export_all(results, list(EXPORTERS), tmp_path)
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in exported.paths)
    for target, read in READERS.items():
        assert [round(area, 6) for _, _, area in read(tmp_path / target, results)] == [64.0]
    (entry,) = zipfile.ZipFile(tmp_path / "imagej" / "cells-RoiSet.zip").namelist()
    assert "/" not in entry
    with (tmp_path / "labels" / "labels.csv").open() as stream:
        assert not any(cell.startswith("=") for row in csv.reader(stream) for cell in row)


def test_rois_beyond_16_bits_are_composite(tmp_path: Path) -> None:
    builder = Builder()
    builder.add_image([[(40000, 3), (40009, 3), (40009, 8), (40000, 8)]], ["Cell"], [np.nan])
    image = masks.image(0, np.zeros((20, 50_000), np.int32))
    export_all(Results(builder.build("model", "0.2"), [image]), ["imagej"], tmp_path)
    (roi,) = roifile.roiread(tmp_path / "imagej" / "cells-RoiSet.zip")
    assert (roi.left, roi.top, roi.right, roi.bottom) == (40000, 3, 40010, 9)
    (ring,) = roi.coordinates(multi=True)
    assert shapely.Polygon(ring).area == 60
    assert shapely.Polygon(ring).bounds == (40000, 3, 40010, 9)


def test_exports_are_the_same_every_time(tmp_path: Path) -> None:
    results = masks.results([masks.hard_mask()])
    for name in ("one", "two"):
        export_all(results, [target for target in EXPORTERS if target != "labels"], tmp_path / name)
    first = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    second = {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").rglob("*.*")}
    assert first == second


def test_targets_are_checked() -> None:
    assert targets("imagej, qupath,imagej") == ("imagej", "qupath")
    assert targets("all") == tuple(EXPORTERS)
    with pytest.raises(InvalidParameters) as caught:
        targets("qupth")
    assert "qupath" in caught.value.hint
    with pytest.raises(InvalidParameters):
        targets(" ,")


def test_coco_results_have_the_form_that_loadres_takes(tmp_path: Path) -> None:
    results = masks.results([masks.hard_mask()])
    export_all(results, ["coco"], tmp_path)
    truth = COCO(tmp_path / "coco" / "coco.json")
    found = truth.loadRes(str(tmp_path / "coco" / "coco-results.json"))
    assert len(found.getAnnIds()) == len(results.document)
    assert found.loadAnns(found.getAnnIds())[0]["score"] == 0.501
