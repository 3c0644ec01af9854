"""Finding and aligning what an executor left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from segserve.collect import collect, find_output, read
from segserve.errors import OutputInvalid, OutputMissing
from segserve.findings import Severity
from segserve.format import Document, Info
from segserve.model import StagedImage

CELL = {"label": "Cell", "contour_coordinates": [[1, 1], [6, 1], [6, 6]], "type": "Polygon"}


def images(count: int, shape: tuple[int, int] = (20, 30)) -> list[StagedImage]:
    return [
        StagedImage(f"{number:03d}.png", f"field {number}.tif", shape, 1, "uint8", "0" * 64) for number in range(count)
    ]


def output(folder: Path, *per_image: list[Any], **changes: Any) -> Path:
    path = folder / "output.json"
    path.write_text(json.dumps({"model": "m", "format_version": "0.2", "segmentation_data": per_image, **changes}))
    return path


def test_the_logged_artifact_comes_first(tmp_path: Path) -> None:
    artifacts, project = tmp_path / "artifacts", tmp_path / "checkout"
    for folder in (artifacts / "deep", project):
        folder.mkdir(parents=True)
    left = output(project)
    found, note = find_output(artifacts, project)
    assert found == left
    assert "not logged" in note
    assert "mlflow.log_artifact('output.json')" in note
    nested = output(artifacts / "deep")
    assert find_output(artifacts, project) == (nested, "output.json was logged as 'deep/output.json'.")
    logged = output(artifacts)
    assert find_output(artifacts, project) == (logged, "")
    assert find_output(None, project)[0] == left


def test_missing_output_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "a" / "b").mkdir(parents=True)
    output(tmp_path / "artifacts" / "a" / "b")  # two levels down is not looked at
    (tmp_path / "artifacts" / "model.pt").write_text("x")
    with pytest.raises(OutputMissing) as caught:
        find_output(tmp_path / "artifacts", tmp_path)
    assert "mlflow.log_artifact('output.json')" in caught.value.hint
    assert "It logged: a, model.pt." in caught.value.message


def test_several_outputs_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        output(tmp_path / name)
    with pytest.raises(OutputInvalid, match=r"a/output\.json, b/output\.json"):
        find_output(tmp_path, tmp_path)


def test_links_and_other_things_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    for number, make in enumerate((lambda path: path.symlink_to(secret), lambda path: path.mkdir(), os.mkfifo)):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / "output.json")
        with pytest.raises(OutputInvalid):
            find_output(folder, tmp_path)
        with pytest.raises(OutputInvalid):
            find_output(None, folder)
        with pytest.raises(OutputInvalid):
            read(folder / "output.json")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    output(tmp_path / "elsewhere")
    only = tmp_path / "only"
    only.mkdir()
    (only / "folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputMissing):
        find_output(only, only)


def test_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "output.json"
    with path.open("wb") as stream:
        stream.truncate(9 << 30)  # sparse
    with pytest.raises(OutputInvalid, match="more than"):
        read(path)


def test_one_result_per_image(tmp_path: Path) -> None:
    path = output(tmp_path, [CELL], [], [CELL, {**CELL, "score": 0.5, "label": "b"}])
    result = collect(path, images(3))
    assert isinstance(result.document, Document)
    assert result.document.counts().tolist() == [1, 0, 2]
    assert [finding.rule for finding in result.findings] == ["duplicate-object"]
    assert result.source == path


@pytest.mark.parametrize(
    ("per_image", "wanted", "words"),
    [
        ([], 3, "*.png"),
        ([[]], 3, "swallow"),
        ([[CELL]], 3, "whole folder as one image"),
        ([[CELL], []], 3, "skip"),
        ([[CELL]] * 4, 3, "more than the staged"),
        ([[CELL], [CELL]], 1, "more than the staged"),
    ],
)
def test_a_wrong_count_names_counts_and_likely_cause(
    tmp_path: Path, per_image: list[Any], wanted: int, words: str
) -> None:
    with pytest.raises(OutputInvalid) as caught:
        collect(output(tmp_path, *per_image), images(wanted))
    assert words in caught.value.hint
    assert f"{len(per_image)} result" in caught.value.message
    assert f"{wanted} image" in caught.value.message
    assert [finding.rule for finding in caught.value.findings] == ["image-count-mismatch"]


def test_what_one_object_gets_wrong_is_reported_and_forgiven(tmp_path: Path) -> None:
    """RETR_TREE contours of public executors have one and two points."""
    small = [
        {**CELL, "contour_coordinates": ring} for ring in ([[3, 3]], [[3, 3], [4, 4]], [[25, 3], [35, 3], [35, 9]])
    ]
    result = collect(output(tmp_path, small), images(1))
    assert [(finding.rule, finding.severity, finding.place.image) for finding in result.findings] == [
        ("too-few-points", Severity.WARNING, "field 0.tif"),
        ("too-few-points", Severity.WARNING, "field 0.tif"),
        ("outside-image", Severity.WARNING, "field 0.tif"),
    ]


def test_an_empty_result_is_suspicious(tmp_path: Path) -> None:
    result = collect(output(tmp_path, []), images(1))
    assert [(finding.rule, finding.severity) for finding in result.findings] == [
        ("suspicious-emptiness", Severity.WARNING)
    ]


def test_swapped_axes_fail_the_run(tmp_path: Path) -> None:
    swapped = {**CELL, "contour_coordinates": [[2, 90], [8, 90], [8, 99]]}
    with pytest.raises(OutputInvalid, match="swapped"):
        collect(output(tmp_path, [swapped]), images(1, (10, 100)))


def test_info_belongs_to_entry_points_without_images(tmp_path: Path) -> None:
    path = tmp_path / "output.json"
    path.write_text(json.dumps({"name": "n", "git_url": "u", "git_hash": "h", "type": "info"}))
    assert isinstance(collect(path, []).document, Info)
    with pytest.raises(OutputInvalid) as caught:
        collect(path, images(1))
    assert "segserve info" in caught.value.hint


def test_broken_output_names_place_and_turn(tmp_path: Path) -> None:
    path = output(tmp_path, [{**CELL, "contour_coordinates": [[1, 1], [float("nan"), 2], [3, 3]]}])
    with pytest.raises(OutputInvalid) as caught:
        collect(path, images(1))
    assert "$.segmentation_data[0][0].contour_coordinates[1][0]" in caught.value.message
    assert caught.value.hint.startswith("The executor's code has to change.")
