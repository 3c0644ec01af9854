"""Short names of executors: `cellpose` instead of a URL. Yours, then those that come with segserve.

A name has no `/`, `.` or `:`; a folder of that name is `./name`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import segserve
from segserve import refs
from segserve.errors import InvalidRef, UsageError, did_you_mean
from segserve.refs import ExecutorRef, RepoKind

OWN_PREFIX = "segserve-"
_SHIPPED = Path(__file__).with_name("shipped.toml")
_CLOSE = "Did you mean"


@dataclass(frozen=True, slots=True)
class Registered:
    """A short name: the REF that it stands for, and who says so (`config.toml`, `shipped`, `source tree`)."""

    name: str
    ref: str
    description: str = ""
    origin: str = ""


def known(configured: Mapping[str, Registered | None]) -> dict[str, Registered]:
    """All names, sorted. `configured` (from config.toml) wins; None takes a shipped name away."""
    names: dict[str, Registered | None] = {**_shipped(), **_own(), **configured}
    return {name: found for name, found in sorted(names.items()) if found is not None}


def resolve(ref: ExecutorRef, text: str, names: Mapping[str, Registered], *, entry: str | None = None) -> ExecutorRef:
    """What a reference by name stands for; other references stay as they are.

    What the caller says (`name@rev#entry`, as `text`, or `entry`) wins over what is registered.

    Raises:
        InvalidRef: no such name, or what is registered under it is no reference.
    """
    if ref.kind is not RepoKind.NAME:
        return ref
    found = names.get(ref.repo)
    if found is None:
        raise _unknown(ref.repo, names)
    target = refs.parse(found.ref)
    if target.kind is RepoKind.NAME:
        raise InvalidRef(f"'{ref.repo}' stands for '{found.ref}', which is a name again.", hint="Register a URL.")
    if "#" in text or entry:
        target = replace(target, subdir=ref.subdir or target.subdir, entry=ref.entry)
    return replace(target, rev=ref.rev, tree=False) if ref.rev else target


def check(name: str, ref: str) -> ExecutorRef:
    """The reference that is to be registered under `name`.

    Raises:
        UsageError: no name, or no reference that lasts.
    """
    if not refs.SHORT_NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no short name.", hint="Letters, digits, - and _; no slash, dot or colon.")
    target = refs.parse(ref)
    if target.kind is RepoKind.NAME:
        raise UsageError(f"'{ref}' is a short name itself.", hint=f"Give a URL, or ./{ref} for the folder.")
    if target.credentials is not None:
        raise UsageError(
            "The reference holds a user or a token, which a configuration file should not.",
            hint="Leave it out: git asks its credential helper, as it does for you.",
        )
    return target


def _unknown(name: str, names: Mapping[str, Registered]) -> InvalidRef:
    close = did_you_mean(name, names)
    others = "`segserve executors list` shows what there is; or name a URL (https://…, ssh://…) or a folder."
    hint = close if close.startswith(_CLOSE) else others
    if Path(name).is_dir():
        hint = f"For the folder, write ./{name}."
    return InvalidRef(f"No executor is registered under the short name '{name}'.", hint=hint)


def _shipped() -> dict[str, Registered]:
    entries = tomllib.loads(_SHIPPED.read_text(encoding="utf-8"))
    return {name: Registered(name, **entry, origin="shipped") for name, entry in entries.items()}


def _own() -> dict[str, Registered]:
    """The executors of this repository, where segserve runs from its source tree."""
    root = Path(segserve.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    found = {}
    for folder in sorted(path.parent for path in (root / "executors").glob("*/MLProject")):
        name, subdir = f"{OWN_PREFIX}{folder.name}", folder.relative_to(root).as_posix()
        found[name] = Registered(name, f"{root}#{subdir}:", subdir, "source tree")
    return found
