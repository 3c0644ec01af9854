"""The classes that a module's Runner inherits from, one per algorithm type, as the guides describe them."""

from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Type

import numpy as np
import pydantic

from segserve_modules import schemas
from segserve_modules.session import ModuleError, Session


class BaseRunner:
    """Fetches, computes and posts: `preprocess` → `inference` → `postprocess`, with data of one's own schemas.

    Both forms of the constructor work: `__init__(self, task_handler, device="cpu")`, and `__init__(self)` followed by
    `initialize(device)`. `device` is what torch understands: cpu, cuda or mps.
    """

    _session: Optional[Session] = None
    _locked: FrozenSet[str] = frozenset()
    device = "cpu"

    def __init__(self, task_handler: Any = None, device: str = "cpu") -> None:
        self.initialize(device)

    def initialize(self, device: str = "cpu") -> None:
        """Take the device that this runner works on."""
        self.device = device

    @property
    def task_handler(self) -> Session:
        """Whom the runner talks to."""
        if self._session is None:
            raise ModuleError("The runner was not started by segserve: there is nothing to fetch from.")
        return self._session

    @task_handler.setter
    def task_handler(self, value: Any) -> None:
        """A module that keeps its `task_handler` keeps the one that it was given."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._locked:
            raise AttributeError(
                f"'{name}' was set in load_assets and is locked: every image has to meet the same. "
                "Keep what changes in another attribute."
            )
        object.__setattr__(self, name, value)

    def load_assets(self) -> None:
        """Load models and other files, once; what is set here is kept, and locked."""

    def preprocess(self, input_data: Dict[str, Any], args: Optional[Dict[str, Any]] = None) -> Any:
        """Fetch what `input_data["input_dataset_ids"]` names and make it ready."""
        raise NotImplementedError(f"{type(self).__name__} has no method preprocess(input_data, args).")

    def inference(self, data: Any, args: Optional[Dict[str, Any]] = None) -> Any:
        """Compute."""
        raise NotImplementedError(f"{type(self).__name__} has no method inference(data, args).")

    def postprocess(self, data: Any, args: Optional[Dict[str, Any]] = None) -> List[str]:
        """Post the result; return what `post_data` returned."""
        raise NotImplementedError(f"{type(self).__name__} has no method postprocess(data, args).")

    def run(self, input_data: Dict[str, Any], args: Dict[str, Any]) -> List[str]:
        """The three steps, one after the other."""
        return self.postprocess(self.inference(self.preprocess(input_data, args), args), args)

    def fetch_data(self, dataset_ids: Sequence[str], *what: Any) -> List[Dict[str, Any]]:
        """The data sets; after the identifiers may come a schema and names of fields."""
        schema, keys = _schema_and_keys(what)
        return self.task_handler.fetch(dataset_ids, schema, keys)

    def post_data(self, data: Sequence[Dict[str, Any]], schema: Optional[Type[pydantic.BaseModel]] = None) -> List[str]:
        """Keep results (a list of dicts); returns their identifiers."""
        return self.task_handler.post(data, schema)

    def fetch_asset(self, path: str) -> Any:
        """A file of the module as `io.BytesIO`; `path` is relative to the module's folder."""
        return self.task_handler.fetch_asset(path)

    def log_message(self, message: Any, logging_level: str = "INFO") -> None:
        """A line of the job's log."""
        self.task_handler.log_message(message, logging_level)

    def set_progress(self, progress: float) -> None:
        """How much of this call is done, 0 to 1."""
        self.task_handler.set_progress(progress)


def _schema_and_keys(what: Sequence[Any]) -> Any:
    if what and isinstance(what[0], type):
        return what[0], what[1:]
    return None, what


class GenericRunner(BaseRunner):
    """The same under the name of its algorithm type."""


