"""One request through the stages of its pipeline. What fails costs the image or crop with which it failed, no other.

While a later stage works on the crops of one image, the first stage has the next image already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from segserve.antenna import boxes
from segserve.antenna.chains import CLASSIFICATION, DETECTION, Algorithm, Asked, Box, Chain, Image, Known, Stage
from segserve.antenna.images import Fetcher
from segserve.antenna.line import Answer, Seen, StageDown, StageFailed
from segserve.errors import SegserveError
from segserve.format import Document

Array = NDArray[Any]
T = TypeVar("T")
_WHOLE_BATCH = 8  # images that a pipeline in Python gets at once: it makes its own batches
_MOST_CRASHES = 3  # of one stage in one request; after that it is not started again


class Answers(Protocol):
    """A stage that can be asked (`stages.Stage`)."""

    def batch(self, wanted: int) -> int:
        """How many images it gets at once."""

    def ask(self, images: Sequence[Array], names: Sequence[str], values: Mapping[str, str], **more: Any) -> Answer:
        """The answer to a batch; raises StageFailed, StageDown, SegserveError."""


@dataclass(frozen=True, slots=True)
class Classified:
    """What an algorithm says of a detection. `scores` belong to `labels`, `seconds` is what it took."""

    algorithm: tuple[str, str]  # name, key
    label: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float
    terminal: bool


@dataclass(slots=True)
class Detected:
    """An object: where it is, who found it, what others say it is."""

    box: Box
    algorithm: tuple[str, str]  # name, key
    seconds: float | None = None
    crop_url: str = ""
    classified: list[Classified] = field(default_factory=list)
    pixels: Array | None = None  # when its crop came by itself


@dataclass(slots=True)
class Outcome:
    """What is known of one source image. `processed`: the first stage had it; without detections, nothing is there."""

    image: Image
    detections: list[Detected] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    processed: bool = False
    seconds: float = 0.0  # of the first stage


@dataclass(slots=True)
class Run:
    """The result of a request, and the seconds of each stage by the key of its algorithm."""

    outcomes: list[Outcome]
    seconds: dict[str, float]


def run(asked: Asked, stages: Sequence[Answers], fetcher: Fetcher, *, done: Callable[[int], None]) -> Run:
    """Everything. `done` is told how many images are through.

    Raises:
        SegserveError: a stage cannot be started.
    """
    work = _Work(asked, stages, fetcher)
    outcomes = [Outcome(image) for image in asked.images]
    if asked.chain.whole:
        _whole(work, outcomes, done)
    else:
        _through(work, outcomes, done)
    return Run(outcomes, work.seconds)


class _Work:
    """What the steps of one request share."""

    def __init__(self, asked: Asked, stages: Sequence[Answers], fetcher: Fetcher) -> None:
        self.asked, self.chain, self.fetcher = asked, asked.chain, fetcher
        self._stages = stages
        self.seconds = {one.key: 0.0 for one in algorithms(asked.chain)}
        self._crashes = [0] * len(stages)
        self.known: dict[str, list[Known]] = {}
        for one in asked.known:
            self.known.setdefault(one.image, []).append(one)

    def pictures(self) -> Iterator[Array | SegserveError]:
        """The pixels of the source images, in order."""
        return self.fetcher.all([image.url for image in self.asked.images])

    def batch(self, number: int) -> int:
        """How many images a stage gets at once."""
        return self._stages[number].batch(self.chain.stages[number].batch_size)

    def ask(self, number: int, images: Sequence[Array], names: Sequence[str], **more: Any) -> list[Answer | str]:
        """One answer per image of a batch, or the text of what went wrong with it."""
        stage = self.chain.stages[number]
        if self._crashes[number] >= _MOST_CRASHES:
            return [f"{stage.error}: it has crashed {_MOST_CRASHES} times"] * len(images)
        try:
            answer = self._stages[number].ask(images, names, self._values(number), **more)
        except (StageFailed, StageDown) as failure:
            self._crashes[number] += isinstance(failure, StageDown)
            if len(images) > 1:  # which of them is it?
                singles = zip(images, names, _split(more, len(images)), strict=True)
                return [one for image, name, own in singles for one in self.ask(number, [image], [name], **own)]
            return [f"{stage.error}: {failure}"]
        self._crashes[number] = 0
        self.seconds[stage.algorithm.key] = self.seconds.get(stage.algorithm.key, 0.0) + answer.seconds
        return list(_per_image(answer, len(images)))

    def _values(self, number: int) -> Mapping[str, str]:
        return self.asked.values[number] if number < len(self.asked.values) else {}


def algorithms(chain: Chain) -> tuple[Algorithm, ...]:
    """The algorithms of a pipeline, in the order of its stages."""
    return chain.algorithms if chain.whole else tuple(stage.algorithm for stage in chain.stages)


# ----------------------------------------------------------------------------------------------- chains of executors


def _through(work: _Work, outcomes: list[Outcome], done: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="classify") as pool:
        later: list[Future[None]] = []
        for number, (found, pixels) in enumerate(_located(work, outcomes), start=1):
            later.append(pool.submit(_classify, work, found, pixels))
            # Pixels of images that wait for the later stages are in memory: never many.
            if number > 2 * _WHOLE_BATCH:
                later[number - 2 * _WHOLE_BATCH].result()
            done(number)
        for future in later:
            future.result()


def _located(work: _Work, outcomes: list[Outcome]) -> Iterator[tuple[Outcome, Array | None]]:
    """Every image with its detections, as far as the first stage has any, and its pixels."""
    size = work.batch(0)
    for batch in _batches(zip(outcomes, work.pictures(), strict=True), size):
        new: list[tuple[Outcome, Array]] = []
        for found, pixels in batch:
            if found.image.id in work.known and _classifies(work.chain):
                _take_known(work, found, pixels)
            elif isinstance(pixels, SegserveError):
                found.errors.append(pixels.message)
            elif work.chain.stages[0].algorithm.task == CLASSIFICATION:
                found.detections.append(Detected(boxes.whole(_shape(pixels)), _who(work.chain.stages[0].algorithm)))
                found.processed = True
            else:
                new.append((found, pixels))
        if new:
            _locate(work, new)
        yield from ((found, None if isinstance(pixels, SegserveError) else pixels) for found, pixels in batch)


def _locate(work: _Work, batch: Sequence[tuple[Outcome, Array]]) -> None:
    stage = work.chain.stages[0]
    answers = work.ask(0, [pixels for _, pixels in batch], [found.image.id for found, _ in batch])
    for (found, pixels), answer in zip(batch, answers, strict=True):
        if isinstance(answer, str):
            found.errors.append(answer)
            continue
        assert answer.document is not None  # only pipelines in Python answer otherwise
        found.processed, found.seconds = True, answer.seconds
        who = _who(stage.algorithm)
        found.detections = [Detected(box, who, answer.seconds) for box in boxes.boxes(answer.document, _shape(pixels))]
        if stage.algorithm.task == DETECTION:
            _label(work, found, answer.document, answer.seconds)


def _label(work: _Work, found: Outcome, document: Document, seconds: float) -> None:
    """A detector's own labels are classifications, where its classes are declared."""
    stage = work.chain.stages[0]
    strange = sorted({*document.labels} - {*stage.algorithm.classes})
    if strange:
        found.errors.append(f"{stage.error}: '{strange[0]}' is not among the classes of {stage.algorithm.key}")
    for detection, label, score in zip(found.detections, document.labels, document.scores.tolist(), strict=True):
        if label not in strange:
            sure = 1.0 if np.isnan(score) else float(score)
            last = not _classifies(work.chain)
            detection.classified.append(
                Classified(_who(stage.algorithm), label, (label,), (sure,), seconds / len(found.detections), last)
            )


