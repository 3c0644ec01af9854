"""The result folder: files, measures, overlays, pages; hostile names and labels."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segserve import report
from segserve.collect import Result, collect
from segserve.format import Document, decode
from segserve.format import encode as encode_document
from segserve.model import StagedImage
from segserve.report import overlays, page

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
FACTS: dict[str, Any] = {
    "executor": "threshold",
    "repository": "https://host/group/threshold",
    "commit": "0123456789abcdef" * 2 + "01234567",
    "entry": "main",
    "parameters": {"sigma": "1.5"},
    "environment": {"": "uv", "python": "3.11.7"},
    "seconds": {"staging": 0.25, "executor": 75.0},
    "command": "segserve run 'https://host/group/threshold@0123#main' images/",
    "warnings": ["Python 3.8.5 cannot be had; 3.8.20 was used."],
    "mlflow_url": "http://127.0.0.1:5000/#/experiments/1/runs/2",
    "citation": "Somebody (2020)",
}


def ring(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def obj(points: list[list[float]], **changes: Any) -> dict[str, Any]:
    return {"label": "Cell", "contour_coordinates": points, "type": "Polygon", **changes}


def staged(folder: Path, number: int, source: str, array: np.ndarray[Any, Any], **changes: Any) -> StagedImage:
    folder.mkdir(exist_ok=True)
    name = f"{number:03d}.png"
    cv2.imwrite(str(folder / name), array)
    channels = 1 if array.ndim == 2 else array.shape[2]
    return StagedImage(name, source, array.shape[:2], channels, str(array.dtype), f"{number}" * 64, **changes)


def collected(folder: Path, images: list[StagedImage], *per_image: list[Any], **changes: Any) -> Result:
    path = folder / "output.json"
    document = {"model": "url#abc", "format_version": "0.2", "segmentation_data": per_image, **changes}
    path.write_text(json.dumps(document))
    return collect(path, images)


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Result, list[StagedImage], Path]:
    inputs = tmp_path / "inputs"
    rng = np.random.default_rng(0)
    noise = rng.integers(200, 4000, (60, 80)).astype(np.uint16)
    images = [
        staged(inputs, 0, "plate/well A1.tif", noise, t=0, z=2, pixel_size_um=(0.5, 0.5)),
        staged(inputs, 1, "plate/well A1.tif", noise, t=1, z=2, pixel_size_um=(0.5, 0.5)),
        staged(inputs, 2, "=cmd|calc.png", rng.integers(0, 255, (50, 50, 3)).astype(np.uint8)),
    ]
    result = collected(
        tmp_path,
        images,
        [obj(ring(10, 20, 29, 19), score=0.75), obj(ring(0.5, 0.5, 4, 4), label="+evil"), obj([[70, 50]])],
        [],
        [obj(ring(1, 1, 3, 3))],
    )
    return result, images, inputs


def test_the_folder_has_everything_and_nothing_goes_to_the_wrong_image(
    scene: tuple[Result, list[StagedImage], Path], tmp_path: Path
) -> None:
    result, images, inputs = scene
    folder = tmp_path / "result"
    written = report.write(folder, result, images, inputs, FACTS)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "objects.csv",
        "output.json",
        "overlays/001-well_A1-t0-z2.png",
        "overlays/002-well_A1-t1-z2.png",
        "overlays/003-cmd_calc.png",
        "report/index.html",
        "report/summary.md",
        "results.json",
        "validation.json",
    ]
    assert written.counts == (3, 0, 1)
    assert [path.name for path in written.overlays if path] == [
        path.name for path in sorted((folder / "overlays").iterdir())
    ]
    assert (folder / "output.json").read_bytes() == result.source.read_bytes()
    assert [finding["rule"] for finding in json.loads((folder / "validation.json").read_text())] == ["too-few-points"]

    results = json.loads((folder / "results.json").read_text())
    assert [(image["file"], image["t"], image["z"], image["staged"]) for image in results["images"]] == [
        ("plate/well A1.tif", 0, 2, "000.png"),
        ("plate/well A1.tif", 1, 2, "001.png"),
        ("=cmd|calc.png", None, None, "002.png"),
    ]
    assert [len(image["objects"]) for image in results["images"]] == [3, 0, 1]
    assert (results["images"][0]["width"], results["images"][0]["height"]) == (80, 60)
    assert results["images"][0]["pixel_size_um"] == [0.5, 0.5]
    assert results["images"][0]["objects"][0] == {
        "id": 1,
        "label": "Cell",
        "score": 0.75,
        "area_px": 600,
        "perimeter_px": 93.695,
        "circularity": 0.859,
        "centroid": [24.5, 29.5],
        "bbox": [10, 20, 30, 20],
        "intensities": {},
        "contour": [[10, 20], [39, 20], [39, 39], [10, 39]],
    }


def test_objects_csv(scene: tuple[Result, list[StagedImage], Path], tmp_path: Path) -> None:
    result, images, inputs = scene
    report.write(tmp_path / "result", result, images, inputs, FACTS, overlays=0)
    with (tmp_path / "result" / "objects.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["t"], row["z"], row["image"], row["object_id"], row["label"]) for row in rows] == [
        ("plate/well A1.tif", "0", "2", "000.png", "1", "Cell"),
        ("plate/well A1.tif", "0", "2", "000.png", "2", "'+evil"),  # a spreadsheet must not calculate it
        ("plate/well A1.tif", "0", "2", "000.png", "3", "Cell"),
        ("'=cmd|calc.png", "", "", "002.png", "1", "Cell"),
    ]
    assert [(row["score"], row["area_px"]) for row in rows] == [("0.75", "600"), ("", "16"), ("", "1"), ("", "16")]
    box = [rows[1][f"bbox_{name}"] for name in ("x", "y", "width", "height")]
    assert box == ["1", "1", "4", "4"]
    assert (rows[2]["centroid_x"], rows[2]["centroid_y"]) == ("70", "50")
    assert not (tmp_path / "result" / "overlays").exists()


def test_upgraded_documents_keep_the_original(tmp_path: Path) -> None:
    images = [staged(tmp_path / "inputs", 0, "a.png", np.zeros((20, 20), np.uint8))]
    path = tmp_path / "output.json"
    path.write_text(
        json.dumps({"model_version": "m", "format_version": "0.1", "segmentation": [obj(ring(1, 1, 5, 5))]})
    )
    report.write(tmp_path / "result", collect(path, images), images, tmp_path / "inputs", FACTS)
    assert (tmp_path / "result" / "output.original.json").read_bytes() == path.read_bytes()
    upgraded = decode((tmp_path / "result" / "output.json").read_bytes(), strict=True)
    assert isinstance(upgraded, Document)
    assert (upgraded.version, upgraded.exact) == ("0.2", True)


def test_info_results_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "output.json"
    path.write_text(json.dumps({"name": "n", "git_url": "u", "git_hash": "h", "type": "info"}))
    written = report.write(tmp_path / "result", collect(path, []), [], tmp_path, FACTS)
    assert written.counts == ()
    assert (tmp_path / "result" / "output.json").read_bytes() == path.read_bytes()


def test_a_shuffled_or_short_list_of_images_is_refused(
    scene: tuple[Result, list[StagedImage], Path], tmp_path: Path
) -> None:
    result, images, inputs = scene
    for wrong in (images[::-1], images[:2], [images[0], images[0], images[2]]):
        with pytest.raises(ValueError, match="order"):
            report.write(tmp_path / "result", result, wrong, inputs, FACTS)


class Tags(HTMLParser):
    """Elements, attributes and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    images = [staged(tmp_path / "inputs", 0, f"{EVIL}|`x`[y](javascript:z)\n# h.png", np.zeros((30, 30), np.uint8))]
    result = collected(
        tmp_path, images, [obj(ring(1, 1, 5, 5), label=EVIL), obj(ring(9, 9, 50, 5), label="b")], model=EVIL
    )
    hostile = {
        **dict.fromkeys(("executor", "repository", "commit", "entry", "command", "citation", "job", "version"), EVIL),
        **{key: {EVIL: EVIL} for key in ("parameters", "environment", "machine")},
        "mlflow_url": "javascript:alert(3)",
        "seconds": {EVIL: 1.0},
        "warnings": [EVIL],
    }
    report.write(tmp_path / "result", result, images, tmp_path / "inputs", hostile)
    text = (tmp_path / "result" / "report" / "index.html").read_text()
    tags = Tags(text)
    assert not tags.elements & {"script", "iframe", "object", "embed", "form", "link", "base"}
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert all(link.startswith(("../", "data:image/jpeg;base64,")) for link in tags.links)
    assert any("alert(1)" in word for word in tags.words)
    assert "default-src 'none'" in text
    summary = (tmp_path / "result" / "report" / "summary.md").read_text()
    assert "<" not in summary.replace("&lt;", "").split("## Again", maxsplit=1)[0]
    assert not re.search(r"(?<!\\)[\[\]`]", summary.split("## Again", maxsplit=1)[0])
    (row,) = [line for line in summary.splitlines() if "javascript:z" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5  # the table keeps its columns
    assert all(path.parent == tmp_path / "result" / "overlays" for path in (tmp_path / "result" / "overlays").iterdir())


def test_the_page_shows_what_people_ask_for(scene: tuple[Result, list[StagedImage], Path], tmp_path: Path) -> None:
    result, images, inputs = scene
    report.write(tmp_path / "result", result, images, inputs, FACTS)
    text = (tmp_path / "result" / "report" / "index.html").read_text()
    tags = Tags(text)
    words = " ".join(" ".join(tags.words).split())
    for expected in (
        "threshold",
        FACTS["command"],
        "Somebody (2020)",
        "1 min 15 s",
        "plate/well A1.tif",
        "T 1 · Z 2",
        "too-few-points",
        "3.8.20 was used",
        "sigma",
    ):
        assert expected in words, expected
    assert "svg" in tags.elements
    for link in tags.links:
        if link.startswith("../"):
            assert (tmp_path / "result" / "report" / link).resolve().is_file(), link
    assert "https://host/group/threshold" in tags.links


def test_only_the_first_images_are_drawn_unless_all_are_asked_for(tmp_path: Path) -> None:
    images = [staged(tmp_path / "inputs", number, f"{number}.png", np.zeros((8, 8), np.uint8)) for number in range(30)]
    result = collected(tmp_path, images, *[[obj(ring(1, 1, 3, 3))]] * 30)
    for wanted, drawn in ((24, 24), (3, 3), (None, 30)):
        folder = tmp_path / str(wanted)
        written = report.write(folder, result, images, tmp_path / "inputs", FACTS, overlays=wanted)
        assert sum(path is not None for path in written.overlays) == drawn
        assert len(list((folder / "overlays").iterdir())) == drawn
    assert "24 of 30 images are shown" in (tmp_path / "24" / "report" / "index.html").read_text()


def one(*rings: Any) -> Document:
    document = decode(
        json.dumps({"model": "m", "format_version": "0.2", "segmentation_data": [[obj(r) for r in rings]]}).encode()
    )
    assert isinstance(document, Document)
    return document


def test_outlines_run_through_the_pixels_that_they_name() -> None:
    drawn = overlays.draw(np.zeros((600, 500), np.uint16), one(ring(100, 200, 50, 30)))
    assert drawn.shape == (600, 500, 3)
    rows, columns = np.nonzero(drawn.max(axis=2) > 150)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (100, 150, 200, 230)


@pytest.mark.parametrize(
    ("shape", "expected"), [((100, 60), (800, 480)), ((4096, 1024), (2048, 512)), ((500, 700), (500, 700))]
)
def test_sizes_of_overlays(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    rows, columns = shape
    drawn = overlays.draw(np.full(shape, 7, np.uint8), one(ring(0, 0, columns - 1, rows - 1)))
    assert drawn.shape[:2] == expected
    scale = expected[0] / rows
    left = drawn[expected[0] // 2, : max(int(scale * 2), 3)].max(axis=1)
    assert abs(int(left.argmax()) - (0.5 * scale - 0.5)) <= 1


def test_grey_levels_are_stretched_between_quantiles() -> None:
    image = np.tile(np.linspace(1000, 3000, 500).astype(np.uint16), (500, 1))
    image[0, 0] = 65535  # a hot pixel must not darken the rest
    drawn = overlays.draw(image, one())
    assert drawn[250, 2].max() < 5
    assert drawn[250, 497].min() > 205
    assert 95 < drawn[250, 250, 0] < 120
    assert overlays.draw(np.full((500, 500), 9, np.uint8), one()).std() == 0


@pytest.mark.parametrize("shape", [(500, 500, 3), (500, 500, 4), (500, 500, 1)])
def test_colour_images_keep_their_colours(shape: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8)
    image[:250, ..., 0] = 200
    drawn = overlays.draw(image, one())
    assert drawn.shape == (500, 500, 3)
    assert drawn[100, 100, 0] > 200
    assert drawn[100, 100, 2] == (0 if shape[2] > 1 else drawn[100, 100, 0])


def test_hostile_coordinates_are_drawn_without_harm() -> None:
    far = 2.0**31
    drawn = overlays.draw(
        np.zeros((500, 500), np.uint8), one(ring(-far, 100, 2 * far, 50), ring(3, 3, 0, 0), [], [[9, 9]])
    )
    assert drawn[100, 250].max() > 100  # the edge that crosses the image is still there


def test_histogram_axes() -> None:
    narrow = page.histogram(np.linspace(100, 400, 500))
    assert not narrow.logarithmic
    assert [text for _, text in narrow.ticks] == ["150", "200", "250", "300", "350"]
    wide = page.histogram(np.logspace(0, 4, 500))
    assert wide.logarithmic
    assert {"10", "100", "1,000"} <= {text for _, text in wide.ticks}
    assert page.histogram(np.full(9, 5.0)).top == 9
    assert len(page.histogram(113.0 + np.arange(9) * 1e-13).bars) == page.BINS  # no room for bins between these


def test_written_documents_can_be_read_by_anyone(scene: tuple[Result, list[StagedImage], Path]) -> None:
    result, *_ = scene
    assert isinstance(result.document, Document)
    assert json.loads(encode_document(result.document)) == json.loads(result.source.read_text())
