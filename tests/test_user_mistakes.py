"""What people type wrongly: a sentence that says what it is, what to do next, and exit code 2; never a traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands import SEGSERVE, Command
from tests.executors import make_shell_executor

pytest_plugins = ["tests.command_fixtures"]

DOCUMENT = '{"model": "m#1234567", "format_version": "0.2", "segmentation_data": [[]]}'


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it lies about: an executor, images, a result, and things that are none of these."""
    desk = tmp_path_factory.mktemp("desk")
    make_shell_executor(desk / "executor")
    for name in ("images", "empty", "result", "latin", "with blanks ü"):
        (desk / name).mkdir()
    picture = bytes(cv2.imencode(".png", np.full((20, 30), 7, np.uint8))[1])
    for file in ("images/a.png", "with blanks ü/a.png"):
        (desk / file).write_bytes(picture)
    Path(os.fsdecode(os.fsencode(desk / "latin") + b"/z\xfcge.png")).write_bytes(picture)
    (desk / "result/output.json").write_text(DOCUMENT)
    (desk / "notes.txt").write_text("no image")
    (desk / "list.json").write_text("[1, 2]")
    (desk / "nothing.json").write_text("")
    (desk / "loop").symlink_to("loop")
    return desk


@pytest.fixture(autouse=True)
def _at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)


RUN = ("run", "./executor", "images", "--env", "local")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        # files where they do not belong
        (("validate", "images/a.png"), "is a picture, not an output.json", "output.json"),
        (("validate", "images"), "a folder without an output.json", "result folder"),
        (("validate", "result/output.json", "--repair", "nowhere/x.json"), "cannot be written", "another place"),
        (("run", "./executor", ""), "is no name of a file", "Leave it out"),
        (("run", "./executor", "loop"), "symbolic links", "Name only images"),
        (("run", "./executor", "latin"), "z\\xfcge.png' is not UTF-8", "Rename it"),
        ((*RUN, "--channel", "7"), "images/a.png has no channel 7", "segserve images"),
        (("images", "latin"), "not UTF-8", "Rename it"),
        (("images", "im[ages"), "matches no file", ""),
        (("replay", "notes.txt"), "is no JSON", "result folder"),
        (("replay", "nothing.json"), "is no JSON", "result folder"),
        (("replay", "list.json"), "no output.json", "result folder"),
        (("replay", "nonsense"), "no job 'nonsense'", "ps"),
        # places that cannot be written
        (("export", "result", "--images", "images", "--to", "coco", "-o", "notes.txt"), "cannot be written", "-o"),
        (("import", "images/a.png", "--from", "labels", "--images", "images", "-o", "no/x"), "cannot be written", "-o"),
        (("compare", "result", "result", "-o", "notes.txt/x"), "cannot be written", "-o"),
        (("lock", "./executor", "-o", "nowhere/x"), "no folder nowhere", "Make it"),
        (("check", "./executor", "--report", "json=nowhere/x"), "cannot be written", "another place"),
        (("check", "./executor", "--badge", "nowhere/x.svg"), "cannot be written", "another place"),
        (("sdk", "wheel", "-o", "notes.txt/x"), "cannot be written", "-o"),
        (("new", "notes.txt/method"), "cannot be written", "another place"),
        # values that are none
        ((*RUN, "--timeout", "nan"), "'nan' is no number", ""),
        ((*RUN, "--timeout", "soon"), "'soon' is not a valid number", ""),
        (("gc", "--older-than", "inf"), "'inf' is no number", ""),
        (("run", "./executor", "images", "--python", "3"), "--python 3", "3.11"),
        ((*RUN, "--config", "images"), "cannot be read", "config.toml"),
        ((*RUN, "--config", "nowhere.toml"), "no configuration file", "SEGSERVE_CONFIG"),
        ((*RUN, "--config", "list.json"), "not TOML", "docs/configuration.md"),
        (("serve", "--root-path", "segserve"), "--root-path 'segserve'", "slash"),
        (("serve", "--host", "0.0.0.0"), "needs a token", "ssh tunnel"),
        (("compare", "result", "result", "--threshold", "0.5"), "--drift", "Add --drift"),
        # names that nobody knows
        (("pipelines", "segserve-tresholt"), "no pipeline", "segserve-threshold"),
        (("tokens", "add", "a b"), "'a b' is no name", "Letters"),
        (("tokens", "add", "a", "--scopes", "everything"), "everything", "submit"),
        (("tokens", "rm", "nobody"), "no token 'nobody'", "tokens list"),
        (("executors", "rm", "cellpos"), "No executor", "cellpose"),
        (("executors", "add", "a b", "./executor"), "no short name", "Letters"),
        (("env", "rm", "nothing"), "no environment", "env list"),
        (("cancel", "nothing"), "no job 'nothing'", "ps"),
        (("show", "../.."), "no job '../..'", "ps"),
        (("rnu", ".", "images"), "Did you mean 'run'?", ""),
        (("./executor", "images"), "segserve run ./executor", ""),
    ],
)
def test_a_mistake_is_explained(segserve: Command, words: tuple[str, ...], message: str, hint: str) -> None:
    done = segserve(*words)
    assert done.code == 2, done.err
    said = " ".join(done.err.split())
    assert message in said
    assert "hint:" in said or "Error:" in said  # ours with a hint, or click's with its usage
    assert hint in said.partition("hint:")[2]
    assert "Traceback" not in said
    assert "fault of segserve" not in said


