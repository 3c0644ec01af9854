"""`segserve check --rot`: the environment solved anew, as if there were no lock, against what the lock has."""

from __future__ import annotations

from packaging.utils import canonicalize_name

from segserve import environments, kit, lock
from segserve.environments.base import BuildOptions
from segserve.environments.locked import name_of
from segserve.errors import EnvironmentBuildFailed, UsageError
from segserve.findings import Finding, Place, Rule, Severity
from segserve.project import Project

UNSOLVABLE = Rule(
    "cannot-be-solved",
    Severity.ERROR,
    "What the environment's files ask for cannot be had any more.",
    "Correct the versions as the quoted lines say; users with the lock are served from it as long as the index has it.",
)
DIFFERENT = Rule(
    "solves-differently",
    Severity.NOTE,
    "Solved today, the environment is another one than the locked one.",
    "See whether the executor still works: segserve check --run --no-lock. Then lock it anew: segserve lock.",
)
NO_LOCK = Rule(
    "nothing-to-compare",
    Severity.NOTE,
    "--rot was asked for, but there is no lock for this platform.",
    "Write one while all is well: segserve lock.",
)
RULES = (UNSOLVABLE, DIFFERENT, NO_LOCK)


def find(project: Project, options: BuildOptions, place: Place) -> list[Finding]:
    """Solve and compare; installs nothing.

    Raises:
        InvalidParameters: the project's environment is a docker image.
        InvalidProject: its files are malformed.
    """
    try:
        today = _versions(environments.solve(project, options))
    except EnvironmentBuildFailed as failure:
        return [UNSOLVABLE.at(f"{failure.message}\n{failure.quote}".strip(), place)]
    try:
        then = _versions(lock.read(project.folder / lock.NAME).here())
    except UsageError:
        then = {}
    if not then:
        return [NO_LOCK.at(f"{len(today)} packages can be had; nothing says which they were.", place)]
    changed = [
        f"{name} {then.get(name, '–')} → {today.get(name, '–')}"
        for name in sorted({*then, *today})
        if then.get(name) != today.get(name)
    ]
    return [DIFFERENT.at(f"{len(changed)} package(s) differ: {', '.join(changed)}.", place)] if changed else []


def _versions(lines: tuple[str, ...]) -> dict[str, str]:
    """Name → version, or the address that it comes from. What every environment gets from us is left out."""
    found = {}
    for line in lines:
        plain = line.split(" --hash")[0].split(" ;")[0].strip()
        if " @ file:" in plain and "==" not in plain:
            continue
        if name_of(plain) not in (*environments.SEEDS, canonicalize_name(kit.NAME)):
            found[name_of(plain)] = plain.partition("==")[2].partition(" @ ")[0] or plain.partition(" @ ")[2]
    return found
