"""A real solve and a real installation by py-rattler, from a channel that `tests/channel.py` makes on disk."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from segserve import environments, errors, lock, project
from segserve.cli import main
from segserve.environments import channels, conda, condafile, solver
from segserve.environments.base import BuildOptions
from segserve.layout import Home
from segserve.model import Environment
from tests import channel
from tests.repositories import git, make_repository

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_project(folder: Path, conda_yaml: str) -> project.Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conda.yaml").write_text(conda_yaml)
    (folder / "MLProject").write_text(
        "name: thing\nconda_env: conda.yaml\nentry_points:\n  main:\n    command: python -c 'print(1)'\n"
    )
    return project.load(folder)


def read(folder: Path, text: str) -> condafile.CondaFile:
    folder.joinpath("conda.yaml").write_text(text)
    return condafile.load(folder / "conda.yaml")


def silent(_: str) -> None: ...


def run_in(environment: Environment, code: str) -> str:
    variables = {**environment.variables, "PATH": os.pathsep.join([*environment.path, "/usr/bin", "/bin"])}
    done = subprocess.run(["python", "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return channel.make_channel(tmp_path_factory.mktemp("channel"))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    folder = tmp_path / "envs" / "key"
    folder.mkdir(parents=True)
    return folder / "prefix"


# --- without a channel


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("defaults", "https://conda.anaconda.org/conda-forge"),
        ("main", "https://conda.anaconda.org/conda-forge"),
        ("https://repo.anaconda.com/pkgs/main/linux-64", "https://conda.anaconda.org/conda-forge"),
        ("https://conda.anaconda.org/anaconda", "https://conda.anaconda.org/conda-forge"),
        ("bioconda", "https://conda.anaconda.org/bioconda"),
        ("pytorch/label/test", "https://conda.anaconda.org/pytorch/label/test"),
        ("https://example.org/c/noarch", "https://example.org/c"),
    ],
)
def test_anacondas_channels_become_conda_forge(tmp_path: Path, named: str, asked: str) -> None:
    file = read(tmp_path, f"channels: ['{named}']\ndependencies: [numpy]\n")
    chosen = channels.choose(file, BuildOptions())
    assert chosen.shown == (asked,)
    assert bool(chosen.warnings) == ("conda-forge" in asked)
    if chosen.warnings:
        assert named in chosen.warnings[0]


def test_defaults_stay_when_the_user_says_so(tmp_path: Path) -> None:
    file = read(tmp_path, "channels: [defaults, nodefaults]\ndependencies: [numpy]\n")
    chosen = channels.choose(file, BuildOptions(keep_defaults=True))
    assert chosen.shown == ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
    assert not chosen.warnings


def test_the_callers_channels_win_and_mirrors_apply(tmp_path: Path) -> None:
    file = read(tmp_path, "channels: [pytorch, conda-forge]\ndependencies: [numpy, 'nvidia::cuda-nvcc=12']\n")
    assert channels.choose(file, BuildOptions(channels=("mine",))).shown == ("https://conda.anaconda.org/mine",)
    mirrors = {"conda-forge": "https://mirror.example/cf/", "https://conda.anaconda.org": "https://m.example/all"}
    chosen = channels.choose(file, BuildOptions(mirrors=mirrors))
    assert chosen.shown == (
        "https://m.example/all/pytorch",
        "https://mirror.example/cf",
        "https://m.example/all/nvidia",
    )
    package = channels.canonical("https://mirror.example/cf/noarch/x-1-0.conda")
    assert package == "https://conda.anaconda.org/conda-forge/noarch/x-1-0.conda"
    aimed = channels.aimed("nvidia/linux-64::cuda-nvcc=12", list(chosen.shown))
    assert aimed == "https://m.example/all/nvidia::cuda-nvcc=12"


def test_credentials_of_a_channel_are_asked_with_and_never_shown(tmp_path: Path) -> None:
    secret = "https://user:hunter2@conda.example/t/tk-123/lab"
    chosen = channels.choose(read(tmp_path, f"channels: ['{secret}']\ndependencies: [numpy]\n"), BuildOptions())
    assert "hunter2" not in chosen.shown[0]
    assert "tk-123" not in chosen.shown[0]
    assert channels.real(chosen.shown[0]) == secret
    assert "tk-123" not in channels.canonical(f"{secret}/noarch/x-1-0.conda")


def test_a_channel_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidProject, match="neither the name"):
        channels.choose(read(tmp_path, "channels: ['../x']\ndependencies: [numpy]\n"), BuildOptions())


def test_detect_takes_what_uv_leaves(tmp_path: Path) -> None:
    plain = make_project(tmp_path / "a", "dependencies: [python=3.11, pip]\n")
    assert conda.detect(plain, BuildOptions()) is None
    assert conda.detect(plain, BuildOptions(kind="conda")) is not None
    more = make_project(tmp_path / "b", "channels: [conda-forge]\ndependencies: [python=3.11, openslide]\n")
    spec = conda.detect(more, BuildOptions())
    assert spec is not None
    assert spec.kind == "conda"
    assert spec.source == "conda.yaml"
    assert conda.detect(more, BuildOptions(kind="uv")) is None
    other = conda.detect(more, BuildOptions(python="3.10"))
    assert other is not None
    assert "python=3.10" in other.details["specs"]
    assert other.key != spec.key
    json.dumps(dict(spec.details))


def test_the_key_hashes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "channels: [conda-forge]\ndependencies: [python=3.11, openslide, {pip: [-r requirements.txt]}]\n"

    def key(**options: Any) -> str:
        spec = conda.detect(make_project(tmp_path, text), BuildOptions(**options))
        assert spec is not None
        return spec.key

    (tmp_path / "requirements.txt").write_text("shapely==2.0\n")
    first = key()
    assert key() == first
    assert key(channels=("bioconda",)) != first
    monkeypatch.setenv("CONDA_OVERRIDE_CUDA", "12.4")
    assert key() != first
    monkeypatch.delenv("CONDA_OVERRIDE_CUDA")
    (tmp_path / "requirements.txt").write_text("shapely==2.1\n")
    assert key() != first


@pytest.mark.parametrize("requirement", ["numpy=====1", "numpy>>1", "https://u:secret@x.org/c::numpy"])
def test_requirements_that_conda_cannot_read(tmp_path: Path, requirement: str) -> None:
    with pytest.raises(errors.InvalidProject) as caught:
        conda.detect(make_project(tmp_path, f"dependencies: [openslide, '{requirement}']\n"), BuildOptions())
    assert "secret" not in str(caught.value)


# --- with one


@pytest.mark.conda
def test_an_environment_for_real(tmp_path: Path, prefix: Path, url: str) -> None:
    channel.make_wheel(tmp_path / "project" / "wheels", "salute", "1.2", "WORDS = 'hello'\n")
    loaded = make_project(
        tmp_path / "project",
        f"""
