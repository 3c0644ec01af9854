"""`segserve check --run`: real runs of small executors, and what is judged from their results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segserve.check.probes import course, judge, look_on, pictures
from segserve.cli import main
from segserve.format import Document
from segserve.layout import Home
from tests.executors import MLPROJECT, PYTHON_ENV, make_executor
from tests.repositories import make_repository

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.usefixtures("here", "python_on_path")

DETECT = """\
import glob, json, os, sys
import cv2, mlflow

{before}
paths = sorted(glob.glob(os.path.join(sys.argv[1], "*.png")))
results = []
for path in {order}:
    grey = cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(float)
    grey = grey.max(axis=2) if grey.ndim == 3 else grey
    mask = (grey > grey.max() / 2).astype("uint8") * int(grey.max() > grey.min())
    rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    results.append([dict(label="Disc", type="Polygon", contour_coordinates=ring[:, 0].tolist()) for ring in rings])
document = dict(model="discs", format_version="0.2", segmentation_data=results)
with open("output.json", "w") as stream:
    json.dump(document, stream)
mlflow.log_artifact("output.json")
"""
PROJECT = """\
name: discs
entry_points:
  main:
    parameters: {input_images: path}
    command: python main.py {input_images}
"""


def probed(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, list[str], dict[str, object]]:
    code = main(["check", str(folder), "--run", "--env", "local", "--json", *words])
    document = json.loads(capsys.readouterr().out)
    assert "error" not in document, document
    probes = {f"{one['entry']}/{one['probe']}": one for one in document["probes"]}
    static = {"no-environment", "no-licence", "no-readme", "no-info", "unpinned-dependency", "missing-script"}
    return code, [one["rule"] for one in document["findings"] if one["rule"] not in static], probes


def discs(folder: Path, *, before: str = "", order: str = "paths", **extra: str) -> Path:
    make_repository(folder, {"MLProject": PROJECT, "main.py": DETECT.format(before=before, order=order), **extra})
    return folder


def test_a_good_executor_on_the_quick_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rules, probes = probed(capsys, discs(tmp_path / "discs"))
    assert (code, rules) == (0, [])
    assert [one["objects"] for one in probes.values()] == [[6], [2, 4, 5], [6], [6], [0], [6]]
    assert all(one["seconds"] > 0 and one["memory_bytes"] > 1e7 for one in probes.values())


@pytest.mark.slow
def test_the_full_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """1,001 images, and a second run of the same: of a good executor, then of one that keeps all and draws lots."""
    good = discs(tmp_path / "discs", **{"segserve.toml": "[run]\ndeterministic = true\n"})
    code, rules, probes = probed(capsys, good, "--probes", "full")
    assert (code, rules) == (0, [])
    assert list(probes)[-2:] == ["main/repeat", "main/many"]
    assert probes["main/many"]["objects"] == [1] * 1001

    before = """\
import random
KEPT = []
def keeping(paths):
    for path in paths:
        KEPT.append(b"x" * 1_500_000)
        yield path
