"""docs/operating.md: each of its snippets does what it says."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import yaml

from segserve import config
from segserve.layout import Home
from tests.commands import SEGSERVE
from tests.executors import make_shell_executor
from tests.servers import free_port
from tests.services import Service

PAGE = (Path(__file__).parent.parent / "docs" / "operating.md").read_text(encoding="utf-8")


def snippet(language: str, number: int = 0) -> str:
    """A block of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)[number]


def test_the_configuration_loads(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(snippet("toml"))
    loaded = config.load(file)
    assert (loaded.server.root_path, loaded.sandbox.kind, loaded.retention.days) == ("/segserve", "bubblewrap", 90)
    assert tomllib.loads(snippet("toml"))["executors"]["nuclei"]["network"] == "first-run"


def test_the_unit_of_systemd() -> None:
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str
    unit.read_string(snippet("ini"))
    assert unit["Service"]["KillMode"] == "process"
    words = unit["Service"]["ExecStart"].split()
    assert words[0].endswith("/segserve")
    asked = subprocess.run([*SEGSERVE, *words[1:], "--help"], capture_output=True, text=True)
    assert asked.returncode == 0
    for name in re.findall(r"(SEGSERVE_\w+)=", unit["Service"]["Environment"]):
        assert name in ("SEGSERVE_HOME", "SEGSERVE_CONFIG")


@pytest.mark.sandbox
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Where systemd is installed (it need not run)."""
    program = shutil.which("systemd-analyze")
    assert program is not None
    file = tmp_path / "segserve.service"
    unit = snippet("ini").replace("/opt/segserve/bin/segserve", sys.executable)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if int(version) < 254:  # the page says so: older ones warn, and pass over it
        assert "\nDelegateSubgroup=service\n" in unit
        unit = unit.replace("DelegateSubgroup=service\n", "")
    file.write_text(unit)
    done = subprocess.run(
        [program, "verify", "--man=no", "--recursive-errors=no", file], capture_output=True, text=True
    )
    assert "segserve.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def add_token(home: Path, name: str) -> str:
    words = [*SEGSERVE, "tokens", "add", name]
    done = subprocess.run(words, env={**os.environ, "SEGSERVE_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(r"sgs_\w+", done.stdout)
    assert found
    return found[0]


def test_the_service_of_docker_compose_starts(tmp_path: Path) -> None:
    """Its command and its variables, as a process; the port and the folder are the test's."""
    service = yaml.safe_load(snippet("yaml"))["services"]["segserve"]
    words, port = service["command"], free_port()
    assert words[0] == "segserve"
    home = tmp_path / "state"
    token = add_token(home, "anna")
    variables = {**os.environ, **service["environment"], "SEGSERVE_HOME": str(home)}
    words = [*SEGSERVE, *(str(port) if word == "8000" else word for word in words[1:])]
    server = subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert "listens on" in server.stderr.readline()
        call = {"base_url": f"http://127.0.0.1:{port}", "headers": {"Host": "seg.example.org"}, "timeout": 60.0}
        with httpx.Client(**call) as http:
            assert http.get("/livez").json() == {"status": True}
            assert http.get("/jobs").status_code == 401
            assert http.get("/jobs", headers={"Authorization": f"Bearer {token}"}).json() == []
    finally:
        server.terminate()
        server.communicate(timeout=60)


NGINX = """\
daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, behind: int) -> Iterator[int]:
    """A real nginx with the page's block; the port on which it listens."""
    port = free_port()
    folder.mkdir()
    location = snippet("nginx").replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, location=location))
    words = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    tested = subprocess.run([*words, "-t"], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.sandbox
def test_behind_nginx_below_a_path(tmp_path: Path) -> None:
    make_shell_executor(tmp_path / "executor")
    picture = cv2.imencode(".png", np.zeros((40, 60), np.uint8))[1].tobytes()
    home = tmp_path / "home"
    token = add_token(home, "anna")
    at_work = 'hosts = ["seg.example.org"]\nroot_path = "/segserve"\nproxies = ["127.0.0.1"]\n'
    at_work += f'[executors.shell]\nref = "{tmp_path / "executor"}"\n'
    with ExitStack() as stack:
        service = stack.enter_context(Service(home, tmp_path / "at-work", server=at_work))
        port = stack.enter_context(nginx(tmp_path / "nginx", int(httpx.URL(service.url).port or 0)))
        headers = {"Host": "seg.example.org", "Authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120)
        http = stack.enter_context(client)
        assert http.get("/segserve/livez").json() == {"status": True}
        assert http.get("/livez").headers["server"].startswith("nginx")  # all else is not ours
        assert http.get("/segserve/jobs", headers={"Host": "elsewhere.example"}).status_code == 403
        front = http.get("/segserve/mlflow")
        assert (front.status_code, front.headers["location"]) == (307, "/segserve/mlflow/")
        form = {"executor": "shell", "env": "local", "gpus": "0"}
        made = http.post("/segserve/jobs", data=form, files={"images": ("a.png", picture)})
        assert made.status_code == 202, made.text
        job = made.json()["job"]
        kinds = []
        with http.stream("GET", f"/segserve/jobs/{job}/events") as events:
            kinds += [line for line in events.iter_lines() if line.startswith("event: ")]
        assert kinds[-1] == "event: end"
        assert http.get(f"/segserve/jobs/{job}/result").json()["format_version"] == "0.2"
        schema = http.get("/segserve/openapi.json").json()
        assert schema["servers"] == [{"url": "/segserve"}]
        names = http.get("/segserve/metrics").text
        for name in re.findall(r"`(segserve_\w+)`", PAGE):
            assert f"# TYPE {name} " in names


def test_a_backup_is_whole_and_can_be_gone_on_with(tmp_path: Path) -> None:
    make_shell_executor(tmp_path / "executor")
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((40, 60), np.uint8))
    home, backup = tmp_path / "home", tmp_path / "backup"
    body = {"executor": str(tmp_path / "executor"), "images": [str(tmp_path / "images")], "env": "local", "gpus": "0"}
    with Service(home, tmp_path / "at-work") as service:
        jobs = [
            service.http.post("/jobs", json={**body, "parameters": {"mark": f"m{n}"}}).json()["job"] for n in (1, 2)
        ]
        service.wait(jobs[0])
        (home / "tokens.json").touch()  # a service with users has one
        variables = {**os.environ, "SEGSERVE_HOME": str(home), "BACKUP": str(backup)}
        for _ in range(2):  # the second one replaces the first
            subprocess.run(["sh", "-c", snippet("sh")], env=variables, check=True)
        service.wait(jobs[1])
    for name in ("segserve", "mlflow"):
        with sqlite3.connect(backup / f"{name}.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (backup / "tokens.json").unlink()
    shutil.rmtree(home)
    backup.rename(home)
    Home(home).ensure()
    with Service(home, tmp_path / "restored") as service:
        for job in jobs:  # the one that may have run when the copy was made, too
            assert service.wait(job)["state"] == "succeeded"
            assert service.http.get(f"/jobs/{job}/result").json()["format_version"] == "0.2"
