"""Runs on a tracking server: create, log, finish.

Chosen by numbers (two quiet cores): `import mlflow` 2.8 s, `MlflowClient` alone 2.9 s, its `RestStore` alone 2.9 s,
requests 0.15 s, the standard library 0.03 s; a call then takes 3–6 ms either way. So `rest` speaks the documented REST
API, files of a run whose artifacts lie on this disk are copied (60 of 50 kB: 4 ms), and the mlflow library runs only
where they lie elsewhere, in a process of its own (60 of 50 kB: 3.4 s).

The executor logs to the same run and may leave anything in its artifact folder: nothing here follows a symlink in it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from segserve import process, redact
from segserve.errors import NotFound, TrackingUnreachable, UsageError
from segserve.layout import Home
from segserve.tracking import address, embedded
from segserve.tracking.address import TrackingServer
from segserve.tracking.rest import Refused, Rest

# MLflow's limits, those of older servers where they are lower.
MAX_KEY, MAX_PARAM, MAX_PARAM_OLD, MAX_TAG, MAX_NAME, BATCH = 250, 6000, 500, 5000, 500, 100
_ODD_CHARACTERS = re.compile(r"[^\w.\-/: ]")
_TRANSFER_S = 3600.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunHandle:
    """An MLflow run; `url` is its page in the UI."""

    run_id: str
    experiment_id: str
    artifact_uri: str
    url: str


def open_tracker(home: Home, uri: str) -> Tracker:
    """The tracker for the server at `uri`, as recorded with a run; a server of ours is started again when needed.

    Raises:
        UsageError, TrackingUnreachable: see `address.recorded`.
    """
    return Tracker(address.recorded(home, uri), home)


def local_path(artifact_uri: str) -> Path | None:
    """The folder on this machine that a `file:` artifact location (or a bare absolute path) names; None for others."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    if not parts.scheme and artifact_uri.startswith("/"):
        return Path(artifact_uri)
    return None


