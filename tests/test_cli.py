"""Every command as somebody new tries it: real repositories, environments, processes, terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import psutil
import pytest
import tifffile

from segserve import api
from segserve.cli import COMMANDS, cli, render
from segserve.errors import SegserveError
from tests.commands import SEGSERVE, Command, options_in, run_of, status_of
from tests.executors import make_executor
from tests.modules import make_module
from tests.repositories import git, make_repository
from tests.waiting import wait_for

pytest_plugins = ["tests.command_fixtures"]

DOCS = Path(__file__).parent.parent / "docs"
EVERY_COMMAND = [*([name] for name in COMMANDS), *(["env", name] for name in ("list", "build", "rm", "gc"))]
RING = {"label": "Cell", "type": "Polygon", "contour_coordinates": [[1, 1], [1, 9], [9, 9]]}
NOTHING = 'python: "3.11"\ndependencies: []\n'  # an environment that takes a second to build


# ------------------------------------------------------------------------------------------------- words and help


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_every_command_explains_itself(segserve: Command, words: list[str]) -> None:
    done = segserve(*words, "--help")
    assert done.code == 0
    assert done.err == ""
    assert done.out.startswith(f"Usage: segserve {' '.join(words)}")
    rows = re.findall(r"^  (-\S.*)$", done.out, re.MULTILINE)
    assert rows
    summary = done.out.split("\n\n")[1].strip()
    assert summary.endswith(".") or "\n" in summary


def test_the_documented_options_exist(segserve: Command) -> None:
    documented = options_in((DOCS / "running.md").read_text())
    known = set()
    for words in EVERY_COMMAND:
        known |= options_in(segserve(*words, "--help").out)
    assert documented - known == set()


def test_every_option_has_a_help_text(segserve: Command) -> None:
    context = cli.make_context("segserve", ["run", "x"], resilient_parsing=True)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "style":
                assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runn"], "Did you mean 'run'?"),
        (["vaildate", "x"], "Did you mean 'validate'?"),
        (["./executor", "images"], "segserve run ./executor"),
        (["https://host/group/repo"], "segserve run https://host/group/repo"),
        (["zzz"], "There is: "),
        (["run"], "REF"),
        (["run", "x", "--frist", "3"], "--first"),
        (["run", "x", "--overlays", "many"], "'many' is neither a number nor 'all'"),
        (["run", "x", "-P", "size"], "NAME=VALUE"),
        (["run", "x", "-P", "size=1", "-P", "size=2"], "twice"),
        (["run", "x", "--env", "pixi"], "uv"),
        (["ps", "-n", "0"], "-n"),
    ],
    ids=" ".join,
)
def test_wrong_words(segserve: Command, words: list[str], message: str) -> None:
    plain = segserve(*words)
    assert plain.code == 2
    assert plain.out == ""
    assert message in plain.err
    if words[0] in ("run", "runn", "ps"):
        done = segserve(*words, "--json")
        assert done.code == done.document["error"]["exit_code"] == 2
        assert set(done.document["error"]) == {"code", "message", "hint", "quote", "log", "exit_code", "findings"}


def test_a_password_in_a_wrong_command_is_not_repeated(segserve: Command) -> None:
    done = segserve("https://user:canary-secret@host/group/repo")
    assert "canary" not in done.err
    assert "https://***@host/group/repo" in done.err


@pytest.mark.usefixtures("here")
def test_a_plain_word_is_a_short_name_that_nobody_registered(segserve: Command) -> None:
    done = segserve("run", "zebrafish", "images", "--json")
    assert done.code == 2
    assert done.document["error"]["code"] == "InvalidRef"
    assert "short name 'zebrafish'" in done.err
    assert "https://" in done.err
    assert "Did you mean 'cellpose'?" in segserve("run", "celpose").err
    Path("zebrafish").mkdir()
    assert "write ./zebrafish" in segserve("run", "zebrafish").err


def test_version(segserve: Command) -> None:
    assert re.fullmatch(r"segserve \d\S*\n", segserve("--version").out)


# ------------------------------------------------------------------------------------------------------- terminals


def test_no_escape_sequences_but_in_a_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)

    def in_terminal(**variables: str) -> str:
        leader, follower = pty.openpty()
        with subprocess.Popen(
            [*SEGSERVE, "run", "nowhere"], stdout=follower, stderr=follower, env={**environment, **variables}
        ) as process:
            process.wait()
        os.close(follower)
        text = os.read(leader, 10000).decode()
        os.close(leader)
        return text

    assert "\x1b[31m" in in_terminal()
    assert "\x1b" not in in_terminal(NO_COLOR="1")
    assert "\x1b" not in in_terminal(TERM="dumb")
    piped = subprocess.run([*SEGSERVE, "run", "nowhere"], env=environment, capture_output=True, text=True)
    assert piped.returncode == 2
    assert "\x1b" not in piped.stdout + piped.stderr


def test_data_in_a_pipe_is_plain_though_stderr_is_a_terminal() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    done = subprocess.run([*SEGSERVE, "doctor"], stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    os.close(leader)
    assert "✓" in done.stdout.decode()
    assert b"\x1b" not in done.stdout


def test_what_others_wrote_has_no_say_over_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    render.error(SegserveError("red\x1b[31m", hint="title\x1b]0;x\x07", quote="one\ntwo\x9b\r"))
    assert capsys.readouterr().err == "error: red\n  │ one\n  │ two\nhint: title\n"


@pytest.mark.parametrize("words", [["doctor"], ["run", "--help"], ["ps", "--json"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(words: list[str]) -> None:
    with subprocess.Popen([*SEGSERVE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
    assert process.returncode == 0
    assert error == ""


# ----------------------------------------------------------------------------------------------- home, doctor, tools


def test_a_home_that_cannot_be_used(segserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGSERVE_HOME", str(tmp_path / "file" / "home"))
    done = segserve("ps", "--json")
    assert done.code == 6
    assert done.document["error"]["code"] == "BackendError"
    assert "SEGSERVE_HOME" in done.err


def test_doctor(segserve: Command) -> None:
    done = segserve("doctor", "--json")
    checks = {check["name"]: check for check in done.document}
    assert list(checks) == ["git", "disk", "python", "packages", "gpu", "docker", "mlflow", "sandbox", "limits"]
    assert checks["git"]["status"] == "ok"
    assert done.code == (6 if any(check["status"] == "problem" for check in done.document) else 0)
    assert all(name in segserve("doctor").out for name in checks)


def test_a_tracking_server_of_ones_own_is_respected(segserve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:canary@mlflow.example.org/team/")
    assert segserve("ui", "--no-open").out == "https://mlflow.example.org/team\n"
    assert "logged to https://mlflow.example.org/team" in segserve("doctor").out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    done = segserve("doctor")
    assert done.code == 6
    assert "✗ mlflow" in done.out


def test_doctor_without_git(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = subprocess.run(
        [*SEGSERVE, "doctor"], env={**os.environ, "PATH": str(tmp_path / "bin")}, capture_output=True, text=True
    )
    assert done.returncode == 6
    assert "✗ git            There is no git on this machine." in done.stdout
    assert "Install git" in done.stdout
    assert "docker is not installed" in done.stdout


def test_images(segserve: Command, images: Path) -> None:
    (images / "cells2.png").rename(images / "cells2.tif")
    done = segserve("images", images)
    assert done.code == 0
    assert [line.split()[0].rpartition("/")[2] for line in done.out.splitlines()[1:]] == [
        "cells1.png",
        "cells2.tif",
        "cells10.png",
    ]
    assert "60×41" in done.out
    assert "cells2.tif is PNG inside" in done.err
    assert "makes 3 images" in done.err
    document = segserve("images", images, "--json").document
    assert document[0]["series"][0]["rows"] == 41
    assert document == api.images([images])


def test_images_says_which_choice_a_run_needs(segserve: Command, tmp_path: Path) -> None:
    stack = np.zeros((2, 3, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "stack.ome.tif", stack, metadata={"axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"]}})
    done = segserve("images", tmp_path / "stack.ome.tif")
    assert done.code == 0
    assert "DAPI, GFP" in done.out
    assert "needs a choice" in done.err
    assert "--channel" in done.err


def test_images_names_every_bad_file(segserve: Command, images: Path) -> None:
    (images / "a.txt").write_text("text")
    (images / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = segserve("images", images, "--json")
    assert done.code == 2
    assert len(done.document["error"]["findings"]) == 2
    assert "a.txt" in done.err
    assert "b.png" in done.err


def test_validate(segserve: Command, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"model": "m", "format_version": "0.2", "segmentation_data": [[RING]]}))
    bad.write_text(json.dumps({"model": "m"}))
    done = segserve("validate", good)
    assert (done.code, done.out, done.err) == (0, "valid\n", "")
    done = segserve("validate", good, bad)
    assert done.code == 7
    assert "format_version" in done.out
    assert "2 error(s) found" in done.err
    for words in (["--format", "json"], ["--json"]):
        done = segserve("validate", bad, *words)
        assert done.code == 7
        assert {finding["rule"] for finding in done.document} == {"missing-key"}
    assert segserve("validate", good, "--json").document == []
    done = segserve("validate", bad, "--format", "junit")
    assert done.code == 7
    assert ET.fromstring(done.out).get("failures") == "2"
    done = segserve("validate", tmp_path / "none.json", "--json")
    assert done.code == 2
    assert "does not exist" in done.error["message"]


def test_nothing_there_yet(segserve: Command) -> None:
    assert segserve("ps").out == "No open jobs. (-a shows finished ones.)\n"
    assert segserve("ps", "-a", "--json").document == []
    assert segserve("env", "list").out == "No environments.\n"
    assert segserve("env", "gc", "--json").document == {"removed": []}
    assert segserve("ui", "--stop").out == "was not running\n"
    for words in (["show", "abc"], ["cancel", "abc"]):
        done = segserve(*words, "--json")
        assert done.code == 2
        assert done.document["error"]["code"] == "NotFound"
    assert segserve("logs", "abc").code == 2
    assert segserve("env", "rm", "abc", "--json").document["error"]["code"] == "NotFound"


# ------------------------------------------------------------------------------------------------ run, the main job


def test_info_of_a_module(segserve: Command, here: Path) -> None:
    make_module(here / "module", settings='supported_devices = ["cpu", "gpu"]\nobfuscate = true')
    done = segserve("info", "./module")
    assert done.code == 0
    assert "module       Compox Image2Segmentation 1.0.0" in done.out
    assert "devices      cpu (default), gpu" in done.out
    assert re.search(r"thresholding_algorithm +string_enum +otsu +otsu \| yen .*The thresholding algorithm", done.out)
    assert "obfuscate has no effect" in done.out
    module = segserve("info", "./module", "--json").document["module"]
    assert (module["algorithm_type"], module["tags"]) == ("Image2Segmentation", ["image2segmentation"])


def test_info(segserve: Command, here: Path) -> None:
    sha = make_executor(here / "executor")
    done = segserve("info", "./executor")
    assert done.code == 0
    assert done.err == ""
    assert sha in done.out
    assert re.search(r"size +float +10", done.out)
    assert re.search(r"input_images +path +required +images", done.out)
    assert done.out.endswith("Next    segserve run ./executor#main IMAGES\n")
    assert "#main" not in segserve("info", "./executor#info").out
    done = segserve("info", "./executor#infoo", "--json")
    assert done.code == 2
    assert done.document["error"]["hint"] == "Did you mean 'info'?"


def test_a_segmenting_entry_point_without_images(segserve: Command, here: Path) -> None:
    make_executor(here / "executor")
    done = segserve("run", "./executor")
    assert done.code == 2
    assert "takes images" in done.err
    assert "Name files or folders" in done.err


def test_dry_run_says_what_would_run(segserve: Command, here: Path, images: Path) -> None:
    sha = make_executor(here / "executor")
    (images / "cells1.png").rename(images / "cells1.bmp")
    done = segserve("run", "./executor", images, "--dry-run", "-P", "size=7", "--first", 2)
    assert done.code == 0
    assert f"commit       {sha}" in done.out
    assert "parameters   size=7, label=Cell" in done.out
    assert "images       2" in done.out
    assert "cells1.bmp is PNG inside" in done.out
    assert not Path("segserve-results").exists()


@pytest.mark.network
def test_a_run_with_every_option(segserve: Command, here: Path, images: Path, shared_home: Path) -> None:
    sha = make_executor(here / "executor")
    (here / "executor" / "main.py").write_text("raise SystemExit('not committed')")
    done = segserve(
        "run", here / "executor", images, "--entry", "main", "-P", "size=7", "-P", "label=Nucleus", "-o", "out",
        "--first", "2", "--overlays", "all", "--experiment", "trial", "--keep", "--timeout", "120", "--gpus", "none",
        "--no-wait", "--python", "3.11", "--env", "uv", "--committed", "--depth", "8", "--json", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = done.document
    assert document["commit"] == sha
    assert [Path(image["file"]).name for image in document["images"]] == ["cells1.png", "cells10.png"]
    assert "●" not in done.err
    assert len(list(Path("out/overlays").iterdir())) == 2
    assert (shared_home / "jobs" / document["job"] / "1" / "checkout" / "main.py").exists()
    assert len(list((shared_home / "jobs" / document["job"] / "inputs").iterdir())) == 2
    params = {param["key"]: param["value"] for param in run_of(document["mlflow"])["data"]["params"]}
    assert params["size"] == "7"
    assert params["label"] == "Nucleus"
    again = segserve("run", here / "executor", images, "-o", "out")
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.network
def test_what_goes_where(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", "not_logged")
    done = segserve("run", "./executor", images)
    assert done.code == 0, done.err
    assert "cells10.png        1\n\n4 objects in 3 images\nResult  " in done.out
    assert "● Running main" in done.err
    assert "Running command" not in done.err
    assert done.err.count("log_artifact") == 1  # a warning about the result, said once
    quiet = segserve("run", "./executor", images, "-q")
    assert "●" not in quiet.err
    assert "log_artifact" in quiet.err
    loud = segserve("run", "./executor", images, "-v")
    assert "│" in loud.err
    assert "Running command" in loud.err


@pytest.mark.network
def test_offline_uses_what_is_known(segserve: Command, here: Path, images: Path) -> None:
    first = make_executor(here / "executor")
    url = (here / "executor").as_uri()
    assert segserve("run", url, images, "-q").code == 0
    (here / "executor").rename(here / "gone")
    done = segserve("run", url, images, "--offline", "--json")
    assert done.code == 0, done.err
    assert done.document["commit"] == first
    assert "ago" in done.err
    assert segserve("run", url, images, "--json").document["error"]["code"] == "RepositoryUnreachable"


@pytest.mark.network
def test_submodules(segserve: Command, here: Path, images: Path) -> None:
    make_repository(here / "part", {"size.py": "SIDE = 5\n"})
    make_executor(here / "executor")
    git(here / "executor", "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(here / "part"), "part")
    text = (here / "executor" / "main.py").read_text()
    make_repository(here / "executor", {"main.py": "from part.size import SIDE\n" + text})
    url = (here / "executor").as_uri()
    done = segserve("run", url, images, "--json")
    assert done.code == 4
    assert "part" in done.document["error"]["message"]
    assert segserve("run", url, images, "--submodules", "--json").code == 0


@pytest.mark.network
@pytest.mark.usefixtures("python_on_path")
def test_env_local_is_the_python_on_the_path(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", python_env='python: "3.11"\ndependencies:\n  - never-built==1\n')
    done = segserve("run", "./executor", images / "cells1.png", "--env", "local", "--json")
    assert done.code == 0, done.err
    assert "--env local" in done.err
    assert done.document["objects"] == 1


# ------------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.network
def test_a_detached_job_is_followed_collected_and_shown(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", "slow")
    started = segserve("run", "./executor", images, "-d", "-o", "out", "--json")
    assert started.code == 0, started.err
    job = started.document["job"]
    assert segserve("ps", "--json").document[0]["job"] == job
    assert "running" in segserve("ps").out
    followed = segserve("logs", "-f", job)
    assert followed.code == 0
    assert "Running command" in followed.out
    listed = segserve("ps", "-a", "--json").document[0]
    assert (listed["job"], listed["state"]) == (job, "succeeded")
    assert listed["result"] == str(here / "out")
    shown = segserve("show", job, "--json").document
    assert shown["result"] == str(here / "out")
    assert shown["seconds"]["executor"] > 2
    assert (here / "out" / "report" / "index.html").exists()
    assert status_of(shown["mlflow"]) == "FINISHED"
    text = segserve("show", job).out
    assert f"result       {here / 'out'}" in text
    assert "executor: " in text


@pytest.mark.network
def test_cancel(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", "hang")
    started = segserve("run", "./executor", images, "-d")
    assert "segserve cancel" in started.out
    job = segserve("ps", "--json").document[0]["job"]
    wait_for(lambda: "sleeping" in segserve("logs", job).out)
    assert segserve("cancel", job).out == f"{job} cancelled\n"
    shown = segserve("show", job, "--json").document
    assert shown["state"] == "cancelled"
    assert status_of(shown["mlflow"]) == "KILLED"
    assert segserve("cancel", job, "--json").document == [{"job": job, "state": "cancelled"}]


@pytest.mark.network
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_everything(segserve: Command, here: Path, images: Path, how: signal.Signals) -> None:
    make_executor(here / "executor", "hang")
    with _hanging(images) as process:
        job = segserve("ps", "--json").document[0]["job"]
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "Interrupted"
    assert "Traceback" not in err
    shown = segserve("show", job, "--json").document
    assert shown["state"] == "cancelled"
    assert status_of(shown["mlflow"]) == "KILLED"


@pytest.mark.network
def test_under_nohup_a_run_outlives_its_terminal(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", "hang")
    with _hanging(images, "nohup") as process:
        job = segserve("ps", "--json").document[0]["job"]
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert segserve("show", job, "--json").document["state"] == "running"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130


@contextmanager
def _hanging(images: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A run of `./executor` whose executor sleeps by now."""
    with subprocess.Popen(
        # As in a terminal, also when these tests run under nohup themselves.
        ["env", "--default-signal=HUP", *before, *SEGSERVE, "run", "./executor", str(images), "-v", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            while "sleeping" not in (line := process.stderr.readline()):
                assert line, "it ended before it began"
            yield process
        finally:
            if process.poll() is None:  # a test that failed must not wait for it
                process.kill()


@pytest.mark.network
def test_open_shows_the_report(
    segserve: Command, here: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    make_executor(here / "executor")
    done = segserve("run", "./executor", images, "-o", "my result", "--open")
    assert done.code == 0, done.err
    report = here / "my result" / "report" / "index.html"
    assert (tmp_path / "opened").read_text() == report.as_uri()
    browser.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    again = segserve("run", "./executor", images, "-o", "again", "--open")
    assert again.code == 0
    assert f"Open {(here / 'again' / 'report' / 'index.html').as_uri()} in yours" in again.err


@pytest.mark.network
def test_an_interrupt_ends_a_build(segserve: Command, here: Path, images: Path, shared_home: Path) -> None:
    make_executor(
        here / "executor",
        python_env='python: "3.11"\ndependencies:\n  - ./slow\n',
        **{"slow/setup.py": "import time; print('a very slow build', flush=True); time.sleep(600)"},
    )
    with subprocess.Popen(
        [*SEGSERVE, "run", "./executor", str(images), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: _builds(shared_home))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "Interrupted"
    job = segserve("ps", "-a", "-n", 1, "--json").document[0]
    assert job["state"] == "cancelled"
    assert status_of(segserve("show", job["job"], "--json").document["mlflow"]) == "KILLED"
    wait_for(lambda: not _builds(shared_home), seconds=10)


def _builds(home: Path) -> list[int]:
    """Processes of a project's own build, which run where it was unpacked."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(home / "envs")) and process.cwd().endswith("/slow"):
                found.append(process.pid)
    return found


@pytest.mark.network
def test_logs_of_a_failed_build_are_those_of_the_build(segserve: Command, here: Path, images: Path) -> None:
    make_executor(here / "executor", python_env='python: "3.11"\ndependencies:\n  - surely-never-published==1\n')
    assert segserve("run", "./executor", images).code == 3
    job = segserve("ps", "-a", "--json").document[0]["job"]
    assert "surely-never-published" in segserve("logs", job).out


# ----------------------------------------------------------------------------------------------- environments and UI


@pytest.mark.network
def test_environments(segserve: Command, tmp_path: Path) -> None:
    make_executor(tmp_path / "executor", python_env=NOTHING)
    built = segserve("env", "build", tmp_path / "executor", "--json")
    assert built.code == 0, built.err
    key = built.document["key"]
    listed = segserve("env", "list", "--json").document
    assert [(entry["key"], entry["source"]) for entry in listed] == [(key, "python_env.yaml")]
    assert key in segserve("env", "list").out
    assert segserve("run", tmp_path / "executor", "--dry-run", "--entry", "info", "--json").document["built"] is True
    assert segserve("env", "gc").out == "Nothing to remove.\n"
    assert segserve("env", "rm", key[:6]).out == f"removed {key}\n"
    assert segserve("env", "build", tmp_path / "executor").code == 0
    assert segserve("env", "gc", "--older-than", "0", "--json").document == {"removed": [key]}


@pytest.mark.usefixtures("here")
def test_ui(segserve: Command) -> None:
    address = segserve("ui", "--no-open").out.strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
    assert segserve("ui", "--no-open").out.strip() == address
    assert segserve("ui", "--stop").out == "stopped\n"
    assert segserve("ui", "--stop").out == "was not running\n"