class _ImageRunner(BaseRunner):
    """Takes images, gives data sets of one schema: preprocess and postprocess are here, inference is the module's."""

    _gives: Type[schemas.DataSchema] = schemas.ImageSchema

    def fetch_data(self, dataset_ids: Sequence[str], *what: Any) -> List[Dict[str, Any]]:
        """The images: a list of dicts with the key `image`."""
        schema, keys = _schema_and_keys(what)
        return self.task_handler.fetch(dataset_ids, schema or schemas.ImageSchema, keys)

    def post_data(self, data: Sequence[Dict[str, Any]], schema: Optional[Type[pydantic.BaseModel]] = None) -> List[str]:
        """Keep results, checked by the schema of the type."""
        return self.task_handler.post(data, schema or self._gives)

    def preprocess(self, input_data: Dict[str, Any], args: Optional[Dict[str, Any]] = None) -> Any:
        """(n, rows, columns), or (n, 3, rows, columns) for colour."""
        images = [found["image"] for found in self.fetch_data(input_data["input_dataset_ids"])]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            sizes = ", ".join(" × ".join(map(str, shape)) for shape in sorted(shapes))
            raise ModuleError(f"The images of one sequence differ in size: {sizes}.")
        return np.stack(images)


def _each(data: Any) -> List[Any]:
    return list(data) if isinstance(data, (list, tuple, np.ndarray)) else [data]


class Image2ImageRunner(_ImageRunner):
    """Images of the same size: `inference` returns (n, rows, columns), or with 3 channels before the rows."""

    def postprocess(self, data: Any, args: Optional[Dict[str, Any]] = None) -> List[str]:
        """One data set per image."""
        return self.post_data([{"image": np.asarray(image)} for image in _each(data)])


class Image2SegmentationRunner(_ImageRunner):
    """Masks of the same size: `inference` returns (n, rows, columns)."""

    _gives = schemas.MaskSchema

    def postprocess(self, data: Any, args: Optional[Dict[str, Any]] = None) -> List[str]:
        """One data set per mask."""
        return self.post_data([{"mask": np.asarray(mask)} for mask in _each(data)])


class Image2AlignmentRunner(_ImageRunner):
    """n - 1 matrices for n images in a row: `inference` returns a list of 3 × 3 arrays, or of dicts of the schema."""

    _gives = schemas.AlignmentSchema

    def postprocess(self, data: Any, args: Optional[Dict[str, Any]] = None) -> List[str]:
        """One data set per pair of neighbours."""
        pairs = [pair if isinstance(pair, dict) else {"transform_matrix": np.asarray(pair)} for pair in _each(data)]
        return self.post_data(pairs)


class Image2EmbeddingRunner(_ImageRunner):
    """Features: `inference` returns one array per image, or dicts of the schema."""

    _gives = schemas.EmbeddingSchema

    def preprocess(self, input_data: Dict[str, Any], args: Optional[Dict[str, Any]] = None) -> Any:
        """As for all images; their size is kept for `postprocess`."""
        images = super().preprocess(input_data, args)
        self._size = tuple(int(length) for length in images.shape[-2:])
        return images

    def postprocess(self, data: Any, args: Optional[Dict[str, Any]] = None) -> List[str]:
        """One data set per image."""
        sizes = {"input_size": self._size, "original_size": self._size}
        found = [one if isinstance(one, dict) else {"features": np.asarray(one)} for one in _each(data)]
        return self.post_data([{**sizes, **one} for one in found])


RUNNERS: Dict[str, Type[BaseRunner]] = {
    kind.__name__: kind
    for kind in (
        BaseRunner,
        GenericRunner,
        Image2ImageRunner,
        Image2SegmentationRunner,
        Image2AlignmentRunner,
        Image2EmbeddingRunner,
    )
}
# Which class a module of a type has to inherit from.
OF_TYPE: Dict[str, Type[BaseRunner]] = {
    name[: -len("Runner")]: kind for name, kind in RUNNERS.items() if name.startswith("Image2")
}
