"""Builds that are shut in, with a real uv, a real sdist, a real conda package and a real bubblewrap."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segserve import api
from segserve.environments.walls import check_interpreter, own_files
from segserve.errors import EnvironmentBuildFailed
from segserve.launch import executor
from segserve.layout import Home
from segserve.model import LaunchPlan, Sandbox
from segserve.tokens import Tokens
from tests import channel
from tests.packages import BACKEND, PYPROJECT
from tests.repositories import make_repository
from tests.services import Service
from tests.spies import log, submit
from tests.uploads import png

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"

# What a package does while it is built, one Python expression each; how each of them ended is what it installs.
SETUP = """\
import json, os, pathlib, signal, socket, subprocess, sys, urllib.request
from setuptools import setup

said = {}
for name, deed in json.load(open("deeds.json")).items():
    try:
        said[name] = repr(eval(deed))
    except BaseException as error:
        said[name] = type(error).__name__
pathlib.Path("segserve_test_spy.py").write_text(f"SAID = {said!r}\\n")
setup(name="segserve_test_spy", version="1.0", py_modules=["segserve_test_spy"])
"""
# Every Python of the environment executes this when it starts: uv's questions, pip check, our own look at its version.
STARTUP = "import pathlib; pathlib.Path({planted!r}).write_text('by a .pth')\n"

PROJECT = """\
name: spy
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
    command: "python look.py"
"""
LOOK = """\
import json, segserve_test_spy as hostile
for name, what in hostile.SAID.items():
    print(f"<{name}: {what}>")
document = {"model": "spy", "format_version": "0.2", "segmentation_data": [[]]}
json.dump(document, open("output.json", "w"))
"""


def make_sdist(wheels: Path, deeds: dict[str, str]) -> None:
    wheels.mkdir(exist_ok=True)
    about = "Metadata-Version: 2.1\nName: segserve_test_spy\nVersion: 1.0\n"
    files = {"setup.py": SETUP, "deeds.json": json.dumps(deeds), "PKG-INFO": about}
    with tarfile.open(wheels / "segserve_test_spy-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"segserve_test_spy-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def make_startup_wheel(wheels: Path, planted: Path) -> None:
    path = channel.make_wheel(wheels, "segserve_test_startup", "1.0", STARTUP.format(planted=str(planted)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("startup.pth", "import segserve_test_startup\n")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages beside those that this machine is configured with."""
    folder = tmp_path / "packages"
    monkeypatch.setenv("PIP_FIND_LINKS", f"{folder} {os.environ.get('PIP_FIND_LINKS', '')}".strip())
    return folder


