"""The kit's runner on real files: from the command line to output.json. Python 3.8, numpy and OpenCV are enough."""

import json
import subprocess
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

import cv2
import numpy as np
import pytest
from segserve_sdk import Runner, devices, images, output, parameter, tracking
from segserve_sdk.progress import RECORD_BYTES, Progress


class Bright(Runner):
    """What is brighter than a threshold, 100% of it."""

    name = "bright"
    loads = 0

    threshold: int = parameter(100, help="grey value, % of nothing")
    mode: str = parameter("above", choices=("above", "below"))
    smooth: Optional[float] = None
    fill: bool = False
    model: Path = Path("none")

    def load_assets(self) -> None:
        type(self).loads += 1

    def problems(self) -> Sequence[str]:
        return ["threshold is negative."] if self.threshold < 0 else []

    def segment(self, image: np.ndarray) -> np.ndarray:
        mask = (image > self.threshold).astype(np.uint8)
        return cv2.connectedComponents(1 - mask if self.mode == "below" else mask)[1]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SEGSERVE_INPUTS", "SEGSERVE_PROGRESS", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images with 0, 1 and 2 squares."""
    where = tmp_path / "inputs"
    where.mkdir()
    for count in range(3):
        image = np.zeros((40, 60), np.uint8)
        for number in range(count):
            image[5:15, 5 + 20 * number : 15 + 20 * number] = 200
        cv2.imwrite(str(where / "i{:03d}.png".format(count)), image)
    return where


