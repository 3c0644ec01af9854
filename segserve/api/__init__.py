"""The public Python façade and the composition root: the command line and any other edge go through here.

>>> import segserve
>>> result = segserve.run(".#main", ["examples/images"], parameters={"min_area": "30"})
>>> result.counts, result.folder
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segserve import config as settings
from segserve import doctor, inputs, kit, layout, tracking, validation
from segserve.api.access import Access
from segserve.api.jobs import Jobs
from segserve.api.names import Names
from segserve.api.pipelines import Pipelines
from segserve.api.runs import Runs
from segserve.errors import BackendError, UnreadableImage, UsageError, did_you_mean, disk_full, writing
from segserve.findings import Finding
from segserve.pipeline import Context, QuietReporter, Reporter, Request, Result, Started, submit

__all__ = [
    "Request",
    "Result",
    "Session",
    "Started",
    "images",
    "info",
    "inspect_images",
    "run",
    "session",
    "submit",
    "validate",
]


def run(
    ref: str, images: str | Path | Sequence[str | Path] = (), *, reporter: Reporter | None = None, **options: Any
) -> Result:
    """Run executor `ref` on `images` (one path or several) and wait for the result.

    `options` are those of `Session.request`.

    Raises:
        SegserveError: see `segserve.errors`.
    """
    if options.pop("detach", False):
        raise UsageError(
            "segserve.run waits for the result.", hint="`with api.session() as s: s.run(s.request(…, detach=True))`"
        )
    with session(reporter=reporter) as here:
        done = here.run(here.request(ref, images, **options))
    assert isinstance(done, Result)  # only `detach` starts without waiting
    return done


def info(ref: str, **options: Any) -> dict[str, Any]:
    """Entry points, parameters, environment and commit of `ref`, as `segserve info --json` prints them."""
    with session() as here:
        return here.info(here.request(ref, (), **options))


def images(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Every file with its series: sizes of T, Z, C, channel names, (x, y) pixel size in µm.

    Raises:
        UnreadableImage: with a finding for every input that cannot be read.
    """
    return inputs.structure(inputs.describe(paths))


def inspect_images(paths: Sequence[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """`images`, and what `run` would have to say about them: notes, or the choices that it would ask for."""
    described = images(paths)
    try:
        planned = inputs.plan(paths)
    except UnreadableImage as refusal:
        return described, [f"`segserve run` needs a choice: {refusal.message} {refusal.hint}".strip()]
    count = "1 image" if planned.count == 1 else f"{planned.count} images"
    return described, [*planned.notes, f"`segserve run` makes {count} of this"]


def validate(
    files: Sequence[str | Path],
    images: str | Path | None = None,
    *,
    pairs: bool = False,
    ignore: Sequence[str] = (),
) -> list[Finding]:
    """Every finding about output.json files, in order; strict: what a run forgives is an error here.

    `images` is the folder (or file) that they belong to, `pairs` also looks for overlaps, `ignore` names rules.

    Raises:
        NotFound: one of them does not exist or is no file.
    """
    known = validation.measured(Path(images)) if images is not None else None
    reports = (validation.validate(Path(file), known, pairs=pairs, skip=frozenset(ignore)) for file in files)
    return [finding for report in reports for finding in report.findings]


def new(folder: str | Path, *, template: str = "threshold", env: str = "uv", ci_from: str | None = None) -> Path:
    """Write a repository with an executor that runs as it stands; see `segserve new`. Returns its absolute path.

    ci_from: where its CI takes segserve from, `https://host/owner/name@revision`; by default where this one came from.

    Raises:
        UsageError: no such template, kind of environment or source, no name, or the folder is in use.
    """
    from segserve import scaffold  # with what reads the metadata of packages

    for word, known in ((template, {**scaffold.METHODS, **scaffold.MODULES}), (env, scaffold.ENVIRONMENTS)):
        if word not in known:
            raise UsageError(f"There is no '{word}'.", hint=did_you_mean(word, known))
    source = scaffold.source.parse(ci_from) if ci_from else scaffold.source.installed()
    return scaffold.create(Path(folder), template=template, env=env, source=source)


def sdk_wheel(folder: str | Path = ".") -> dict[str, str]:
    """Write the wheel of `segserve_sdk` into `folder`; its path, version and SHA-256.

    Raises:
        UsageError: the folder cannot be written.
    """
    with writing(Path(folder), "-o names another folder."):
        path = kit.write_wheel(Path(folder))
    return {"path": str(path), "version": kit.version(), "sha256": kit.digest()}


@contextmanager
def session(*, config: Path | None = None, reporter: Reporter | None = None) -> Iterator[Session]:
    """One command's worth of work in the user's home.

    Raises:
        UsageError: the configuration is malformed.
        BackendError: the home cannot be used.
        DiskFull: whatever the disk had no space for. The one place that turns what the system says into this.
    """
    try:
        yield Session(Context(_home(), settings.load(config), reporter or QuietReporter()), config)
    except (OSError, sqlite3.Error) as error:
        known = disk_full(error, layout.home().path) or _damaged(error)
        if known is None:
            raise
        raise known from error


def _damaged(error: Exception) -> BackendError | None:
    """What sqlite says of a journal that something else has written into."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return None
    database = layout.home().database
    return BackendError(
        f"The journal {database} is damaged: {error}.",
        hint="Put back a backup (docs/operating.md), or move it away: results stay, the list of jobs begins anew.",
    )


def _home() -> layout.Home:
    home = layout.home()
    try:
        return home.ensure()
    except OSError as error:
        if disk_full(error):
            raise
        raise BackendError(
            f"'{home.path}' cannot be used: {error.strerror}.", hint="SEGSERVE_HOME names another folder."
        ) from None


class Session(Runs, Names, Jobs, Pipelines, Access):
    """The verbs. All arguments are plain values; all answers are dataclasses or JSON-like."""

    def ui(self) -> str:
        """The address of the tracking UI: the server that the environment names, else the embedded one, started."""
        external = tracking.external()
        if external is not None:
            return external.uri
        return tracking.ui(self.ctx.home, idle_minutes=self.ctx.settings.tracking.idle_minutes)

    def stop_ui(self) -> bool:
        """Stop the embedded tracking server; false when it did not run."""
        return tracking.stop_server(self.ctx.home)

    def doctor(self) -> list[dict[str, str]]:
        """What this machine has and lacks."""
        return [asdict(check) for check in doctor.examine(self.ctx.home, self.ctx.settings)]
