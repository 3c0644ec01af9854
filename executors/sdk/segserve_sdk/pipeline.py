"""A chain of algorithms in one repository, for services that name boxes and classes: Antenna's way of writing them.

    class Blobs(Algorithm):
        key, name, task = "blobs", "Blobs", "localization"

        def run(self, batch):                     # images → for each the boxes in it
            return [[Box(*box) for box in find(image)] for image in batch]

    class Kinds(Algorithm):
        key, name, task, classes = "kinds", "Disc or bar", "classification", ("disc", "bar")

        def compile(self):                        # once, before the first batch
            self.model = load()

        def run(self, batch):                     # crops → for each one score per class
            return self.model(batch)

    class Shapes(Pipeline):
        "Finds shapes and says which."

        config = {"slug": "shapes", "name": "Shapes", "version": 1}
        stages = [Blobs(), Kinds()]
        batch_size = [1, 32]

        threshold: float = 0.5                    # parameters, as of a Runner

        @pipeline_stage(stage_index=1, error_type=ClassificationError)
        def classify(self, batch):                # only where a stage needs more than its algorithm's `run`
            return self.stages[1].run([normalised(crop) for crop in batch])

    if __name__ == "__main__":
        Shapes.main()

`python shapes.py --manifest` prints what belongs into segserve.toml, so that the service can say what it has before
anything is built.
"""

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, List, NamedTuple, Optional, Sequence, Type, Union

import numpy as np

from segserve_sdk import images, output, parameters, serving, tracking

LOCALIZATION, CLASSIFICATION = "localization", "classification"
_STAGE = "_pipeline_stage"


class StageError(RuntimeError):
    """A stage has failed for one image or crop. Subclasses name the stage."""


class LocalizationError(StageError):
    """The stage that finds objects has failed."""


class ClassificationError(StageError):
    """A stage that names objects has failed."""


class Box(NamedTuple):
    """Where an object is: x to the right, y down, corners of pixels; x2 and y2 lie behind the last pixel.

    The box of the single pixel at (3, 4) is 3, 4, 4, 5. `score` is how sure the localiser is, in 0..1.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    score: Optional[float] = None


class Classification(NamedTuple):
    """What one algorithm says of one crop: a score per class, in the order of the algorithm's `classes`."""

    algorithm: str
    scores: Sequence[float]
    seconds: float


class Detection(NamedTuple):
    """One object. `algorithm` is the key of what has found it, "" when it came with the request."""

    box: Box
    algorithm: str
    classifications: Sequence[Classification] = ()
    seconds: float = 0.0


class Found(NamedTuple):
    """The result for one image: its detections, and the texts of everything that went wrong with it."""

    detections: List[Detection]
    errors: List[str]


class Algorithm:
    """One step. `key` is its name for programs, `task` what it does, `classes` what a classifier tells apart."""

    key = ""
    name = ""
    task = LOCALIZATION
    classes = ()  # type: Sequence[str]
    version = 1
    description = ""

    def compile(self) -> None:
        """Load what `run` needs. Called once, before the first batch."""

    def run(self, batch: List[np.ndarray]) -> Sequence[Any]:
        """One answer per item of the batch: of an image its `Box`es, of a crop its scores, one per class."""
        raise NotImplementedError(f"{type(self).__name__} has no run")


def pipeline_stage(stage_index: int, error_type: Type[StageError] = StageError) -> Callable[[Any], Any]:
    """Marks the method of a pipeline that does one stage, and names the error that its failures are.

    The method gets a batch (at most `batch_size[stage_index]` items) and returns one answer per item. When it raises,
    the items are tried one by one, and only those that fail again are lost.
    """

    def mark(method: Any) -> Any:
        setattr(method, _STAGE, (stage_index, error_type))
        return method

    return mark


