"""`segserve validate`: verdicts, images, ignored rules, repair, bounded memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from segserve_sdk import contours

from segserve import cli
from segserve.format import RULES, Document, check, decode
from segserve.format.repair import repair
from tests.test_format import doc, obj, text

SQUARE = [[2, 2], [9, 2], [9, 9], [2, 9]]
BOW_TIE = [[2, 2], [9, 9], [9, 2], [2, 9]]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "validate", "validate")


def validate(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[tuple[str, str]], Any]:
    """Exit code, (rule, JSON path) of every finding, and all findings as they were printed."""
    code = cli.main(["validate", *map(str, words), "--format", "json"])
    printed = json.loads(capsys.readouterr().out or "[]")
    return code, [(finding["rule"], finding["place"]["json_path"]) for finding in printed], printed


def saved(folder: Path, value: Any, name: str = "output.json") -> Path:
    path = folder / name
    path.write_bytes(value if isinstance(value, bytes) else text(value))
    return path


def pictures(folder: Path, *shapes: tuple[int, int]) -> Path:
    folder.mkdir()
    for number, shape in enumerate(shapes):
        cv2.imwrite(str(folder / f"field {number}.png"), np.zeros(shape, np.uint8))
    return folder


def test_a_good_file_and_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path, doc([obj(SQUARE)], []), "good.json")
    assert cli.main(["validate", str(good)]) == 0
    assert "valid" in capsys.readouterr().out
    bad = saved(tmp_path, doc([obj(SQUARE), obj(BOW_TIE)], [obj([[1, 2]])]), "bad.json")
    code, found, printed = validate(capsys, good, bad)
    assert code == 7
    assert found == [
        ("too-few-points", "$.segmentation_data[1][0]"),
        ("self-intersection", "$.segmentation_data[0][1]"),
    ]
    assert {finding["place"]["path"] for finding in printed} == {str(bad)}
    assert all(finding["fix"] for finding in printed)
    assert cli.main(["validate", str(bad), "--format", "junit"]) == 7
    assert ET.fromstring(capsys.readouterr().out).get("failures") == "2"
    assert cli.main(["validate", str(bad)]) == 7
    assert "error[self-intersection] The ring crosses itself." in capsys.readouterr().out


def test_rings_are_judged_also_where_the_text_has_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [obj(BOW_TIE), obj([[1, 2], ["3", 4]]), obj([[1, 2]]), obj(SQUARE, type="Box"), obj(SQUARE, extra=1)]
    code, found, _ = validate(capsys, saved(tmp_path, doc(objects)))
    assert code == 7
    assert sorted(found) == [
        ("bad-number", "$.segmentation_data[0][1].contour_coordinates[1][0]"),
        ("not-a-polygon", "$.segmentation_data[0][3].type"),
        ("self-intersection", "$.segmentation_data[0][0]"),
        ("too-few-points", "$.segmentation_data[0][2]"),
        ("unknown-key", "$.segmentation_data[0][4].extra"),
    ]


def test_against_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(tmp_path / "images", (20, 100), (20, 100), (50, 60))
    wide = [[40, 2], [80, 2], [80, 9], [40, 9]]
    tall = [[y, x] for x, y in wide]
    file = saved(tmp_path, doc([obj(wide), obj(SQUARE)], [obj(tall)], [obj(wide)]))
    code, found, printed = validate(capsys, file, "--images", images)
    assert code == 7
    assert found == [("swapped-axes", "$.segmentation_data[1]"), ("outside-image", "$.segmentation_data[2][0]")]
    assert [Path(finding["place"]["image"]).name for finding in printed] == ["field 1.png", "field 2.png"]
    code, found, _ = validate(capsys, saved(tmp_path, doc([obj(tall)], [])), "--images", images)
    assert (code, found) == (7, [("image-count-mismatch", "$")])
    broken = saved(tmp_path, doc([], [obj([["1", 2]]), 3], []), "broken.json")
    assert {Path(f["place"]["image"]).name for f in validate(capsys, broken, "--images", images)[2]} == {"field 1.png"}
    assert validate(capsys, file)[:2] == (0, [])
    assert cli.main(["validate", str(file), "--images", str(tmp_path / "nothing")]) == 2
    (images / "field 3.png").write_bytes(b"no image")
    assert cli.main(["validate", str(file), "--images", str(images)]) == 2


def test_planes_of_a_stack_have_names_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 20, 30), np.uint8), metadata={"axes": "TYX"}, imagej=True)
    outside = [[25, 2], [35, 2], [35, 9]]
    file = saved(tmp_path, doc([], [obj(SQUARE)], [obj(outside)]))
    code, found, printed = validate(capsys, file, "--images", tmp_path / "stack.tif")
    assert (code, found) == (7, [("outside-image", "$.segmentation_data[2][0]")])
    assert printed[0]["place"]["image"].endswith("t 2)")


def test_rules_can_be_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path, doc([obj(BOW_TIE), obj([[1, 2]])]))
    assert validate(capsys, file, "--ignore", "too-few-points", "--ignore", "self-intersection")[:2] == (0, [])
    assert validate(capsys, file, "--ignore", "too-few-points")[0] == 7
    assert cli.main(["validate", str(file), "--ignore", "too-few-point"]) == 2
    assert "Did you mean 'too-few-points'?" in capsys.readouterr().err


def test_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outer = [[0, 0], [0, 40], [40, 40], [40, 0]]
    hole = [[20, 20], [30, 20], [30, 30], [20, 30]]  # the other way round
    nested = hole[::-1]
    keyhole = [
        [50, 0],
        [70, 0],
        [70, 20],
        [50, 20],
        [50, 9],
        [55, 9],
        [55, 15],
        [65, 15],
        [65, 5],
        [55, 5],
        [55, 9],
        [50, 9],
    ]
    images = (
        [obj(outer), obj(hole), obj([[38, 38], [50, 38], [50, 50]])],
        [obj(nested), obj(outer), obj([[40, 0], [50, 0], [40, 9]])],  # the last one only touches
        [obj(outer), obj(hole, label="Nucleus")],
        [obj(keyhole), obj([[57, 7], [63, 7], [63, 13], [57, 13]])],  # in the hole: no common ground
        [obj(outer), obj(BOW_TIE), obj([[7, 7]]), obj(outer[1:] + outer[:1])],
    )
    file = saved(tmp_path, doc(*images))
    code, found, printed = validate(capsys, file, "--pairs", "--ignore", "keyhole")
    pairs = [(rule, path[-6:]) for rule, path in found if rule in ("overlapping-objects", "hole-as-object")]
    assert pairs == [
        ("hole-as-object", "[0][1]"),
        ("overlapping-objects", "[0][2]"),
        ("overlapping-objects", "[1][0]"),
        ("overlapping-objects", "[2][1]"),
    ]
    assert (
        "within $.segmentation_data[1][1]"
        in next(f for f in printed if f["place"]["json_path"][-6:] == "[1][0]")["message"]
    )
    assert ("duplicate-object", "$.segmentation_data[4][3]") in found
    assert code == 7  # for the bow-tie and its like; pairs are warnings
    assert not {"overlapping-objects", "hole-as-object"} & {rule for rule, _ in validate(capsys, file)[1]}


def test_opencv_holes_are_recognised_and_our_own_tracing_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((80, 80), np.uint8)
    cv2.circle(mask, (40, 40), 30, 1, -1)
    cv2.circle(mask, (40, 40), 12, 0, -1)
    cv2.circle(mask, (40, 40), 4, 1, -1)
    foreign = [obj(ring[:, 0].tolist()) for ring in cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]]
    found = validate(capsys, saved(tmp_path, doc(foreign)), "--pairs")[1]
    assert [rule for rule, _ in found if rule == "hole-as-object"] == ["hole-as-object"]
    ours = [obj(ring.tolist()) for _, ring in contours.polygons(mask)]
    code, found, _ = validate(capsys, saved(tmp_path, doc(ours)), "--pairs")
    assert (code, [rule for rule, _ in found]) == (0, ["keyhole"])


def ground(file: Path, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    document = decode(file.read_bytes())
    assert isinstance(document, Document)
    return contours.mask([(1, document.ring(n)) for n in range(len(document))], shape) > 0


def test_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [
        obj(SQUARE, score=0.5),
        obj([[20, 3]]),
        obj([[20, 6], [25, 6]]),
        obj([[20, 10], [23, 13], [26, 10], [23, 13]]),
        obj([30.2, 3]),
        obj([]),
        obj(SQUARE[1:] + SQUARE[:1]),
        obj([[30, 10], [34, 10], [34, 14]], bbox=[1, 2]),
    ]
    file, out = saved(tmp_path, doc(objects, [], [obj([[0, 0]])])), tmp_path / "fixed.json"
    code, found, printed = validate(capsys, file, "--repair", out)
    assert code == 0
    assert validate(capsys, out)[:2] == (0, [("touches-itself", "$.segmentation_data[0][3]")])
    assert [finding["severity"] for finding in printed if finding["rule"] == "too-few-points"] == ["error"] * 4
    changed = sorted(
        (path[len("$.segmentation_data") :], f["message"])
        for f, (rule, path) in zip(printed, found, strict=True)
        if rule == "repaired"
    )
    outlined = "The ring encloses nothing; it became the outline of the pixels on it."
    assert changed == [
        ("[0][1]", outlined),
        ("[0][2]", outlined),
        ("[0][3]", outlined),
        ("[0][4]", outlined),
        ("[0][4].contour_coordinates", "[x, y] was read as the point [[x, y]]."),
        ("[0][5]", "The object has no point; it was left out."),
        ("[0][6]", "The object occurs twice in its image; this one was left out."),
        ("[0][7].bbox", "A key that the format does not know was left out."),
        ("[2][0]", outlined),
    ]
    document = decode(out.read_bytes())
    assert isinstance(document, Document)
    assert document.counts().tolist() == [6, 0, 1]
    assert document.ring(1).tolist() in [
        np.roll([[19.5, 2.5], [20.5, 2.5], [20.5, 3.5], [19.5, 3.5]], k, axis=0).tolist() for k in range(4)
    ]
    line = contours.mask([(1, document.ring(3))], (20, 40))
    expected = np.zeros((20, 40), np.uint8)
    cv2.polylines(expected, [np.array([[20, 10], [23, 13], [26, 10]])], False, 1)
    assert np.array_equal(line, expected)
    assert cli.main(["validate", str(file), "--repair", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_repair_upgrades_0_1_and_leaves_what_only_the_author_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old: list[Any] = [
        {"model_version": "m#1", "format_version": "0.1", "segmentation": [obj([[1, 1]]), obj(BOW_TIE)]} for _ in "12"
    ]
    old[1]["segmentation"].append(obj(BOW_TIE, label="another class"))
    out = tmp_path / "new.json"
    code, found, _ = validate(capsys, saved(tmp_path, old), "--repair", out)
    assert code == 7
    assert ("repaired", "$") in found
    assert ("repaired", "$[1].segmentation[0]") in found
    again = validate(capsys, out)[1]
    assert again == [
        *(("self-intersection", f"$.segmentation_data[{place}]") for place in ("0][1", "1][1", "1][2")),
        ("duplicate-object", "$.segmentation_data[1][2]"),
    ]
    assert json.loads(out.read_bytes())["model"] == "m#1"
    many = saved(tmp_path, doc([obj([[n, 1]]) for n in range(300)]), "many.json")
    assert (
        len([1 for rule, _ in validate(capsys, many, "--repair", tmp_path / "all.json")[1] if rule == "repaired"])
        == 300
    )


def test_what_cannot_be_read_is_not_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    for data in (b"", text(doc([obj()]))[:-1], text(doc([obj([[float("nan"), 1]])]))):
        assert validate(capsys, saved(tmp_path, data), "--repair", out)[0] == 7
        assert not out.exists()
    info = {"name": "n", "git_url": "u", "git_hash": "h", "type": "info"}
    file = saved(tmp_path, info)
    assert validate(capsys, file)[0] == 0
    assert cli.main(["validate", str(file), "--repair", str(out)]) == 2
    assert cli.main(["validate", str(file), str(file), "--repair", str(out)]) == 2
    assert cli.main(["validate", str(saved(tmp_path, doc())), "--repair", str(tmp_path / "no" / "where.json")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".json") == ["output.json"]


def test_no_part_of_a_large_repair_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fast reader gives up in the middle of this text; what it had written is written anew."""
    images = [[obj([[n, m], [n + 3, m], [n, m + 3]]) for n in range(100)] for m in range(150)]
    images[120].append(obj([[4, 4]], label='a "quote"'))
    out = tmp_path / "out.json"
    assert validate(capsys, saved(tmp_path, doc(*images)), "--repair", out)[0] == 0
    document = decode(out.read_bytes())
    assert isinstance(document, Document)
    assert document.counts().tolist() == [100 + (image == 120) for image in range(150)]


