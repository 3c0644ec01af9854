"""Which commit does this text mean? A revision either means one commit, or it is refused with what it might mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from segserve import git, refs
from segserve.errors import RepositoryUnreachable, RevisionNotFound, did_you_mean
from segserve.store.mirror import HEAD, KEPT, UNREACHABLE, Mirror

_SHORT_SHA = re.compile(r"[0-9a-f]{4,39}")
_BRANCHES, _TAGS = "refs/heads/", "refs/tags/"


@dataclass(frozen=True, slots=True)
class Found:
    """A commit, the branch that named it (empty: none did), the rest of a pasted /tree/ path."""

    sha: str
    branch: str = ""
    subdir: str = ""
    note: str = ""
    named: bool = False  # by something that may move: a branch, a tag, HEAD


@dataclass(frozen=True, slots=True)
class Asking:
    """One question to a mirror and, unless `offline`, to the remote behind it."""

    mirror: Mirror
    offline: bool
    allow_unreachable: bool
    on_note: Callable[[str], None]

    def find(self, rev: str | None, *, tree: bool) -> Found:
        """The commit that `rev` means (None: the remote's HEAD).

        Raises:
            RevisionNotFound: it means none, or several.
            RepositoryUnreachable: the remote does not answer, or there is no copy and we are offline.
        """
        if rev is None or rev == "HEAD":
            self._ask()
            return self._default()
        first, _, rest = rev.partition("/")
        if tree and refs.FULL_SHA.fullmatch(first.lower()):
            return replace(self._full(first.lower()), subdir=rest)
        if refs.FULL_SHA.fullmatch(rev.lower()):
            return self._full(rev.lower())
        if not tree and _SHORT_SHA.fullmatch(rev) and self.mirror.exists:
            known = self._meanings(rev)
            if len(known) == 1 and not known[0].named:
                return self._trusted(known[0].sha)
        self._ask()
        return self._tree(rev) if tree else self._one(rev)

    def _ask(self) -> None:
        if not self.offline:
            self.mirror.update(self.on_note)
        elif not self.mirror.exists:
            raise RepositoryUnreachable(
                f"{self.mirror.repo} was never fetched on this machine.", hint="Run it once without --offline."
            )

    def _default(self) -> Found:
        path = self.mirror.path
        sha = git.lookup(path, [f"{HEAD}^{{commit}}"])[0]
        if sha is None:
            branches = [name.removeprefix(_BRANCHES) for name in git.names(path, _BRANCHES)]
            if not branches and not git.names(path, _TAGS):
                raise RevisionNotFound(f"{self.mirror.repo} is empty: it has no commit.")
            raise RevisionNotFound(
                f"{self.mirror.repo} names a default branch that it does not have.",
                hint=f"Name one of its branches: {', '.join(branches[:20])}.",
            )
        here = [name.removeprefix(_BRANCHES) for name in git.names(path, _BRANCHES, points_at=sha)]
        usual = [name for name in ("main", "master") if name in here]
        return Found(sha, branch=(usual or here or [""])[0], named=True)

    def _full(self, sha: str) -> Found:
        """A full id: nobody is asked when the mirror has it. An id of an annotated tag means its commit."""
        mirror = self.mirror
        if mirror.exists:
            if mirror.keeps(sha):
                return Found(sha)
            commit = self._commit(sha)
            if commit and (self._is_trusted(commit) or self.offline):
                return self._trusted(commit)
        self._ask()
        commit = self._commit(sha)
        if commit:
            return self._trusted(commit)
        if self.offline or not self._fetch_unreachable(sha):
            offline = " on this machine" if self.offline else ""
            raise RevisionNotFound(
                f"{mirror.repo} has no commit {sha}{offline}.",
                hint="Run it without --offline." if self.offline else "Was it pushed? It may also have been removed.",
            )
        return self._trusted(self._commit(sha) or sha)

    def _commit(self, expression: str) -> str | None:
        return git.lookup(self.mirror.path, [f"{expression}^{{commit}}"])[0]

    def _fetch_unreachable(self, sha: str) -> bool:
        """Fetch a commit that is on no branch or tag; only if that is allowed. False: the remote has none."""
        if self.allow_unreachable:
            return self.mirror.fetch_commit(sha)
        if self.mirror.hands_out(sha):
            raise self._impostor(sha)
        return False

    def _is_trusted(self, sha: str) -> bool:
        return git.is_reachable(self.mirror.path, sha, "--branches", "--tags", f"--glob={KEPT}/*")

    def _trusted(self, sha: str) -> Found:
        """Everybody who may open a pull request can put commits into a repository on a shared host."""
        if self.mirror.keeps(sha) or self._is_trusted(sha):
            return Found(sha)
        if not self.allow_unreachable:
            raise self._impostor(sha)
        self.mirror.keep(sha, UNREACHABLE)
        return Found(sha, note=f"{sha[:12]} is on no branch or tag of {self.mirror.repo}: it may come from a fork.")

    def _impostor(self, sha: str) -> RevisionNotFound:
        return RevisionNotFound(
            f"Commit {sha} is on no branch or tag of {self.mirror.repo}.",
            hint="Hosts hand out commits of forks and pull requests under the address of the original, so it may be "
            "anybody's. If you know it, use --allow-unreachable.",
        )

    def _one(self, rev: str) -> Found:
        meanings = self._meanings(rev)
        if not meanings:
            raise self._unknown(rev)
        if len({found.sha for found in meanings}) > 1:
            raise self._ambiguous(rev)
        chosen = next((found for found in meanings if found.branch), meanings[0])
        return chosen if chosen.named else self._trusted(chosen.sha)

    def _meanings(self, rev: str) -> list[Found]:
        """All commits that a name or short id may mean."""
        candidates = _qualified(rev)
        found = [
            Found(sha, branch=ref.removeprefix(_BRANCHES) if ref.startswith(_BRANCHES) else "", named=True)
            for ref, sha in zip(candidates, self._peeled(candidates), strict=True)
            if sha
        ]
        if _SHORT_SHA.fullmatch(rev):
            objects = git.objects_with_prefix(self.mirror.path, rev)
            found += [Found(sha) for sha in sorted({sha for sha in self._peeled(objects) if sha})]
        return found

    def _peeled(self, expressions: list[str]) -> list[str | None]:
        asked = [f"{expression}^{{commit}}" for expression in expressions]
        return git.lookup(self.mirror.path, asked) if asked else []

    def _tree(self, text: str) -> Found:
        """The longest beginning of a pasted path that is a branch or tag; the rest is a folder."""
        parts = text.split("/")
        names = set(git.names(self.mirror.path, _BRANCHES, _TAGS))
        for length in range(len(parts), 0, -1):
            rev = "/".join(parts[:length])
            if names & set(_qualified(rev)):
                return replace(self._one(rev), subdir="/".join(parts[length:]))
        if _SHORT_SHA.fullmatch(parts[0]):
            return replace(self._one(parts[0]), subdir="/".join(parts[1:]))
        raise self._unknown(parts[0] if len(parts) == 1 else text)

    def _unknown(self, rev: str) -> RevisionNotFound:
        names = [name.split("/", 2)[2] for name in git.names(self.mirror.path, _BRANCHES, _TAGS)]
        if not names:
            return RevisionNotFound(f"{self.mirror.repo} is empty: it has no commit.")
        known = " that was known when it was last fetched" if self.offline else ""
        bare = rev.removeprefix("refs/").removeprefix("heads/").removeprefix("tags/").removeprefix("origin/")
        hint = f"Did you mean '{bare}'?" if bare in names else did_you_mean(bare, names[:1000])
        return RevisionNotFound(f"{self.mirror.repo} has no branch, tag or commit '{rev}'{known}.", hint=hint)

    def _ambiguous(self, rev: str) -> RevisionNotFound:
        path, lines = self.mirror.path, []
        candidates = _qualified(rev)
        for ref, sha in zip(candidates, self._peeled(candidates), strict=True):
            lines += [f"--rev {ref}  ({sha[:12]})"] if sha else []
        if _SHORT_SHA.fullmatch(rev):
            objects = git.objects_with_prefix(path, rev)
            lines += [f"--rev {sha}" for sha in sorted({sha for sha in self._peeled(objects) if sha})]
        return RevisionNotFound(
            f"'{rev}' means more than one commit of {self.mirror.repo}.", hint="Say one of: " + "; ".join(lines[:10])
        )


def _qualified(rev: str) -> list[str]:
    """The full names that `rev` may stand for: `v1`, `tags/v1`, `refs/tags/v1`."""
    for prefix in ("refs/heads/", "refs/tags/", "heads/", "tags/"):
        if rev.startswith(prefix):
            return [rev if prefix.startswith("refs/") else f"refs/{rev}"]
    return [_BRANCHES + rev, _TAGS + rev]
