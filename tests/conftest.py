"""Session guard: no test touches the real home; none but `network` tests leave this machine from our process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segserve.layout import Home
from tests.servers import serve_mlflow

_REAL_HOME = Path.home()


@pytest.fixture(scope="session", autouse=True)
def _scratch_home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home of its own for the whole session. Interpreters installed under the real one stay visible."""
    patch = pytest.MonkeyPatch()
    if (_REAL_HOME / ".pyenv").is_dir():
        patch.setenv("PYENV_ROOT", os.environ.get("PYENV_ROOT", str(_REAL_HOME / ".pyenv")))
    pip_configuration = _REAL_HOME / ".config" / "pip" / "pip.conf"  # a mirror that is configured here stays in use
    if pip_configuration.exists():
        patch.setenv("PIP_CONFIG_FILE", os.environ.get("PIP_CONFIG_FILE", str(pip_configuration)))
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for tool in ("uv", "pip"):  # what has been downloaded is shared
        name = f"{tool.upper()}_CACHE_DIR"
        patch.setenv(name, os.environ.get(name, str(_REAL_HOME / ".cache" / tool)))
    for name in list(os.environ):
        if name.startswith(("XDG_", "MLFLOW_", "SEGSERVE_", "GIT_")) and name != "GIT_SSL_CAINFO":
            patch.delenv(name)
    for role in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{role}_NAME", "A. Tester")
        patch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh `$SEGSERVE_HOME` for every test."""
    path = tmp_path / "segserve-home"
    monkeypatch.setenv("SEGSERVE_HOME", str(path))
    return Home(path).ensure()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server that all tests of the session share."""
    yield from serve_mlflow(tmp_path_factory.getbasetemp() / "mlflow-server")


@pytest.fixture(autouse=True)
def _variables_stay() -> Any:
    """What a test (or mlflow in it, which sets `MLFLOW_TRACKING_URI`) puts into the environment ends with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _loopback_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(
            ("127.", "::1", "::ffff:127.", "localhost")
        ):
            raise AssertionError(f"a test that is not marked 'network' connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
