"""A docker base image without any registry: this Python, mlflow-skinny, numpy and bash, by `docker import`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_NOT_NEEDED = {
    "__pycache__",
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "turtledemo",
    "tkinter",
    "lib2to3",
}
_PACKAGES = ("mlflow-skinny", "numpy")
_SHORT = f"python{sys.version_info.major}.{sys.version_info.minor}"


def engine_answers() -> bool:
    """Whether a docker engine answers at $DOCKER_HOST (or the default socket)."""
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "version"], capture_output=True, check=False)
    return done.returncode == 0


def base_image(folder: Path, packages: Sequence[str] = _PACKAGES, programs: Sequence[str] = ()) -> str:
    """Import the image (once per engine, packages, programs and version of this file); returns its name.

    `folder` is scratch. `programs` are commands of this machine that the image gets beside Python, bash and sleep.
    """
    content = Path(__file__).read_bytes() + repr((sys.version, *packages, *programs)).encode()
    version = hashlib.sha256(content).hexdigest()[:12]
    image = f"segserve-test-base:{version}"
    if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0:
        return image
    installed = folder / "packages"
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--compile-bytecode"]
    subprocess.run([*uv, "--python", sys.executable, "--target", str(installed), *packages], check=True)
    changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "ENV LD_LIBRARY_PATH=/usr/lib", "ENV LANG=C.UTF-8"]
    words = ["docker", "import", *(word for change in changes for word in ("-c", change)), "-", image]
    importer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert importer.stdin is not None
    with tarfile.open(fileobj=importer.stdin, mode="w|") as archive:
        _add_everything(archive, installed, programs)
    importer.stdin.close()
    assert importer.wait() == 0
    return image


def _add_everything(archive: tarfile.TarFile, packages: Path, programs: Sequence[str]) -> None:
    prefix, standard = Path(sys.base_prefix), Path(sysconfig.get_path("stdlib"))
    interpreter = (prefix / "bin" / _SHORT).resolve()
    _add(archive, interpreter, f"usr/local/bin/{_SHORT}")
    for alias in ("usr/local/bin/python", "usr/local/bin/python3"):
        _link(archive, alias, _SHORT)
    for path in _tree(standard, skip=lambda name: name in _NOT_NEEDED or name.startswith("config-")):
        _add(archive, path, f"usr/local/lib/{_SHORT}/{path.relative_to(standard)}")
    for path in _tree(packages, skip=lambda name: name in {"tests", "bin"}):
        _add(archive, path, f"usr/local/lib/{_SHORT}/site-packages/{path.relative_to(packages)}")
    commands = {name: Path(shutil.which(name) or f"/bin/{name}").resolve() for name in ("bash", "sleep", *programs)}
    for name, path in commands.items():
        _add(archive, path, f"bin/{name}")
    _link(archive, "bin/sh", "bash")
    if "env" in commands:
        _link(archive, "usr/bin/env", "../../bin/env")  # where scripts expect it
    modules = [*(standard / "lib-dynload").glob("*.so"), *packages.rglob("*.so")]
    for library in sorted(_shared_objects([interpreter, *commands.values(), *modules])):
        loader = library.name.startswith("ld-")
        _add(archive, library.resolve(), str(library).lstrip("/") if loader else f"usr/lib/{library.name}")
    for name, mode in (("tmp", 0o1777), ("root", 0o700), ("etc", 0o755)):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        archive.addfile(entry)


def _tree(folder: Path, skip: object) -> Iterator[Path]:
    assert callable(skip)
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not skip(name)]
        yield from (Path(parent) / name for name in names)


def _add(archive: tarfile.TarFile, source: Path, name: str) -> None:
    entry = archive.gettarinfo(source, arcname=name)
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    if entry.isreg():
        with source.open("rb") as stream:
            archive.addfile(entry, stream)
    elif entry.islnk() or entry.issym():
        _add(archive, source.resolve(), name) if entry.issym() else archive.addfile(entry)


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def _shared_objects(programs: Iterable[Path]) -> set[Path]:
    done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False)
    found = re.findall(r"=> (/\S+)", done.stdout) + re.findall(r"^\s+(/\S*ld-\S+)", done.stdout, re.M)
    return {Path(path) for path in found if ".libs/" not in path}
