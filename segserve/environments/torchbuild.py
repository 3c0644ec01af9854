"""For which cards an environment's torch was built, read from its files: importing torch costs seconds and memory.

`torch/version.py` says the version and the CUDA it was built with. The architectures that it has code for stand as one
text in its library (`sm_70 sm_75 … compute_90`); where that is not found, what a CUDA release knows has to do.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segserve.model import Environment

_VERSION = re.compile(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", re.M)
_CUDA = re.compile(r"^cuda\s*(?::[^=]*)?=\s*['\"](\d+)\.(\d+)[^'\"]*['\"]", re.M)
_HIP = re.compile(r"^hip\s*(?::[^=]*)?=\s*['\"]", re.M)
_ARCHITECTURES = re.compile(rb"(?:(?:sm|compute)_\d{2,3}[af]?)(?: (?:sm|compute)_\d{2,3}[af]?)+(?=\0)")
# The first CUDA that compiles for a card: https://docs.nvidia.com/cuda/ release notes of each.
_FIRST: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((12, 0), (12, 8)),
    ((10, 3), (12, 9)),
    ((10, 0), (12, 8)),
    ((9, 0), (11, 8)),
    ((8, 9), (11, 8)),
    ((8, 6), (11, 1)),
    ((8, 0), (11, 0)),
    ((7, 5), (10, 0)),
    ((7, 0), (9, 0)),
    ((6, 0), (8, 0)),
)


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What is installed. `cuda` is (major, minor), None: built without. `architectures`: `sm_80`, `compute_90` …; may
    be empty, then nothing is known of them.
    """

    version: str
    cuda: tuple[int, int] | None
    architectures: tuple[str, ...] = ()

    def problem(self, capability: tuple[int, int], driver: tuple[int, int] | None) -> str:
        """Why it cannot compute on a card of this capability with a driver for CUDA `driver`; "" if it can."""
        if self.cuda is None:
            return f"torch {self.version} was built without CUDA"
        toolkit, card = _dotted(self.cuda), f"compute capability {_dotted(capability)}"
        # Within one major release, older drivers run newer builds:
        # https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
        if driver is not None and driver[0] < self.cuda[0]:
            known = f"the driver knows CUDA {_dotted(driver)} at most"
            return f"torch {self.version} was built for CUDA {toolkit}, but {known}"
        if self.architectures:
            code = ", ".join(self.architectures)
            if not any(_runs(name, capability) for name in self.architectures):
                return f"torch {self.version} has code for {code}, none of which runs on {card}"
        elif self.cuda < _first(capability):
            return f"torch {self.version} was built with CUDA {toolkit}, which is older than cards of {card}"
        return ""


def find(environment: Environment) -> TorchBuild | None:
    """The torch of an environment; None: it has none, or nobody can look (an image of docker)."""
    prefix = Path(environment.location)
    if not prefix.is_absolute():
        return None
    for folder in sorted(prefix.glob("lib/python3.*/site-packages/torch")):
        text = _read(folder / "version.py")
        version = _VERSION.search(text)
        if version and not _HIP.search(text):
            cuda = _CUDA.search(text)
            built = (int(cuda[1]), int(cuda[2])) if cuda else None
            return TorchBuild(version[1], built, _architectures(folder) if built else ())
    return None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _architectures(folder: Path) -> tuple[str, ...]:
    library = folder / "lib" / "libtorch_python.so"
    if not library.is_file() or not library.stat().st_size:
        return ()
    with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _ARCHITECTURES.search(content)
        return tuple(found[0].decode().split()) if found else ()


def _runs(name: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a card: machine code within its major, PTX on all that came later."""
    kind, _, number = name.rstrip("af").partition("_")
    built = (int(number[:-1]), int(number[-1]))
    if name != name.rstrip("af"):  # for this one card
        return built == capability
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _first(capability: tuple[int, int]) -> tuple[int, int]:
    return next((toolkit for card, toolkit in _sorted() if capability >= card), (0, 0))


def _sorted() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    yield from sorted(_FIRST, reverse=True)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