def test_the_whole_executor(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Bright.loads = 0
    Bright.main([str(folder), "--threshold", "150.0"])
    document = json.loads(Path("output.json").read_text())
    assert document["format_version"] == "0.2"
    assert [len(one) for one in document["segmentation_data"]] == [0, 1, 2]
    first = document["segmentation_data"][1][0]
    assert (first["label"], first["type"]) == ("Cell", "Polygon")
    assert [5, 5] in first["contour_coordinates"]
    assert Bright.loads == 1
    said = capsys.readouterr().out
    assert "3/3 i002.png: 2 objects in" in said
    assert str(tmp_path / "output.json") in said


def test_info_says_who_it_is(tmp_path: Path) -> None:
    for words in (["init", "-q"], ["remote", "add", "origin", "https://me:secret@example.org/a/b.git"]):
        subprocess.run(["git", *words], check=True)
    Bright.main(["--info"])
    document = json.loads(Path("output.json").read_text())
    assert (document["name"], document["type"], document["git_url"]) == (
        "bright",
        "info",
        "https://example.org/a/b.git",
    )


def test_parameters_come_as_texts_and_have_their_types(folder: Path) -> None:
    seen = []

    class Curious(Bright):
        label: str = "Cell"

        def load_assets(self) -> None:
            seen.append(self)

    words = [
        "--threshold",
        "7",
        "--mode",
        "below",
        "--smooth",
        "1.5",
        "--fill",
        "True",
        "--model",
        "weights/a.pt",
        "--label",
        "nucleus",
    ]
    Curious.main([str(folder), *words])
    (runner,) = seen
    values = (runner.threshold, runner.mode, runner.smooth, runner.fill, runner.model, runner.label)
    assert values == (7, "below", 1.5, True, Path("weights/a.pt"), "nucleus")
    assert json.loads(Path("output.json").read_text())["segmentation_data"][0][0]["label"] == "nucleus"
    Curious.main([str(folder), "--smooth", "none", "--fill", "0"])
    assert (seen[1].smooth, seen[1].fill) == (None, False)


@pytest.mark.parametrize(
    "words", ["--threshold x", "--threshold 1.5", "--mode sideways", "--fill perhaps", "--thresh 1"]
)
def test_wrong_parameters_end_with_exit_code_2(words: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        Bright.main([str(folder), *words.split()])
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


def test_problems_are_said_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture) -> None:
    Bright.loads = 0
    with pytest.raises(SystemExit) as ended:
        Bright.main([str(folder), "--threshold", "-1"])
    assert (ended.value.code, Bright.loads) == (2, 0)
    assert "error: threshold is negative." in capsys.readouterr().err


def test_help_shows_percent_signs_and_defaults(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        Bright.main(["--help"])
    assert "grey value, % of nothing (default: 100)" in " ".join(capsys.readouterr().out.split())


class Values(NamedTuple):
    size: float = 2.0
    many: int = 3


class Configured(Runner):
    Settings = Values
    extra: str = "x"

    def segment(self, image: np.ndarray) -> np.ndarray:
        return np.full(image.shape[:2], int(self.settings.size), np.int32)


def test_settings_of_a_named_tuple_are_parameters() -> None:
    runner = Configured(size=5.0)
    assert (runner.settings, runner.extra) == (Values(5.0, 3), "x")
    assert list(Configured.parameters()) == ["size", "many", "extra"]
    with pytest.raises(TypeError, match="no parameter 'sice'"):
        Configured(sice=1)


def test_parameters_that_no_text_can_be_are_refused() -> None:
    class Listed(Runner):
        values: List[int] = []

    class Bare(Runner):
        size: float

    class Reserved(Runner):
        info: bool = False

    for runner, words in ((Listed, "Listed.values"), (Bare, "needs a default"), (Reserved, "cannot have this name")):
        with pytest.raises(TypeError, match=words):
            runner.parameters()


def test_batches_are_as_large_as_asked_and_in_order(folder: Path) -> None:
    sizes, names = [], []

    class Batched(Bright):
        batch_size = 2

        def segment_batch(self, batch: List[np.ndarray]) -> List[np.ndarray]:
            sizes.append(len(batch))
            names.extend(image.name for image in self.staged)
            return super().segment_batch(batch)

    assert [len(one) for one in Batched().run(folder)] == [0, 1, 2]
    assert (sizes, names) == ([2, 1], ["i000.png", "i001.png", "i002.png"])


def test_a_runner_stays_warm(folder: Path) -> None:
    Bright.loads = 0
    runner = Bright()
    runner.load()
    assert runner.run(folder) == runner.run(folder)
    assert Bright.loads == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda image: image[:5], "mask of shape"),
        (lambda image: (np.full(image.shape, 2), [0.5]), "1 scores, but the mask has label values up to 2"),
        (lambda image: (np.full(image.shape, 2), None, ["a"]), "1 labels"),
        (lambda image: None, "mask of shape"),
    ],
)
def test_what_is_no_segmentation_is_refused_with_the_name_of_the_image(
    given, words, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    class Wrong(Runner):
        def segment(self, image: np.ndarray) -> np.ndarray:
            return given(image)

    with pytest.raises(ValueError, match=words):
        Wrong().run(folder)
    assert "this went wrong at: i000.png" in capsys.readouterr().err


def test_scores_labels_and_outlines() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[1:4, 1:4], mask[5:8, 5:8] = 1, 2
    found = output.objects(mask, [0.25, 0.75], ["a", "b"])
    assert [(one["label"], one["score"]) for one in found] == [("a", 0.25), ("b", 0.75)]
    one = output.polygon([(0, 0), (4.5, 0), (4.5, 3)], score=1, label="c")
    assert one == {"label": "c", "contour_coordinates": [[0, 0], [4.5, 0], [4.5, 3]], "type": "Polygon", "score": 1.0}
    with pytest.raises(ValueError, match="at least 3"):
        output.polygon([(0, 0), (1, 1)])


def test_original_names_come_from_segserves_map(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [image.name for image in images.load(folder)] == ["i000.png", "i001.png", "i002.png"]
    known = {"name": "i001.png", "source": "/data/cells.tif", "t": 4, "z": "max", "pixel_size_um": [0.5, 0.25], "x": 1}
    (tmp_path / "map.json").write_text(json.dumps({"version": 1, "images": [known]}))
    monkeypatch.setenv("SEGSERVE_INPUTS", str(tmp_path / "map.json"))
    loaded = images.load(folder)
    assert [image.name for image in loaded] == ["i000.png", "cells.tif t4 zmax", "i002.png"]
    assert (loaded[1].path, loaded[1].t, loaded[1].c) == (folder / "i001.png", 4, None)
    assert loaded[1].pixel_size_um == (0.5, 0.25)
    assert loaded[1].read().shape == (40, 60)


def test_progress_is_one_record_in_the_file_or_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with Progress(2) as progress:
        progress.advance()
    assert capsys.readouterr().out == "1/2\n"
    monkeypatch.setenv("SEGSERVE_PROGRESS", str(tmp_path / "progress"))
    with Progress(1000) as progress:
        assert json.loads((tmp_path / "progress").read_text()) == {"done": 0, "total": 1000}
        for _ in range(1000):
            progress.advance()
    assert json.loads((tmp_path / "progress").read_text()) == {"done": 1000, "total": 1000}
    assert (tmp_path / "progress").stat().st_size == RECORD_BYTES
    assert capsys.readouterr().out == ""


class FakeTorch:
    """A build of torch that sees a GPU and cannot compute there: there is none on the machine that runs this."""

    class cuda:  # noqa: N801
        @staticmethod
        def is_available() -> bool:
            return True

    class backends:  # noqa: N801
        pass

    @staticmethod
    def ones(size: int, device: str) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")


def test_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(devices, "_mps_visible", lambda: False)
    assert devices.choose() == "cpu"
    assert devices.choose("cpu") == "cpu"
    with pytest.raises(RuntimeError, match="'cuda' was asked for"):
        devices.choose("cuda")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        devices.choose("gpu")
    monkeypatch.setattr(devices, "_cuda_visible", lambda: True)
    assert devices.choose() == "cuda"
    assert devices.choose("auto", FakeTorch) == "cpu"
    assert "no kernel image" in capsys.readouterr().out
    assert devices.onnx_providers("cuda") == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_without_a_run_nothing_is_logged_and_mlflow_is_not_needed(tmp_path: Path) -> None:
    assert not tracking.log_file(tmp_path / "absent")


def test_what_may_pass_is_tried_again_and_what_will_not_is_not() -> None:
    calls = []

    def fails(error: Exception, times: int) -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    assert tracking.retried(lambda: fails(ConnectionError("reset"), 2), pause=0.01) == 3
    for error, tried in ((ConnectionError("reset"), 3), (FileNotFoundError("x"), 1), (ValueError("x"), 1)):
        calls.clear()
        with pytest.raises(type(error)):
            tracking.retried(lambda error=error: fails(error, 99), tries=3, pause=0.01)
        assert len(calls) == tried
