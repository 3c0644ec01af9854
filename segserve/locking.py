"""`segserve lock`: an executor's environment, built, and written down so that later runs install exactly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import segserve
from segserve import environments, git, lock
from segserve.errors import UsageError, writing
from segserve.pipeline import Context, Request, building
from segserve.project import Project
from segserve.refs import RepoKind
from segserve.store import Resolution


def write(
    ctx: Context, request: Request, resolution: Resolution, project: Project, output: Path | None
) -> tuple[Path, int]:
    """Build the environment without any lock, then write segserve.lock; its path and the number of packages here.

    Raises:
        UsageError: `request.ref` is no folder, and `output` does not say where to write.
        EnvironmentBuildFailed: it cannot be built, or the index does not say the hashes.
    """
    target = output or _beside(request)
    if not target.absolute().parent.is_dir():  # before minutes of building
        raise UsageError(f"'{target}' cannot be written: there is no folder {target.parent}.", hint="Make it first.")
    build = replace(request.build, use_lock=False, lock_file=None)
    spec = environments.detect(project, build)
    for warning in spec.warnings:
        ctx.reporter.warn(warning)
    reporter = ctx.reporter
    built = environments.prepare(
        ctx.home,
        project,
        spec,
        options=build,
        walls=building.walls(ctx.settings.sandbox, project, others=request.others),
        report=reporter.line,
        phase=reporter.phase,
    )
    reporter.phase("Asking the index for hashes")
    lines = environments.with_hashes(project, built)
    known = lock.read(target) if target.is_file() else lock.Lock()
    declared = environments.declaration(project)
    others = known.packages if known.declaration == declared else {}
    text = lock.render_project(
        resolution.pin,
        git.run("rev-parse", "HEAD^{tree}", repository=_git_folder(project.folder)).strip(),
        project.file,
        built,
        declared,
        {**others, lock.platform_name(): lines},
        segserve.__version__,
    )
    with writing(target):
        target.write_text(text, encoding="utf-8")
    return target, len(lines)


def _git_folder(folder: Path) -> Path:
    return next(path / ".git" for path in (folder, *folder.parents) if (path / ".git").exists())


def _beside(request: Request) -> Path:
    ref = request.ref
    folder = Path(ref.repo) / ref.subdir
    if ref.kind is not RepoKind.PATH or ref.rev is not None or not folder.is_dir():
        raise UsageError(
            "A lock is written beside an MLProject of yours.", hint="Say where to write it: -o segserve.lock"
        )
    return folder / lock.NAME
