"""What an executor did besides: files that it wrote, machines that it called, secrets that it printed."""

from __future__ import annotations

import ipaddress
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import segserve.check
from segserve.layout import Home

# Never set to anything: whoever prints it prints the environment.
CANARY = "SEGSERVE_CHECK_TOKEN"
_WITNESS = "SEGSERVE_WITNESS"
_BYTECODE = re.compile(r"(^|/)__pycache__(/|$)|\.pyc(\.\d+)?$")
_SHARED = ("/dev", "/proc", "/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Seen:
    """`written`: files outside of everything that belongs to the job. `called`: hosts beyond this machine."""

    written: tuple[str, ...]
    called: tuple[str, ...]


def variables(notes: Path, secret: str) -> Mapping[str, str]:
    """What has to be in the executor's environment; `notes` is the file that the witness writes."""
    witness = Path(segserve.check.__file__).parent / "witness"
    return {"PYTHONPATH": str(witness), _WITNESS: str(notes), CANARY: secret}


def read(notes: Path, home: Home, *, own: Iterable[Path]) -> Seen:
    """What the witness has written down. `own` are further folders that the job may write to."""
    allowed = [home.path, Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), notes, *own]  # noqa: S108
    roots = tuple(dict.fromkeys([*(str(path.resolve()) for path in allowed), *map(str, allowed), *_SHARED]))
    written, called = dict[str, None](), dict[str, None]()
    lines = notes.read_text(encoding="ascii", errors="replace").splitlines() if notes.exists() else []
    for line in lines:
        kind, _, what = line.partition(" ")
        if kind == "write" and not _is_below(what, roots) and not _BYTECODE.search(what):
            written[what] = None
        elif kind == "connect" and not _is_here(what):
            called[what] = None
    return Seen(tuple(written), tuple(called))


def printed(log: str, secret: str) -> bool:
    """Whether the canary is in a log. Logs are redacted, so that of its value only the name may be left."""
    return secret in log or CANARY in log


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
