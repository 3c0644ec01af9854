"""Bare mirrors and the work trees that are made from them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from segserve.git.command import HERE, Access, run
from segserve.refs import FULL_SHA


def create_mirror(path: Path) -> None:
    """An empty bare repository without hooks."""
    run("init", "--quiet", "--bare", "--", path)


def fetch(access: Access, mirror: Path, source: str, refspecs: Sequence[str], *options: str) -> None:
    """Fetch exactly `refspecs` from `source` (URL or path) into a mirror; what is gone there goes here.

    Raises:
        GitFailed: see `explain`.
    """
    words = ["fetch", "--quiet", "--no-tags", "--prune", "--no-write-fetch-head", "--update-shallow", *options]
    if (mirror / "shallow").exists():  # of a clone that was shallow and may have been completed since
        words.append("--unshallow")
    trusted = [value for key, value in access.settings if key == "safe.directory"]
    if trusted:  # git drops our settings for the upload-pack that it starts on this machine
        flags = (f"-c safe.directory={shlex.quote(word)}" for path in trusted for word in (path, f"{path}/.git"))
        words.append(f"--upload-pack=git {' '.join(flags)} upload-pack")
    run(*words, "--", source, *refspecs, access=access, repository=mirror)


def lookup(mirror: Path, expressions: Sequence[str]) -> list[str | None]:
    """The object id of every expression (`refs/heads/main^{commit}`), None for what is not there or ambiguous."""
    text = "".join(f"{expression}\n" for expression in expressions)
    lines = run("cat-file", "--batch-check=%(objectname)", repository=mirror, stdin=text).splitlines()
    return [line if FULL_SHA.fullmatch(line) else None for line in lines]


def objects_with_prefix(mirror: Path, prefix: str) -> list[str]:
    """The full ids of all objects that begin with at least four hex digits."""
    return run("rev-parse", f"--disambiguate={prefix}", repository=mirror).split()


def is_reachable(mirror: Path, sha: str, *refs: str) -> bool:
    """Whether a commit is, or is an ancestor of, any of `refs` (`--branches`, `--tags`, `--glob=…`)."""
    return not run("rev-list", "--max-count=1", sha, "--not", *refs, repository=mirror).strip()


def names(mirror: Path, *patterns: str, points_at: str = "") -> list[str]:
    """Full names of refs below `patterns` (refs/heads), all or those that point at a commit."""
    chosen = [f"--points-at={points_at}"] if points_at else []
    return run("for-each-ref", "--format=%(refname)", *chosen, *patterns, repository=mirror).split()


def set_ref(mirror: Path, ref: str, sha: str) -> None:
    """Let `ref` name a commit."""
    run("update-ref", ref, sha, repository=mirror)


def clone(mirror: Path, sha: str, destination: Path, origin: str) -> None:
    """A self-contained work tree of a mirror at a commit: no alternates, no hard links, `origin` as its remote.

    The objects are copied, not packed again: 23 ms for 48 MB where upload-pack takes 370 ms (`--depth=1`: 410 ms).
    They are not hard-linked because the executor may write to them. Mirrors are ours, so `--no-local` would protect
    from nothing. The caller keeps writers away from the mirror.
    """
    run("clone", "--quiet", "--no-checkout", "--no-hardlinks", "--", mirror, destination)
    if (mirror / "shallow").exists():  # git then packs after all, and only what branches and tags reach
        run("fetch", "--quiet", "--update-shallow", "--", str(mirror), sha, folder=destination, access=HERE)
    run("config", "remote.origin.url", origin, repository=destination / ".git")
    run("checkout", "--quiet", "--detach", sha, folder=destination)


def update_submodules(access: Access, checkout: Path) -> None:
    """Clone all submodules at their recorded commits. Relative URLs are relative to `origin`.

    Raises:
        GitFailed: one cannot be fetched or is not allowed.
    """
    run("submodule", "--quiet", "update", "--init", "--recursive", "--jobs=4", folder=checkout, access=access)
