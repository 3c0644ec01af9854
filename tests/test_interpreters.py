"""A machine without the Python that an executor wants: uv downloads one, or it comes from a conda channel. For real."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from segserve import environments
from segserve.environments import BuildOptions, interpreters
from segserve.errors import EnvironmentBuildFailed
from segserve.layout import Home
from tests import channel
from tests.test_conda import url
from tests.test_uv import HERE, ask, python_env

__all__ = ["url"]
pytest_plugins = ["tests.packages"]

WHERE = "import sys, colours; print(sys.prefix, sys.base_prefix, '%d.%d.%d' % sys.version_info[:3], colours.RED)"


@pytest.fixture(autouse=True)
def _no_python_here(no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """segserve runs from an application image, say: there is no Python that an environment could be made from."""
    monkeypatch.setattr(interpreters, "installed", lambda: ())
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv-pythons"))
    interpreters.downloadable.cache_clear()
    yield
    interpreters.downloadable.cache_clear()


def make_download(folder: Path) -> Path:
    """What uv downloads: this Python, laid out as python-build-standalone does, and the list that names it."""
    archive = folder / "cpython.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path, content in sorted(channel.interpreter().items()):
            if isinstance(content, Path):
                tar.add(content, arcname=f"python/{path}", recursive=False)
            else:
                entry = tarfile.TarInfo(f"python/{path}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))
    major, minor, patch = sys.version_info[:3]
    entry = {
        "name": "cpython",
        "arch": {"family": platform.machine(), "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "url": archive.as_uri(),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "variant": None,
        "build": "20260101",
    }
    listed = folder / "downloads.json"
    listed.write_text(json.dumps({f"cpython-{channel.PYTHON}-linux-{platform.machine()}-gnu": entry}))
    return listed


def test_uv_downloads_what_the_site_offers(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = make_download(tmp_path)
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", str(listed))
    assert interpreters.downloadable() == (channel.PYTHON,)
    found = python_env(tmp_path / "p", "colours", version=f"{HERE}.99")
    said: list[str] = []
    environment = environments.prepare(home, found, environments.detect(found, BuildOptions()), report=said.append)
    prefix, base, version, _ = ask(environment, WHERE).split()
    assert prefix == environment.location
    assert Path(base).is_relative_to(tmp_path / "uv-pythons")
    assert version == channel.PYTHON
    assert environment.spec.warnings == (f"Python {HERE}.99 cannot be had here: {version} is used instead.",)
    assert any("uv tries to download it" in line for line in said)


def test_a_damaged_download_is_not_used(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = make_download(tmp_path)
    with (tmp_path / "cpython.tar.gz").open("ab") as archive:
        archive.write(b"more")
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", str(listed))
    found = interpreters.plan(HERE)
    with pytest.raises(EnvironmentBuildFailed) as caught:
        interpreters.provide(found, tmp_path / "python", lambda line: None)
    assert "ash mismatch" in caught.value.quote


@pytest.mark.conda
def test_python_comes_from_the_channel(tmp_path: Path, home: Home, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    found = python_env(tmp_path / "p", "colours", version=HERE)
    options = BuildOptions(channels=(url,))
    environment = environments.prepare(home, found, environments.detect(found, options), options=options)
    prefix, base, version, _ = ask(environment, WHERE).split()
    assert environment.spec.kind == "uv"
    assert prefix == environment.location
    assert Path(base) == Path(prefix).parent / "python"
    assert version == channel.PYTHON
    assert not Path(os.path.realpath(f"{prefix}/bin/python")).is_relative_to(sys.base_prefix)
    again = environments.prepare(home, found, environments.detect(found, options), options=options)
    assert again.location == environment.location
