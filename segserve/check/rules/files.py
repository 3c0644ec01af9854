"""What lies in the repository, or should."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from segserve.check.repository import Repository
from segserve.findings import Finding, Place, Rule, Severity
from segserve.inputs import inside

_W, _N = Severity.WARNING, Severity.NOTE

NO_LICENCE = Rule(
    "no-licence",
    _W,
    "There is no licence: nobody may use the executor.",
    "Add a file LICENSE, for instance BSD-3-Clause.",
)
NO_README = Rule(
    "no-readme", _W, "There is no README.", "Say what it segments, with which parameters, and whom to cite."
)
OVERSIZED = Rule(
    "oversized-file",
    _W,
    "A file of more than 50 MB is in the repository: every run of every user clones it.",
    "Publish weights as a release and download them to $CACHE_FOLDER.",
)
LEFTOVERS = Rule(
    "leftover-files",
    _W,
    "Files that tools leave behind are committed.",
    "git rm -r --cached them, and name them in .gitignore.",
)
STALE_OUTPUT = Rule(
    "committed-output",
    _W,
    "An output.json is committed: if a run writes none, the old one is taken for its result.",
    "Remove it, or move it out of the project's folder.",
)
LFS = Rule(
    "lfs-pointer",
    _W,
    "A file is kept by git LFS, whose contents segserve does not download.",
    "Download it to $CACHE_FOLDER when the executor starts.",
)
SUBMODULES = Rule(
    "submodules",
    _W,
    "The repository needs submodules, which are fetched only on request (--submodules).",
    "Install what they hold as a dependency, pinned to a commit.",
)
ESCAPING = Rule(
    "escaping-link",
    Severity.ERROR,
    "A symbolic link leads out of the repository: segserve refuses to check it out.",
    "Put the file itself there.",
)
RULES = (NO_LICENCE, NO_README, OVERSIZED, LEFTOVERS, STALE_OUTPUT, LFS, SUBMODULES, ESCAPING)

LIMIT_BYTES = 50_000_000
_LICENCE = re.compile(r"(licen[cs]e|copying|unlicense)([.-].*)?", re.I)
_README = re.compile(r"readme(\..*)?", re.I)
_LEFTOVERS = re.compile(
    r"(?:^|/)(?:(?P<folder>__pycache__|\.ipynb_checkpoints|mlruns|\.venv|venv|\.pytest_cache|[^/]+\.egg-info)/"
    r"|(?P<file>\.DS_Store|Thumbs\.db|mlflow\.db)$)"
)
_OWN_RULES = re.compile(r"mlproject|segserve\.toml", re.I)  # links of these names are other rules' matter
_LFS_HEAD = b"version https://git-lfs.github.com/spec/v1"


def find(repository: Repository) -> Iterator[Finding]:
    """Everything about files."""
    near = {path for path in repository.files if "/" not in path.removeprefix(repository.prefix)}
    names = {PurePosixPath(path).name for path in near} | {path for path in repository.files if "/" not in path}
    if not any(_LICENCE.fullmatch(name) for name in names) and not _has_folder(repository, "LICENSES/"):
        yield NO_LICENCE.at("There is no file LICENSE.")
    if not any(_README.fullmatch(name) for name in names):
        yield NO_README.at("There is no README.")
    if ".gitmodules" in repository.files:
        yield SUBMODULES.at("There are submodules.", Place(".gitmodules", 1, 1))
    if f"{repository.prefix}output.json" in repository.files:
        yield STALE_OUTPUT.at("An output.json lies beside MLProject.", Place(f"{repository.prefix}output.json"))
    yield from _sizes(repository)
    yield from _leftovers(repository)
    links = (repository.root / path for path, size in repository.files.items() if size == 0)
    for link in links:
        leads_out = link.is_symlink() and not inside(str(link), [repository.root])
        if leads_out and not _OWN_RULES.fullmatch(link.name):
            yield ESCAPING.at(f"It leads to {link.readlink()}.", Place(link.relative_to(repository.root).as_posix()))


def _has_folder(repository: Repository, folder: str) -> bool:
    return any(path.startswith(folder) for path in repository.files)


def _sizes(repository: Repository) -> Iterator[Finding]:
    for path, size in repository.files.items():
        if size > LIMIT_BYTES:
            yield OVERSIZED.at(f"The file has {size / 1e6:.0f} MB.", Place(path))
        if 100 < size < 200 and (repository.root / path).read_bytes().startswith(_LFS_HEAD):
            yield LFS.at("This is a pointer of git LFS.", Place(path))


def _leftovers(repository: Repository) -> Iterator[Finding]:
    found: dict[str, int] = {}
    for path in repository.files:
        match = _LEFTOVERS.search(path)
        if match is not None:
            where = path[: match.end()].rstrip("/")
            found[where] = found.get(where, 0) + 1
    for where, count in found.items():
        yield LEFTOVERS.at(f"{count} file(s) that a tool has left.", Place(where))
