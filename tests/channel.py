"""A conda channel on disk, made without any conda client: this `python` repacked, and small packages.

Layout: https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html ; a `.conda` file is a zip
(stored) of `metadata.json`, `pkg-*.tar.zst` and `info-*.tar.zst`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import imagecodecs
from rattler.index import index_fs
from rattler.platform import Subdir

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
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


def make_channel(folder: Path) -> str:
    """A channel with `python` (this one), `pip` and `greeting` 1.0 and 2.0 (noarch); returns its `file://` URL."""
    platform = str(Subdir.current())
    python = f"python {sys.version_info.major}.{sys.version_info.minor}.*"
    add_package(folder, "python", PYTHON, interpreter(), subdir=platform, depends=("__glibc >=2.17",))
    add_package(folder, "pip", "24.0", _distribution("pip"), noarch="python", depends=("python >=3.7",))
    for version in ("1.0", "2.0"):
        add_package(
            folder,
            "greeting",
            version,
            {
                "site-packages/greeting/__init__.py": f"VERSION = {version!r}\n".encode(),
                "etc/conda/activate.d/greeting.sh": b'export GREETING_DATA="$CONDA_PREFIX/share/greeting"\n',
                "share/greeting/prefix.txt": b"made for /placeholder/prefix\n",
            },
            noarch="python",
            depends=("python >=3.8",) if version == "1.0" else (python, "imaginary >=3"),
            placeholders={"share/greeting/prefix.txt": "/placeholder/prefix"},
        )
    add_package(
        folder,
        "gpu-thing",
        "1.0",
        {"share/gpu-thing.txt": b"needs a driver\n"},
        noarch="generic",
        depends=("__cuda >=999",),
    )
    index(folder)
    return folder.resolve().as_uri()


def index(folder: Path) -> None:
    """(Re)write repodata.json of every subdirectory."""
    (folder / "noarch").mkdir(parents=True, exist_ok=True)
    asyncio.run(index_fs(folder, write_zst=False, write_shards=False))


def add_package(
    channel: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes | Path],
    *,
    subdir: str = "noarch",
    noarch: str = "",
    depends: Sequence[str] = (),
    placeholders: Mapping[str, str] | None = None,
) -> Path:
    """Write one package; `files` maps the path in the prefix to its content or to a file (or symlink) to copy."""
    build = "0" if not noarch else f"py{'_' if noarch == 'python' else 'generic_'}0"
    stem = f"{name}-{version}-{build}"
    index_json: dict[str, object] = {
        "name": name,
        "version": version,
        "build": build,
        "build_number": 0,
        "depends": list(depends),
        "subdir": subdir,
        "timestamp": 1_700_000_000_000,
    }
    if noarch:
        index_json |= {"noarch": noarch}
    paths = [_path_entry(path, content, (placeholders or {}).get(path)) for path, content in sorted(files.items())]
    info = {
        "info/index.json": json.dumps(index_json).encode(),
        "info/paths.json": json.dumps({"paths_version": 1, "paths": paths}).encode(),
        "info/files": "".join(f"{path}\n" for path in sorted(files)).encode(),
    }
    if noarch == "python":
        info["info/link.json"] = b'{"noarch": {"type": "python"}, "package_metadata_version": 1}'
    target = channel / subdir / f"{stem}.conda"
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
        archive.writestr(f"pkg-{stem}.tar.zst", imagecodecs.zstd_encode(_tar(files), level=1))
        archive.writestr(f"info-{stem}.tar.zst", imagecodecs.zstd_encode(_tar(info), level=1))
    return target


def make_wheel(folder: Path, name: str, version: str, code: str, *, requires: Iterable[str] = ()) -> Path:
    """A pure wheel with the one module `name`, made by zipfile."""
    folder.mkdir(parents=True, exist_ok=True)
    information = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": code,
        f"{information}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in requires),
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{information}/RECORD"])
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in {**files, f"{information}/RECORD": record}.items():
            archive.writestr(path, text)
    return target


def interpreter() -> dict[str, bytes | Path]:
    prefix = Path(sys.base_prefix)
    short = f"python{sys.version_info.major}.{sys.version_info.minor}"
    files: dict[str, bytes | Path] = {f"bin/{short}": (prefix / "bin" / short).resolve()}
    for alias in ("python3", "python"):
        link = prefix / "bin" / alias
        if link.is_symlink():
            files[f"bin/{alias}"] = link
    for library in Path(sysconfig.get_config_var("LIBDIR") or prefix / "lib").glob("libpython*.so*"):
        files[f"lib/{library.name}"] = library
    standard = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(standard):
        folders[:] = [name for name in folders if name not in _NOT_NEEDED and not name.startswith("config-")]
        for name in names:
            path = Path(folder) / name
            files[f"lib/{short}/{path.relative_to(standard)}"] = path
    files[f"lib/{short}/site-packages/README.txt"] = b"site-packages\n"
    return files


def _distribution(name: str) -> dict[str, bytes | Path]:
    """A pure distribution of this interpreter's bundled wheels (ensurepip), as the files of a noarch package."""
    bundled = Path(sysconfig.get_path("stdlib")) / "ensurepip" / "_bundled"
    wheel = next(bundled.glob(f"{name}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return {f"site-packages/{path}": archive.read(path) for path in archive.namelist() if not path.endswith("/")}


def _path_entry(path: str, content: bytes | Path, placeholder: str | None) -> dict[str, object]:
    entry: dict[str, object] = {"_path": path, "path_type": "hardlink"}
    if isinstance(content, Path) and content.is_symlink():
        return {"_path": path, "path_type": "softlink", "size_in_bytes": 0}
    data = content.read_bytes() if isinstance(content, Path) else content
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
    if placeholder:
        entry |= {"prefix_placeholder": placeholder, "file_mode": "text"}
    return entry


def _tar(files: Mapping[str, bytes | Path]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, content in sorted(files.items()):
            if isinstance(content, Path):
                archive.add(content, arcname=path, recursive=False)
            else:
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
