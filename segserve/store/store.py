"""`Store`: from what the user named to a commit, and from a commit to a checkout."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from segserve import git, redact, refs
from segserve.errors import (
    AccessDenied,
    InvalidProject,
    InvalidRef,
    NotFound,
    RevisionNotFound,
    SegserveError,
    TooLarge,
)
from segserve.layout import Home
from segserve.refs import ExecutorRef, Pin, RepoKind
from segserve.store.links import refuse_escaping_links
from segserve.store.mirror import Mirror, failed_here, recorded
from segserve.store.revisions import Asking

MAX_SNAPSHOT_BYTES = 2 * 2**30
_NOTHING_TO_SAY: Callable[[str], None] = lambda _text: None  # noqa: E731


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a reference meant at the time.

    `requested` is the text (redacted), `branch` the branch that was named (empty: none), `dirty` whether the commit is
    a snapshot of uncommitted changes, `known_since` when the remote was last asked (seconds since the epoch; None:
    never, it is a local folder). `local` is the work tree that it came from: then `pin.repo` is only its origin, and
    may not have the commit.
    """

    pin: Pin
    requested: str
    branch: str = ""
    dirty: bool = False
    offline: bool = False
    known_since: float | None = None
    notes: tuple[str, ...] = ()
    local: str = ""


