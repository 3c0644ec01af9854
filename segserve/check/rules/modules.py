"""Algorithm modules of other dialects: what their reader says, and what their Runner.py shows."""

from __future__ import annotations

from collections.abc import Iterator

from segserve import dialects
from segserve.check.repository import Repository
from segserve.errors import InvalidProject
from segserve.findings import Finding

RULES = dialects.RULES


def find(repository: Repository) -> Iterator[Finding]:
    """Everything about a module; nothing about an executor."""
    if not repository.is_module:
        return
    try:
        module = dialects.read(repository.folder)
    except InvalidProject as refusal:
        found = refusal.findings
    else:
        runner = repository.text(repository.shown(dialects.RUNNER))
        found = (*module.findings, *dialects.look(runner, module.type, dialects.RUNNER))
    for finding in found:
        yield repository.moved(finding)