"""
    leaky = discs(tmp_path / "leaky", before=before, order="keeping(paths)")
    text = (leaky / "main.py").read_text()
    shifted = text.replace("ring[:, 0].tolist()", "(ring[:, 0] + random.SystemRandom().random()).tolist()")
    make_repository(leaky, {"main.py": shifted, "segserve.toml": "[run]\ndeterministic = true\n"})
    monkeypatch.setitem(course.PROBES, "full", ("one", "repeat", "many"))
    code, rules, probes = probed(capsys, leaky, "--probes", "full")
    assert code == 7
    assert set(rules) - {"odd-objects"} == {"claim-broken", "memory-growth"}
    assert probes["main/many"]["memory_bytes"] > 1_500_000_000


def test_what_an_executor_does_besides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (
        "import socket\n"
        "try: open('/nowhere-at-all/left-behind', 'w')\n"  # that it fails does not matter
        "except OSError: pass\n"
        "print(dict(os.environ))\n"
        "try: socket.create_connection(('192.0.2.1', 9), timeout=0.2)\n"
        "except OSError: pass\n"
    )
    folder = discs(
        tmp_path / "careless",
        before=before,
        order="reversed(paths)",
        **{"segserve.toml": '[run]\nnetwork = "never"\n'},
    )
    monkeypatch.setitem(course.PROBES, "quick", ("one", "sizes"))
    code, rules, _ = probed(capsys, folder)
    assert code == 7
    assert set(rules) == {"writes-outside", "secret-printed", "claim-broken", "order-not-kept", "odd-objects"}


def test_the_plainest_probe_decides_whether_others_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, rule in (("crash", "probe-failed"), ("wrong_count", "wrong-number-of-results")):
        make_executor(tmp_path / kind, kind)
        code, rules, probes = probed(capsys, tmp_path / kind, "--entry", "main")
        assert (code, rules) == (7, [rule])
        assert list(probes) == ["main/one"]


def test_a_budget_ends_the_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rules, probes = probed(capsys, discs(tmp_path / "discs"), "--budget", "0")
    assert code == 0
    assert set(rules) == {"probe-skipped"}
    assert probes == {}


@pytest.mark.network
def test_an_environment_that_cannot_be_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "lost", python_env=PYTHON_ENV + "  - surely-never-published-anywhere==1\n")
    assert main(["check", str(tmp_path / "lost"), "--run"]) == 7
    out = capsys.readouterr().out
    assert "error[build-failed]" in out
    assert "surely-never-published-anywhere" in out


def test_parameters_without_a_default_are_nobodys_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(
        tmp_path / "asks",
        {"MLProject": MLPROJECT.format(name="asks").replace(", default: 10", ""), "python_env.yaml": PYTHON_ENV},
    )
    _, rules, probes = probed(capsys, tmp_path / "asks", "--entry", "main")
    assert "probe-skipped" in rules
    assert probes == {}


# ------------------------------------------------------------------------------------------------------- judging


def document(*images: list[tuple[float, float]]) -> Document:
    """Squares around the given centres."""
    around = np.array([[-2, -2], [2, -2], [2, 2], [-2, 2]], float)
    rings = [around + centre for image in images for centre in image]
    index = [number for number, image in enumerate(images) for _ in image]
    points: NDArray[np.float64] = np.concatenate(rings) if rings else np.empty((0, 2))
    return Document(
        model="m",
        version="0.2",
        coordinates=points,
        offsets=np.arange(0, 4 * len(rings) + 1, 4),
        labels=("Cell",) * len(rings),
        scores=np.full(len(rings), np.nan),
        image_index=np.array(index, dtype=np.int64),
        n_images=len(images),
    )


def found_in(name: str) -> list[list[tuple[float, float]]]:
    return [[(float(x), float(y)) for x, y, _ in picture.discs] for picture in pictures.SETS[name]]


@pytest.mark.parametrize("name", ["sizes", "many"])
def test_orders_are_told_apart(name: str) -> None:
    images, probes = found_in(name), pictures.SETS[name]
    assert judge.order(document(*images), probes) == []
    assert [one.rule for one in judge.order(document(*images[::-1]), probes)] == ["order-not-kept"]
    by_text = [images[index] for index in sorted(range(len(images)), key=str)]
    if name == "many":
        assert [one.rule for one in judge.order(document(*by_text), probes)] == ["order-not-kept"]
    assert [one.rule for one in judge.order(document(*[[] for _ in images]), probes)] == ["finds-nothing"]


def test_upside_down_is_a_share() -> None:
    upright = found_in("one")[0]
    turned = [(x, 127 - y) for x, y in upright]
    assert judge.upside_down(document(upright), document(turned), 128) == []
    assert judge.upside_down(document([]), document([]), 128) == []
    for other in (upright, turned[:4], []):
        assert [one.rule for one in judge.upside_down(document(upright), document(other), 128)] == ["upside-down"]


def test_blank_and_growth() -> None:
    assert judge.blank(document([])) == []
    assert [one.rule for one in judge.blank(document([(3, 3)]))] == ["blank-image"]
    assert judge.growth(200_000_000, 300_000_000, 1001) == []
    assert [one.rule for one in judge.growth(200_000_000, 2_000_000_000, 1001)] == ["memory-growth"]


def test_the_probe_set_is_the_same_everywhere() -> None:
    quick = [
        picture
        for name in ("one", "sizes", "16-bit", "colour", "blank", "upside-down")
        for picture in pictures.SETS[name]
    ]
    assert len(quick) < 12
    upright, turned = pictures.draw(pictures.SETS["one"][0]), pictures.draw(pictures.SETS["upside-down"][0])
    assert (upright[::-1] == turned).all()
    assert len({pictures.draw(picture).shape[:2] for picture in pictures.SETS["sizes"]}) == 3
    assert pictures.draw(pictures.SETS["16-bit"][0]).dtype == np.uint16
    assert pictures.draw(pictures.SETS["colour"][0]).shape == (128, 160, 3)
    assert int(upright.astype(np.int64).sum()) == 1_000_004


def test_the_witness_notes_and_the_environments_own_sitecustomize_runs(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    notes = tmp_path / "notes"
    variables = look_on.variables(notes, "x")
    outside = tmp_path / "outside" / "file"
    outside.parent.mkdir()
    code = f"open({str(outside)!r}, 'w'); open({str(outside)!r}); import os; os.mkdir({str(outside) + 's'!r})"
    path = f"{variables['PYTHONPATH']}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "theirs\n", "")
    lines = notes.read_text().splitlines()
    assert [line for line in lines if str(outside) in line] == [f"write {outside}", f"write {outside}s"]


def test_what_counts_as_outside(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text(
        "write /elsewhere/a\nwrite /elsewhere/__pycache__/m.pyc\nwrite /tmp/x\nwrite /dev/null\n"
        f"write {tmp_path}/home/jobs/1/x\n"
        "connect 127.0.0.1\nconnect ::1\nconnect 192.0.2.1\nconnect files.example.org\n"
    )
    seen = look_on.read(notes, Home(tmp_path / "home"), own=[])
    assert seen.written == ("/elsewhere/a",)
    assert seen.called == ("192.0.2.1", "files.example.org")
    assert look_on.printed("{'SEGSERVE_CHECK_TOKEN': '***'}", "x")
