"""One bare mirror: created at once, fetched under a lock, thrown away when it is damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segserve import git, refs
from segserve.errors import BackendError
from segserve.layout import Home
from segserve.store.locks import age, locked

HEAD = "refs/segserve/HEAD"  # where the remote's HEAD was at the last fetch
KEPT = "refs/segserve/kept"  # …/<sha>: was on a branch or tag once, or is a snapshot; a pin may name it for ever
UNREACHABLE = "refs/segserve/unreachable"  # …/<sha>: fetched with --allow-unreachable, trusted by nobody else

# Branches and tags, nothing else: refs/pull/* and the like hold commits that anybody can put there.
_NAMES = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_STALE_LOCK_S = 5.0  # git holds these files for milliseconds


def key(repo: str) -> str:
    """The folder name of a repository's mirror: readable, and different for different repositories."""
    text = refs.canonical(repo)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text.rpartition("/")[2])[:40].strip("-.") or "repository"
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The mirror of `repo` (URL without credentials) at `path`; git fetches from `source` (that URL, or a folder)."""

    home: Home
    repo: str
    source: str
    access: git.Access = field(repr=False)

    @property
    def path(self) -> Path:
        """The bare repository."""
        return self.home.repositories / f"{key(self.repo)}.git"

    @property
    def _lock(self) -> Path:
        return self.path.with_suffix(".lock")

    @property
    def _state(self) -> Path:
        return self.path / "segserve.json"

    @property
    def exists(self) -> bool:
        """Whether there is one (it appears complete)."""
        return self._state.exists()

    @property
    def fetched(self) -> float | None:
        """When the last fetch that succeeded began, seconds since the epoch; None: never."""
        began = _read_state(self.path).get("fetched")
        return began if isinstance(began, float) else None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        files = (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
        total = 0
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # git renames while we look
                total += file.stat().st_size
        return total

    @contextmanager
    def reading(self) -> Iterator[Path]:
        """Keep writers away while its files are copied."""
        with locked(self._lock, shared=True):
            yield self.path

    @contextmanager
    def writing(self, on_note: Callable[[str], None]) -> Iterator[Path]:
        """Be the only one who changes it; it exists, but may have no commit yet."""
        with self._held(on_note):
            if not self.exists:
                self._create(lambda path: self._record(path, None))
            yield self.path

    def update(self, on_note: Callable[[str], None]) -> None:
        """Ask the remote for branches, tags and HEAD, and fetch what is new; clone first if there is no mirror.

        A fetch that somebody else began after this call was made counts as ours: of 20 commands that start at once,
        two ask.

        Raises:
            RepositoryUnreachable: the remote does not answer or refuses us.
        """
        asked = time.time()
        with self._held(on_note):
            if not self.exists:
                on_note(f"Cloning {self.repo}")
                self._create(self._fetch_all)
            elif (self.fetched or 0.0) < asked:
                self._refresh(on_note)

    def fetch_commit(self, sha: str) -> bool:
        """Ask the remote for one commit, whatever it is reachable from; False if it has none or does not hand it out.

        Raises:
            RepositoryUnreachable: the remote does not answer or refuses us.
        """
        with locked(self._lock):
            return self._try_fetch(self.path, sha)

    def hands_out(self, sha: str) -> bool:
        """Whether the remote has such a commit at all. Nothing of it comes into the mirror."""
        scratch = self._scratch("probe")
        try:
            git.create_mirror(scratch)
            return self._try_fetch(scratch, sha, "--depth=1")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def holds(self, sha: str) -> bool:
        """Whether a commit is there."""
        if any((self.path / kind / sha).exists() for kind in (KEPT, UNREACHABLE)):
            return True
        return self.exists and git.lookup(self.path, [f"{sha}^{{commit}}"]) == [sha]

    def keeps(self, sha: str) -> bool:
        """Whether a commit was resolved here before and is trusted since."""
        return (self.path / KEPT / sha).exists()

    def keep(self, sha: str, kind: str = KEPT) -> None:
        """Remember that a commit was resolved, so that it is known when its branch has moved on."""
        if not (self.path / kind / sha).exists():
            git.set_ref(self.path, f"{kind}/{sha}", sha)

    def rebuild(self, on_note: Callable[[str], None]) -> None:
        """Clone again and throw the damaged mirror away, in this order: without the remote it stays as it is.

        Raises:
            RepositoryUnreachable: the remote does not answer or refuses us.
        """
        with self._held(on_note):
            self._rebuild(on_note)

    def remove(self) -> None:
        """Throw it away. Pins whose commits only it had (snapshots) are lost."""
        with locked(self._lock):
            self._discard()

    @contextmanager
    def _held(self, on_note: Callable[[str], None]) -> Iterator[None]:
        with locked(self._lock, on_wait=lambda: on_note(f"Another command is fetching {self.repo}")):
            yield

    def _create(self, fill: Callable[[Path], None]) -> None:
        """Build beside, rename into place: a killed clone leaves nothing that looks like a mirror."""
        for dead in self.home.temporary.glob(f"{key(self.repo)}-clone-*"):  # we hold the lock: their owner is gone
            shutil.rmtree(dead, ignore_errors=True)
        scratch = self._scratch("clone")
        try:
            git.create_mirror(scratch)
            fill(scratch)
            self._discard()
            scratch.replace(self.path)
        except git.GitFailed as failure:
            raise git.explain(failure, self.repo) from failure
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _scratch(self, purpose: str) -> Path:
        self.home.temporary.mkdir(parents=True, exist_ok=True)
        self.home.repositories.mkdir(parents=True, exist_ok=True)
        return self.home.temporary / f"{key(self.repo)}-{purpose}-{os.getpid()}-{time.monotonic_ns()}"

    def _refresh(self, on_note: Callable[[str], None]) -> None:
        for dead in (self.path / "objects" / "pack").glob("tmp_*"):  # of a fetch that was killed
            dead.unlink(missing_ok=True)
        try:
            self._fetch_unlocked()
        except git.GitFailed as failure:
            if not failure.corrupt:
                raise git.explain(failure, self.repo) from failure
            self._rebuild(on_note)

    def _rebuild(self, on_note: Callable[[str], None]) -> None:
        on_note(f"The copy of {self.repo} on this machine is damaged; cloning it again")
        self._create(self._fetch_all)

    def _fetch_unlocked(self) -> None:
        """Fetch; a lock file that a killed git left behind is waited for, then removed."""
        try:
            self._fetch_all(self.path)
        except git.GitFailed as failure:
            lock = failure.lock_file
            if lock is None or not lock.resolve().is_relative_to(self.path.resolve()):
                raise
            with contextlib.suppress(FileNotFoundError):
                time.sleep(max(0.0, _STALE_LOCK_S - age(lock)))
            lock.unlink(missing_ok=True)
            self._fetch_all(self.path)

    def _fetch_all(self, path: Path) -> None:
        began = time.time()
        try:
            git.fetch(self.access, path, self.source, (*_NAMES, f"+HEAD:{HEAD}"))
        except git.GitFailed as failure:
            if "couldn't find remote ref HEAD" not in failure.stderr:
                raise
            git.fetch(self.access, path, self.source, _NAMES)  # HEAD names a branch that is not there
            (path / HEAD).unlink(missing_ok=True)
        self._record(path, began)

    def _try_fetch(self, path: Path, sha: str, *options: str) -> bool:
        try:
            git.fetch(self.access, path, self.source, (sha,), *options)
        except git.GitFailed as failure:
            if _NOT_HANDED_OUT.search(failure.stderr):
                return False
            raise git.explain(failure, self.repo) from failure
        return True

    def _record(self, path: Path, began: float | None) -> None:
        state = path / "segserve.json"
        beside = state.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({"repo": self.repo, "source": self.source, "fetched": began}))
        beside.replace(state)

    def _discard(self) -> None:
        if self.path.exists():
            grave = self._scratch("dead")
            self.path.replace(grave)
            shutil.rmtree(grave, ignore_errors=True)


_NOT_HANDED_OUT = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "segserve.json").read_text())
    except (FileNotFoundError, ValueError):  # ValueError: cut short by a power failure
        return {}
    return state if isinstance(state, dict) else {}


def recorded(home: Home, access: git.Access) -> list[Mirror]:
    """All mirrors on disk, by repository."""
    found = []
    for path in sorted(home.repositories.glob("*.git")):
        state = _read_state(path)
        repo, source = str(state.get("repo") or ""), str(state.get("source") or "")
        if repo and source:
            found.append(Mirror(home, repo, source, access))
    return sorted(found, key=lambda mirror: mirror.repo)


def failed_here(failure: git.GitFailed, repo: str) -> BackendError:
    """git failed on files of ours, for a reason that is no remote's."""
    return BackendError(f"git failed on the copy of {repo} on this machine.", quote=failure.deciding)
