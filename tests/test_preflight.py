"""Whether an environment's torch runs on the cards of a machine, before one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from segserve.devices import Gpu
from segserve.environments import torchbuild
from segserve.environments.torchbuild import TorchBuild
from segserve.errors import EnvironmentUnfit
from segserve.model import Environment, EnvironmentSpec
from segserve.pipeline import drive, preflight
from tests.commands import Command, run_of
from tests.executors import SHELL_PROJECT, SHELL_SCRIPT
from tests.repositories import make_repository

pytest_plugins = ["tests.command_fixtures"]

H100, A100, P100 = ((9, 0), (8, 0), (6, 0))

# As the wheels have it: 1.10 from PyPI, 2.13 for the CPU from pytorch's own index.
OF_PYPI = "__version__ = '1.10.2+cu102'\ndebug = False\ncuda = '10.2'\ngit_version = '71f8'\nhip = None\n"
OF_CPU = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.13.0+cpu'
debug = False
cuda: Optional[str] = None
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = None
"""
OF_CUDA_12 = OF_CPU.replace("+cpu", "+cu126").replace("cuda: Optional[str] = None", "cuda: Optional[str] = '12.6'")


def environment(folder: Path, version: str, architectures: str = "") -> Environment:
    torch = folder / "lib" / "python3.11" / "site-packages" / "torch"
    (torch / "lib").mkdir(parents=True)
    (torch / "version.py").write_text(version)
    if architectures:
        content = b"\0sm_80\0 not this one \0" + architectures.encode() + b"\0more"
        (torch / "lib" / "libtorch_python.so").write_bytes(bytes(1000) + content)
    return Environment(EnvironmentSpec("uv", "", "k"), str(folder))


def fake_gpus(*capabilities: tuple[int, int]) -> Sequence[Gpu]:
    return [Gpu(f"GPU-{n}", n, "Fake", 2**30, capability) for n, capability in enumerate(capabilities)]


def test_what_is_installed_is_read_from_its_files(tmp_path: Path) -> None:
    assert torchbuild.find(environment(tmp_path / "a", OF_PYPI)) == TorchBuild("1.10.2+cu102", (10, 2))
    assert torchbuild.find(environment(tmp_path / "b", OF_CPU)) == TorchBuild("2.13.0+cpu", None)
    found = torchbuild.find(environment(tmp_path / "c", OF_CUDA_12, "sm_70 sm_80 sm_90a compute_90"))
    assert found == TorchBuild("2.13.0+cu126", (12, 6), ("sm_70", "sm_80", "sm_90a", "compute_90"))
    assert torchbuild.find(Environment(EnvironmentSpec("uv", "", "k"), str(tmp_path))) is None
    assert torchbuild.find(Environment(EnvironmentSpec("docker", "", "k"), "image:tag")) is None


@pytest.mark.parametrize(
    ("build", "capability", "driver", "problem"),
    [
        (TorchBuild("2.6+cu126", (12, 6), ("sm_80", "sm_90")), H100, (12, 4), ""),  # a minor release older
        (TorchBuild("2.6+cu126", (12, 6), ("sm_80", "sm_90")), H100, (11, 8), "driver knows CUDA 11.8 at most"),
        (TorchBuild("2.6+cu126", (12, 6), ("sm_80",)), (8, 6), (12, 6), ""),  # machine code within a major
        (TorchBuild("2.6+cu126", (12, 6), ("sm_86",)), A100, (12, 6), "none of which runs on compute capability 8.0"),
        (TorchBuild("2.6+cu126", (12, 6), ("sm_80",)), H100, (12, 6), "none of which runs"),
        (TorchBuild("2.6+cu126", (12, 6), ("sm_80", "compute_80")), H100, (12, 6), ""),  # PTX on what came later
        (TorchBuild("2.6+cu126", (12, 6), ("sm_90a",)), H100, (12, 6), ""),
        (TorchBuild("2.6+cu126", (12, 6), ("sm_90a",)), (10, 0), (12, 8), "none of which runs"),
        (TorchBuild("2.8+cu129", (12, 9), ("sm_75", "sm_80", "sm_90")), P100, (12, 9), "none of which runs"),
        (TorchBuild("1.10+cu102", (10, 2)), H100, (12, 6), "older than cards of compute capability 9.0"),
        (TorchBuild("2.1+cu118", (11, 8)), H100, (12, 6), ""),
        (TorchBuild("2.1+cu118", (11, 8)), (12, 0), (12, 8), "older than cards"),
        (TorchBuild("2.13+cpu", None), H100, (12, 6), "without CUDA"),
        (TorchBuild("2.6+cu126", (12, 6), ("sm_90",)), H100, None, ""),
    ],
)
def test_builds_and_cards(
    build: TorchBuild, capability: tuple[int, int], driver: tuple[int, int] | None, problem: str
) -> None:
    said = build.problem(capability, driver)
    assert bool(said) == bool(problem)
    assert problem in said


