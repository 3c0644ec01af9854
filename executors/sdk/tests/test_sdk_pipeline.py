"""Pipelines in Python, classifiers, and executors that stay: the guest's side, on every Python that it supports."""

import json
import socket
import threading
from typing import Any, Dict, List

import numpy as np
import pytest
from segserve_sdk import Classifier, Runner, output, serving
from segserve_sdk.pipeline import (
    Algorithm,
    Box,
    ClassificationError,
    LocalizationError,
    Pipeline,
    StageError,
    cut,
    pipeline_stage,
)


class Finder(Algorithm):
    """One box per bright pixel."""

    key, name = "finder", "Finder"

    def __init__(self) -> None:
        self.compiled = 0
        self.batches: List[int] = []

    def compile(self) -> None:
        self.compiled += 1

    def run(self, batch: List[np.ndarray]) -> List[List[Box]]:
        self.batches.append(len(batch))
        if any(image.max() == 255 for image in batch):
            raise ValueError("too bright")
        return [[Box(x, y, x + 1, y + 1, 0.5) for y, x in np.argwhere(image > 100)] for image in batch]


class Kinds(Algorithm):
    """Bright or dim."""

    key, name, task, classes = "kinds", "Kinds", "classification", ("bright", "dim")

    def run(self, batch: List[np.ndarray]) -> List[List[float]]:
        return [[float(crop.max()) / 255, 1 - float(crop.max()) / 255] for crop in batch]


def made(**more: Any) -> Pipeline:
    class Points(Pipeline):
        """Finds points.

        And more.
        """

        config = {"slug": "points", "name": "Points", "version": 2}
        stages = [Finder(), Kinds()]
        batch_size = [2, 3]
        threshold: int = 100

        @pipeline_stage(stage_index=0, error_type=LocalizationError)
        def find(self, batch: List[np.ndarray]) -> List[List[Box]]:
            return [[box for box in boxes if box.x1 < self.threshold] for boxes in self.stages[0].run(batch)]

        @pipeline_stage(stage_index=1, error_type=ClassificationError)
        def classify(self, batch: List[np.ndarray]) -> List[List[float]]:
            if any(crop.max() == 199 for crop in batch):
                raise RuntimeError("odd")
            return self.stages[1].run(batch)

    return Points(**more)


def image(*values: int) -> np.ndarray:
    return np.array([values, [0] * len(values)], np.uint8)


def test_stages_in_their_order_and_batches() -> None:
    pipeline = made()
    found = pipeline.run([image(200, 0), image(0, 0), image(150, 120)])
    assert pipeline.stages[0].batches == [2, 1]
    assert [len(one.detections) for one in found] == [1, 0, 2]
    first = found[0].detections[0]
    assert (first.box[:4], first.algorithm) == ((0, 0, 1, 1), "finder")
    (said,) = first.classifications
    assert (said.algorithm, list(said.scores)) == ("kinds", [200 / 255, 1 - 200 / 255])
    pipeline.run([image(0)])
    assert pipeline.stages[0].compiled == 1


def test_a_batch_that_fails_is_tried_one_by_one() -> None:
    found = made().run([image(200), image(255), image(199, 180)])
    assert [len(one.detections) for one in found] == [1, 0, 2]
    assert found[1].errors == ["LocalizationError: ValueError: too bright"]
    assert found[2].errors == ["ClassificationError: RuntimeError: odd"]
    assert [len(one.classifications) for one in found[2].detections] == [0, 1]


def test_boxes_that_are_there_are_not_looked_for() -> None:
    pipeline = made()
    found = pipeline.run([image(200, 10), image(200)], [[Box(1, 0, 2, 1), Box(9, 9, 10, 10)], None])
    assert pipeline.stages[0].batches == [1]
    assert [len(one.classifications) for one in found[0].detections] == [1, 0]
    assert found[0].errors == ["a box lies outside the image"]
    assert len(found[1].detections) == 1


def test_parameters_and_mistakes() -> None:
    assert len(made(threshold=1).run([image(200, 200)])[0].detections) == 1
    with pytest.raises(TypeError, match="no parameter 'nonsense'"):
        made(nonsense=1)
    for name, value in (("stages", []), ("batch_size", [1]), ("config", {"slug": "a"})):
        with pytest.raises(TypeError):
            type("Broken", (type(made()),), {name: value})()
    assert issubclass(LocalizationError, StageError)


