"""`segserve export` and `segserve import`: results out, corrections back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import ome_types
import pytest
import tifffile
from segserve_sdk import contours

from segserve import conversion, report
from segserve import format as polygons
from segserve.cli.convert import export_command, import_command
from segserve.collect import collect
from segserve.errors import NotFound, OutputInvalid, UnreadableImage, UsageError
from segserve.exporters import EXPORTERS
from segserve.importers import IMPORTERS
from segserve.inputs import Selection, plan, stage
from segserve.model import StagedImage
from tests import masks


def call(command: Any, *words: object) -> None:
    command.main(args=[str(word) for word in words], standalone_mode=False)


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    """An OME-TIFF of three time points, two slices and two channels; labels are what is brighter than 100."""
    rng = np.random.default_rng(0)
    pixels = (rng.random((3, 2, 2, 24, 32)) < 0.1).astype(np.uint16) * 1000
    path = tmp_path / "data" / "movie.ome.tif"
    path.parent.mkdir()
    metadata = {"axes": "TZCYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, pixels, metadata={**metadata, "Channel": {"Name": ["BF", "DAPI"]}})
    return path


def result_of(movie: Path, folder: Path, **selection: Any) -> tuple[Path, tuple[StagedImage, ...]]:
    """A result folder as a run leaves it."""
    import cv2

    inputs, chosen = folder / "inputs", Selection(**selection)
    images = stage(plan([movie], chosen), inputs, folder / "inputs.json", progress=lambda *_: None)
    planes = [cv2.imread(str(inputs / image.name), cv2.IMREAD_UNCHANGED) for image in images]
    document = masks.document([(plane > 100).astype(np.int32) for plane in planes])
    output = folder / "output.json"
    output.write_bytes(polygons.encode(document))
    result = folder / "result"
    report.write(result, collect(output, images), images, inputs, {}, overlays=0)
    return result, images


def test_a_result_folder_goes_out_and_comes_back(
    movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, images = result_of(movie, tmp_path, channel="DAPI", frames="1:3")
    call(export_command, result, "--to", "all")
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.parent.name for path in paths} == set(EXPORTERS)
    assert all(path.exists() and path.is_relative_to(result / "exports") for path in paths)
    with tifffile.TiffFile(result / "exports" / "labels" / "movie-labels.ome.tif") as file:
        # Time 0 was not segmented. The result folder has short names; that the movie is 3 long is the last time.
        assert (file.series[0].axes, file.series[0].shape) == ("TZYX", (3, 2, 24, 32))
        labels = file.asarray()
    assert not labels[0].any()
    with tifffile.TiffFile(movie) as file:
        assert np.array_equal(labels[1:] > 0, file.asarray()[1:, :, 1] > 100)
    original = polygons.decode((result / "output.json").read_bytes())
    assert isinstance(original, polygons.Document)
    kinds = [kind for kind in IMPORTERS if kind in EXPORTERS]
    for kind in kinds:
        files = [
            path for path in paths if path.parent.name == kind and path.suffix in (".tif", ".json", ".zip", ".xml")
        ]
        files = [path for path in files if "results" not in path.name and ".config." not in path.name]
        back = tmp_path / f"{kind}.json"
        call(import_command, *files, "--from", kind, "--images", result, "-o", back, "--json")
        assert json.loads(capsys.readouterr().out)["objects"] == len(original)
        again = polygons.decode(back.read_bytes())
        assert isinstance(again, polygons.Document)
        assert np.array_equal(again.coordinates, original.coordinates)
        assert np.array_equal(again.image_index, original.image_index)
    assert len(images) == 4


def test_an_output_with_its_images(movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = result_of(movie, tmp_path, channel="DAPI")
    alone = tmp_path / "elsewhere" / "output.json"
    alone.parent.mkdir()
    alone.write_bytes((result / "output.json").read_bytes())
    with pytest.raises(NotFound, match=r"no results\.json") as caught:
        call(export_command, alone, "--to", "labels")
    assert "--images" in caught.value.hint
    with pytest.raises(UnreadableImage):
        call(export_command, alone, "--to", "labels", "--images", movie)  # which channel?
    call(export_command, alone, "--to", "labels,imagej", "--images", movie, "--channel", "DAPI", "-o", tmp_path / "x")
    call(export_command, result, "--to", "labels", "-o", tmp_path / "y")
    name = "labels/movie-labels.ome.tif"
    assert np.array_equal(tifffile.imread(tmp_path / "x" / name), tifffile.imread(tmp_path / "y" / name))
    assert (tmp_path / "x" / "imagej" / "movie-RoiSet.zip").exists()
    with pytest.raises(OutputInvalid):
        call(export_command, alone, "--to", "labels", "--images", movie, "--channel", "1", "--frames", "0")
    capsys.readouterr()


def test_a_bare_result_folder_has_stacks_as_long_as_their_sources(movie: Path, tmp_path: Path) -> None:
    """The last time was not segmented and the movie is gone: results.json knows how long it was."""
    result, _ = result_of(movie, tmp_path, channel="DAPI", frames="0:2")
    movie.unlink()
    loaded = conversion.load(result)
    assert dict(loaded.results.sheets[0].axes) == {"T": 3, "Z": 2}
    call(export_command, result, "--to", "labels,omero")
    with tifffile.TiffFile(result / "exports" / "labels" / "movie-labels.ome.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == ("TZYX", (3, 2, 24, 32))
        assert not file.asarray()[2].any()
    (pixels,) = [image.pixels for image in ome_types.from_xml(result / "exports" / "omero" / "movie.ome.xml").images]
    assert (pixels.size_t, pixels.size_z) == (3, 2)


def test_a_stack_is_as_long_as_its_source_however_it_is_known(movie: Path, tmp_path: Path) -> None:
    result, _ = result_of(movie, tmp_path, channel="DAPI", frames="0:2")
    by_job = conversion.load(result, staged=tmp_path / "inputs.json")
    assert dict(by_job.results.sheets[0].axes) == {"T": 3, "Z": 2}
    by_images = conversion.load(result, [movie], Selection(channel="DAPI", frames="0:2"))
    assert dict(by_images.results.sheets[0].axes) == {"T": 3, "Z": 2}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_polygons_of_an_oriented_jpeg_lie_on_the_picture_as_viewers_show_it(orientation: int, tmp_path: Path) -> None:
    """What is bright in the picture, read by somebody else, is what the export of the bare folder has as object."""
    from PIL import Image, ImageOps

    stored = np.zeros((40, 64), np.uint8)
    stored[4:12, 8:32] = 255
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(stored).save(path, quality=100, exif=exif)
    result, _ = result_of(path, tmp_path)
    with Image.open(path) as picture:
        seen = np.asarray(ImageOps.exif_transpose(picture)) > 100
    call(export_command, result, "--to", "labels,coco")
    assert np.array_equal(tifffile.imread(result / "exports" / "labels" / "photo-labels.ome.tif") > 0, seen)
    (image,) = json.loads((result / "exports" / "coco" / "coco.json").read_text())["images"]
    assert (image["height"], image["width"]) == seen.shape
    assert json.loads((result / "results.json").read_text())["images"][0]["orientation"] == orientation


def test_a_foreign_mask_for_images_without_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    mask = masks.hard_mask().astype(np.uint16)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), mask)
    cv2.imwrite(str(tmp_path / "b_cp_masks.png"), mask)
    output = tmp_path / "output.json"
    call(import_command, tmp_path / "b_cp_masks.png", "--from", "labels", "--images", folder, "-o", output)
    assert "objects in 2 images" in capsys.readouterr().out
    document = polygons.decode(output.read_bytes())
    assert isinstance(document, polygons.Document)
    assert document.counts()[0] == 0
    second = document.image(1)
    rings = [(number + 1, second.ring(number)) for number in range(len(second))]
    assert np.array_equal(contours.mask(rings, mask.shape) > 0, mask > 0)
    with pytest.raises(UsageError, match="exists already"):
        call(import_command, tmp_path / "b_cp_masks.png", "--from", "labels", "--images", folder, "-o", output)
    with pytest.raises(UsageError, match="images are missing"):
        call(import_command, tmp_path / "b_cp_masks.png", "--from", "labels", "-o", tmp_path / "c.json")


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        call(export_command, "no-such-job", "--to", "labels")
    with pytest.raises(NotFound):
        call(export_command, tmp_path, "--to", "labels")
    (tmp_path / "output.json").write_text('{"type":"info","name":"a","git_url":"b","git_hash":"c"}')
    (tmp_path / "results.json").write_text('{"format":"segserve-results","images":[]}')
    with pytest.raises(OutputInvalid, match="describes an executor"):
        call(export_command, tmp_path, "--to", "labels")


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 2**20, "height": 2**20},
        {"t": -1},
        {"t": 2**40},
        {"width": "5"},
        {"z": 1.5},
        {"sizes": {"T": -1}},
        {"sizes": {"Q": 3}},
        {"orientation": 9},
    ],
)
def test_a_results_file_that_is_not_ours(change: dict[str, Any], tmp_path: Path) -> None:
    image = {"file": "a.png", "staged": "00000.png", "sha256": "", "width": 5, "height": 5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": "segserve-results", "images": [image]}))
    assert len(conversion.read_results(path)) == 1
    path.write_text(json.dumps({"format": "segserve-results", "images": [{**image, **change}]}))
    with pytest.raises(OutputInvalid):
        conversion.read_results(path)


def test_the_command_line_knows_all_kinds() -> None:
    from segserve.cli import convert

    assert tuple(IMPORTERS) == convert._KINDS
