"""The static rules, one module per family. A module has `RULES`, and `find(repository)` that yields findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from segserve.check.repository import Repository
from segserve.check.rules import code, dependencies, docker, files, lock, manifest, mlproject, modules, secrets
from segserve.findings import Finding, Rule


class Family(Protocol):
    """What a module of this package has."""

    @property
    def RULES(self) -> tuple[Rule, ...]:  # noqa: N802 - a module's constant
        """All rules of the family."""

    def find(self, repository: Repository) -> Iterator[Finding]:
        """All findings of the family; reads files, runs nothing."""


FAMILIES: Mapping[str, Family] = {
    "mlproject": mlproject,
    "dependencies": dependencies,
    "docker": docker,
    "code": code,
    "secrets": secrets,
    "files": files,
    "manifest": manifest,
    "modules": modules,
    "lock": lock,
}
