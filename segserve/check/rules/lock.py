"""segserve.lock: whether it still belongs to what the files say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from segserve import lock
from segserve.check.repository import Repository
from segserve.environments.locked import declaration
from segserve.errors import InvalidProject, UsageError
from segserve.findings import Finding, Place, Rule, Severity

STALE = Rule(
    "stale-lock",
    Severity.ERROR,
    "segserve.lock was made from other files: runs ignore it.",
    "Write it anew: segserve lock.",
)
BAD = Rule("bad-lock", Severity.ERROR, "segserve.lock cannot be read.", "Write it anew: segserve lock.")
RULES = (STALE, BAD)


def find(repository: Repository) -> Iterator[Finding]:
    """Compare the hashes; of an executor without a lock nothing is said."""
    project, path = repository.project, f"{repository.prefix}{lock.NAME}"
    if project is None or path not in repository.files:
        return
    place = Place(path, 1, 1)
    try:
        found = lock.read(repository.root / path)
        declared = declaration(project)
    except UsageError as problem:
        yield BAD.at(problem.message.replace(f"{repository.root}/", ""), place)
        return
    except InvalidProject:  # the environment's own rules say so
        return
    if found.mlproject_sha256 != hashlib.sha256(project.file.read_bytes()).hexdigest():
        yield STALE.at(f"{project.file.name} has changed since it was written.", place)
    if found.declaration != declared:
        yield STALE.at(f"{project.environment.file or 'docker_env'} has changed since it was written.", place)
    now = lock.weights(repository.folder)
    for name in sorted({*found.weights, *now}):
        if found.weights.get(name) != now.get(name):
            yield STALE.at(f"The weights {name} are not those that it was written with.", place)