def _take_known(work: _Work, found: Outcome, pixels: Array | SegserveError) -> None:
    """Detections of the request: their crops are cut from the source image, or fetched where that cannot be had."""
    found.processed = True
    for number, one in enumerate(work.known[found.image.id]):
        detection = Detected(one.box or (0.0, 0.0, 0.0, 0.0), one.algorithm, crop_url=one.crop_url)
        if one.box is None or isinstance(pixels, SegserveError):
            if not one.crop_url:
                why = pixels.message if isinstance(pixels, SegserveError) else "it has neither a box nor a crop"
                found.errors.append(f"detection {number}: {why}")
                continue
            try:
                detection.pixels = work.fetcher.pixels(one.crop_url, f"crop-{number}")
            except SegserveError as failure:
                found.errors.append(f"detection {number}: {failure.message}")
                continue
            if one.box is None:
                detection.box = boxes.whole(_shape(detection.pixels))
        found.detections.append(detection)


def _classify(work: _Work, found: Outcome, pixels: Array | None) -> None:
    """All later stages for the detections of one image."""
    for number, stage in enumerate(work.chain.stages):
        if stage.algorithm.task != CLASSIFICATION:
            continue
        crops: list[tuple[int, Array]] = []
        for index, detection in enumerate(found.detections):
            crop = detection.pixels
            if crop is None and pixels is not None:
                crop = boxes.crop(pixels, detection.box, stage.margin)
            if crop is None or not crop.size:
                found.errors.append(f"{stage.error}: the box of detection {index} lies outside the image")
            else:
                crops.append((index, np.ascontiguousarray(crop)))
        for batch in _batches(iter(crops), work.batch(number)):
            _name(work, number, found, batch)


def _name(work: _Work, number: int, found: Outcome, batch: Sequence[tuple[int, Array]]) -> None:
    stage = work.chain.stages[number]
    last = number == len(work.chain.stages) - 1
    names = [f"{found.image.id} {index}" for index, _ in batch]
    for (index, _), answer in zip(batch, work.ask(number, [crop for _, crop in batch], names), strict=True):
        said = answer if isinstance(answer, str) else _best(stage, answer, last)
        if isinstance(said, str):
            found.errors.append(said)
        else:
            found.detections[index].classified.append(said)


