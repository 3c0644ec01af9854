"""From the executor's output to the result folder and the MLflow run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from segserve.errors import UsageError, writing
from segserve.findings import Finding
from segserve.format import Document
from segserve.model import StagedImage
from segserve.refs import Pin


@dataclass(frozen=True)
class Result:
    """A finished job. `document` is None for entry points that take no images (info, training).

    `counts` has the number of objects per image, in input order.
    """

    job_id: str
    pin: Pin
    entry: str
    images: tuple[StagedImage, ...]
    document: Document | None
    findings: tuple[Finding, ...]
    folder: Path
    run_url: str
    counts: tuple[int, ...]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "job": self.job_id,
            "state": "succeeded",
            "repository": self.pin.repo,
            "commit": self.pin.sha,
            "subdir": self.pin.subdir,
            "entry": self.entry,
            "result": str(self.folder),
            "mlflow": self.run_url,
            "images": [
                {"file": image.source, "t": image.t, "z": image.z, "c": image.c, "objects": count}
                for image, count in zip(self.images, self.counts, strict=True)
            ],
            "objects": sum(self.counts),
            "findings": len(self.findings),
            "warnings": list(self.warnings),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True)
class Started:
    """A detached job that runs."""

    job_id: str
    run_url: str
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"job": self.job_id, "state": "running", "result": str(self.folder), "mlflow": self.run_url}


def choose_folder(requested: Path | None, results: str, executor: str) -> Path:
    """The folder that a result will have: what was asked for, else `<results>/<date>-<executor>`."""
    if requested is not None:
        return requested.absolute()
    return (Path(results) / f"{datetime.now().astimezone():%Y-%m-%d}-{executor}").absolute()


def publish(assembled: Path, wanted: Path, *, exact: bool) -> Path:
    """Copy a finished result to where people look for it. It appears at once and never replaces anything.

    With `exact` a folder that has appeared meanwhile is an error, else `-2`, `-3` … is appended.

    Raises:
        UsageError: the place exists (`exact`) or cannot be written.
    """
    with (
        writing(wanted, f"The result is kept in {assembled}; choose another -o the next time."),
        unfinished(wanted, exact=exact) as (beside, appear),
    ):
        shutil.copytree(assembled, beside, dirs_exist_ok=True)
        return appear()


@contextmanager
def unfinished(wanted: Path, *, exact: bool) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """An empty folder beside `wanted`, and what gives it its name (see `publish`). Without that it goes at the end."""
    beside = wanted.parent / f".{wanted.name}.{os.getpid()}.partial"
    try:
        _make_parent(wanted, exact=exact)
        beside.mkdir()
        yield beside, lambda: beside.rename(_claim(wanted, exact=exact))  # replaces the empty folder atomically
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def new_folder(wanted: Path, *, exact: bool) -> Path:
    """An empty folder for results that come one by one; names and errors as of `publish`."""
    if exact and wanted.exists():
        raise UsageError(f"'{wanted}' exists already.", hint="Results never overwrite: choose another -o.")
    with writing(wanted, "Choose another -o."):
        _make_parent(wanted, exact=exact)
        return _claim(wanted, exact=exact)


def _make_parent(wanted: Path, *, exact: bool) -> None:
    if wanted.parent.exists():
        return
    wanted.parent.mkdir(parents=True)
    if not exact:  # our own folder of results: in a repository it would make every later run of that one dirty
        (wanted.parent / ".gitignore").write_text("*\n", encoding="utf-8")


def _claim(wanted: Path, *, exact: bool) -> Path:
    number, target = 1, wanted
    while True:
        try:
            target.mkdir()  # whoever makes the folder owns the name
        except FileExistsError:
            if exact:
                raise UsageError(
                    f"'{wanted}' exists already.", hint="It is kept with the job: segserve show."
                ) from None
            number += 1
            target = wanted.with_name(f"{wanted.name}-{number}")
            continue
        return target
