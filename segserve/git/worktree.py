"""A folder of the user's: what differs from its HEAD, and a snapshot of it. It is only read, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segserve.git.command import Access, GitFailed, Settings, parse_configuration, run

NO_DATE = "@946684800 +0000"  # 2000-01-01, for a snapshot that has no parent to take the date from


@dataclass(frozen=True, slots=True)
class WorkTree:
    """A folder of the user's. `top` is its root, `git_dir` None without git, `prefix` the folder below `top`.

    `bare`: there is no work tree, `top` is the repository itself. `origin` is the URL as configured, with whatever it
    holds. `quiet` are settings that switch off the filters that its configuration declares.
    """

    top: Path
    git_dir: Path | None = None
    prefix: str = ""
    bare: bool = False
    origin: str = field(default="", repr=False)
    quiet: Settings = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs from HEAD (`sha`; empty before the first commit). Paths are relative to the work tree's top.

    `staged` are lines for `git update-index --index-info`; `nested` are repositories inside that are no submodules.
    """

    sha: str
    branch: str
    changed: tuple[str, ...] = ()
    staged: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()


def find_work_tree(folder: Path, access: Access) -> WorkTree:
    """The repository that `folder` is in, or the folder itself where there is none (or where git ignores it).

    Raises:
        GitFailed: git refuses, for example because it belongs to somebody else.
    """
    asked = ("--is-bare-repository", "--absolute-git-dir", "--show-prefix", "--show-toplevel")
    try:
        _, git_dir, prefix, top = run("rev-parse", *asked, folder=folder, access=access).splitlines()
    except GitFailed as failure:
        if "not a git repository" in failure.stderr:
            return WorkTree(folder)
        if "must be run in a work tree" in failure.stderr:
            return WorkTree(folder, bare=True)
        raise
    tree = _configured(WorkTree(Path(top), Path(git_dir), prefix.rstrip("/")))
    if tree.prefix and _is_ignored(tree, folder):
        return WorkTree(folder)
    return tree


def _configured(tree: WorkTree) -> WorkTree:
    configuration = parse_configuration(run("config", "--list", "-z", "--show-scope", repository=tree.git_dir))
    own = [(key, value) for scope, key, value in configuration if scope in ("local", "worktree")]
    # A clean filter is a program that its configuration names; git runs it while it looks for changes.
    filters = {key.rpartition(".")[0] for key, _ in own if key.startswith("filter.")}
    quiet = tuple(
        (f"{name}.{what}", "false" if what == "required" else "")
        for name in sorted(filters)
        for what in ("clean", "smudge", "process", "required")
    )
    return replace(tree, origin=dict(own).get("remote.origin.url", ""), quiet=quiet)


def _is_ignored(tree: WorkTree, folder: Path) -> bool:
    try:
        _run_in(tree, "check-ignore", "--quiet", "--", str(folder))
    except GitFailed:
        return False
    return True


def _run_in(
    tree: WorkTree,
    *words: str,
    variables: Mapping[str, str] | None = None,
    stdin: str | None = None,
    mirror: Path | None = None,
) -> str:
    """Run git on a work tree of the user's. All that does comes through here, because commands that one would not
    suspect start filters: whoever writes an index (`write-tree` does) reads the files that are as young as it is.
    """
    reading = {"GIT_WORK_TREE": str(tree.top), "GIT_OPTIONAL_LOCKS": "0", **(variables or {})}
    where = tree.git_dir or mirror
    return run(*words, folder=tree.top, repository=where, settings=tree.quiet, variables=reading, stdin=stdin)


def changes(tree: WorkTree) -> Changes:
    """Compare a work tree with HEAD; nothing in it is written, not even the index is refreshed."""
    words = ["status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames"]
    words += ["--ignore-submodules=dirty"]  # what is uncommitted inside of a submodule is not ours to record
    lines = _run_in(tree, *words).split("\0")
    head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch.") and line.count(" ") > 1)
    sha, branch = head["branch.oid"], head["branch.head"]
    changed, staged, nested = [], [], []
    for line in lines:
        if line.startswith("1 "):  # 1 XY sub mH mI mW hH hI path
            _, state, _, _, mode, _, _, blob, path = line.split(" ", 8)
            changed.append(path)
            if state[0] != ".":
                staged.append(f"{mode} {blob}\t{path}")
        elif line.startswith("u "):
            changed.append(line.split(" ", 10)[10])
        elif line.startswith("? "):
            changed.append(line[2:])
            nested += [line[2:]] if line.endswith("/") else []
    return Changes(
        "" if sha == "(initial)" else sha,
        "" if branch == "(detached)" else branch,
        tuple(changed),
        tuple(staged),
        tuple(nested),
    )


def files(folder: Path, mirror: Path) -> list[str]:
    """The files of a folder without git that its `.gitignore` does not exclude; a trailing slash is a repository."""
    variables = {"GIT_WORK_TREE": str(folder), "GIT_INDEX_FILE": str(mirror / "no-index")}
    command = ("ls-files", "--others", "--exclude-standard", "-z")
    text = run(*command, folder=folder, repository=mirror, variables=variables)
    return [name for name in text.split("\0") if name]


def snapshot(tree: WorkTree, found: Changes, mirror: Path, scratch: Path) -> str:
    """Record a work tree as it is as a commit in `mirror` (which has HEAD already) and return its id.

    The index is a copy in `scratch`, and objects go into the mirror, so the user's repository is only read. The same
    content on the same HEAD gives the same id. Without a difference in content it is HEAD itself.
    """
    index = scratch / "index"
    own_index = tree.git_dir / "index" if tree.git_dir else None
    if own_index and own_index.exists():
        shutil.copy2(own_index, index)  # with its time: git tells by it which entries are too young to be trusted
    elsewhere = {"GIT_INDEX_FILE": str(index), "GIT_OBJECT_DIRECTORY": str(mirror / "objects")}
    if found.staged:
        # Content that is staged lies in the user's object store alone. Entries without file times are read again.
        lines = "".join(f"{line}\0" for line in found.staged)
        _run_in(tree, "update-index", "-z", "--index-info", variables=elsewhere, stdin=lines, mirror=mirror)
    _run_in(tree, "add", "--all", variables=elsewhere, mirror=mirror)
    content = _run_in(tree, "write-tree", variables=elsewhere, mirror=mirror).strip()
    parent: tuple[str, ...] = ()
    date = NO_DATE
    if found.sha:
        before, seconds = run("log", "-1", "--format=%T %ct", found.sha, repository=mirror).split()
        if before == content:
            return found.sha
        parent, date = ("-p", found.sha), f"@{seconds} +0000"
    return _commit(mirror, content, parent, date)


def _commit(mirror: Path, content: str, parent: Sequence[str], date: str) -> str:
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "segserve"), ("EMAIL", "segserve@localhost"), ("DATE", date))
    }
    message = "The work tree as it was, recorded by segserve"
    return run("commit-tree", content, *parent, "-m", message, repository=mirror, variables=who).strip()


def is_pushed(tree: WorkTree, sha: str) -> bool:
    """Whether a commit is on a branch of a remote, as far as this clone knows."""
    return not run("rev-list", "--max-count=1", sha, "--not", "--remotes", repository=tree.git_dir).strip()