def _best(stage: Stage, answer: Answer, last: bool) -> Classified | str:
    """What the objects of a crop say it is: each class has the best score of its objects."""
    document = answer.document
    assert document is not None
    scores: dict[str, float] = {}
    for label, score in zip(document.labels, document.scores.tolist(), strict=True):
        scores[label] = max(scores.get(label, 0.0), 1.0 if np.isnan(score) else float(score))
    strange = sorted({*scores} - {*stage.algorithm.classes})
    if strange:
        return f"{stage.error}: '{strange[0]}' is not among the classes of {stage.algorithm.key}"
    if not scores:
        return f"{stage.error}: {stage.algorithm.key} says nothing of it"
    row = tuple(scores.get(name, 0.0) for name in stage.algorithm.classes)
    label = max(scores, key=lambda name: scores[name])
    return Classified(_who(stage.algorithm), label, stage.algorithm.classes, row, answer.seconds, last)


# ------------------------------------------------------------------------------------------------ pipelines in Python


def _whole(work: _Work, outcomes: list[Outcome], done: Callable[[int], None]) -> None:
    number = 0
    for batch in _batches(zip(outcomes, work.pictures(), strict=True), _WHOLE_BATCH):
        there: list[tuple[Outcome, Array]] = []
        for found, pixels in batch:
            if isinstance(pixels, SegserveError):
                found.errors.append(pixels.message)
            else:
                there.append((found, pixels))
        if there:
            given = [_given(work, found) for found, _ in there]
            names = [found.image.id for found, _ in there]
            answers = work.ask(0, [pixels for _, pixels in there], names, boxes=given)
            for (found, pixels), boxes_given, answer in zip(there, given, answers, strict=True):
                _take_seen(work, found, _shape(pixels), boxes_given is not None, answer)
        number += len(batch)
        done(number)


def _given(work: _Work, found: Outcome) -> list[Box] | None:
    known = [one for one in work.known.get(found.image.id, ()) if one.box is not None]
    if not known:
        return None
    found.detections = [Detected(one.box, one.algorithm, crop_url=one.crop_url) for one in known if one.box]
    return [one.box for one in known if one.box]


def _take_seen(work: _Work, found: Outcome, shape: tuple[int, int], reprocessed: bool, answer: Answer | str) -> None:
    if isinstance(answer, str):
        found.errors.append(answer)
        return
    (seen,) = answer.images
    found.processed, found.seconds = True, answer.seconds
    found.errors += seen.errors
    if not reprocessed:
        found.detections = _seen_boxes(work, seen, shape, found)
    last = work.chain.algorithms[-1].key
    for detection, one in zip(found.detections, seen.detections, strict=False):
        for said in one.classifications:
            algorithm = next((known for known in work.chain.algorithms if known.key == said.algorithm), None)
            if algorithm is None or len(algorithm.classes) != len(said.scores) or not said.scores:
                found.errors.append(f"'{said.algorithm}' is not as segserve.toml declares it")
                continue
            label = algorithm.classes[int(np.argmax(said.scores))]
            scores, who = tuple(said.scores), _who(algorithm)
            detection.classified.append(
                Classified(who, label, algorithm.classes, scores, said.seconds, algorithm.key == last)
            )
            work.seconds[algorithm.key] += said.seconds
    work.seconds[work.chain.algorithms[0].key] += sum(one.seconds for one in seen.detections[:1])


def _seen_boxes(work: _Work, seen: Seen, shape: tuple[int, int], found: Outcome) -> list[Detected]:
    known = {algorithm.key: algorithm for algorithm in work.chain.algorithms}
    kept: list[Detected] = []
    for one in seen.detections:
        if one.algorithm not in known:
            found.errors.append(f"'{one.algorithm}' is not declared in segserve.toml")
        x1, y1, x2, y2 = one.box
        box = (max(0.0, x1), max(0.0, y1), min(float(shape[1]), x2), min(float(shape[0]), y2))
        kept.append(Detected(box, _who(known.get(one.algorithm, work.chain.algorithms[0])), one.seconds))
    return kept


# ------------------------------------------------------------------------------------------------------------- shared


def _classifies(chain: Chain) -> bool:
    return any(one.task == CLASSIFICATION for one in algorithms(chain))


def _who(algorithm: Algorithm) -> tuple[str, str]:
    return algorithm.name, algorithm.key


def _shape(pixels: Array) -> tuple[int, int]:
    return int(pixels.shape[0]), int(pixels.shape[1])


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch


def _split(more: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """What goes along with a batch, for each image of it."""
    return [{name: [values[index]] for name, values in more.items()} for index in range(count)]


def _per_image(answer: Answer, count: int) -> Iterator[Answer]:
    seconds = answer.seconds / count
    for index in range(count):
        document = None if answer.document is None else answer.document.image(index)
        yield Answer(document, answer.images[index : index + 1], seconds)