def test_the_manifest_is_what_the_class_says(capsys: pytest.CaptureFixture) -> None:
    type(made()).main(["--manifest"])
    text = capsys.readouterr().out
    assert '[[pipelines]]\ndescription = "Finds points."\nslug = "points"' in text
    assert 'classes = ["bright", "dim"]' in text


def test_cutting() -> None:
    pixels = np.arange(20).reshape(4, 5)
    assert cut(pixels, Box(1, 1, 3, 2)).tolist() == [[6, 7]]
    assert cut(pixels, Box(-3, -3, 1, 1)).tolist() == [[0]]
    assert cut(pixels, Box(9, 9, 12, 12)).size == 0


def test_classes_are_objects_as_large_as_the_image() -> None:
    first, second = output.classes((4, 6, 3), ("a", "b"), (0.25, 0.75))
    assert (first["label"], first["score"], second["label"]) == ("b", 0.75, "a")
    assert first["contour_coordinates"] == [[0, 0], [0, 3], [5, 3], [5, 0]]
    with pytest.raises(ValueError, match="1 scores for 2 classes"):
        output.classes((4, 6), ("a", "b"), (1.0,))


class Tones(Classifier):
    """Light or dark."""

    classes = ("light", "dark")
    limit: float = 100.0
    loads = 0

    def load_assets(self) -> None:
        type(self).loads += 1

    def classify(self, batch: List[np.ndarray]) -> List[List[float]]:
        return [[1.0, 0.0] if one.mean() > self.limit else [0.0, 1.0] for one in batch]


class Guest:
    """A runner in a thread that serves, and our end of its socket."""

    def __init__(self, runner: type, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        deep = folder / ("a" * 60) / ("b" * 60)  # longer than the address of a socket may be
        deep.mkdir(parents=True)
        self.listening = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(deep)
        self.listening.bind("socket")
        self.listening.listen(1)
        monkeypatch.setenv(serving.SERVE, str(deep / "socket"))
        self.thread = threading.Thread(target=runner.main, args=([str(folder)],))
        self.thread.start()
        self.connection, _ = self.listening.accept()
        self.line = self.connection.makefile("rwb")

    def hear(self) -> Dict[str, Any]:
        return json.loads(self.line.readline().decode())

    def ask(self, images: List[np.ndarray], **more: Any) -> Dict[str, Any]:
        described = [{"name": "a", "shape": list(one.shape), "dtype": one.dtype.name} for one in images]
        content = b"".join(one.tobytes() for one in images)
        head = {"id": 7, "values": {}, "images": described, "bytes": len(content), **more}
        self.line.write(json.dumps(head).encode() + b"\n" + content)
        self.line.flush()
        return self.hear()

    def end(self) -> None:
        self.line.close()
        self.connection.close()
        self.listening.close()
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_a_runner_stays_and_answers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Tones.loads = 0
    guest = Guest(Tones, tmp_path, monkeypatch)
    assert guest.hear()["serve"] == serving.VERSION
    answer = guest.ask([np.full((2, 3), 200, np.uint8), np.full((2, 2, 3), 9, np.uint16)])
    assert [one[0]["label"] for one in answer["found"]] == ["light", "dark"]
    assert (answer["id"], Tones.loads) == (7, 1)
    (again,) = guest.ask([np.full((2, 3), 200, np.uint8)], values={"limit": "250", "other": "x"})["found"]
    assert again[0]["label"] == "dark"
    assert Tones.loads == 2  # what it loads may depend on its parameters
    guest.end()


def test_what_goes_wrong_is_an_answer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Runner):
        def segment(self, image: np.ndarray) -> np.ndarray:
            raise KeyError("nothing")

    guest = Guest(Failing, tmp_path, monkeypatch)
    guest.hear()
    assert guest.ask([np.zeros((2, 2), np.uint8)])["error"] == "KeyError: 'nothing'"
    guest.end()


def test_a_pipeline_stays_and_answers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(type(made()), tmp_path, monkeypatch)
    guest.hear()
    answer = guest.ask([image(200, 150), image(255)], boxes=[None, None], values={"threshold": "1"})
    first, second = answer["images"]
    assert [one["box"] for one in first["detections"]] == [[0, 0, 1, 1]]
    assert second["errors"] == ["LocalizationError: ValueError: too bright"]
    again = guest.ask([image(200, 150)], boxes=[[[1, 0, 2, 1]]])["images"][0]["detections"][0]
    assert (again["algorithm"], again["classifications"][0]["algorithm"]) == ("", "kinds")
    guest.end()