def test_what_is_no_mistake(segserve: Command) -> None:
    assert segserve("validate", "result").code == 0
    assert segserve("images", "with blanks ü").code == 0
    assert segserve("check", ".").code == 7  # with a link that leads to itself
    Path("mine.toml").touch()
    added = segserve("executors", "add", "mine", "./executor", "--config", "mine.toml")
    again = segserve("executors", "add", "mine", "https://example.org/x/y", "--config", "mine.toml")
    assert (added.code, again.code) == (0, 0)
    assert "it stood for" not in added.err
    assert "it stood for" in again.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[run\n", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b'[run]\nresuls = "x"\n', "run.resuls: there is no such key"),
        (b"[queue]\ntries = -1\n", "queue.tries: "),
        (b"executors = 3\n", "executors: "),
    ],
)
def test_a_broken_configuration(
    segserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, message: str
) -> None:
    (tmp_path / "config.toml").write_bytes(text)
    monkeypatch.setenv("SEGSERVE_CONFIG", str(tmp_path / "config.toml"))
    done = segserve("ps", "--json")
    assert done.code == 2
    assert message in done.error["message"]
    assert "docs/configuration.md" in done.error["hint"]


def test_a_journal_that_is_none(segserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "segserve.db").write_bytes(b"something else" * 1000)
    monkeypatch.setenv("SEGSERVE_HOME", str(tmp_path))
    done = segserve("ps")
    assert (done.code, f"The journal {tmp_path / 'segserve.db'} is damaged" in done.err) == (6, True)
    assert "backup" in done.err


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_file_system_that_takes_nothing(segserve: Command, read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ((*RUN, "-o", read_only / "out"), ("new", read_only / "method"), ("sdk", "wheel", "-o", read_only)):
        done = segserve(*words)
        assert (done.code, "cannot be written: " in done.err) == (2, True), done.err
    monkeypatch.setenv("SEGSERVE_HOME", str(read_only / "home"))
    done = segserve("ps")
    assert (done.code, "SEGSERVE_HOME names another folder" in done.err) == (6, True)


def closed(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize(
    ("streams", "words", "code"),
    [((1,), ("ps",), 0), ((2,), ("show", "nothing"), 2), ((0, 1, 2), ("ps", "--json"), 0)],
)
def test_closed_streams(streams: tuple[int, ...], words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [*SEGSERVE, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=closed(*streams)
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_behind_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*SEGSERVE, "executors", "list", "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 6, done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
