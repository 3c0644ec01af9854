"""A whole executor in one class: parameters, assets loaded once, one method per image.

    class Blobs(Runner):
        "Finds blobs."

        threshold: float = 0.5

        def load_assets(self):
            self.model = load(weights.fetch(URL, sha256=DIGEST))

        def segment(self, image):
            return self.model(image) > self.threshold

    if __name__ == "__main__":
        Blobs.main()

Loading and running are apart: whoever keeps a runner in memory calls `load` once and `run` for every job.
"""

import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

import numpy as np

from segserve_sdk import images, output, parameters, serving, tracking
from segserve_sdk.progress import Progress

Objects = List[Dict[str, Any]]
Segmentation = Union[np.ndarray, Tuple[Any, ...], Objects]


class Runner:
    """Base class of executors. Annotated class attributes of a subclass are its parameters, see `parameters`.

    So are the fields of the dataclass or NamedTuple `Settings`, if there is one: `self.settings` has their values.
    `label` names the objects, `name` the executor; `batch_size` is how many images `segment_batch` gets at once.
    """

    Settings: ClassVar[Optional[Type[Any]]] = None

    name = ""
    label = "Cell"
    batch_size = 1

    def __init__(self, **values: Any) -> None:
        """Parameters by name; those that are left out have their defaults.

        Raises:
            TypeError: there is no such parameter.
        """
        known = self.parameters()
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no parameter '{unknown[0]}': it has {', '.join(known)}")
        given = {one.name: values.get(one.name, one.default) for one in known.values()}
        fields = parameters.of_settings(self.Settings) if self.Settings else {}
        self.settings: Any = self.Settings(**{name: given.pop(name) for name in fields}) if self.Settings else None
        for name, value in given.items():
            setattr(self, name, value)
        self.staged: Sequence[images.Image] = ()  # those that `segment` or `segment_batch` is working on
        self._loaded = False

    # ------------------------------------------------------------------------------------------ what an author writes

    def problems(self) -> Sequence[str]:
        """What is wrong with the parameters, one sentence each; asked before anything slow begins."""
        return ()

    def load_assets(self) -> None:
        """Load what every image needs: models, tables. Called once, before the first image."""

    def segment(self, image: np.ndarray) -> Segmentation:
        """The objects of one image, which is as `images.read` gives it.

        A label mask (rows, columns) with 0 = background; or (mask, scores), one number per label value; or (mask,
        scores, labels), scores may be None; or a list of objects made by `output.objects` or `output.polygon`.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither segment nor segment_batch")

    def segment_batch(self, batch: List[np.ndarray]) -> Sequence[Segmentation]:
        """One segmentation per image of the batch (at most `batch_size`, of any sizes)."""
        return [self.segment(image) for image in batch]

    # ------------------------------------------------------------------------------------------------ what it does

    @classmethod
    def parameters(cls) -> Dict[str, parameters.Parameter]:
        """Its parameters by name."""
        settings = parameters.of_settings(cls.Settings) if cls.Settings else {}
        return {**settings, **parameters.of(cls, Runner)}

    def load(self) -> None:
        """`load_assets`, once."""
        if not self._loaded:
            start = time.perf_counter()
            self.load_assets()
            self._loaded = True
            print(f"loaded in {time.perf_counter() - start:.2f} s", flush=True)

    def run(self, where: Union[str, Path]) -> List[Objects]:
        """The objects of every image in a folder (or of one file), in order; `load` is called if need be.

        Raises:
            FileNotFoundError: there are no images.
            ValueError: an image cannot be read, or `segment` gave something else than it should.
        """
        self.load()
        staged = images.load(where)
        results: List[Objects] = []
        with Progress(len(staged)) as progress:
            for batch in _batches(staged, max(1, int(self.batch_size))):
                start = time.perf_counter()
                found = self._segmented(batch)
                seconds = (time.perf_counter() - start) / len(batch)
                for image, objects in zip(batch, found):
                    progress.advance(text=f"{image.name}: {len(objects)} objects in {seconds:.2f} s")
                results += found
        return results

    @classmethod
    def main(cls, arguments: Optional[Sequence[str]] = None) -> None:
        """The command line of an executor: read, run, write output.json, log it. `--info` says who it is instead.

        Where segserve wants it to stay (see `serving`), it answers requests instead, until nobody has any more.
        """
        known = cls.parameters()
        parser = parameters.parser(cls.__doc__, known)
        options = parser.parse_args(arguments)
        if options.info:
            output.write_info("output.json", cls.name or cls.__name__)
        else:
            runner = cls(**{name: getattr(options, name) for name in known})
            wrong = runner.problems()
            if wrong:
                parser.exit(2, "".join(f"error: {problem}\n" for problem in wrong))
            where = serving.place()
            if where:
                serving.serve(where, runner.load, _Resident(runner, {name: getattr(options, name) for name in known}))
                return
            results = runner.run(options.input_images)
            output.write_output("output.json", output.provenance(), results)
        if not tracking.log_file("output.json"):
            print(f"no MLflow run: the result is {Path('output.json').resolve()}", flush=True)

    def segmented(self, arrays: List[np.ndarray], staged: Sequence[images.Image]) -> List[Objects]:
        """The objects of images that are in memory already, in order; `load` is called if need be.

        Raises:
            ValueError: `segment` gave something else than it should.
        """
        self.load()
        self.staged = staged
        return self._all_objects(self.segment_batch(arrays), arrays)

    def _segmented(self, batch: Sequence[images.Image]) -> List[Objects]:
        self.staged = batch
        try:
            arrays = [image.read() for image in batch]
            return self._all_objects(self.segment_batch(arrays), arrays)
        except Exception:
            names = ", ".join(image.name for image in batch)
            print(f"this went wrong at: {names}", file=sys.stderr, flush=True)  # the cause itself follows
            raise

    def _all_objects(self, found: Sequence[Segmentation], arrays: Sequence[np.ndarray]) -> List[Objects]:
        if len(found) != len(arrays):
            raise ValueError(f"segment_batch gave {len(found)} results for {len(arrays)} images")
        return [self._objects(one, array) for one, array in zip(found, arrays)]

    def _objects(self, found: Segmentation, image: np.ndarray) -> Objects:
        if isinstance(found, list):
            return found
        mask, scores, labels = (*found, None, None)[:3] if isinstance(found, tuple) else (found, None, None)
        mask = np.asarray(mask)
        if mask.shape != image.shape[:2]:
            raise ValueError(f"segment gave a mask of shape {mask.shape}; the image has {image.shape[:2]}")
        return output.objects(mask, scores, self.label if labels is None else labels)


class _Resident:
    """A runner that stays, as `serving` asks for it. Other parameters are another runner: what it loads may differ."""

    def __init__(self, runner: Runner, values: Dict[str, Any]) -> None:
        self._runner, self._values, self._base = runner, values, values

    def __call__(self, message: Dict[str, Any], arrays: List[np.ndarray]) -> Dict[str, Any]:
        known = self._runner.parameters()
        wanted = dict(self._base)
        for name, text in message["values"].items():
            if name in known:  # an entry point may have more of them than its runner
                wanted[name] = known[name].convert(text)
        if wanted != self._values:
            self._change(wanted)
        staged = [images.Image(Path(one["name"]), one["name"]) for one in message["images"]]
        return {"found": self._runner.segmented(arrays, staged)}

    def _change(self, wanted: Dict[str, Any]) -> None:
        runner = type(self._runner)(**wanted)
        wrong = runner.problems()
        if wrong:
            raise ValueError(" ".join(wrong))
        runner.load()
        self._runner, self._values = runner, wanted


def _batches(staged: Sequence[images.Image], size: int) -> Iterator[Sequence[images.Image]]:
    for start in range(0, len(staged), size):
        yield staged[start : start + size]