class Pipeline:
    """Base class of pipelines: `stages` in their order, `batch_size` of each, `config` with slug, name and version.

    Annotated class attributes of a subclass are its parameters, as those of a `Runner`. The first stage finds, all
    others classify what it has found.
    """

    stages = ()  # type: Sequence[Algorithm]
    batch_size = ()  # type: Sequence[int]
    config: ClassVar[Dict[str, Any]] = {}

    def __init__(self, **values: Any) -> None:
        """Parameters by name; those that are left out have their defaults.

        Raises:
            TypeError: there is no such parameter, or the pipeline itself makes no sense.
        """
        known = self.parameters()
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no parameter '{unknown[0]}': it has {', '.join(known)}")
        for name, one in known.items():
            setattr(self, name, values.get(name, one.default))
        _check(type(self))
        self._methods = _methods(self)
        self._compiled = False

    @classmethod
    def parameters(cls) -> Dict[str, parameters.Parameter]:
        """Its parameters by name."""
        return parameters.of(cls, Pipeline)

    @classmethod
    def manifest(cls) -> str:
        """What segserve.toml says of this pipeline."""
        _check(cls)
        lines = ["[[pipelines]]"]
        described = {"description": (cls.__doc__ or "").strip().partition("\n")[0], **cls.config}
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in described.items()]
        for stage in cls.stages:
            values = {"key": stage.key, "name": stage.name, "task": stage.task, "version": stage.version}
            more = {"description": stage.description, "classes": list(stage.classes)}
            values.update({name: value for name, value in more.items() if value})
            lines += ["", "[[pipelines.algorithms]]"]
            lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
        return "\n".join(lines) + "\n"

    def compile(self) -> None:
        """`compile` of every stage, once."""
        if not self._compiled:
            for stage in self.stages:
                stage.compile()
            self._compiled = True

    def run(
        self, batch: Sequence[np.ndarray], known: Optional[Sequence[Optional[Sequence[Box]]]] = None
    ) -> List[Found]:
        """What is in each image; `known` has for each the boxes that are there already, None to look for them.

        An image or crop with which a stage fails has an error; all others have their result.
        """
        self.compile()
        boxes = list(known) if known is not None else [None] * len(batch)
        found = [Found([Detection(box, "") for box in some or ()], []) for some in boxes]
        new = [index for index, some in enumerate(boxes) if some is None]
        for index, answer in zip(new, self._stage(0, [batch[index] for index in new])):
            if isinstance(answer.value, StageError):
                found[index].errors.append(_text(answer.value))
            else:
                found[index].detections.extend(
                    Detection(Box(*box), self.stages[0].key, (), answer.seconds) for box in answer.value
                )
        for index in range(1, len(self.stages)):
            self._classify(index, batch, found)
        return found

    @classmethod
    def main(cls, arguments: Optional[Sequence[str]] = None) -> None:
        """The command line: images → output.json with the boxes as polygons; or stay, where segserve wants that."""
        if (sys.argv[1:] if arguments is None else list(arguments)) == ["--manifest"]:
            print(cls.manifest(), end="")
            return
        known = cls.parameters()
        options = parameters.parser(cls.__doc__, known).parse_args(arguments)
        values = {name: getattr(options, name) for name in known}
        where = serving.place()
        if options.info:
            output.write_info("output.json", cls.config["slug"])
        elif where:
            resident = _Resident(cls, values)
            serving.serve(where, resident.load, resident)
            return
        else:
            cls(**values)._write(options.input_images)
        if not tracking.log_file("output.json"):
            print(f"no MLflow run: the result is {Path('output.json').resolve()}", flush=True)

    def _write(self, where: Union[str, Path]) -> None:
        found = self.run([image.read() for image in images.load(where)])
        for one in found:
            for text in one.errors:
                print(text, file=sys.stderr, flush=True)
        objects = [[self._object(detection) for detection in one.detections] for one in found]
        output.write_output("output.json", output.provenance(), objects)

    def _object(self, detection: Detection) -> Dict[str, Any]:
        box, label, score = detection.box, "Object", detection.box.score
        for one in detection.classifications[-1:]:
            classes = next(stage.classes for stage in self.stages if stage.key == one.algorithm)
            best = int(np.argmax(one.scores))
            label, score = classes[best], float(one.scores[best])
        right, bottom = box.x2 - 1, box.y2 - 1  # polygons go through the centres of pixels
        return output.polygon([(box.x1, box.y1), (box.x1, bottom), (right, bottom), (right, box.y1)], score, label)

    def _classify(self, index: int, batch: Sequence[np.ndarray], found: List[Found]) -> None:
        places = [(image, number) for image, one in enumerate(found) for number in range(len(one.detections))]
        crops = [cut(batch[image], found[image].detections[number].box) for image, number in places]
        usable = [place for place, crop in zip(places, crops) if crop.size]
        for image, _ in sorted({*places} - {*usable}):
            found[image].errors.append("a box lies outside the image")
        key = self.stages[index].key
        for (image, number), answer in zip(usable, self._stage(index, [crop for crop in crops if crop.size])):
            if isinstance(answer.value, StageError):
                found[image].errors.append(_text(answer.value))
                continue
            detection = found[image].detections[number]
            said = Classification(key, [float(score) for score in answer.value], answer.seconds)
            found[image].detections[number] = detection._replace(classifications=(*detection.classifications, said))

    def _stage(self, index: int, items: Sequence[np.ndarray]) -> "List[_Answer]":
        size, answers = max(1, int(self.batch_size[index])), []  # type: int, List[_Answer]
        for start in range(0, len(items), size):
            answers += self._batch(index, list(items[start : start + size]))
        return answers

    def _batch(self, index: int, batch: List[np.ndarray]) -> "List[_Answer]":
        method, error_type = self._methods.get(index, (self.stages[index].run, StageError))
        start = time.perf_counter()
        try:
            answers = _complete(method(batch), len(batch))
            seconds = (time.perf_counter() - start) / len(batch)
            return [_Answer(answer, seconds) for answer in answers]
        except Exception as error:
            if len(batch) > 1:
                return [answer for item in batch for answer in self._batch(index, [item])]
            failure = error_type(f"{type(error).__name__}: {error}")
            return [_Answer(failure, time.perf_counter() - start)]


