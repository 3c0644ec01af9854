"""What a caller may ask for: which repositories, which files of this machine, how much.

The local user may ask for anything. For others it is what config.toml says: `repositories.allow` and the executors that
it registers, `data_roots`, `quotas`; for open clients the registered executors alone, at the revisions that it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from segserve import refs
from segserve.api import Session
from segserve.api.requests import CONFIGURED, registered
from segserve.config import UserQuotaSettings
from segserve.errors import AccessDenied
from segserve.inputs import inside
from segserve.journal import Quota
from segserve.pipeline import Bounds, Request
from segserve.refs import ExecutorRef, RepoKind
from segserve.server.access import Caller
from segserve.tokens import Scope

_LOCAL = (RepoKind.PATH, RepoKind.FILE)


def repository(session: Session, caller: Caller, ref: ExecutorRef) -> None:
    """Refuse an executor that the caller may not run.

    Raises:
        AccessDenied: it says what is missing in config.toml.
    """
    if caller.local:
        return
    known = [refs.parse(name.ref) for name in registered(session.ctx.settings).values() if name.origin == CONFIGURED]
    if caller.registered_only:
        _registered(ref, known)
        return
    address = _address(ref)
    if address in map(_address, known):
        return
    if not refs.permitted(address, session.ctx.settings.repositories.allow):
        raise AccessDenied(
            f"{ref.repo} may not run here.",
            hint='Whoever runs the server adds it to config.toml: [repositories] allow = ["https://host/group/"]',
        )
    if ref.kind in _LOCAL and not inside(_path(ref), caller.roots):
        raise AccessDenied(
            f"{ref.repo} is in no folder that '{caller.user}' may use.",
            hint="Name a repository by https or ssh, or see config.toml: [data_roots]",
        )


def files(caller: Caller, paths: Iterable[str]) -> None:
    """Refuse files of this machine that the caller may not name. What folders hold, the worker looks at.

    Raises:
        AccessDenied: one of them is elsewhere.
    """
    if caller.local:
        return
    for path in paths:
        if not inside(path, caller.roots):
            others = f"; its folders are {', '.join(map(str, caller.roots))}" if caller.roots else ""
            raise AccessDenied(
                f"'{path}' is in no folder that '{caller.user}' may name files in{others}.",
                hint="Upload the images; or whoever runs the server adds the folder to config.toml: [data_roots]",
            )


def bounded(session: Session, caller: Caller, request: Request, uploads: Path) -> Request:
    """The request, as its worker has to keep it within bounds. `uploads` is the folder of what came with it."""
    server = session.ctx.settings.server
    roots = None if caller.local else (*map(str, caller.roots), str(uploads.resolve()))
    bounds = Bounds(roots, server.max_images, int(server.max_megapixels * 1e6))
    return replace(request, bounds=bounds, others=not caller.local)


def quota(session: Session, caller: Caller, size: int) -> Quota | None:
    """What the caller may have in the queue; None: no limits. `size`: bytes that came with the request."""
    if caller.local or caller.may(Scope.ADMIN):
        return None
    settings = session.ctx.settings.quotas
    own = settings.users.get(caller.user, UserQuotaSettings())
    open_jobs = settings.open_jobs if own.open_jobs is None else own.open_jobs
    upload_gb = settings.upload_gb_per_day if own.upload_gb_per_day is None else own.upload_gb_per_day
    return Quota(caller.user, open_jobs, int(upload_gb * 2**30), size)


def _registered(ref: ExecutorRef, known: Iterable[ExecutorRef]) -> None:
    """Refuse what is not registered at exactly this revision."""
    fixed = [one for one in known if one.rev]
    asked = (_address(ref), ref.subdir, ref.rev)
    if asked in [(_address(one), one.subdir, one.rev) for one in fixed]:
        return
    offered = ", ".join(f"{one.repo} version {one.rev}" for one in fixed[:20])
    raise AccessDenied(
        f"{ref.repo} version {ref.rev} does not run here without a token.",
        hint=f"There is: {offered}." if offered else "config.toml registers no executor with a revision: [executors]",
    )


def _address(ref: ExecutorRef) -> str:
    return f"file://{Path(_path(ref)).resolve()}" if ref.kind in _LOCAL else refs.canonical(ref.repo)


def _path(ref: ExecutorRef) -> str:
    return ref.repo.removeprefix("file://")
