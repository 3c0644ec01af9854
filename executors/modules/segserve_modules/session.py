"""What a runner talks to instead of its server: data sets, assets, log and progress."""

import io
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Type

import pydantic

from segserve_modules import schemas

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_LFS = b"version https://git-lfs"


class ModuleError(Exception):
    """The module did something that its guide does not provide for; the message says what to change."""


class Session:
    """The `task_handler` of a runner.

    folder: the module's. say: gets a level and a message. progress: gets a share of the current call, 0 to 1.
    """

    def __init__(
        self, folder: Path, say: Callable[[str, str], None], progress: Callable[[float], None] = lambda _: None
    ) -> None:
        self.folder = folder
        self._say = say
        self._progress = progress
        self._loaders: Dict[str, Callable[[], Mapping[str, Any]]] = {}
        self._posted: Dict[str, Dict[str, Any]] = {}
        self.assets_read = 0
        self.assets_bytes = 0

    def offer(self, identifier: str, load: Callable[[], Mapping[str, Any]]) -> None:
        """Make a data set known; it is read whenever a runner fetches it."""
        self._loaders[identifier] = load

    def fetch(
        self, identifiers: Sequence[str], schema: Optional[Type[pydantic.BaseModel]], keys: Sequence[str] = ()
    ) -> List[Dict[str, Any]]:
        """Data sets by their identifiers, checked by a schema; with `keys`, only these fields."""
        if isinstance(identifiers, str):
            identifiers = [identifiers]
        found = []
        for identifier in identifiers:
            if identifier not in self._loaders:
                raise ModuleError(f"There is no data set {identifier!r}: take the identifiers of input_dataset_ids.")
            data = self._loaders[identifier]()
            if schema is not None:
                data = schemas.checked(schema, data, f"The data set {identifier!r}")
            missing = [key for key in keys if key not in data]
            if missing:
                raise ModuleError(f"The data set {identifier!r} has no {', '.join(missing)}; it has {', '.join(data)}.")
            found.append({key: data[key] for key in (keys or data)})
        return found

    def post(self, results: Sequence[Mapping[str, Any]], schema: Optional[Type[pydantic.BaseModel]]) -> List[str]:
        """Keep results, checked by a schema; their identifiers."""
        if isinstance(results, Mapping):
            results = [results]
        identifiers = []
        for number, result in enumerate(results):
            what = f"Result {number} of post_data"
            data = dict(result) if schema is None else schemas.checked(schema, result, what)
            identifiers.append(f"result-{len(self._posted):06d}")
            self._posted[identifiers[-1]] = data
            self._loaders[identifiers[-1]] = data.copy
        return identifiers

    def take(self, identifiers: Any) -> List[Dict[str, Any]]:
        """The posted results that `postprocess` returned the identifiers of; nothing posted is kept after that."""
        posted, self._posted = self._posted, {}
        for identifier in posted:
            del self._loaders[identifier]
        if isinstance(identifiers, str) or not isinstance(identifiers, (list, tuple)):
            raise ModuleError(
                f"postprocess returned {type(identifiers).__name__}; it has to return the list that post_data gave."
            )
        unknown = [identifier for identifier in identifiers if identifier not in posted]
        if unknown:
            raise ModuleError(f"postprocess returned {unknown[0]!r}, which post_data has not given.")
        return [posted[identifier] for identifier in identifiers]

    def fetch_asset(self, path: str) -> io.BytesIO:
        """The content of a file of the module, by its path relative to the module's folder."""
        wanted = (self.folder / path).resolve()
        if self.folder.resolve() not in wanted.parents or wanted.suffix == ".py":
            raise ModuleError(f"fetch_asset({path!r}): assets are files of the module other than .py files.")
        if not wanted.is_file():
            raise ModuleError(f"fetch_asset({path!r}): the module has no such file.")
        began = time.monotonic()
        content = wanted.read_bytes()
        if content.startswith(_LFS):
            raise ModuleError(f"fetch_asset({path!r}): the repository has a Git LFS pointer instead of the file.")
        self.assets_read += 1
        self.assets_bytes += len(content)
        self._say("INFO", f"Asset {path}: {len(content) / 1e6:.1f} MB in {time.monotonic() - began:.2f} s")
        return io.BytesIO(content)

    def log_message(self, message: Any, logging_level: str = "INFO") -> None:
        """A line of the job's log."""
        level = str(logging_level).upper()
        self._say(level if level in LEVELS else "INFO", str(message))

    def set_progress(self, progress: float) -> None:
        """The share of the current call that is done; what lies outside of 0 to 1 is cut."""
        self._progress(min(1.0, max(0.0, float(progress))))