def _complete(answers: Sequence[Any], count: int) -> Sequence[Any]:
    if len(answers) != count:
        raise ValueError(f"the stage gave {len(answers)} answers for {count} items")
    return answers


class _Answer(NamedTuple):
    value: Any
    seconds: float


class _Resident:
    """A pipeline that stays, as `serving` asks for it."""

    def __init__(self, kind: Type[Pipeline], values: Dict[str, Any]) -> None:
        self._kind, self._base, self._values = kind, values, values
        self._pipeline = kind(**values)

    def load(self) -> None:
        self._pipeline.compile()

    def __call__(self, message: Dict[str, Any], arrays: List[np.ndarray]) -> Dict[str, Any]:
        known = self._kind.parameters()
        wanted = {**self._base, **{n: known[n].convert(v) for n, v in message["values"].items() if n in known}}
        if wanted != self._values:
            pipeline = copy.copy(self._pipeline)  # its stages are loaded and stay so: they know no parameters
            for name, value in wanted.items():
                setattr(pipeline, name, value)
            pipeline._methods = _methods(pipeline)
            self._pipeline, self._values = pipeline, wanted
        given = message.get("boxes") or [None] * len(arrays)
        known_boxes = [None if some is None else [Box(*box) for box in some] for some in given]
        return {"images": [_described(one) for one in self._pipeline.run(arrays, known_boxes)]}


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """The pixels of a box, those of them that lie in the image; empty if none does."""
    rows, columns = image.shape[:2]
    left, top = max(0, int(np.floor(box.x1))), max(0, int(np.floor(box.y1)))
    right, bottom = min(columns, int(np.ceil(box.x2))), min(rows, int(np.ceil(box.y2)))
    return image[top : max(top, bottom), left : max(left, right)]


def _described(found: Found) -> Dict[str, Any]:
    return {
        "errors": found.errors,
        "detections": [
            {
                "box": [float(value) for value in one.box[:4]],
                "score": None if one.box.score is None else float(one.box.score),
                "algorithm": one.algorithm,
                "seconds": one.seconds,
                "classifications": [said._asdict() for said in one.classifications],
            }
            for one in found.detections
        ],
    }


def _methods(pipeline: Pipeline) -> Dict[int, Any]:
    """Stage index → (method, error type) of what `pipeline_stage` has marked."""
    marked = {}
    for name in dir(type(pipeline)):
        found = getattr(getattr(type(pipeline), name), _STAGE, None)
        if found is not None:
            marked[found[0]] = (getattr(pipeline, name), found[1])
    return marked


def _check(kind: Type[Pipeline]) -> None:
    if not kind.stages or len(kind.stages) != len(kind.batch_size):
        raise TypeError(f"{kind.__name__} needs stages, and one batch_size for each")
    for name in ("slug", "name", "version"):
        if name not in kind.config:
            raise TypeError(f"the config of {kind.__name__} needs a {name}")
    for stage in kind.stages:
        if not stage.key or (stage.task == CLASSIFICATION) != bool(stage.classes):
            raise TypeError(f"{type(stage).__name__} needs a key, and classes if (and only if) it classifies")


def _text(error: StageError) -> str:
    return f"{type(error).__name__}: {error}"
