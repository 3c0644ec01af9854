"""Environments of registered executors are there before anybody asks; `segserve app` for one person."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.commands import SEGSERVE
from tests.executors import make_shell_executor
from tests.modules import make_module
from tests.repositories import make_repository
from tests.services import Service

BROKEN = {
    "MLproject": "name: broken\npython_env: python_env.yaml\nentry_points: {main: {command: ls}}\n",
    "python_env.yaml": 'python: "3.11"\ndependencies: ["./nothing-0.1-py3-none-any.whl"]\n',
}


def warmth(service: Service) -> dict[str, dict[str, Any]]:
    return {row["name"]: row["environment"] for row in service.http.get("/executors").json()}


def wait_for(service: Service, name: str, state: str) -> dict[str, Any]:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        found = warmth(service).get(name, {})
        if found.get("state") == state:
            return found
        time.sleep(0.3)
    raise AssertionError(warmth(service))


def test_registered_executors_are_built_before_anybody_asks(tmp_path: Path) -> None:
    make_shell_executor(tmp_path / "executor", environment=True)
    make_repository(tmp_path / "broken", BROKEN)
    make_module(tmp_path / "late")
    server = f'[executors]\nfirst = "{tmp_path}/executor"\nbroken = "{tmp_path}/broken"\n'
    server += f'late = {{ref = "{tmp_path}/late", prewarm = false}}\n'
    with Service(tmp_path / "home", tmp_path / "config", server=server) as service:
        failed = wait_for(service, "broken", "failed")
        assert "nothing-0.1" in failed["message"] + failed["quote"]
        wait_for(service, "first", "ready")
        assert warmth(service)["late"] == {"state": "on demand"}
        until = time.monotonic() + 240
        while "first" not in service.http.get("/readyz").json()["status"] and time.monotonic() < until:
            time.sleep(0.5)
        assert service.http.get("/readyz").json()["status"] == ["first"]
        envs = [path.name for path in (tmp_path / "home" / "envs").iterdir() if path.is_dir()]
        assert len(envs) >= 1
        # Another name, while the service runs.
        config = tmp_path / "config" / "config.toml"
        config.write_text(config.read_text().replace("first = ", "second = "))
        wait_for(service, "second", "ready")
        assert "first" not in warmth(service)
        assert service.http.get("/executors/second").status_code == 200


def test_a_server_that_is_killed_leaves_no_build(tmp_path: Path) -> None:
    make_repository(
        tmp_path / "slow",
        {
            "MLproject": "name: slow\npython_env: python_env.yaml\nentry_points: {main: {command: ls}}\n",
            "python_env.yaml": 'python: "3.11"\ndependencies: ["./slow"]\n',
            "slow/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
            "slow/b.py": "import time\ntime.sleep(600)\n",
        },
    )
    server = f'[executors]\nslow = "{tmp_path}/slow"\n'
    with Service(tmp_path / "home", tmp_path / "config", server=server) as service:
        wait_for(service, "slow", "building")
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(30)
        until = time.monotonic() + 240
        while time.monotonic() < until:
            lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
            if "segserve.server.prewarm" not in lines and str(tmp_path / "home" / "envs") not in lines:
                break
            time.sleep(0.3)
        else:
            raise AssertionError(lines)


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """A browser that writes down what it is to open."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened.tmp; mv {tmp_path}/opened.tmp {tmp_path}/opened\n')
    program.chmod(0o755)
    return {**os.environ, "SEGSERVE_HOME": str(tmp_path / "home"), "BROWSER": str(program)}


def test_the_app_lets_in_whoever_opens_its_link_first(tmp_path: Path, variables: dict[str, str]) -> None:
    app = subprocess.Popen([*SEGSERVE, "app"], env=variables, stderr=subprocess.PIPE, text=True)
    assert app.stderr is not None
    line = app.stderr.readline()
    found = re.search(r"(http://127\.0\.0\.1:\d+)(/login/[\w-]+)", line)
    assert found, line + app.stderr.read()
    url, link = found.groups()
    try:
        until = time.monotonic() + 240
        while not (tmp_path / "opened").exists() and time.monotonic() < until:
            time.sleep(0.1)
        opened = Path((tmp_path / "opened").read_text().strip().removeprefix("file://"))
        assert link not in str(opened)  # what everybody can read is no key
        assert opened.stat().st_mode & 0o077 == 0
        assert f"{url}{link}" in opened.read_text()
        with httpx.Client(base_url=url, timeout=60) as stranger, httpx.Client(base_url=url, timeout=60) as me:
            assert stranger.get("/jobs").status_code == 401
            assert me.get(link).status_code == 200
            assert me.get("/me", headers={"Sec-Fetch-Site": "same-origin"}).json()["local"]
            assert me.get("/jobs", headers={"Sec-Fetch-Site": "same-origin"}).json() == []
            assert stranger.get(link).status_code == 401
            assert stranger.get("/jobs").status_code == 401
        second = subprocess.run([*SEGSERVE, "app"], env=variables, capture_output=True, text=True, timeout=300)
        assert (second.returncode, "works on" in second.stderr) == (2, True)
    finally:
        app.send_signal(signal.SIGINT)
        assert app.wait(240) == 0
    assert not opened.exists()