class Tracker:
    """A client of one server. Every name, tag and value that is sent is redacted and made to fit MLflow's limits.

    All methods raise TrackingUnreachable, AccessDenied or Refused (BackendErrors).
    """

    def __init__(self, server: TrackingServer, home: Home) -> None:
        self._rest = Rest(server, (lambda: address.own(home)) if server.embedded else None)
        self._home = home
        self._runs: dict[str, RunHandle] = {}

    @property
    def server(self) -> TrackingServer:
        """The server as it is reached now."""
        return self._rest.server

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is created (or restored, when somebody deleted it)."""
        name = redact.text(name).strip()[:MAX_NAME]
        try:
            found = self._rest.get("experiments/get-by-name", experiment_name=name)["experiment"]
        except Refused as refusal:
            if refusal.reason != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if found.get("lifecycle_stage") == "deleted":
                self._rest.post("experiments/restore", {"experiment_id": found["experiment_id"]})
            return str(found["experiment_id"])
        try:
            return str(self._rest.post("experiments/create", {"name": name})["experiment_id"])
        except Refused as refusal:
            if refusal.reason != "RESOURCE_ALREADY_EXISTS":  # another command was faster
                raise
        return self.experiment(name)

    def create_run(
        self,
        experiment_id: str,
        *,
        name: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> RunHandle:
        """A new run in state RUNNING."""
        body = {
            "experiment_id": experiment_id,
            "run_name": _shortened(redact.text(name), MAX_KEY),
            "start_time": _now(),
            "tags": _entries(tags or {}, MAX_TAG),
        }
        info = self._rest.post("runs/create", body, repeatable=False)["run"]["info"]
        handle = self._handle(info)
        if params:
            self.log_params(handle.run_id, params)
        return handle

    def run(self, run_id: str) -> RunHandle:
        """An existing run."""
        if run_id not in self._runs:
            self._handle(self._info(run_id))
        return self._runs[run_id]

    def get_status(self, run_id: str) -> str:
        """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
        return str(self._info(run_id)["status"])

    def unfinished(self, tag: str) -> dict[str, str]:
        """Runs in state RUNNING that have a tag, of all experiments: run id → value of the tag."""
        found: dict[str, str] = {}
        experiments = self._pages("experiments/search", {"max_results": 1000}, "experiments")
        wanted = {
            "experiment_ids": [str(experiment["experiment_id"]) for experiment in experiments],
            "filter": f"attributes.status = 'RUNNING' AND tags.`{tag}` LIKE '%'",
            "max_results": 1000,
        }
        for run in self._pages("runs/search", wanted, "runs") if wanted["experiment_ids"] else ():
            tags = {entry["key"]: entry["value"] for entry in run["data"].get("tags", ())}
            found[str(run["info"]["run_id"])] = tags[tag]
        return found

    def _pages(self, path: str, body: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._rest.post(path, {**body, **({"page_token": token} if token else {})})
            yield from page.get(name, ())
            token = page.get("next_page_token", "")
            if not token:
                return

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        for batch in _batches(_entries(tags, MAX_TAG)):
            self._rest.post("runs/log-batch", {"run_id": run_id, "tags": batch})

    def log_params(self, run_id: str, params: Mapping[str, str]) -> tuple[str, ...]:
        """Log parameters; returns the names of those that the run has already with another value (they stay)."""
        entries = _entries(params, MAX_PARAM if self.server.embedded else MAX_PARAM_OLD)
        refused = []
        for batch in _batches(entries):
            try:
                self._rest.post("runs/log-batch", {"run_id": run_id, "params": batch})
            except Refused as refusal:
                if refusal.reason != "INVALID_PARAMETER_VALUE":
                    raise
                refused += [entry["key"] for entry in batch if not self._log_param(run_id, entry)]
        return tuple(refused)

    def _log_param(self, run_id: str, entry: Mapping[str, str]) -> bool:
        try:
            self._rest.post("runs/log-parameter", {"run_id": run_id, **entry})
        except Refused as refusal:
            if refusal.reason != "INVALID_PARAMETER_VALUE":
                raise
            return False
        return True

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log one value of each metric."""
        now = _now()
        entries = [
            {"key": key, "value": _number(value), "timestamp": now, "step": step}
            for key, value in zip(_keys(metrics), metrics.values(), strict=True)
        ]
        for batch in _batches(entries):
            self._rest.post("runs/log-batch", {"run_id": run_id, "metrics": batch})

    def log_folder(self, run_id: str, folder: Path, artifact_path: str = "") -> None:
        """Copy everything below `folder` (ours, without symlinks) to `artifact_path` of the run's artifacts."""
        target = self.local_artifacts(run_id)
        if target is None:
            self._transfer("upload", run_id, str(folder), _relative(_inside(artifact_path)))
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        self._place({_inside(artifact_path) / file.relative_to(folder).as_posix(): file for file in files}, target)

    def log_file(self, run_id: str, file: Path, artifact_path: str) -> None:
        """Copy one file to `artifact_path` (its name included) of the run's artifacts."""
        relative = _inside(artifact_path)
        target = self.local_artifacts(run_id)
        if target is not None:
            self._place({relative: file}, target)
            return
        with tempfile.TemporaryDirectory(dir=self._home.temporary) as scratch:
            shutil.copyfile(file, Path(scratch) / relative.name)
            self._transfer("upload", run_id, scratch, _relative(relative.parent))

    def local_artifacts(self, run_id: str) -> Path | None:
        """The folder of the run's artifacts when it is on this machine (it may not exist yet), else None."""
        path = local_path(self.run(run_id).artifact_uri)
        if path is None or not self.server.embedded:
            return path
        if not path.resolve().is_relative_to(self._home.artifacts.resolve()):
            raise TrackingUnreachable(
                f"Run {run_id} keeps its artifacts in '{path}', outside of segserve's own folder.",
                hint="Its experiment was made by another program: use one of another name (`--experiment`).",
            )
        return path

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """Copy a file or folder (`""`: everything) of the run's artifacts into `folder`; returns where it is now.

        Raises:
            NotFound: there is no such artifact.
        """
        relative = _inside(path)
        root = self.local_artifacts(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        if root is None:
            return self._download_uri(f"runs:/{run_id}/{relative}" if path else f"runs:/{run_id}/", folder)
        source = root / relative
        if not source.exists() or source.resolve() != root.resolve() / relative:
            raise NotFound(f"Run {run_id} has no artifact '{path}'.")
        target = folder / relative.name
        if source.is_file():
            shutil.copyfile(source, target)
        else:
            shutil.copytree(source, target, ignore=_symlinks, dirs_exist_ok=True)
        return target

    def download_uri(self, uri: str, folder: Path) -> Path:
        """Fetch what a `runs:/<id>/<path>` or `models:/…` URI names into `folder`; returns the file or folder.

        Raises:
            NotFound: there is no such artifact.
        """
        if uri.startswith("runs:/"):
            run_id, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
            return self.download(run_id, path, folder)
        folder.mkdir(parents=True, exist_ok=True)
        return self._download_uri(uri, folder)

    def finish(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED, whatever the executor made of it."""
        self._rest.post("runs/update", {"run_id": run_id, "status": status, "end_time": _now()})

    def _place(self, files: Mapping[PurePosixPath, Path], target: Path) -> None:
        try:
            _copy(files, target)
        except OSError as error:
            hint = "If that folder is on the server's machine, the server needs `--artifacts-destination`."
            raise TrackingUnreachable(
                f"Artifacts cannot be written to '{target}': {error.strerror or error}.",
                hint="Free some space, or check who owns that folder." if self.server.embedded else hint,
            ) from None

    def _info(self, run_id: str) -> dict[str, Any]:
        info: dict[str, Any] = self._rest.get("runs/get", run_id=run_id)["run"]["info"]
        return info

    def _handle(self, info: Mapping[str, Any]) -> RunHandle:
        run_id, experiment_id = str(info["run_id"]), str(info["experiment_id"])
        url = f"{self.server.uri}/#/experiments/{experiment_id}/runs/{run_id}"
        self._runs[run_id] = RunHandle(run_id, experiment_id, str(info.get("artifact_uri", "")), url)
        return self._runs[run_id]

    def _download_uri(self, uri: str, folder: Path) -> Path:
        try:
            printed = self._transfer("download", uri, str(folder))
        except TrackingUnreachable as failure:
            raise NotFound(f"'{uri}' cannot be downloaded.", quote=failure.quote) from None
        return Path(json.loads(printed.strip().splitlines()[-1]))

    def _transfer(self, *words: str) -> str:
        """Run `transfer` with this server's variables; returns what it printed."""
        environment = embedded.with_import_path({**os.environ, **self.server.variables})
        argv = [sys.executable, "-P", "-m", "segserve.tracking.transfer", *words]
        try:
            return process.run(argv, env=environment, timeout=_TRANSFER_S).stdout
        except process.CommandFailed as failure:
            raise TrackingUnreachable(
                f"Artifacts could not be moved to or from {self.server.uri} ({failure.reason}).",
                hint="Check the server's artifact store and your credentials for it.",
                quote="\n".join(failure.completed.stderr.strip().splitlines()[-4:]),
            ) from None


def _copy(files: Mapping[PurePosixPath, Path], root: Path) -> None:
    """Copy files to their places below `root`. Links that an executor left on the way are replaced, never followed."""
    root.mkdir(parents=True, exist_ok=True)
    ready: set[PurePosixPath] = set()
    for relative, file in files.items():
        for folder in reversed(relative.parents):
            if folder not in ready:
                _make_folder(root / folder)
                ready.add(folder)
        target = root / relative
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        shutil.copyfile(file, target)


def _make_folder(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    path.mkdir(exist_ok=True)


def _symlinks(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_symlink()]


def _inside(path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise UsageError(f"'{path}' is no path inside a run's artifacts.")
    return relative


def _relative(path: PurePosixPath) -> str:
    """A path below the root of a run's artifacts in MLflow's spelling: the root itself is "", "." is refused."""
    return "" if path == PurePosixPath() else str(path)


def _entries(values: Mapping[str, str], limit: int) -> list[dict[str, str]]:
    return [
        {"key": key, "value": _shortened(_without_secret(name, str(value)), limit)}
        for key, (name, value) in zip(_keys(values), values.items(), strict=True)
    ]


def _without_secret(name: str, value: str) -> str:
    """Redacted; as a whole when the name says what it is, as `redact` would in `name=value`."""
    return redact.MASK if redact.text(f"{name}=x") != f"{name}=x" else redact.text(value)


def _keys(names: Mapping[str, Any]) -> Iterator[str]:
    """Names that MLflow takes, one for each, still different from each other."""
    taken: set[str] = set()
    for name in names:
        parts = [part for part in _ODD_CHARACTERS.sub("_", redact.text(name)).split("/") if part not in ("", ".", "..")]
        base = "/".join(parts)[:MAX_KEY] or "_"
        key, number = base, 2
        while key in taken:
            key, number = f"{base[: MAX_KEY - 4]}_{number}", number + 1
        taken.add(key)
        yield key


def _shortened(value: str, limit: int) -> str:
    if len(value) <= limit:
        return value
    note = f"… (shortened, {len(value)} characters)"
    return value[: limit - len(note)] + note


def _number(value: float) -> float | str:
    """JSON has no NaN; the server reads protobuf's words for it."""
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _batches(entries: list[T]) -> Iterator[list[T]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _now() -> int:
    return int(time.time() * 1000)
