"""Objects from other programs come back as they were; damaged and hostile files get an error that says where."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import roifile
import tifffile
from hypothesis import HealthCheck, given, settings
from pycocotools import mask as coco_mask
from segserve_sdk import contours

from segserve import format as polygons
from segserve.errors import InvalidParameters, UsageError
from segserve.exporters import Results, export_all
from segserve.importers import IMPORTERS, Imported, import_files
from segserve.model import StagedImage
from tests import masks


def painted(found: Imported, images: Any) -> list[masks.Labels]:
    """Each image's objects as a mask, numbered from 1."""
    results = Results(found.document, images)
    return [masks.truth(results, index) for index in range(len(images))]


def write_cellpose(results: Results, folder: Path) -> list[Path]:
    """As `cellpose.io.masks_flows_to_seg` does."""
    paths = []
    for index, image in enumerate(results.images):
        path = folder / f"{Path(image.source).stem}_seg.npy"
        content = {
            "outlines": np.zeros(image.shape, np.uint16),
            "masks": masks.truth(results, index).astype(np.uint16),
            "chan_choose": [0, 0],
            "ismanual": np.zeros(3, bool),
            "filename": image.source,
            "flows": [np.zeros((2, 2), np.uint8), np.float32(3.5), [1.0, None]],
            "diameter": np.float64(30.0),
        }
        np.save(path, content)
        paths.append(path)
    return paths


def exported(kind: str, results: Results, folder: Path) -> list[Path]:
    """Files of one kind that hold the results."""
    if kind == "cellpose":
        return write_cellpose(results, folder)
    paths = export_all(results, [kind], folder).paths
    return [
        path for path in paths if path.name not in ("labels.csv", "coco-results.json") and ".config." not in path.name
    ]


CARRIES_CLASSES = {"coco", "qupath", "imagej", "cvat", "label-studio"}
CARRIES_SCORES = {"coco", "qupath", "imagej", "label-studio"}


@pytest.mark.parametrize("kind", list(IMPORTERS))
def test_what_was_exported_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    shapes = [masks.hard_mask(), np.zeros((5, 7), np.int32), masks.hard_mask().T]
    images = masks.results(shapes).images
    results = Results(masks.document(shapes, labels=("Cell", "Nucleus old")), images)
    found = import_files(exported(kind, results, tmp_path), kind, images)
    assert found.findings == ()
    assert np.array_equal(found.document.coordinates, results.document.coordinates)
    assert np.array_equal(found.document.offsets, results.document.offsets)
    assert np.array_equal(found.document.image_index, results.document.image_index)
    if kind in CARRIES_CLASSES:
        assert found.document.labels == results.document.labels
    if kind in CARRIES_SCORES:
        assert np.array_equal(found.document.scores, results.document.scores)
    assert polygons.decode(polygons.encode(found.document)) is not None