channels: [defaults]
dependencies:
  - python={MINOR}
  - conda-forge::greeting=1
  - pip
  - pip: [--no-index, --find-links ./wheels, salute]
variables: {{LAB_MODE: quiet}}
""",
    )
    spec = conda.detect(loaded, BuildOptions(mirrors={"conda-forge": url}))
    assert spec is not None
    assert "defaults" in spec.warnings[0]
    lines: list[str] = []
    environment = conda.build(spec, loaded, prefix, lines.append)
    code = "import sys, ssl, sqlite3, pip, greeting, salute, os; "
    code += "print([sys.executable, sys.prefix, greeting.VERSION, salute.WORDS, os.path.exists(greeting.__cached__)])"
    said = run_in(environment, code)
    assert said == str([str(prefix / "bin" / "python"), str(prefix), "1.0", "hello", True])
    assert environment.variables["CONDA_PREFIX"] == str(prefix)
    assert environment.variables["GREETING_DATA"] == str(prefix / "share" / "greeting")  # an activation script
    assert environment.variables["LAB_MODE"] == "quiet"
    assert (prefix / "share" / "greeting" / "prefix.txt").read_text() == f"made for {prefix}\n"
    assert "salute==1.2" in environment.packages
    recorded = next(package for package in environment.packages if package.startswith("greeting=="))
    assert recorded.startswith(
        "greeting==1.0=py_0 @ https://conda.anaconda.org/conda-forge/noarch/greeting-1.0-py_0.conda"
    )
    assert len(recorded.partition("#sha256=")[2]) == 64
    assert any("Fetching greeting" in line for line in lines)
    assert conda.health(environment) is None
    (prefix / "bin" / "python").unlink()
    assert "gone" in str(conda.health(environment))


@pytest.mark.conda
@pytest.mark.network
def test_a_lock_is_built_again_with_the_kit_from_the_same_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "channel"
    url = channel.make_channel(own)
    (tmp_path / "config.toml").write_text(f'[environments]\nchannels = ["{url}"]\n')
    monkeypatch.setenv("SEGSERVE_CONFIG", str(tmp_path / "config.toml"))
    text = f"dependencies:\n  - python={MINOR}\n  - greeting=1\n  - pip\n  - pip: [segserve_sdk]\n"
    make_project(tmp_path / "project", text)
    git(tmp_path / "project", "init", "-q")
    make_repository(tmp_path / "project", {"README.md": "x"})
    folder = str(tmp_path / "project")
    assert main(["lock", folder]) == 0
    lines = lock.read(tmp_path / "project" / "segserve.lock").here()
    assert any(line.startswith("greeting==1.0=py_0 @ ") and "#sha256=" in line for line in lines)
    assert any(line.startswith("numpy==") and "--hash=sha256:" in line for line in lines)
    assert not any("file://" in line and str(own) not in line for line in lines), lines

    files = {"site-packages/greeting/__init__.py": b"VERSION = '1.5'\n"}
    channel.add_package(own, "greeting", "1.5", files, noarch="python", depends=("python >=3.8",))
    channel.index(own)
    today = solver.solve(("greeting=1",), (url,), silent, pip=False)
    assert [str(record.version) for record in today if record.name.normalized == "greeting"] == ["1.5"]
    make_repository(tmp_path / "project", {}, message="locked")
    capsys.readouterr()
    assert main(["check", folder, "--rot", "--json", "--fail-on", "never"]) == 0
    (rot,) = [one for one in json.loads(capsys.readouterr().out)["findings"] if one["rule"] == "solves-differently"]
    assert "1 package(s) differ: greeting 1.0=py_0 → 1.5=py_0." in rot["message"]
    assert main(["env", "build", folder, "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert any(line.startswith("greeting==1.0=py_0 @ ") for line in built["packages"])
    python = Path(built["location"]) / "bin" / "python"
    code = "import greeting, segserve_sdk, sys; print(greeting.VERSION, segserve_sdk.__file__.startswith(sys.prefix))"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split() == ["1.0", "True"]
    (own / "noarch" / "greeting-1.0-py_0.conda").unlink()
    channel.index(own)
    loaded = project.load(tmp_path / "project")
    spec = conda.detect(loaded, BuildOptions(channels=(url,)))
    assert spec is not None
    with pytest.raises(errors.EnvironmentBuildFailed, match="cannot be installed together") as caught:
        conda.build(spec, loaded, tmp_path / "again", silent)
    assert "greeting" in caught.value.quote


@pytest.mark.conda
def test_a_missing_patch_release_becomes_the_nearest_one(tmp_path: Path, prefix: Path, url: str) -> None:
    loaded = make_project(tmp_path / "project", f"dependencies: [python={MINOR}.99, greeting=1]\n")
    spec = conda.detect(loaded, BuildOptions(channels=(url,)))
    assert spec is not None
    environment = conda.build(spec, loaded, prefix, silent)
    assert f"python={MINOR}.99" in environment.spec.warnings[-1]
    assert channel.PYTHON in environment.spec.warnings[-1]
    assert environment.spec.key == spec.key


@pytest.mark.conda
@pytest.mark.parametrize(
    ("dependencies", "deciding", "hint"),
    [
        ("[greeting=2]", "imaginary >=3", "author"),
        ("[greeting, no-such-thing]", "No candidates were found for no-such-thing", "author"),
        ("[gpu-thing]", "__cuda >=999", "CONDA_OVERRIDE_CUDA"),
    ],
)
def test_what_cannot_be_solved_says_why(
    tmp_path: Path, prefix: Path, url: str, dependencies: str, deciding: str, hint: str
) -> None:
    loaded = make_project(tmp_path / "project", f"dependencies: {dependencies}\n")
    spec = conda.detect(loaded, BuildOptions(channels=(url,)))
    assert spec is not None
    lines: list[str] = []
    with pytest.raises(errors.EnvironmentBuildFailed) as caught:
        conda.build(spec, loaded, prefix, lines.append)
    assert deciding in caught.value.quote
    assert hint in caught.value.hint
    assert any(deciding in line for line in lines)


@pytest.mark.conda
def test_channels_that_do_not_answer(tmp_path: Path, prefix: Path) -> None:
    loaded = make_project(tmp_path / "project", "dependencies: [openslide]\n")

    def build(address: str) -> None:
        spec = conda.detect(loaded, BuildOptions(channels=(address,)))
        assert spec is not None
        conda.build(spec, loaded, prefix, silent)

    with pytest.raises(errors.RepositoryUnreachable) as caught:
        build("http://user:hunter2@127.0.0.1:9/channel")
    assert "127.0.0.1" in caught.value.quote
    assert "hunter2" not in caught.value.quote
    assert "HTTPS_PROXY" in caught.value.hint
    with pytest.raises(errors.EnvironmentBuildFailed, match="no such conda channel"):
        build((tmp_path / "nowhere").as_uri())


@pytest.mark.conda
def test_a_channel_behind_a_password(tmp_path: Path, prefix: Path, url: str) -> None:
    class Guarded(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:hunter2").decode():
                super().do_GET()
            else:
                self.send_error(401)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Guarded, directory=url.removeprefix("file://"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(errors.RepositoryUnreachable, match="credentials"):
            conda.python_from_channel(MINOR, prefix, BuildOptions(channels=(f"http://{address}",)), silent)
        loaded = make_project(tmp_path / "project", "dependencies: [greeting=1]\n")
        spec = conda.detect(loaded, BuildOptions(channels=(f"http://me:hunter2@{address}",)))
        assert spec is not None
        lines: list[str] = []
        environment = conda.build(spec, loaded, prefix, lines.append)
        server.shutdown()
    assert run_in(environment, "import greeting; print(greeting.VERSION)") == "1.0"
    assert "hunter2" not in f"{lines} {environment}"


@pytest.mark.conda
def test_a_built_environment_is_found_again(tmp_path: Path, home: Home, url: str) -> None:
    loaded = make_project(tmp_path / "project", "channels: [defaults]\ndependencies: [greeting=1]\n")
    spec = environments.detect(loaded, BuildOptions(mirrors={"conda-forge": url}))
    assert spec.kind == "conda"
    phases: list[str] = []
    first = environments.prepare(home, loaded, spec, phase=phases.append)
    began = time.process_time()
    assert environments.prepare(home, loaded, spec, phase=phases.append).location == first.location
    assert time.process_time() - began < 0.5
    assert len(phases) == 1
    assert run_in(first, "import sys; print(sys.prefix)") == first.location


@pytest.mark.conda
def test_the_second_channel_is_used_when_priority_stands_in_the_way(tmp_path: Path, prefix: Path, url: str) -> None:
    first = tmp_path / "first"
    channel.add_package(first, "greeting", "0.1", {"share/x": b""}, noarch="generic", depends=("imaginary",))
    channel.index(first)
    loaded = make_project(tmp_path / "project", "dependencies: [greeting]\n")
    spec = conda.detect(loaded, BuildOptions(channels=(first.as_uri(), url)))
    assert spec is not None
    environment = conda.build(spec, loaded, prefix, silent)
    assert any(package.startswith("greeting==1.0") for package in environment.packages)


@pytest.mark.conda
def test_python_alone_for_other_builders(tmp_path: Path, url: str) -> None:
    options = BuildOptions(mirrors={"conda-forge": url})
    python = conda.python_from_channel(MINOR, tmp_path / "python", options, silent)
    assert subprocess.run([python, "-c", "import ssl"], check=False).returncode == 0
    with pytest.raises(errors.EnvironmentBuildFailed):
        conda.python_from_channel("3.1", tmp_path / "other", options, silent)


@pytest.mark.conda
def test_a_failed_solve_at_the_end_of_a_process_does_not_crash_it(tmp_path: Path, url: str) -> None:
    code = "import sys; from pathlib import Path; from segserve.environments import conda; "
    code += "from segserve.environments.base import BuildOptions\n"
    code += "conda.python_from_channel('3.1', Path(sys.argv[1]), BuildOptions(channels=(sys.argv[2],)), print)\n"
    words = [sys.executable, "-c", code, str(tmp_path / "python"), url]
    codes = {subprocess.run(words, capture_output=True, check=False).returncode for _ in range(10)}
    assert codes == {1}  # the error's traceback, no signal


@pytest.mark.conda
def test_it_works_inside_of_a_running_event_loop(tmp_path: Path, url: str) -> None:
    """A notebook's cell."""
    import asyncio

    async def cell() -> Path:
        return conda.python_from_channel(MINOR, tmp_path / "python", BuildOptions(channels=(url,)), silent)

    assert asyncio.run(cell()).exists()
