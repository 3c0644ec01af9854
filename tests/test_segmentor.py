"""The segmentor executor without its environment: annotations in, splits, data sets, instances. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from segmentor import dataset, shapes, sources
from segmentor.annotation import Annotation, compact, distances, from_classes
from segmentor.instances import Settings, separate
from segmentor.pixels import Normalisation
from segmentor.prepare import prepare
from segmentor.sources import SourceError
from segmentor.sources.polygons import decode_rle
from segmentor.split import source_of, split
from segserve_sdk import contours, output

from segserve import manifest, project
from tests.nuclei import average_precision, nuclei

REPOSITORY = Path(__file__).parent.parent
EXECUTOR = REPOSITORY / "executors" / "segmentor"

Scenes = dict[str, tuple[np.ndarray, Annotation]]
SCENES: Scenes = {f"scene{number:02d}": shapes.scene(number, 64) for number in range(6)}


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


_COLOURS = "disc:9,8,7::\nbar:1,2,3::\n"


def _as_cvat(folder: Path) -> None:
    (folder / "SegmentationClass").mkdir(parents=True)
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + _COLOURS)
    for name, (image, annotation) in SCENES.items():
        _write(folder / "JPEGImages" / f"{name}.png", image)
        palette = np.array([(0, 0, 0), (9, 8, 7), (1, 2, 3)], np.uint8)
        _write(folder / "SegmentationClass" / f"{name}.png", palette[annotation.class_map()])
        by_object = np.dstack([annotation.instances * 5 % 256, annotation.instances, annotation.instances * 0])
        _write(folder / "SegmentationObject" / f"{name}.png", by_object.astype(np.uint8))


def _as_instances(folder: Path) -> None:
    for name, (image, annotation) in SCENES.items():
        _write(folder / "images" / f"{name}.tif", image)
        _write(folder / "masks" / f"{name}_masks.tif", annotation.instances.astype(np.uint16) * 7)


def _as_coco(folder: Path, *, runs: str = "") -> None:
    document: dict[str, Any] = {"categories": [{"id": 4, "name": "disc"}, {"id": 9, "name": "bar"}]}
    document |= {"images": [], "annotations": []}
    for number, (name, (image, annotation)) in enumerate(SCENES.items()):
        _write(folder / "images" / f"{name}.png", image)
        rows, columns = image.shape
        document["images"].append({"id": number, "file_name": f"{name}.png", "height": rows, "width": columns})
        for label, kind in enumerate(annotation.classes, 1):
            inside = annotation.instances == label
            rings = contours.polygons(inside.astype(np.int32))
            segmentation: Any = [(ring + 0.5).ravel().tolist() for _, ring in rings]
            encoded = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
            if runs == "compressed":
                segmentation = {"size": [rows, columns], "counts": encoded["counts"].decode()}
            elif runs == "plain":
                flat = inside.ravel(order="F").astype(int)
                ends = np.flatnonzero(np.diff(flat)) + 1
                lengths = np.diff([0, *ends, flat.size]).tolist()
                segmentation = {"size": [rows, columns], "counts": ([0] if flat[0] else []) + lengths}
            entry = {"id": len(document["annotations"]), "image_id": number, "category_id": [4, 9][kind - 1]}
            document["annotations"].append(entry | {"segmentation": segmentation, "iscrowd": int(bool(runs))})
    (folder / "instances.json").write_text(json.dumps(document))


def _as_format_0_2(folder: Path) -> None:
    results = []
    for name, (image, annotation) in SCENES.items():
        _write(folder / "images" / f"{name}.png", image)
        names = [shapes.CLASSES[kind - 1] for kind in annotation.classes]
        results.append(output.objects(annotation.instances, label=names))
    output.write_output(folder / "output.json", "test", results)


EXACT: dict[str, tuple[str, Callable[[Path], None]]] = {
    "cvat": ("cvat", _as_cvat),
    "instances": ("instances", _as_instances),
    "coco polygons": ("coco", _as_coco),
    "coco runs": ("coco", lambda folder: _as_coco(folder, runs="plain")),
    "coco compressed runs": ("coco", lambda folder: _as_coco(folder, runs="compressed")),
    "format 0.2": ("format-0.2", _as_format_0_2),
}


@pytest.mark.parametrize("kind", EXACT)
def test_every_kind_of_annotation_comes_back_pixel_by_pixel(tmp_path: Path, kind: str) -> None:
    name, write = EXACT[kind]
    write(tmp_path / "in")
    if name != "instances":
        assert sources.detect(tmp_path / "in") == name
    names = () if name == "instances" else shapes.CLASSES  # format 0.2 would sort them
    counts = prepare(tmp_path / "in", tmp_path / "data", name, names, seed=1)
    assert [counts[part] for part in ("train", "val", "test")] == [4, 1, 1]
    found = dataset.load(tmp_path / "data")
    samples = [sample for part in found.parts.values() for sample in part]
    assert {sample.name for sample in samples} == set(SCENES)
    for sample in samples:
        image, truth = SCENES[sample.name]
        np.testing.assert_array_equal(sample.read_image(), image)
        read = sample.read_annotation()
        assert average_precision(read.instances, truth.instances, 0.999) == 1
        if name != "instances":
            np.testing.assert_array_equal(read.class_map(), truth.class_map())


@pytest.mark.parametrize("binary", [True, False])
def test_masks_of_class_numbers(tmp_path: Path, binary: bool) -> None:
    for name, (image, annotation) in SCENES.items():
        mask = (annotation.instances > 0) * 255 if binary else annotation.class_map()
        _write(tmp_path / "in" / "images" / f"{name}.png", image)
        _write(tmp_path / "in" / "masks" / f"{name}.png", mask.astype(np.uint8))
    with pytest.raises(SourceError, match="format=classes"):
        sources.detect(tmp_path / "in")
    prepare(tmp_path / "in", tmp_path / "data", "classes", [] if binary else ["disc", "bar"])
    found = dataset.load(tmp_path / "data")
    assert found.classes == (["object"] if binary else ["disc", "bar"])
    for sample in found.parts["train"]:
        truth = SCENES[sample.name][1].class_map()
        read = sample.read_annotation()
        np.testing.assert_array_equal(read.class_map(), truth > 0 if binary else truth)
        if binary:  # touching objects cannot be told apart here
            assert len(read.classes) == cv2.connectedComponents((truth > 0).astype(np.uint8))[0] - 1


def _hide(path: Path) -> None:
    path.unlink()


def _recolour(path: Path) -> None:
    mask = cv2.imread(str(path))
    assert mask is not None
    mask[3, 5] = (30, 20, 10)
    cv2.imwrite(str(path), mask)


def _shrink(path: Path) -> None:
    mask = cv2.imread(str(path))
    assert mask is not None
    cv2.imwrite(str(path), mask[:-4])


@pytest.mark.parametrize(
    ("damage", "place", "message"),
    [
        (_hide, "SegmentationClass", "scene03.png: has no mask in SegmentationClass/"),
        (_hide, "JPEGImages", "scene03.png: has no image in JPEGImages/"),
        (_recolour, "SegmentationClass", "scene03.png: has the colour 10,20,30 in row 3, column 5"),
        (_shrink, "SegmentationClass", "scene03.png: has 64 × 60 pixels, its image 64 × 64"),
        (_shrink, "SegmentationObject", "scene03.png: has 64 × 60 pixels, its image 64 × 64"),
        (lambda path: path.write_text("no picture"), "JPEGImages", "scene03.png: is no image that can be read"),
    ],
)
def test_wrong_files_are_named_with_the_reason_and_nothing_is_written(
    tmp_path: Path, damage: Callable[[Path], Any], place: str, message: str
) -> None:
    _as_cvat(tmp_path / "in")
    damage(tmp_path / "in" / place / "scene03.png")
    _hide(tmp_path / "in" / "SegmentationClass" / "scene05.png")  # all problems come at once
    with pytest.raises(SourceError) as caught:
        prepare(tmp_path / "in", tmp_path / "data", "cvat")
    assert message in str(caught.value)
    assert "scene05.png" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} - {"segserve-home"} == {"in"}


def test_wrong_documents(tmp_path: Path) -> None:
    _as_coco(tmp_path / "coco")
    path = tmp_path / "coco" / "instances.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"images": [good["images"][0] | {"file_name": "away.png"}, *good["images"][1:]]}, "names the image away.png"),
        ({"images": good["images"][1:]}, "name the image 0, which the file does not list"),
        ({"annotations": [good["annotations"][0] | {"category_id": 77}]}, "name the category 77"),
        ({"annotations": [good["annotations"][0] | {"segmentation": [[1, 2, 3]]}]}, "annotation 0 of scene00.png"),
        ({"annotations": [good["annotations"][0] | {"segmentation": {"counts": [5]}}]}, "do not fill 64 × 64"),
        ({"images": [entry | {"height": 9} for entry in good["images"]]}, "says 64 × 9 pixels"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(SourceError, match=message):
            prepare(tmp_path / "coco", tmp_path / "data", "coco")
    path.write_text("{")
    with pytest.raises(SourceError, match=r"instances\.json: is no JSON"):
        prepare(tmp_path / "coco", tmp_path / "data", "coco")
    _as_format_0_2(tmp_path / "v02")
    (tmp_path / "v02" / "images" / "scene00.png").unlink()
    with pytest.raises(SourceError, match="has 6 results for the 5 images"):
        prepare(tmp_path / "v02", tmp_path / "data", "format-0.2")
    with pytest.raises(SourceError, match="is none of cvat"):
        sources.detect(tmp_path)


def test_labelmap(tmp_path: Path) -> None:
    _as_cvat(tmp_path)
    for text, message in (
        ("disc:1,2\n", "line 1 is not of the form"),
        ("disc:1,2,3::\nbar:1,2,3::\n", "line 2 gives the colour 1,2,3 to two classes"),
    ):
        (tmp_path / "labelmap.txt").write_text(text)
        with pytest.raises(SourceError, match=message):
            sources.KINDS["cvat"](tmp_path, ())
    (tmp_path / "labelmap.txt").write_text("disc:1,2,3::\n")
    with pytest.raises(SourceError, match="does not name vessel"):
        sources.KINDS["cvat"](tmp_path, ["vessel"])


def test_run_lengths_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1), (7, 300), (90, 40)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = np.asfortranarray((random.random(shape) < share).astype(np.uint8))
            runs = coco_mask.encode(mask)["counts"].decode()
            np.testing.assert_array_equal(decode_rle(runs, shape), mask > 0)


# ------------------------------------------------------------------------------------------------------------- split


def test_the_split_is_70_20_10_and_depends_on_the_seed_alone() -> None:
    names = {f"image{number:03d}": f"image{number:03d}" for number in range(100)}
    first = split(names, (0.7, 0.2, 0.1), seed=3)
    assert [list(first.values()).count(part) for part in ("train", "val", "test")] == [70, 20, 10]
    backwards = dict(reversed(names.items()))
    assert split(backwards, (0.7, 0.2, 0.1), seed=3) == first
    assert split(names, (0.7, 0.2, 0.1), seed=4) != first


@pytest.mark.parametrize("seed", range(20))
def test_crops_of_one_source_stay_together(seed: int) -> None:
    names = [f"plate{number}_crop{crop:02d}" for number in range(8) for crop in range(1 + number)]
    parts = split({name: source_of(name) for name in names}, (0.7, 0.2, 0.1), seed)
    for number in range(8):
        assert len({part for name, part in parts.items() if name.startswith(f"plate{number}_")}) == 1
    assert set(parts.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("plate3_crop02", "plate3"),
        ("plate3-tile-7", "plate3"),
        ("a_b_x256_y0", "a_b"),
        ("slide_r1c4", "slide"),
        ("image007", "image007"),
        ("day_12", "day_12"),
    ],
)
def test_the_source_by_its_name(name: str, source: str) -> None:
    assert source_of(name) == source
    assert source_of("s01__f3", r"(s\d+)__.*") == "s01"


def test_copies_under_another_name_stay_together(tmp_path: Path) -> None:
    _as_instances(tmp_path / "in")
    for kind, end in (("images", ""), ("masks", "_masks")):
        folder = tmp_path / "in" / kind
        (folder / f"again{end}.tif").write_bytes((folder / f"scene02{end}.tif").read_bytes())
    for seed in range(8):
        prepare(tmp_path / "in", tmp_path / f"data{seed}", "instances", seed=seed)
        images = json.loads((tmp_path / f"data{seed}" / "dataset.json").read_text())["images"]
        assert images["again"]["split"] == images["scene02"]["split"]


def test_splits_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        split({"a": "a", "b": "b"}, (0.7, 0.2, 0.2), 0)
    with pytest.raises(ValueError, match="at least two sources"):
        split({"a": "x", "b": "x"}, (0.7, 0.2, 0.1), 0)


def test_a_damaged_data_set(tmp_path: Path) -> None:
    with pytest.raises(dataset.DatasetError, match=r"dataset\.json is not there"):
        dataset.load(tmp_path)
    _as_instances(tmp_path / "in")
    prepare(tmp_path / "in", tmp_path / "data", "instances")
    sample = dataset.load(tmp_path / "data").parts["val"][0]
    sample.annotation.unlink()
    with pytest.raises(dataset.DatasetError, match="is missing"):
        dataset.load(tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text("[]")
    with pytest.raises(dataset.DatasetError, match="is not as `prepare` writes it"):
        dataset.load(tmp_path / "data")


# --------------------------------------------------------------------------------------------------------- instances


@pytest.mark.parametrize("seed", range(4))
def test_touching_objects_are_separated_by_their_distance(seed: int) -> None:
    """From the very maps that the network learns, the objects come back, touching ones as two."""
    _, truth = nuclei(seed, count=120, gap=-3)
    classes = np.arange(truth.max()) % 2 + 1
    annotation = compact(truth, classes)
    probabilities = np.stack([annotation.class_map() == number for number in range(3)]).astype(np.float32)
    found = separate(probabilities, distances(annotation.instances))
    assert average_precision(found.labels, annotation.instances) >= 0.97
    joined = separate(probabilities, distances(annotation.instances), Settings(seed=0.0))
    assert joined.labels.max() < found.labels.max()
    for label in range(1, found.labels.max() + 1):
        kinds = annotation.class_map()[found.labels == label]
        assert found.classes[label - 1] == np.bincount(kinds).argmax()
    assert ((found.scores > 0.5) & (found.scores <= 1)).all()


def test_small_objects_go_and_flat_ones_stay() -> None:
    probabilities = np.zeros((2, 30, 30), np.float32)
    probabilities[1, 2:4, 2:4] = 0.9
    probabilities[1, 10:20, 10:20] = 0.8
    probabilities[0] = 1 - probabilities[1]
    found = separate(probabilities, np.zeros((30, 30), np.float32))  # no core anywhere
    assert found.labels.max() == 1
    assert (found.labels > 0).sum() == 100
    np.testing.assert_allclose(found.scores, [0.8], rtol=1e-6)
    empty = separate(np.stack([np.ones((9, 9)), np.zeros((9, 9))]), np.zeros((9, 9)))
    assert empty.labels.shape == (9, 9)
    assert len(empty.classes) == len(empty.scores) == 0


def test_distances_are_1_inside_and_fall_to_the_rim() -> None:
    labels = np.zeros((20, 40), np.int32)
    labels[2:17, 2:17], labels[5:10, 17:30] = 1, 2  # they touch
    found = distances(labels)
    assert found[9, 9] == found[7, 23] == 1
    assert found[7, 16] < 0.2
    assert found[7, 17] < 0.5
    assert found[labels == 0].max() == 0
    assert distances(np.ones((5, 5), np.int32))[2, 2] == 1
    assert from_classes(np.array([[1, 0, 1], [2, 2, 0]])).instances.max() == 3


def test_normalisation() -> None:
    image, _ = SCENES["scene00"]
    grey = Normalisation()(image)
    assert grey.shape == (1, 64, 64)
    assert (grey.min(), grey.max()) == (0, 1)
    np.testing.assert_allclose(Normalisation()(image.astype(np.uint16) * 100 + 7), grey, atol=1e-5)
    colour = np.dstack([image, image, image, np.full_like(image, 9)])
    np.testing.assert_allclose(Normalisation()(colour), grey, atol=1e-5)
    assert Normalisation(channels=3)(colour).shape == Normalisation(channels=3)(image).shape == (3, 64, 64)
    assert (Normalisation()(np.full((5, 5), 3, np.uint8)) == 0).all()


# ----------------------------------------------------------------------------------------------------------- project


def test_the_project_is_sound() -> None:
    loaded = project.load(EXECUTOR)
    assert not loaded.findings
    for entry in loaded.entry_points:
        project.select(loaded, entry)
    found = manifest.load(EXECUTOR, REPOSITORY)
    assert found.found
    assert not found.findings


@pytest.mark.parametrize("page", ["docs/segmentor.md", "executors/segmentor/README.md"])
def test_the_documented_commands_fit_the_project(page: str) -> None:
    """What they do is shown by tests/test_segmentor_executor.py; names of parameters are checked here."""
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")
    loaded = project.load(EXECUTOR)
    shown = re.findall(r"segserve run \.#executors/segmentor:(\w+)([^\n]*)", text)
    assert {entry for entry, _ in shown} >= {"prepare", "train", "main"}
    for entry, words in shown:
        parameters = project.select(loaded, entry).parameters
        assert set(re.findall(r"-P (\w+)=", words)) <= set(parameters), words


def test_the_models_that_ship_name_no_place_of_the_machine_they_were_made_on() -> None:
    models = sorted((REPOSITORY / "executors").glob("*/models/*.onnx"))
    assert len(models) == 2
    for model in models:
        assert b"stack_trace" not in model.read_bytes(), model