@contextmanager
def listening(folder: Path, login: str = "") -> Iterator[tuple[int, list[str]]]:
    """A server on loopback, and who has come to it."""
    visits: list[str] = []

    class Page(SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(folder))

        def do_GET(self) -> None:
            visits.append(self.path)
            wanted = "Basic " + base64.b64encode(login.encode()).decode()
            if login and self.headers.get("Authorization") != wanted:
                self.send_error(401)
                return
            super().do_GET()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], visits
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.sandbox
@pytest.mark.network  # setuptools
def test_a_hostile_setup_py_gets_nothing(
    home: Home, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the service of a group: the build begins when the server starts, and a job runs in what it has made."""
    _, token = Tokens(home.tokens).add("anna")
    image = home.job("somebody").inputs / "image.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"secret pixels")
    shared = tmp_path / "shared-cache"
    (shared / "archive-v0").mkdir(parents=True)
    monkeypatch.setenv("UV_CACHE_DIR", str(shared))
    monkeypatch.setenv("LAB_PASSPHRASE", "canary-4711")
    victim = subprocess.Popen(["sleep", "600"], env={})  # nothing marks it as the service's: that ends all its own
    make_startup_wheel(wheels, home.path / "planted-by-startup")
    try:
        with listening(tmp_path) as (port, visits):
            deeds = {
                "journal": f"open({str(home.database)!r}, 'rb').read(15)",
                "tokens": f"open({str(home.tokens)!r}).read()",
                "image": f"open({str(image)!r}, 'rb').read()",
                "home": f"os.listdir({str(Path.home())!r})",
                "outside": f"open({str(home.path / 'planted')!r}, 'w')",
                "system": "open('/usr/planted', 'w')",
                "etc": "open('/etc/shadow').read()",
                "cache": f"open({str(shared / 'archive-v0' / 'planted')!r}, 'w')",
                "kill": f"os.kill({victim.pid}, signal.SIGKILL)",
                "processes": "[p for p in pathlib.Path('/proc').glob('[0-9]*/cmdline') if b'sleep' in p.read_bytes()]",
                "environment": "'canary-4711' in str(os.environ)",
                "loopback": f"socket.create_connection(('127.0.0.1', {port}), 5)",
                "proxied": f"urllib.request.urlopen('http://127.0.0.1:{port}/').read()",
                "own": "open('own', 'w').write('1')",
            }
            make_sdist(wheels, deeds)
            requirements = 'python: "3.11"\ndependencies:\n  - segserve_test_spy\n  - segserve_test_startup\n'
            requirements = requirements.replace("3.11", MINOR)
            make_repository(tmp_path / "spy", {"MLproject": PROJECT, "look.py": LOOK, "python_env.yaml": requirements})
            settings = f'[executors]\nspy = "{tmp_path / "spy"}"\n'
            with Service(home.path, tmp_path / "config", server=settings, sandbox="auto") as service:
                http = service.as_(token)
                job = submit(http, env="uv")
                ended = service.wait(job, http)
                text = log(service, job, http)
    finally:
        alive = victim.poll() is None
        victim.kill()
        victim.wait()
    assert ended["state"] == "succeeded", (ended, text)
    said = dict(line.strip("<>").split(": ", 1) for line in text.splitlines() if line.startswith("<"))
    assert said.pop("own") == "1"
    assert said.pop("environment") == "False"
    assert said.pop("processes") == "[]"
    assert said.pop("kill") == "ProcessLookupError"
    assert said.pop("system") == "OSError"  # read-only
    assert said.pop("proxied") == "HTTPError"  # refused
    assert said.pop("loopback") == "ConnectionRefusedError"
    said.pop("outside")  # where the home lies in /tmp, it has written into a /tmp of its own
    assert said == dict.fromkeys(said, "FileNotFoundError")
    assert set(said) == {"journal", "tokens", "image", "home", "etc", "cache"}
    assert alive
    assert visits == []
    assert not list(home.path.glob("planted*"))
    assert (shared / "archive-v0").is_dir()
    (built,) = home.environments.glob("*/*/prefix")
    assert [path.name for path in built.parent.iterdir()] == ["prefix"]  # neither cache nor scratch is left


@pytest.mark.sandbox
@pytest.mark.network
def test_without_walls_the_same_packages_get_what_they_want(home: Home, tmp_path: Path, wheels: Path) -> None:
    """That the test above can fail: the local user's build is none of a stranger's, and runs as it always has."""
    make_startup_wheel(wheels, home.path / "planted-by-startup")
    make_sdist(wheels, {"outside": f"open({str(home.path / 'planted')!r}, 'w')"})
    build(
        tmp_path, f'python: "{MINOR}"\ndependencies:\n  - segserve_test_spy\n  - segserve_test_startup\n', others=False
    )
    assert sorted(path.name for path in home.path.glob("planted*")) == ["planted", "planted-by-startup"]


def build(folder: Path, requirements: str, *, others: bool, files: dict[str, str] | None = None) -> dict[str, Any]:
    """Build the environment of an executor; `others`: for somebody who is not the local user."""
    project = {"MLproject": PROJECT, "look.py": LOOK, "python_env.yaml": requirements, **(files or {})}
    if "conda.yaml" in project:
        project["MLproject"] = PROJECT.replace("python_env: python_env.yaml", "conda_env: conda.yaml")
    make_repository(folder / "spy", project)
    with api.session() as session:
        return session.build_environment(replace(session.request(str(folder / "spy")), others=others))


@pytest.mark.sandbox
def test_wheels_local_packages_and_an_index_with_a_password(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is on this machine: its port can be reached, and no other one."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    packages = tmp_path / "index" / "simple"
    path = channel.make_wheel(packages / "colours", "colours", "1.0", "RED = 1\n")
    (path.parent / "index.html").write_text(f'<a href="{path.name}">{path.name}</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with listening(tmp_path / "index", "me:hunter2") as (port, visits):
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://me:hunter2@127.0.0.1:{port}/simple")
        sdk = {"sdk/pyproject.toml": PYPROJECT, "sdk/backend.py": BACKEND.replace("{name}", "sdkpackage")}
        lines = f'python: "{MINOR}"\ndependencies:\n  - colours\n  - ./sdk\n'
        made = build(tmp_path, lines, others=True, files={**sdk, "sdk/sdkpackage.py": "VALUE = 7\n"})
    assert visits
    assert {"colours==1.0", "sdkpackage==1.0"} <= set(made["packages"])
    python = Path(made["location"]) / "bin" / "python"
    done = subprocess.run([python, "-c", "import colours, sdkpackage; print(colours.RED, sdkpackage.VALUE)"], stdout=-1)
    assert done.stdout.split() == [b"1", b"7"]
    assert "hunter2" not in "".join(path.read_text() for path in home.path.glob("logs/**/*.log"))


@pytest.mark.sandbox
def test_a_conda_environment_with_scripts_and_a_pip_part(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "channel"
    url = channel.make_channel(own)
    planted = home.path / "planted"
    script = f'echo changed >> "$PREFIX/share/plant.txt"; echo here > {planted}\n'.encode()
    files = {"share/plant.txt": b"as it was\n", "bin/.plant-post-link.sh": script}
    channel.add_package(own, "plant", "1.0", files, noarch="generic")
    channel.index(own)
    monkeypatch.setenv("SEGSERVE_ENVIRONMENTS__CHANNELS", json.dumps([url]))
    channel.make_wheel(tmp_path / "spy" / "wheels", "salute", "1.2", "WORDS = 'hello'\n")
    text = f"dependencies:\n  - python={MINOR}\n  - greeting=1\n  - plant\n  - pip\n"
    text += "  - pip: [--no-index, --find-links ./wheels, salute]\n"
    made = build(tmp_path, "", others=True, files={"conda.yaml": text})
    prefix = Path(made["location"])
    assert "salute==1.2" in made["packages"]
    assert (prefix / "share" / "greeting" / "prefix.txt").read_text() == f"made for {prefix}\n"
    assert (prefix / "share" / "plant.txt").read_text() == "as it was\nchanged\n"
    assert not planted.exists()
    for cached in (home.cache / "conda").rglob("plant.txt"):  # what others will install
        assert cached.read_text() == "as it was\n"
    code = "import greeting, salute, os; print(greeting.VERSION, salute.WORDS, os.path.exists(greeting.__cached__))"
    done = subprocess.run([prefix / "bin" / "python", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1.0", "hello", "True"], done.stderr


def test_no_package_chooses_what_jobs_see_as_their_python(tmp_path: Path) -> None:
    """Jobs see the installation to which bin/python of a virtual environment links."""
    prefix, python = tmp_path / "prefix", Path(os.path.realpath(sys.executable))
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(python)
    (prefix / "bin" / "python3").symlink_to("python")
    check_interpreter(prefix, python)
    with pytest.raises(EnvironmentBuildFailed, match="bin/python of its environment"):
        check_interpreter(prefix)
    (tmp_path / "journal").write_text("secrets of others")
    (prefix / "bin" / "python3").unlink()
    (prefix / "bin" / "python3").symlink_to(tmp_path / "journal")
    with pytest.raises(EnvironmentBuildFailed, match="bin/python3 of its environment"):
        check_interpreter(prefix, python)


def test_a_prefix_shares_no_file_with_a_cache(tmp_path: Path) -> None:
    cached, prefix = tmp_path / "cache", tmp_path / "prefix"
    cached.mkdir()
    prefix.mkdir()
    (cached / "tool").write_text("one")
    (cached / "tool").chmod(0o755)
    (prefix / "tool").hardlink_to(cached / "tool")
    (prefix / "link").symlink_to("tool")
    own_files(prefix)
    (prefix / "tool").write_text("two")
    assert (cached / "tool").read_text() == "one"
    assert (prefix / "tool").stat().st_mode & 0o777 == 0o755
    assert (prefix / "link").readlink() == Path("tool")


PROGRAMS = ("bwrap", "git", "bash", "sh", "env", "uname")


@pytest.mark.sandbox
def test_programs_of_an_environment_run_inside_only(
    home: Home, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor starts bubblewrap, and MLflow asks git: never those that a package brings."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    path = channel.make_wheel(wheels, "segserve_test_tools", "1.0", "")
    script = f"#!/bin/sh\necho $0 >> {home.path / 'planted'}\necho $0 >> $PWD/run-inside\nexit 1\n"
    with zipfile.ZipFile(path, "a") as archive:
        for name in PROGRAMS:
            archive.writestr(f"segserve_test_tools-1.0.data/scripts/{name}", script)
    project = PROJECT.replace("python look.py", "uname; cat run-inside; python look.py")
    look = LOOK.replace("json, segserve_test_spy as hostile", "json").replace("hostile.SAID", "{}")
    lines = f'python: "{MINOR}"\ndependencies:\n  - segserve_test_tools\n'
    make_repository(tmp_path / "spy", {"MLproject": project, "look.py": look, "python_env.yaml": lines})
    monkeypatch.setenv("SEGSERVE_SANDBOX__KIND", "bubblewrap")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(5))
    with api.session() as session:
        result = session.run(session.request(str(tmp_path / "spy"), tmp_path / "images", output=tmp_path / "out"))
        text = "\n".join(session.logs(result.job_id))
    assert not (home.path / "planted").exists(), (home.path / "planted").read_text()
    assert "bin/uname" in text


def test_what_an_environment_sets_is_not_heeded_outside() -> None:
    """A conda.yaml may say `variables: {LD_PRELOAD: …}`: that is for the executor, not for bubblewrap."""
    before = dict(os.environ)
    try:
        plan = LaunchPlan("job", 1, 1, True, "/project", "main", {}, "http://127.0.0.1:9", "0", "run")
        plan = replace(plan, path=("/environment/bin",), variables={"LD_PRELOAD": "./evil.so", "GIT_EXEC_PATH": "."})
        shut_in = executor.enter(replace(plan, sandbox=Sandbox((), ())), {"MLFLOW_RUN_ID": "r"})
        assert not {"LD_PRELOAD", "GIT_EXEC_PATH"} & set(os.environ)
        assert os.environ["PATH"] == before["PATH"]
        assert shut_in["LD_PRELOAD"] == "./evil.so"
        assert shut_in["PATH"].startswith("/environment/bin:")
        assert executor.enter(plan, {}) == {}
        assert os.environ["LD_PRELOAD"] == "./evil.so"
    finally:
        os.environ.clear()
        os.environ.update(before)