spots = st.tuples(st.integers(-2, 9) | st.integers(-4, 18).map(lambda n: n / 2), st.integers(-2, 9))


@given(st.lists(st.lists(st.lists(spots, max_size=5), max_size=7), max_size=4))
@settings(max_examples=120, deadline=None)
def test_nothing_that_can_be_repaired_is_left(images: list[list[Any]]) -> None:
    document = decode(text(doc(*[[obj(ring) for ring in image] for image in images])))
    assert isinstance(document, Document)
    notes: list[str] = []
    good = repair(document, lambda message, place: notes.append(place + message))
    left = {finding.rule for finding in check(good)}
    assert left <= {"self-intersection", "touches-itself", "keyhole", "suspicious-emptiness"}
    broken = {"too-few-points", "zero-area", "duplicate-object"} & {finding.rule for finding in check(document)}
    assert bool(notes) == bool(broken)
    assert repair(good, lambda message, place: notes.append(place + message)) is good


def test_special_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["validate", str(tmp_path / "pipe")]) == 2
    assert cli.main(["validate", str(tmp_path / "missing")]) == 2


MEASURE = r"""
import re, sys
from pathlib import Path
from segserve import format, validation


def peak():
    # Not ru_maxrss: after a fork that counts what the parent (a long test session) has in memory.
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


before = peak()
if sys.argv[2] == "load":
    with open(sys.argv[1], "rb") as stream:
        size = len(format.decode(stream))
else:
    report = validation.validate(Path(sys.argv[1]), pairs=True)
    size = report.objects
print(size, (peak() - before) * 1024)
"""


