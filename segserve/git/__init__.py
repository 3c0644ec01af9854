"""Plain `git`: how it is started (`command`), bare mirrors (`mirrors`), folders of the user's (`worktree`)."""

from segserve.git.command import HERE, Access, GitFailed, explain, local_access, require_git, run
from segserve.git.mirrors import (
    clone,
    create_mirror,
    fetch,
    is_reachable,
    lookup,
    names,
    objects_with_prefix,
    set_ref,
    update_submodules,
)
from segserve.git.worktree import Changes, WorkTree, changes, files, find_work_tree, is_pushed, snapshot

__all__ = [
    "HERE",
    "Access",
    "Changes",
    "GitFailed",
    "WorkTree",
    "changes",
    "clone",
    "create_mirror",
    "explain",
    "fetch",
    "files",
    "find_work_tree",
    "is_pushed",
    "is_reachable",
    "local_access",
    "lookup",
    "names",
    "objects_with_prefix",
    "require_git",
    "run",
    "set_ref",
    "snapshot",
    "update_submodules",
]