class Store:
    """The mirrors below one home. `access` says how remotes may be reached; default: as the user who runs us."""

    def __init__(self, home: Home, access: git.Access | None = None) -> None:
        self.home = home
        self._given = access

    @cached_property
    def access(self) -> git.Access:
        """How remotes are reached."""
        return self._given or git.local_access()

    def mirror(self, repo: str) -> Mirror:
        """The mirror of a repository (URL without credentials), whether it exists or not."""
        return Mirror(self.home, repo, repo, self.access)

    def mirror_path(self, repo: str) -> Path:
        """Where the mirror of a repository is, or would be."""
        return self.mirror(repo).path

    def mirrors(self) -> list[Mirror]:
        """All mirrors: `repo`, `size` in bytes, `fetched` in seconds since the epoch."""
        return recorded(self.home, self.access)

    def remove_mirror(self, repo: str) -> None:
        """Throw a mirror away; the next run clones again.

        Raises:
            NotFound: there is none.
        """
        mirror = self.mirror(repo)
        if not mirror.exists:
            raise NotFound(f"There is no copy of {repo} on this machine.")
        mirror.remove()

    def resolve(
        self,
        ref: ExecutorRef,
        *,
        offline: bool = False,
        allow_unreachable: bool = False,
        committed: bool = False,
        on_note: Callable[[str], None] = _NOTHING_TO_SAY,
    ) -> Resolution:
        """Find the one commit that `ref` means, and have it in a mirror.

        A branch, a tag or nothing asks the remote each time; a full id that is here asks nobody. `offline` asks nobody
        at all. `committed` takes HEAD of a work tree instead of the work tree. `on_note` hears what takes long.

        Raises:
            RevisionNotFound: no commit, or more than one, or one that may be anybody's without `allow_unreachable`.
            RepositoryUnreachable: the remote does not answer, refuses us, or was never fetched and we are offline.
            TooLarge: a work tree over 2 GiB of uncommitted files.
            NotFound: a short name that is not registered.
            AccessDenied: a folder, where `access` has no `file`.
        """
        if ref.kind is RepoKind.NAME:
            hint = f"For the folder: ./{ref.repo}" if Path(ref.repo).is_dir() else "Name a URL or a folder."
            raise NotFound(f"No executor is registered as '{ref.repo}'.", hint=hint)
        if ref.kind in (RepoKind.PATH, RepoKind.FILE) and "file" not in self.access.protocols:
            raise AccessDenied("Folders of this machine are not run here.", hint="Name a repository by https or ssh.")
        with _explained(ref.repo):
            if ref.kind is RepoKind.PATH:
                found = self._resolve_folder(ref, committed=committed, on_note=on_note)
            else:
                access = self.access.to(ref.repo, ref.credentials)
                mirror = Mirror(self.home, ref.repo, ref.repo, access)
                found = _resolve_named(Asking(mirror, offline, allow_unreachable, on_note), ref)
        return replace(found, requested=redact.text(str(ref)))

    def checkout(
        self,
        pinned: Resolution | Pin,
        destination: Path,
        *,
        submodules: bool = False,
        on_note: Callable[[str], None] = _NOTHING_TO_SAY,
    ) -> Path:
        """A fresh clone of a resolved commit in `destination` (absent or empty), detached, `origin` its clean URL.

        It shares nothing with the mirror and holds no link that leads out of it. Submodules only on request.

        Raises:
            RevisionNotFound: the commit is not on this machine.
            InvalidProject: a symbolic link leads out of the repository, or a submodule is hostile.
            RepositoryUnreachable: a submodule cannot be fetched.
        """
        pin = pinned if isinstance(pinned, Pin) else pinned.pin
        local = "" if isinstance(pinned, Pin) else pinned.local
        mirror = self._holder(pin, local)
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _explained(pin.repo):
                self._clone(mirror, pin, destination, on_note)
            if submodules:
                self._add_submodules(pin, destination)
            elif (destination / ".gitmodules").is_file():
                on_note("The repository has submodules; --submodules fetches them.")
            refuse_escaping_links(destination)
        except BaseException:
            shutil.rmtree(destination, ignore_errors=True)
            raise
        return destination

    def _clone(self, mirror: Mirror, pin: Pin, destination: Path, on_note: Callable[[str], None]) -> None:
        try:
            with mirror.reading() as path:
                git.clone(path, pin.sha, destination, pin.repo)
        except git.GitFailed as failure:
            if not failure.corrupt:
                raise
            shutil.rmtree(destination, ignore_errors=True)
            mirror.rebuild(on_note)
            if not mirror.holds(pin.sha) and not mirror.fetch_commit(pin.sha):
                hint = "If it was a snapshot of a folder, run that folder again."
                raise RevisionNotFound(f"The copy of {pin} was damaged.", hint=hint, quote=failure.deciding) from None
            with mirror.reading() as path:
                git.clone(path, pin.sha, destination, pin.repo)

    def _holder(self, pin: Pin, local: str) -> Mirror:
        """The mirror that has a pin's commit: a local folder's when it came from there, whatever its origin is."""
        first = self._mirror_of(Path(local)) if local else self.mirror(pin.repo)
        for mirror in (first, *(other for other in self.mirrors() if other.keeps(pin.sha))):
            if mirror.holds(pin.sha):
                return mirror
        raise RevisionNotFound(f"{pin} is not on this machine.", hint="Resolve it again (run without --offline).")

    def _add_submodules(self, pin: Pin, checkout: Path) -> None:
        # `file` only for submodules of what is itself a file: a stranger's repository may not read this machine's.
        local = pin.repo.startswith("file://")
        protocols = tuple(name for name in self.access.protocols if local or name != "file")
        try:
            git.update_submodules(replace(self.access, protocols=protocols), checkout)
        except git.GitFailed as failure:
            if any(sign in failure.stderr for sign in _HOSTILE_SUBMODULE):
                hint = "Submodules are fetched over https and ssh. Without --submodules it may run."
                message = "A submodule of the repository has an address that is not allowed."
                raise InvalidProject(message, hint=hint, quote=failure.deciding) from failure
            raise git.explain(failure, f"A submodule of {pin.repo}") from failure

    def _mirror_of(self, top: Path) -> Mirror:
        return Mirror(self.home, top.as_uri(), str(top), self.access)

    def _resolve_folder(self, ref: ExecutorRef, *, committed: bool, on_note: Callable[[str], None]) -> Resolution:
        tree = git.find_work_tree(Path(ref.repo), self.access)
        mirror = self._mirror_of(tree.top)
        asking = Asking(mirror, offline=False, allow_unreachable=True, on_note=on_note)
        if tree.bare:
            return _resolve_named(asking, ref, repo=tree.top.as_uri())
        origin = refs.remote_url(tree.origin)
        repo = origin or tree.top.as_uri()
        ref = replace(ref, subdir="/".join(part for part in (tree.prefix, ref.subdir) if part))
        if ref.rev is not None:
            return replace(_resolve_named(asking, ref, repo=repo), local=str(tree.top))
        if committed and tree.git_dir is None:
            raise RevisionNotFound(f"{tree.top} is no git repository: nothing is committed.", hint="Omit --committed.")
        found = git.changes(tree) if tree.git_dir else git.Changes("", "")
        if found.sha:
            _bring(mirror, found.sha, on_note)
        if (committed or not found.changed) and tree.git_dir:
            sha, notes = _committed(tree, found, origin)
        else:
            sha, notes = self._snapshot(tree, found, mirror, on_note)
        mirror.keep(sha)
        pin = Pin(repo, sha, ref.subdir)
        return Resolution(pin, "", found.branch, sha != found.sha, notes=notes, local=str(tree.top))

    def _snapshot(
        self, tree: git.WorkTree, found: git.Changes, mirror: Mirror, on_note: Callable[[str], None]
    ) -> tuple[str, tuple[str, ...]]:
        with mirror.writing(on_note) as path, tempfile.TemporaryDirectory(dir=self.home.temporary) as scratch:
            if tree.git_dir is None:
                names = git.files(tree.top, path)
                nested: Sequence[str] = [name for name in names if name.endswith("/")]
            else:
                names, nested = list(found.changed), found.nested
            if not names:
                raise RevisionNotFound(f"There is nothing in {tree.top}.", hint="Is it the right folder?")
            _check_size(tree.top, names)
            sha = git.snapshot(tree, found, path, Path(scratch))
        if sha == found.sha:
            return sha, ()
        what = f"{len(names)} uncommitted change(s)" if found.sha else "The files of the folder"
        notes = [f"{what} in {tree.top} are recorded as snapshot {sha[:12]}."]
        notes += [f"The repository {name} inside is no submodule and is left out of the snapshot." for name in nested]
        return sha, tuple(notes)