@pytest.mark.parametrize("kind", list(IMPORTERS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=masks.random_masks())
def test_any_mask_comes_back(kind: str, mask: masks.Labels, tmp_path: Path) -> None:
    results = masks.results([mask])
    paths = exported(kind, results, tmp_path)
    again = painted(import_files(paths, kind, results.images), results.images)
    assert np.array_equal(again[0] > 0, mask > 0)
    assert np.array_equal(again[0], masks.truth(results, 0))


@pytest.mark.parametrize("kind", ["labels", "qupath", "imagej", "coco", "cvat", "label-studio"])
def test_stacks_come_back_plane_by_plane(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    planes = [
        cv2.dilate((rng.random((20, 30)) < 0.02).astype(np.uint8), np.ones((3, 3))).astype(np.int32) for _ in range(6)
    ]
    places = [(t, z) for t in range(3) for z in (1, 2)]
    images = [masks.image(i, m, t=t, z=z, c=1) for i, (m, (t, z)) in enumerate(zip(planes, places, strict=True))]
    results = Results(masks.document(planes), images)
    found = import_files(exported(kind, results, tmp_path), kind, images)
    assert [np.array_equal(a > 0, b > 0) for a, b in zip(painted(found, images), planes, strict=True)] == [True] * 6


# ------------------------------------------------------------------------------------ files of the other programs


IMAGE = masks.image(0, np.zeros((40, 50), np.int32), "/data/cells.ome.tif")
SQUARE = np.zeros((40, 50), np.uint16)
SQUARE[10:20, 5:25] = 7


def one(path: Path, kind: str, images: Any = (IMAGE,), **options: Any) -> Imported:
    return import_files([path], kind, images, **options)


@pytest.mark.parametrize(
    "name", ["cells_cp_masks.png", "cells.png", "cells_masks.tif", "cells_mask.npy", "Cells-labels.ome.tif"]
)
def test_label_images_of_other_programs(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".png":
        cv2.imwrite(str(path), SQUARE)
    elif path.suffix == ".npy":
        np.save(path, SQUARE.astype(np.int64))
    else:
        tifffile.imwrite(path, SQUARE.astype(np.float32 if "masks" in name else np.uint16))
    found = one(path, "labels", label="Nucleus")
    assert np.array_equal(painted(found, [IMAGE])[0] > 0, SQUARE > 0)
    assert found.document.labels == ("Nucleus",)


def test_an_imagej_hyperstack_of_labels(tmp_path: Path) -> None:
    stack = np.zeros((3, 2, 40, 50), np.uint16)
    for t, z in np.ndindex(3, 2):
        stack[t, z, : t + 1, : z + 1] = 1
    tifffile.imwrite(tmp_path / "cells.tif", stack, imagej=True, metadata={"axes": "TZYX"})
    images = [masks.image(i, stack[t, z], t=t, z=z) for i, (t, z) in enumerate(np.ndindex(3, 2))]
    found = one(tmp_path / "cells.tif", "labels", images)
    assert [int((m > 0).sum()) for m in painted(found, images)] == [1, 2, 2, 4, 3, 6]


def test_coco_with_compressed_run_lengths_crowds_and_polygons(tmp_path: Path) -> None:
    encoded = coco_mask.encode(np.asfortranarray(SQUARE > 0).astype(np.uint8))
    document = {
        "images": [{"id": 9, "file_name": "some/where/cells.ome.tif", "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "Cell"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 9,
                "category_id": 3,
                "segmentation": {"size": [40, 50], "counts": encoded["counts"].decode()},
            },
            {"id": 2, "image_id": 9, "category_id": 3, "segmentation": [[30, 30, 34, 30, 34, 35, 30, 35]]},
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(document))
    mask = painted(one(tmp_path / "x.json", "coco"), [IMAGE])[0]
    assert np.array_equal(mask == 1, SQUARE > 0)
    assert (mask == 2).sum() == 20
    assert mask[30, 30] == mask[34, 33] == 2


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=masks.random_masks())
def test_compressed_run_lengths_of_any_mask(mask: masks.Labels) -> None:
    from segserve.importers import coco

    encoded = coco_mask.encode(np.asfortranarray(mask > 0).astype(np.uint8))
    runs = coco._decompress(encoded["counts"].decode(), "$")
    again, (x, y) = coco._unrun(runs, (mask.shape[0], mask.shape[1]), "$")
    whole = np.zeros(mask.shape, bool)
    whole[y : y + again.shape[0], x : x + again.shape[1]] = again
    assert np.array_equal(whole, mask > 0)


def test_rois_of_imagej(tmp_path: Path) -> None:
    stacked = [masks.image(t, np.zeros((40, 50), np.int32), t=t) for t in range(3)]
    rectangle = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, left=5, top=10, right=25, bottom=20, name="0015-0015")
    rectangle.t_position = 2
    freehand = roifile.ImagejRoi.frompoints([[1, 1], [4, 1], [4, 5], [1, 5]], name="Nucleus", t=2)
    line = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.LINE, x1=1, y1=1, x2=9, y2=9, n_coordinates=2)
    roifile.roiwrite(tmp_path / "cells_RoiSet.zip", [rectangle, freehand, line], name=["a.roi", "b.roi", "c.roi"])
    found = one(tmp_path / "cells_RoiSet.zip", "imagej", stacked)
    assert [int((mask > 0).sum()) for mask in painted(found, stacked)] == [0, 200, 12]
    assert [finding.place.json_path for finding in found.findings] == ["c.roi"]
    lost = roifile.ImagejRoi.frompoints([[1, 1], [4, 1], [4, 5]], name="x")
    lost.tofile(tmp_path / "cells.roi")
    with pytest.raises(UsageError) as caught:
        one(tmp_path / "cells.roi", "imagej", stacked)
    assert "Several planes fit" in caught.value.findings[0].message


def test_geojson_of_qupath(tmp_path: Path) -> None:
    outer = [[0.5, 0.5], [10.5, 0.5], [10.5, 10.5], [0.5, 10.5], [0.5, 0.5]]
    inner = [[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [outer, inner]}, "properties": {}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}},
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[90, 90], [95, 90], [95, 95]]]},
            "properties": {"classification": {"names": ["Tumor", "Positive"]}},
        },
    ]
    (tmp_path / "cells.geojson").write_text(json.dumps(features))
    found = one(tmp_path / "cells.geojson", "qupath")
    # The outer ring runs through centres, which belong to the object: 11 × 11 pixels without 3 × 3.
    assert int((painted(found, [IMAGE])[0] > 0).sum()) == 121 - 9
    assert [finding.rule for finding in found.findings] == ["import-no-area", "import-no-pixels"]