def test_what_is_leased(tmp_path: Path) -> None:
    old, cpu = environment(tmp_path / "old", OF_PYPI), environment(tmp_path / "cpu", OF_CPU)
    new = environment(tmp_path / "new", OF_CUDA_12, "sm_80 sm_90")

    def decide(wanted: str, which: Environment, *cards: tuple[int, int], allowed: bool = False) -> preflight.Decision:
        return preflight.decide(wanted, which, fake_gpus(*cards), (12, 6), cpu_allowed=allowed)

    assert decide("auto", new, H100).uuids == {"GPU-0"}
    assert decide("auto", new, P100, H100).uuids == {"GPU-1"}  # the one that fits
    assert decide("auto", old).gpus == "auto"  # a machine without cards
    assert decide("none", old, H100).gpus == "none"
    alone = decide("auto", cpu, H100)  # it could do nothing else
    assert (alone.gpus, alone.why) == ("none", "torch 2.13.0+cpu was built without CUDA")
    with pytest.raises(EnvironmentUnfit, match="built without CUDA"):
        decide("1", cpu, H100)
    with pytest.raises(EnvironmentUnfit, match="older than cards") as refused:
        decide("auto", old, H100)
    assert "--gpus none" in refused.value.hint
    assert decide("auto", old, H100, allowed=True).gpus == "none"
    with pytest.raises(EnvironmentUnfit, match="enough of the 2 GPUs"):
        decide("2", new, P100, H100, allowed=True)  # who names a number wants cards


@pytest.mark.network  # its environment is built
def test_a_run_is_refused_before_its_executor_starts_or_goes_to_the_cpu_where_that_is_allowed(
    here: Path, segserve: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real environment with a package `torch` of its own; the card is a fake."""
    setup = "from setuptools import setup\nsetup(name='torch', version='1.10.2', packages=['torch'])\n"
    make_repository(
        here / "executor",
        {
            "MLproject": SHELL_PROJECT + "python_env: python_env.yaml\n",
            "segment.sh": SHELL_SCRIPT,
            "python_env.yaml": 'python: "3.11"\ndependencies:\n  - ./package\n',
            "package/setup.py": setup,
            "package/torch/__init__.py": "",
            "package/torch/version.py": OF_PYPI,
        },
    )
    cards = tuple(fake_gpus(H100))
    monkeypatch.setattr(drive.devices, "visible", lambda: cards)
    monkeypatch.setattr(drive.devices, "driver_cuda", lambda: (12, 6))
    done = segserve("run", here / "executor", images, "--json")
    assert done.code == 3, done.err
    assert "torch 1.10.2+cu102 was built with CUDA 10.2, which is older" in done.error["message"]
    monkeypatch.setenv("SEGSERVE_RUN__CPU_FALLBACK", "true")
    done = segserve("run", here / "executor", images, "--json")
    assert done.code == 0, done.err
    assert any("It ran on the CPU: torch 1.10.2" in warning for warning in done.document["warnings"])
    tags = {tag["key"]: tag["value"] for tag in run_of(done.document["mlflow"])["data"]["tags"]}
    assert tags["segserve.device"] == "CPU"
    assert tags["segserve.torch"] == "torch 1.10.2+cu102"
    assert "older than cards" in tags["segserve.cpu_because"]
