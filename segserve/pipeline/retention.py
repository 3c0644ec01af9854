"""What is kept of jobs that have ended, by age and by size. `segserve gc` and the service share it.

Only folders below `jobs/` go: the row in the journal and the MLflow run stay, and so does a result that a command has
put elsewhere. A job that is open is never touched, however old it is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from segserve.errors import NoSlot, NotFound
from segserve.pipeline import reuse
from segserve.pipeline.context import Context
from segserve.store import locked

ORPHAN_DAYS = 1.0  # what was uploaded, and never became a job; an upload may take hours
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Kept:
    """The folder of a job that has ended (or of an upload that never became one)."""

    job_id: str
    path: Path
    ended: float  # seconds since the epoch
    size: int  # bytes, of what is there; hard links count each time
    orphan: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """What has gone (or would), and why."""

    job_id: str
    size: int
    why: str


def collect(
    ctx: Context, *, days: float, max_gb: float, now: float | None = None, dry_run: bool = False
) -> list[Removed]:
    """Remove the folders of jobs that ended more than `days` days ago, then the oldest while all together have more
    than `max_gb` GiB (0: no such limit), and uploads without a job that are older than a day. Oldest first.
    """
    now = time.time() if now is None else now
    kept = sorted(_ended(ctx), key=lambda one: one.ended)
    total, removed = sum(one.size for one in kept if not one.orphan), list[Removed]()
    for one in kept:
        why = _why(one, now, days, total if max_gb else 0, max_gb * 2**30)
        if why and (dry_run or _remove(ctx, one)):
            total -= 0 if one.orphan else one.size
            removed.append(Removed(one.job_id, one.size, why))
    if not dry_run:
        reuse.forget_removed(ctx)
    return removed


def _why(one: Kept, now: float, days: float, total: int, limit: float) -> str:
    age = (now - one.ended) / _DAY
    if one.orphan:
        return "an upload that became no job" if age > ORPHAN_DAYS else ""
    if days and age > days:
        return f"it ended {age:.0f} days ago"
    return "all jobs together are over the limit" if total > limit else ""


def _ended(ctx: Context) -> Iterator[Kept]:
    for folder in ctx.home.jobs.iterdir():
        if not folder.is_dir() or folder.is_symlink():
            continue
        with suppress(FileNotFoundError):  # whoever else removes it
            modified = folder.stat().st_mtime
            try:
                record = ctx.journal.get(folder.name)
            except NotFound:
                yield Kept(folder.name, folder, modified, _size(folder), orphan=True)
                continue
            if record.job_id == folder.name and record.state.final:
                yield Kept(folder.name, folder, record.updated, _size(folder), orphan=False)


def _remove(ctx: Context, one: Kept) -> bool:
    """Under the job's lock: not while somebody drives it or still writes down how it ended."""
    try:
        with locked(ctx.home.job(one.job_id).lock, blocking=False):
            going = ctx.home.temporary / f"gone-{one.job_id}"
            one.path.rename(going)  # at once: nobody finds half of a result
    except (NoSlot, FileNotFoundError):
        return False
    shutil.rmtree(going, ignore_errors=True)
    return True


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # what vanishes meanwhile (a job that is just being tidied) is left out
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total