def test_corrections_of_label_studio(tmp_path: Path) -> None:
    def region(x: float, y: float, width: float, height: float) -> dict[str, Any]:
        return {
            "type": "rectanglelabels",
            "original_width": 50,
            "original_height": 40,
            "value": {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["Nucleus"]},
        }

    task = {
        "data": {"image": "/data/upload/3/0a1b2c3d-cells.ome.tif"},
        "annotations": [{"was_cancelled": True, "result": []}, {"result": [region(10, 25, 40, 25)]}],
        "predictions": [{"result": [region(0, 0, 100, 100)]}],
    }
    (tmp_path / "export.json").write_text(json.dumps([task]))
    found = one(tmp_path / "export.json", "label-studio")
    assert np.array_equal(painted(found, [IMAGE])[0] > 0, SQUARE > 0)
    assert found.document.labels == ("Nucleus",)


# -------------------------------------------------------------------------------------------- damaged and hostile


def refused(path: Path, kind: str, images: Any = (IMAGE,)) -> str:
    with pytest.raises(UsageError) as caught:
        one(path, kind, images)
    (finding,) = caught.value.findings
    assert finding.place.path == str(path)
    return f"{finding.place.json_path}: {finding.message}"


ONE_ANNOTATION = """{"images":[{"id":1,"file_name":"cells.ome.tif","height":40,"width":50}],
"categories":[{"id":1,"name":"x"}],"annotations":[{"image_id":1,"category_id":1,"segmentation":%s}]}"""
ONE_SHAPE = '<annotations><image name="cells.ome.tif" width="50" height="40">%s</image></annotations>'
GEOMETRY = '[{"geometry": {"type": "Polygon", "coordinates": [[%s]]}}]'


@pytest.mark.parametrize(
    ("kind", "name", "text", "said"),
    [
        ("coco", "a.json", '{"images": []', "not JSON"),
        ("coco", "a.json", '{"images": [], "images": []}', "stands twice"),
        ("coco", "a.json", '{"images": [{"id": 1}], "annotations": []}', "$.images[0]: 'height' is missing"),
        (
            "coco",
            "a.json",
            '{"images":[{"id":1,"file_name":"cells.ome.tif","height":4,"width":5}],"annotations":[]}',
            "is 5 × 4 pixels there, the image is 50 × 40",
        ),
        (
            "coco",
            "a.json",
            ONE_ANNOTATION % '{"size":[40,50],"counts":[99999999999]}',
            "$.annotations[0].segmentation.counts: The run lengths do not add up",
        ),
        ("coco", "a.json", '{"images":[{"id":1,"file_name":"o.png","height":4,"width":5}]}', "No image has the name"),
        ("qupath", "cells.json", GEOMETRY % '[0, "1"]', "$[0].geometry.coordinates[0][0]: A number"),
        ("qupath", "cells.json", GEOMETRY % "[0, 1e999], [1, 1], [2, 2]", "finite"),
        ("qupath", "cells.json", GEOMETRY % "[0, NaN]", "NaN"),
        ("qupath", "cells.json", "[" * 100_000, "not JSON"),
        ("cvat", "a.xml", '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "document type"),
        ("cvat", "a.xml", "<annotations><track/></annotations>", "CVAT for video"),
        (
            "cvat",
            "a.xml",
            ONE_SHAPE % '<mask rle="1,9999999999" left="0" top="0" width="2" height="2"/>',
            "mask 1: The run lengths do not add up",
        ),
        ("label-studio", "a.json", "{}", "An array is expected"),
        ("imagej", "cells.zip", "PK not a zip", "no intact ZIP"),
        ("labels", "cells.tif", "II*\0 and nothing more", "damaged"),
        ("labels", "cells.png", "GIF89a", "neither TIFF"),
        ("cellpose", "cells_seg.npy", "text", "no NPY"),
    ],
)  # fmt: skip
def test_damage_is_named_with_its_place(kind: str, name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert said in refused(tmp_path / name, kind)


def test_an_image_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "cells.tif", np.zeros((4, 4), np.uint16))
    assert "4 × 4" in refused(tmp_path / "cells.tif", "labels")


def test_a_file_must_tell_which_of_several_images_it_belongs_to(tmp_path: Path) -> None:
    images = [
        masks.image(0, SQUARE.astype(np.int32), "/a/one.tif"),
        masks.image(1, SQUARE.astype(np.int32), "/a/two.tif"),
    ]
    cv2.imwrite(str(tmp_path / "three.png"), SQUARE)
    cv2.imwrite(str(tmp_path / "two_mask.png"), SQUARE)
    assert "No image has the name 'three.png'" in refused(tmp_path / "three.png", "labels", images)
    found = import_files([tmp_path / "two_mask.png"], "labels", images)
    assert found.document.counts().tolist() == [0, 1]


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("cells.tif", "cells.png")]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="2 files") as caught:
        import_files(paths, "labels", [IMAGE])
    assert [finding.place.path for finding in caught.value.findings] == list(map(str, paths))


