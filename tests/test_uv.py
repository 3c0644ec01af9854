"""uv environments: which interpreter, what stands in them, and the oldest executors that have to work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from segserve import environments, process, project
from segserve.environments import BuildOptions, interpreters, uv
from segserve.environments.interpreters import Machine, Plan
from segserve.errors import EnvironmentBuildFailed, InvalidParameters, InvalidProject, UsageError
from segserve.layout import Home
from segserve.model import Environment, EnvironmentSpec
from tests.packages import local_package
from tests.repositories import make_repository

pytest_plugins = ["tests.packages"]

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
MLPROJECT = "name: x\n{environment}\nentry_points:\n  main:\n    command: python main.py\n"


def make_project(folder: Path, environment: str = "", **files: str) -> project.Project:
    """A committed project; `files` have `__` for a dot in their names."""
    texts = {name.replace("__", "."): text for name, text in files.items()}
    make_repository(folder, {"MLproject": MLPROJECT.format(environment=environment), **texts})
    return project.load(folder)


def python_env(folder: Path, *dependencies: str, version: str = HERE, **files: str) -> project.Project:
    """A project with a python_env of these dependencies."""
    text = f'python: "{version}"\ndependencies:\n' + "".join(f"  - {line}\n" for line in dependencies)
    text = text if dependencies else f'python: "{version}"\n'
    return make_project(folder, "python_env: python_env.yaml", python_env__yaml=text, **files)


def detect(found: project.Project, **options: str) -> EnvironmentSpec:
    return environments.detect(found, BuildOptions(**options))


def ask(environment: Environment, code: str) -> str:
    """What Python code prints in an environment that is only put before PATH, as MLflow does."""
    variables = {"PATH": f"{':'.join(environment.path)}:/usr/bin:/bin", **environment.variables}
    return process.run(["bash", "-c", 'python -c "$0"', code], env=variables).stdout.strip()


# ------------------------------------------------------------------------------------------------------ interpreters


SOME = Machine(
    local=tuple((version, f"/p/{version}") for version in ("3.11.2", "3.8.18", "3.8.10", "3.11.7", "3.13.0")),
    downloads=("3.12.4", "3.9.20", "3.8.20", "3.8.5"),
    current="3.11.7",
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", "3.11.7"),
        ("3.11", "3.11.7"),
        ("==3.11", "3.11.7"),
        ("=3.11.2", "3.11.2"),
        ("3.8", "3.8.18"),
        ("=3.8.*", "3.8.18"),
        (">=3.8", "3.11.7"),
        (">=3.8,<3.11", "3.8.18"),
        (">3.11", "3.11.7"),
        (">=3.12", "3.13.0"),
        ("3.8.5", "3.8.5"),
        ("=3.8.12", "3.8.10"),
        ("3.8.17", "3.8.18"),
        ("3.9.1", "3.9.20"),
        ("3.12", "3.12.4"),
        ("3.6.5", "3.6.5"),
    ],
)
def test_the_interpreter_that_is_taken(wanted: str, expected: str) -> None:
    chosen = interpreters.plan(wanted, machine=SOME)
    assert chosen.expected == expected
    assert Plan.of(chosen.as_details()) == chosen


def test_another_patch_release_is_a_warning() -> None:
    warnings = interpreters.plan("3.8.12", machine=SOME).warnings
    assert warnings == ("Python 3.8.12 cannot be had here: 3.8.10 is used instead.",)
    assert interpreters.plan("3.8", machine=SOME).warnings == ()
    assert interpreters.plan("3.11.7", machine=SOME).warnings == ()


def test_python_option_wins() -> None:
    assert interpreters.plan("3.8.5", override="3.11", machine=SOME).expected == "3.11.7"
    with pytest.raises(InvalidParameters, match=r"X\.Y"):
        interpreters.plan("3.8.5", override="python3.11")
    with pytest.raises(InvalidProject, match=r"conda\.yaml asks for Python '=three'"):
        interpreters.plan("=three", source="conda.yaml")


def test_this_machines_interpreters_are_found() -> None:
    versions = {found.version for found in interpreters.installed()}
    assert ".".join(str(part) for part in sys.version_info[:3]) in versions
    for found in interpreters.installed():
        assert found.python.is_file()
        assert "shims" not in found.python.parts


def test_a_variable_of_uv_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "perhaps")
    interpreters.downloadable.cache_clear()
    with pytest.raises(UsageError) as caught:
        interpreters.downloadable()
    assert "UV_OFFLINE" in caught.value.quote
    interpreters.downloadable.cache_clear()


def test_nothing_to_be_had_lists_all_three_ways(tmp_path: Path) -> None:
    def channel(version: str, folder: Path, report: object) -> Path:
        raise EnvironmentBuildFailed(f"The channel has no python {version}.")

    with pytest.raises(EnvironmentBuildFailed) as caught:
        interpreters.provide(interpreters.plan("3.5"), tmp_path, print, channel)
    quote = caught.value.quote
    assert [line.split(":")[0].split(",")[0] for line in quote.splitlines()] == [
        "on this machine",
        "uv's download",
        "conda channel",
    ]
    assert "--python" in caught.value.hint


def test_the_channel_is_the_last_way(tmp_path: Path) -> None:
    asked: list[str] = []

    def channel(version: str, folder: Path, report: object) -> Path:
        asked.append(version)
        if version != "3.5":
            raise EnvironmentBuildFailed("no such patch")
        return Path(sys.executable)

    found = interpreters.provide(interpreters.plan("3.5.3"), tmp_path, print, channel)
    assert asked == ["3.5.3", "3.5"]
    assert found.python == Path(sys.executable)
    assert "3.5.3 cannot be had" in found.warning


# ---------------------------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize(
    ("conda", "kind"),
    [("dependencies: [python=3.11, pip, {pip: [colours]}]\n", "uv"), ("dependencies: [python, numpy]\n", "conda")],
)
def test_plain_conda_files_need_no_channel(tmp_path: Path, conda: str, kind: str) -> None:
    found = make_project(tmp_path, "conda_env: conda.yaml", conda__yaml=conda)
    assert detect(found).kind == kind


def test_env_uv_translates_conda_packages(tmp_path: Path) -> None:
    conda = "dependencies: [python=3.11, numpy=2.0, cudatoolkit=11.3, {pip: [mlflow]}]\n"
    found = detect(make_project(tmp_path, "conda_env: conda.yaml", conda__yaml=conda), kind="uv")
    assert found.details["requirements"] == ["numpy==2.0.*", "mlflow"]
    assert any("cudatoolkit" in warning for warning in found.warnings)


def test_env_uv_names_what_it_cannot_translate(tmp_path: Path) -> None:
    found = make_project(tmp_path, "conda_env: conda.yaml", conda__yaml="dependencies: [samtools, numpy]\n")
    with pytest.raises(InvalidParameters, match="'samtools'"):
        detect(found, kind="uv")


def test_a_project_without_environment_gets_mlflow(tmp_path: Path) -> None:
    found = detect(make_project(tmp_path))
    assert found.details["requirements"] == ["mlflow-skinny"]
    assert "declares no environment" in found.warnings[0]


def test_env_local_takes_what_is_there(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    found = python_env(tmp_path / "p", "colours", version="3.8")
    environment = environments.prepare(home, found, detect(found, kind="local"))
    assert ask(environment, "import sys; print(sys.prefix)") == sys.prefix
    assert any(package.startswith("pytest==") for package in environment.packages)
    assert environments.built(home) == []
    with pytest.raises(InvalidParameters, match="PATH"):
        detect(found, kind="local", python="3.8")


# ----------------------------------------------------------------------------------------------------- environments


def test_an_environment_is_usable_from_path_alone(tmp_path: Path, home: Home, no_index: Path) -> None:
    local_package(tmp_path / "p" / "sdk", "sdkpackage", "VALUE = 7\n")
    found = python_env(tmp_path / "p", "shapes", "./sdk")
    environment = environments.prepare(home, found, detect(found))
    code = "import sys, shapes, colours, sdkpackage, pip; print(sys.prefix, colours.RED, sdkpackage.VALUE)"
    assert ask(environment, code) == f"{environment.location} 1 7"
    for name in ("python", "python3", "pip"):
        assert (Path(environment.location) / "bin" / name).exists()
    assert {"colours==1.0", "shapes==1.0", "sdkpackage==1.0"} <= set(environment.packages)


@pytest.mark.network
def test_conda_habits_hold(tmp_path: Path, home: Home) -> None:
    """pip, setuptools (with pkg_resources) and wheel are there, in the versions that the file names."""
    conda = f"dependencies: [python={HERE}, pip, setuptools=70.0, {{pip: []}}]\n"
    found = make_project(tmp_path / "p", "conda_env: conda.yaml", conda__yaml=conda)
    environment = environments.prepare(home, found, detect(found))
    assert ask(environment, "import pkg_resources, setuptools, wheel; print(setuptools.__version__)").startswith("70.0")


@pytest.mark.network
def test_mlflow_1_30_on_python_3_8(tmp_path: Path, home: Home) -> None:
    """What public executors pin: a conda.yaml of 2022 whose Python nobody has any more."""
    conda = "channels: [defaults]\ndependencies: [python=3.8.5, pip, {pip: ['mlflow==1.30.1']}]\n"
    found = make_project(tmp_path / "p", "conda_env: conda.yaml", conda__yaml=conda)
    environment = environments.prepare(home, found, detect(found))
    code = "import mlflow, sys; mlflow.set_tracking_uri('file:' + sys.argv[1]); mlflow.log_artifact(sys.argv[2])"
    variables = {"PATH": f"{environment.path[0]}:/usr/bin:/bin", **environment.variables}
    (tmp_path / "output.json").write_text("{}")
    process.run(["python", "-c", code, tmp_path / "mlruns", tmp_path / "output.json"], env=variables, cwd=tmp_path)
    assert list((tmp_path / "mlruns").glob("**/artifacts/output.json"))
    assert ask(environment, "import sys; print(sys.version)").startswith("3.8.")
    used = ask(environment, "import platform; print(platform.python_version())")
    if used != "3.8.5":
        assert f"Python 3.8.5 cannot be had here: {used} is used instead." in environment.spec.warnings
    assert uv.health(environment) is None
