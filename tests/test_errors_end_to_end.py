"""The table of errors: each kind that a run can end with is caused for real, and says what to do, everywhere alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from segserve import errors
from segserve.errors import SegserveError
from tests.commands import SEGSERVE, Command, Done, status_of
from tests.executors import make_executor
from tests.repositories import git, make_repository
from tests.waiting import wait_for

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.usefixtures("here")


def exit_code(kind: str) -> int:
    error: type[SegserveError] = getattr(errors, kind)
    return error.exit_code


def explained(done: Done, kind: str, message: str) -> None:
    """Exit code, document and text agree; all three say what happened and what to do next."""
    assert done.error["code"] == kind, done.err
    assert done.code == done.error["exit_code"] == exit_code(kind)
    assert message in done.error["message"]
    assert done.error["hint"], f"nobody is told what to do: {done.err}"
    first_line = done.error["message"].splitlines()[0]
    assert f"error: {first_line}" in done.err
    assert f"hint: {done.error['hint']}" in done.err
    assert "Traceback" not in done.err.replace("│ Traceback", "")


# ------------------------------------------------------------------------- refused, before there is a job at all


def _malformed(here: Path) -> list[str]:
    make_repository(here / "executor", {"MLProject": "name: x\nentry_points:\n  main:\n  command: [\n"})
    return ["./executor", "images"]


def _no_project(here: Path) -> list[str]:
    make_repository(here / "executor", {"README.md": "nothing"})
    return ["./executor", "images"]


def _huge_snapshot(here: Path) -> list[str]:
    make_executor(here / "executor")
    with (here / "executor" / "weights.bin").open("wb") as stream:
        stream.truncate(3 << 30)  # sparse
    return ["./executor", "images"]


def _ambiguous(here: Path) -> list[str]:
    make_executor(here / "executor")
    git(here / "executor", "branch", "v1")
    make_repository(here / "executor", {"more": ""})
    git(here / "executor", "tag", "v1")
    return [f"{(here / 'executor').as_uri()}@v1", "images"]


def _with(*words: str) -> Callable[[Path], list[str]]:
    def prepare(here: Path) -> list[str]:
        make_executor(here / "executor")
        (here / "empty").mkdir()
        (here / "notes.txt").write_text("no image")
        return [words[0].replace("URL", (here / "executor").as_uri()), *words[1:]]

    return prepare


@pytest.mark.parametrize(
    ("kind", "prepare", "message"),
    [
        ("InvalidRef", _with("ftp://host/x", "images"), "ftp:"),
        ("InvalidRef", _with("./nowhere", "images"), "no folder './nowhere'"),
        ("InvalidRef", _with("unheard-of", "images"), "short name"),
        ("UnknownEntryPoint", _with("./executor#mian", "images"), "no entry point 'mian'"),
        ("InvalidParameters", _with("./executor", "images", "-P", "sise=3"), "sise"),
        ("InvalidParameters", _with("./executor", "images", "-P", "size=abc"), "'abc' is no number"),
        ("InvalidParameters", _with("./executor", "images", "--frames", "x"), "--frames x"),
        ("UsageError", _with("./executor"), "takes images"),
        ("UsageError", _with("./executor", "images", "-o", "empty"), "exists already"),
        ("UsageError", _with("./executor", "images", "-o", "notes.txt/out"), "cannot be written"),
        ("UsageError", _with("./executor", "images", "--gpus", "some"), "no number of GPUs"),
        ("UnreadableImage", _with("./executor", "images", "notes.txt"), "text file, not an image"),
        ("UnreadableImage", _with("./executor", "nothing-here"), "does not exist"),
        ("UnreadableImage", _with("./executor", "empty"), "folder without images"),
        ("TooLarge", _huge_snapshot, "weights.bin"),
        ("RevisionNotFound", _with("URL@nowhere", "images"), "nowhere"),
        ("RevisionNotFound", _ambiguous, "v1"),
        ("InvalidProject", _malformed, "MLProject"),
        ("InvalidProject", _no_project, "MLProject"),
        ("RepositoryUnreachable", _with("https://127.0.0.1:9/group/repo", "images"), "127.0.0.1:9"),
        ("NoSlot", _with("./executor", "images", "--gpus", "999", "--no-wait"), "999 GPUs"),
    ],
)
def test_refused(
    segserve: Command, here: Path, images: Path, kind: str, prepare: Callable[[Path], list[str]], message: str
) -> None:
    before = segserve("ps", "-a", "--json").document
    explained(segserve("run", *prepare(here), "--json"), kind, message)
    assert segserve("ps", "-a", "--json").document == before
    assert not Path("segserve-results").exists()


def test_not_found(segserve: Command) -> None:
    explained(segserve("show", "no-such-job", "--json"), "NotFound", "no-such-job")


def test_no_tracking_uri_that_executors_cannot_use(
    segserve: Command, here: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_executor(here / "executor")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    explained(segserve("run", "./executor", images, "--json"), "UsageError", "sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    explained(segserve("run", "./executor", images, "--json"), "TrackingUnreachable", "127.0.0.1:9")


# ---------------------------------------------------------------------------------- failed, and recorded as such


def recorded(segserve: Command, done: Done, state: str, status: str) -> None:
    """Journal and MLflow run tell the same."""
    job = segserve("ps", "-a", "-n", 1, "--json").document[0]
    shown = segserve("show", job["job"], "--json").document
    assert shown["state"] == state
    assert shown["error"] == done.error["message"]
    assert shown["hint"] == done.error["hint"]
    assert status_of(shown["mlflow"]) == status


@pytest.mark.network
def test_a_failed_build(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", python_env='python: "3.11"\ndependencies:\n  - never-published-anywhere==1\n')
    done = segserve("run", "./executor", images, "--json")
    explained(done, "EnvironmentBuildFailed", "")
    assert "never-published-anywhere" in done.error["quote"]
    assert Path(done.error["log"]).exists()
    recorded(segserve, done, "failed", "FAILED")


# What executors really say. Those that need a GPU to say it are quoted.
CAUSES = {
    "package": ("import surely_missing_package", "the package 'surely_missing_package' is not in its environment"),
    "memory": (
        "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 7.79 GiB total capacity)')",
        "the GPU ran out of memory",
    ),
    "kernel": (
        "raise RuntimeError('CUDA error: no kernel image is available for execution on the device')",
        "no kernel image",
    ),
    "weights": (
        "import urllib.request; urllib.request.urlopen('https://127.0.0.1:9/weights.pt')",
        "the network did not answer",
    ),
    "channels": (
        "raise RuntimeError('expected input[1, 1, 224, 224] to have 3 channels, but got 1 channels instead')",
        "another number of channels",
    ),
    "glob": ("max(len(name) for name in glob.glob(arguments.images + '/*.tif'))", "it found no images"),
    "file": ("open('weights/model.pt')", "a file that it needs is not there"),
    "own": ("raise ValueError('the cells are too round')", "ValueError: the cells are too round"),
}


@pytest.mark.network
@pytest.mark.parametrize("cause", CAUSES)
def test_an_executor_that_fails(segserve: Command, here: Path, images: Path, cause: str) -> None:
    program, message = CAUSES[cause]
    make_executor(here / "executor")
    text = (here / "executor" / "main.py").read_text()
    make_repository(here / "executor", {"main.py": text.replace("names = sorted", f"{program}\nnames = sorted")})
    done = segserve("run", "./executor", images, "--json")
    explained(done, "ExecutorFailed", message)
    assert done.error["message"].startswith("The executor failed with exit code 1: ")
    deciding = done.error["quote"].splitlines()
    assert any("Error" in line for line in deciding)
    assert "View run" not in done.error["quote"]
    assert Path(done.error["log"]).exists()
    recorded(segserve, done, "failed", "FAILED")


@pytest.mark.network
@pytest.mark.parametrize(
    ("behaviour", "words", "kind", "message"),
    [
        ("hang", ["--timeout", "3"], "RunTimedOut", "time limit"),
        ("no_output", [], "OutputMissing", "output.json"),
        ("bad_polygons", [], "OutputInvalid", "segmentation_data[0][0]"),
        ("wrong_count", [], "OutputInvalid", "4"),
        ("half_written", [], "OutputInvalid", "output.json"),
    ],
)
def test_a_run_without_a_result(
    segserve: Command, here: Path, images: Path, behaviour: str, words: list[str], kind: str, message: str
) -> None:
    make_executor(here / "executor", behaviour)
    done = segserve("run", "./executor", images, "--json", *words)
    assert message in done.err
    explained(done, kind, "")
    if kind == "OutputInvalid":
        assert done.error["findings"]
    recorded(segserve, done, "failed", "FAILED")
    assert not Path("segserve-results").exists()


@pytest.mark.network
def test_a_run_that_somebody_else_cancels(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", "hang")
    with subprocess.Popen(
        [*SEGSERVE, "run", "./executor", str(images), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        job = wait_for(lambda: [job for job in segserve("ps", "--json").document if job["state"] == "running"])[0]
        assert segserve("cancel", job["job"]).code == 0
        done = Done(process.wait(), *process.communicate())
    explained(done, "RunCancelled", "cancelled")
    recorded(segserve, done, "cancelled", "KILLED")


# ---------------------------------------------------------------------------------------- the machine, and ourselves


def test_a_full_disk_under_the_home(
    segserve: Command, tmp_path: Path, images: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_executor(tmp_path / "executor")
    monkeypatch.setenv("SEGSERVE_HOME", str(small_disk / "home"))
    done = segserve("run", "./executor", images, "--json")
    explained(done, "DiskFull", "The disk is full")
    assert "SEGSERVE_HOME" in done.error["hint"]


@pytest.mark.network
def test_a_full_disk_under_the_result(segserve: Command, here: Path, images: Path, small_disk: Path) -> None:
    make_executor(here / "executor")
    done = segserve("run", "./executor", images, "--json", "-o", small_disk / "out")
    explained(done, "DiskFull", "The disk is full")
    recorded(segserve, done, "failed", "FAILED")
    assert not (small_disk / "out").exists()


@pytest.mark.network
def test_a_defect_is_ours(segserve: Command, here: Path, shared_home: Path) -> None:
    """Garbage in our own files is what we did not think of."""
    make_executor(here / "executor")
    job = segserve("run", "./executor#info", "--json").document["job"]
    (shared_home / "jobs" / job / "facts.json").write_text("{ https://user:canary@host")
    done = segserve("show", job, "--json")
    assert done.code == done.error["exit_code"] == 1
    assert done.error["code"] == "Defect"
    assert "JSONDecodeError" in done.error["message"]
    assert f"report it with the end of {done.error['log']}" in done.err
    assert "Traceback" not in done.err
    assert "facts.py" in Path(done.error["log"]).read_text()