def test_an_unknown_kind() -> None:
    with pytest.raises(InvalidParameters) as caught:
        import_files([], "cellpos", [IMAGE])
    assert "cellpose" in caught.value.hint


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def as_seg(content: Any, protocol: int) -> bytes:
    """What `numpy.save(…, allow_pickle=True)` writes, with any pickle protocol."""
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(stream, header)
    pickle.dump(np.array(content, dtype=object), stream, protocol=protocol)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<u2", ">i4", "uint8", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cellpose_files_of_every_pickle_protocol(protocol: int, dtype: str, order: Any, tmp_path: Path) -> None:
    path = tmp_path / "cells_seg.npy"
    path.write_bytes(as_seg({"masks": np.array(SQUARE, dtype=dtype, order=order), "filename": "x"}, protocol))
    assert np.array_equal(painted(one(path, "cellpose"), [IMAGE])[0] > 0, SQUARE > 0)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_program_is_not_opened(protocol: int, tmp_path: Path) -> None:
    mark, path = tmp_path / "was-here", tmp_path / "cells_seg.npy"
    path.write_bytes(as_seg({"masks": SQUARE, "evil": Evil(mark)}, protocol))
    assert re.search(r"asks for (os|posix)\.mkdir", refused(path, "cellpose"))
    assert not mark.exists()


def test_a_pickle_of_objects_or_a_false_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells_seg.npy"
    path.write_bytes(as_seg({"masks": np.array([[1, None]], dtype=object)}, 2))
    assert "masks" in refused(path, "cellpose")
    path.write_bytes(as_seg({"masks": SQUARE.astype(np.float32)}, 2))
    assert "whole numbers" in refused(path, "cellpose")
    data = as_seg({"masks": SQUARE}, 2)
    path.write_bytes(data.replace(b"K(K2", b"K(J\xff\xff\xff\x7f", 1))
    assert "masks" in refused(path, "cellpose")


def _files(folder: Path) -> dict[str, tuple[Path, tuple[StagedImage, ...]]]:
    results = masks.results([masks.hard_mask()])
    found = {}
    for kind in IMPORTERS:
        place = folder / kind
        place.mkdir()
        found[kind] = exported(kind, results, place)[0], tuple(results.images)
    return found


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed))
        action = rng.randrange(4)
        if action == 0:
            changed[at] = rng.randrange(256)
        elif action == 1:
            del changed[at : at + rng.randint(1, 20)]
        elif action == 2:
            changed[at:at] = rng.choice([b"-", b"9" * 12, b"null", b"[", b"\xff\xff\xff\xff", b"1e400", b'"'])
        else:
            del changed[max(at, 1) :]
        if not changed:
            return b""
    return bytes(changed)


def _unzipped(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The ROIs of an archive changed, the archive itself intact."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)))
    return stream.getvalue()


def test_mutated_files_never_crash_an_importer(tmp_path: Path) -> None:
    """2,000 per kind were run once in this way with another seed; that is how the errors of decoders were found."""
    rng = random.Random(7)
    taken = dict.fromkeys(IMPORTERS, 0)
    for kind, (path, images) in _files(tmp_path).items():
        data = path.read_bytes()
        for number in range(150):
            deep = kind == "imagej" and number % 2
            path.write_bytes(_unzipped(data, lambda part: _mutated(part, rng)) if deep else _mutated(data, rng))
            try:
                found = import_files([path], kind, images)
            except UsageError:
                continue
            taken[kind] += 1
            assert polygons.decode(polygons.encode(found.document)) is not None
            labels = painted(found, images)[0]
            assert contours.trace(labels) is not None
    assert sum(taken.values()) < 150 * len(IMPORTERS)
