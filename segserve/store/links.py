"""Symbolic links in a checkout: none may lead out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from segserve.errors import InvalidProject


def refuse_escaping_links(checkout: Path) -> None:
    """A link to the outside would make us read, hash or publish files of this machine as if they were the executor's.

    Not only those on the way to files that we read today: the rule has to hold for the ones that we will read.
    """
    root = os.path.realpath(checkout)
    found = [path for path in _links(checkout) if os.path.commonpath((root, os.path.realpath(checkout / path))) != root]
    if found:
        raise InvalidProject(
            f"The repository has symbolic links that lead out of it: {', '.join(sorted(found)[:5])}.",
            hint="Remove them, or (in a folder of yours) list them in .gitignore, and pass such data as a parameter.",
        )


def _links(checkout: Path, below: str = "") -> Iterator[str]:
    with os.scandir(checkout / below) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)  # noqa: PTH118 - called once per file of the checkout
            if entry.is_symlink():
                yield path
            elif entry.is_dir() and entry.name != ".git":
                yield from _links(checkout, path)
