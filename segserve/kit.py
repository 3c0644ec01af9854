"""The guest packages, as wheels that are assembled from what is installed with segserve.

`segserve_sdk` is the kit for executors, `segserve_modules` what runs algorithm modules of other dialects.

No build step and nothing binary in the repository: a wheel of pure Python is a zip of its files and three texts about
them. The same files give the same bytes on every machine, so that its hash can be part of an environment's key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path

from segserve.errors import SegserveError

NAME = "segserve_sdk"
MODULES = "segserve_modules"
_SUMMARIES = {
    NAME: "Everything around the model of a segmentation executor",
    MODULES: "Runs algorithm modules of other dialects",
}
MENTION = re.compile(r"(?<![\w.-])segserve[-_.]+sdk(?![\w-])", re.IGNORECASE)  # however a requirement spells it
_PYTHON = ">=3.8"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_SHIPPED = (".py", ".txt", ".typed")


@cache
def version(name: str = NAME) -> str:
    """Its version, which is no more than a name: `digest` tells two of them apart."""
    found = _VERSION.search((_source(name) / "__init__.py").read_text(encoding="utf-8"))
    if found is None:
        raise SegserveError(f"{name} says no version.")
    return found.group(1)


def requirements(name: str = NAME) -> tuple[str, ...]:
    """What it needs, as pip reads it."""
    return tuple((_source(name) / "requirements.txt").read_text(encoding="utf-8").split())


def file_name(name: str = NAME) -> str:
    """The wheel's name: `segserve_sdk-0.1.0-py3-none-any.whl`."""
    return f"{name}-{version(name)}-py3-none-any.whl"


@cache
def digest(name: str = NAME) -> str:
    """SHA-256 (hex) of the wheel."""
    return hashlib.sha256(_assembled(name)).hexdigest()


def write_wheel(folder: Path, name: str = NAME) -> Path:
    """Put the wheel into `folder` (created if need be); returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(name)
    target.write_bytes(_assembled(name))
    return target


@cache
def _source(name: str) -> Path:
    found = importlib.util.find_spec(name)  # finds, does not import
    if found is None or not found.submodule_search_locations:
        raise SegserveError(f"{name}, which belongs to segserve, is not installed.")
    return Path(found.submodule_search_locations[0])


@cache
def _assembled(name: str) -> bytes:
    source, about = _source(name), f"{name}-{version(name)}.dist-info"
    files = {
        f"{name}/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.suffix in _SHIPPED and "__pycache__" not in path.parts
    }
    files[f"{about}/METADATA"] = _metadata(name).encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: segserve\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/RECORD"] = _record(files, f"{about}/RECORD").encode()
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)  # stored: compressors of two versions need not give the same bytes
    return stream.getvalue()


def _metadata(name: str) -> str:
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version(name)}\n"
    head += f"Summary: {_SUMMARIES[name]}\nLicense: BSD-3-Clause\n"
    return f"{head}Requires-Python: {_PYTHON}\n" + "".join(f"Requires-Dist: {line}\n" for line in requirements(name))


def _record(files: Mapping[str, bytes], own: str) -> str:
    """https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-record-file"""

    def line(name: str, content: bytes) -> str:
        hashed = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        return f"{name},sha256={hashed},{len(content)}\n"

    return "".join(line(name, content) for name, content in files.items()) + f"{own},,\n"
