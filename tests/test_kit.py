"""The kit's wheel: assembled from what is installed, offered to every environment, in the key of those that use it."""

from __future__ import annotations

import subprocess
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from segserve import api, kit
from segserve.cli import main
from segserve.environments import closure
from segserve.environments.pip import uv
from tests.repositories import make_repository

SDK = Path(__file__).parent.parent / "executors" / "sdk"
PACKAGE = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1"
dependencies = [{needs}]
[tool.setuptools]
py-modules = []
"""
MLPROJECT = """\
name: old
python_env: python_env.yaml
entry_points:
  main:
    parameters: {input_images: path}
    command: "python main.py {input_images}"
"""


def metadata(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        message = message_from_bytes(archive.read(name))
    return {key: sorted(message.get_all(key) or []) for key in ("Name", "Version", "Requires-Dist", "Requires-Python")}


def test_the_wheel_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = kit.write_wheel(tmp_path / "one")
    assert first.read_bytes() == kit.write_wheel(tmp_path / "two").read_bytes()
    assert main(["sdk", "wheel", "-o", str(tmp_path / "three")]) == 0
    assert f"sha256 {kit.digest()}" in capsys.readouterr().out
    assert (tmp_path / "three" / kit.file_name()).read_bytes() == first.read_bytes()


def test_the_wheel_cannot_be_put_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["sdk", "wheel", "-o", str(tmp_path / "file" / "below")]) == 2


@pytest.mark.network
def test_it_is_what_the_build_backend_makes_of_the_sources(tmp_path: Path) -> None:
    argv = [uv(), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(SDK)]
    subprocess.run(argv, check=True)
    (built,) = tmp_path.glob("*.whl")
    ours = kit.write_wheel(tmp_path / "ours")
    assert built.name == ours.name
    assert metadata(built) == metadata(ours)

    def contents(wheel: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist() if "dist-info" not in name}

    assert contents(built) == contents(ours)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    make_repository(
        folder,
        {
            "uses/pyproject.toml": PACKAGE.format(name="uses", needs='"segserve-sdk>=0.1"'),
            "other/pyproject.toml": PACKAGE.format(name="other", needs='"numpy"'),
            "kit/pyproject.toml": PACKAGE.format(name="segserve_sdk", needs=""),
            "wheels/segserve_sdk-0.0.1-py3-none-any.whl": "",
            "more.txt": "Segserve.SDK\n",
        },
    )
    return folder


@pytest.mark.parametrize(
    ("lines", "offered", "in_key"),
    [
        (["numpy"], True, False),
        (["segserve-sdk-extras", "my-segserve_sdk"], True, False),
        (["segserve_sdk"], True, True),
        (["Segserve.SDK[x]>=0.1 ; python_version>'3'"], True, True),
        (["-r more.txt"], True, True),
        (["./uses"], True, True),
        (["./other"], True, False),
        (["segserve_sdk==0.0.1"], False, False),
        (["segserve_sdk @ https://example.org/segserve_sdk-0.1.0-py3-none-any.whl"], False, False),
        (["./wheels/segserve_sdk-0.0.1-py3-none-any.whl", "./uses"], False, False),
        (["./kit", "./uses"], False, False),
    ],
)
def test_it_is_offered_and_part_of_the_key_where_it_is_used(
    lines: list[str], offered: bool, in_key: bool, checkout: Path
) -> None:
    read = closure.read(lines, checkout, checkout, source="python_env.yaml")
    assert read.takes_our_kit is offered
    assert read.identity().get("kit") == (kit.digest() if in_key else None)


@pytest.mark.network
def test_an_environment_of_python_3_8_gets_it_and_the_kits_own_tests_pass_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the same name and a higher version lies in reach, as it could on an index: it is not taken."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(elsewhere / "segserve_sdk-9.9-py3-none-any.whl", "w") as archive:
        archive.writestr("segserve_sdk.py", "raise SystemExit('somebody else')")
        archive.writestr(
            "segserve_sdk-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: segserve_sdk\nVersion: 9.9\n"
        )
        archive.writestr(
            "segserve_sdk-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("segserve_sdk-9.9.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(elsewhere))
    environment = (
        'python: "3.8"\ndependencies:\n  - ./uses\n  - pytest\n  - mlflow-skinny\n  - alembic\n  - sqlalchemy\n'
    )
    files = {"uses/pyproject.toml": PACKAGE.format(name="uses", needs='"segserve_sdk"')}
    make_repository(tmp_path / "it", {"MLProject": MLPROJECT, "python_env.yaml": environment, "main.py": "", **files})
    with api.session() as session:
        built = session.build_environment(session.request(str(tmp_path / "it")))
    assert f"segserve-sdk=={kit.version()}" in built["packages"]
    python = Path(built["location"]) / "bin" / "python"
    assert subprocess.run([python, "--version"], capture_output=True, text=True).stdout.startswith("Python 3.8")
    argv = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SDK / "tests")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