def growth(file: Path, what: str) -> tuple[int, int]:
    """Objects, and the bytes by which the process grew."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    command = [sys.executable, "-c", MEASURE, str(file), what]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=limit).stdout.split()
    return int(printed[0]), int(printed[1])


@pytest.mark.parametrize("mistake", [False, True])
def test_memory_is_bounded_by_the_largest_image(tmp_path: Path, mistake: bool) -> None:
    angle = np.linspace(0, 6.2, 40)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    objects = [obj(np.rint(100 + 60 * n + 25 * ring).astype(int).tolist()) for n in range(500)]
    image = text(objects)
    end = text([obj([[1, 2], [3, "4"]])]) if mistake else b"[]"
    file = tmp_path / "large.json"
    with file.open("wb") as stream:
        stream.write(
            b'{"model": "m", "format_version": "0.2", "segmentation_data": [' + (image + b", ") * 80 + end + b"]}"
        )
    size = file.stat().st_size
    assert size > 20e6
    read, grown = growth(file, "validate")
    assert read == 500 * 80 + mistake
    assert grown < 30e6 + 4 * len(
        image
    )  # the whole would take 16 bytes per point alone: 26 MB, and much more as objects
    if not mistake:
        read, grown = growth(file, "load")
        assert read == 500 * 80
        assert grown + 30e6 < 2.5 * size + 30e6


def test_every_rule_has_a_summary_and_a_row_in_the_manual() -> None:
    assert all(rule.summary.endswith(".") for rule in RULES.values())
