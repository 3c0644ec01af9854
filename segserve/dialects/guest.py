"""What a module's environment needs of ours: the guest package, whose wheel lies in the job's checkout, and the SDK."""

from __future__ import annotations

from pathlib import Path

from segserve import kit


def install(folder: Path) -> tuple[str, ...]:
    """Put the guest package's wheel into `folder`, a direct subfolder of the project; returns requirement lines.

    The SDK is asked for by name: every environment is offered that of this segserve.
    """
    wheel = kit.write_wheel(folder, kit.MODULES)
    return kit.NAME, f"./{folder.name}/{wheel.name}"