_HOSTILE_SUBMODULE = ("not allowed", "may be interpreted as", "No url found", "suspicious")


def _resolve_named(asking: Asking, ref: ExecutorRef, repo: str = "") -> Resolution:
    found = asking.find(ref.rev, tree=ref.tree)
    mirror = asking.mirror
    if not found.note:
        mirror.keep(found.sha)
    notes = [found.note] if found.note else []
    since = mirror.fetched
    if asking.offline and found.named and since is not None:
        notes.append(f"Offline: {ref.rev or 'the default branch'} is as it was {_ago(since)}.")
    subdir = "/".join(part for part in (found.subdir, ref.subdir) if part)
    pin = Pin(repo or ref.repo, found.sha, refs.check_subdir(subdir))
    return Resolution(pin, "", found.branch, False, asking.offline, since, tuple(notes))


def _bring(mirror: Mirror, sha: str, on_note: Callable[[str], None]) -> None:
    """Have a commit of a local repository in its mirror. Nothing to do in the usual case, when it is there."""
    if mirror.exists and mirror.holds(sha):
        return
    mirror.update(on_note)
    if not mirror.holds(sha) and not mirror.fetch_commit(sha):
        raise RevisionNotFound(f"The repository {mirror.source} does not hand out its commit {sha}.")


def _committed(tree: git.WorkTree, found: git.Changes, origin: str) -> tuple[str, tuple[str, ...]]:
    if not found.sha:
        hint = "Commit something, or leave out --committed." if found.changed else "Is it the right folder?"
        raise RevisionNotFound(f"{tree.top} has no commit yet.", hint=hint)
    notes = [f"{len(found.changed)} uncommitted change(s) in {tree.top} are left out."] if found.changed else []
    if origin and not git.is_pushed(tree, found.sha):
        notes.append(f"{found.sha[:12]} is on no branch of {origin} that this clone knows of: others cannot fetch it.")
    return found.sha, tuple(notes)


def _check_size(top: Path, names: Sequence[str]) -> None:
    sizes = {name: (top / name).lstat().st_size for name in names if os.path.lexists(top / name)}
    total = sum(sizes.values())
    if total > MAX_SNAPSHOT_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
        raise TooLarge(
            f"{top} has {total / 2**30:.1f} GiB that are not committed; a snapshot may have "
            f"{MAX_SNAPSHOT_BYTES / 2**30:.0f} GiB. The largest: {shown}.",
            hint="Put data into .gitignore and pass it as a parameter, or use --committed.",
        )


def _ago(since: float) -> str:
    seconds = max(0.0, datetime.datetime.now(datetime.UTC).timestamp() - since)
    at = datetime.datetime.fromtimestamp(since, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    for length, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name} ago ({at})"
    return f"{seconds:.0f} seconds ago ({at})"


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Conversations with remotes are explained where they are held; what comes here failed on this machine."""
    try:
        yield
    except git.GitFailed as failure:
        if "dubious ownership" in failure.stderr or "No space left" in failure.stderr:
            raise git.explain(failure, repo) from failure
        raise (_of_the_folder(failure, repo) or failed_here(failure, repo)) from failure


def _of_the_folder(failure: git.GitFailed, repo: str) -> SegserveError | None:
    if "does not have a commit checked out" in failure.stderr:
        hint = "A repository without a commit lies inside: commit there, remove it, or list it in .gitignore."
        return InvalidProject(f"{repo} cannot be recorded.", hint=hint, quote=failure.deciding)
    if "Permission denied" in failure.stderr:
        return InvalidRef(f"{repo} has files that you may not read.", quote=failure.deciding)
    return None
