"""docker_env: what is refused, the line that MLflow makes of our arguments, and real containers of a real engine."""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segserve import errors, project
from segserve.cli import main
from segserve.environments import docker, dockerengine, dockerline
from segserve.environments.base import BuildOptions
from segserve.layout import Home
from segserve.model import Environment, EnvironmentSpec, Resources
from tests import image
from tests.repositories import make_repository

LABEL = "20250101-ABC.1.1"


def make_project(
    folder: Path, declaration: dict[str, Any], command: str = "python main.py {images}"
) -> project.Project:
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"parameters": {"images": "path", "text": {"type": "string", "default": "plain"}}, "command": command}
    content = {"name": "Thing", "docker_env": declaration, "entry_points": {"main": entry}}
    (folder / "MLProject").write_text(json.dumps(content))
    return project.load(folder)


def environment(location: str = "segserve/base:0123", **arguments: Any) -> Environment:
    declared = {"environment": {}, "host_variables": [], "volumes": [], **arguments}
    return Environment(EnvironmentSpec("docker", "x", "k"), location, arguments=declared)


class Job:
    """The folders of one attempt; their path has all that a shell or CSV could trip over."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / 'job\'s, $(x) "1"' / "checkout"
        self.inputs = self.checkout.parent / "inputs"
        self.cache = self.checkout.parent / "cache"
        self.artifacts = folder / "artifacts"
        for path in (self.checkout, self.inputs, self.cache):
            path.mkdir(parents=True)
        (self.inputs / "000.png").write_bytes(b"png")

    def arguments(self, built: Environment, **changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "project": self.checkout,
            "checkout": self.checkout,
            "inputs": self.inputs,
            "artifacts": self.artifacts,
            "cache": self.cache,
            "label": LABEL,
            "resources": Resources(),
            **changes,
        }
        return docker.launch_arguments(built, **given)


# --- what is refused


@pytest.mark.parametrize(
    "declaration",
    [
        {"image": "a;touch x"},
        {"image": "$(id)"},
        {"image": "a b"},
        {"image": "a\nRUN id"},
        {"image": "--privileged"},
        {"image": ""},
        {"image": 7},
        {"image": "a", "volumes": ["/data:/data;touch x;#"]},
        {"image": "a", "volumes": ["/data:/data"]},
        {"image": "a", "volumes": ["/:/host:ro"]},
        {"image": "a", "volumes": ["$PWD:/data"]},
        {"image": "a", "volumes": ["data:/data"]},
        {"image": "a", "volumes": "/data:/data"},
        {"image": "a", "environment": [["X", "$(id)"]]},
        {"image": "a", "environment": [["X=1 --privileged", "1"]]},
        {"image": "a", "environment": ["AWS_SECRET_ACCESS_KEY"]},
        {"image": "a", "environment": [["X", "1", "2"]]},
    ],
)
def test_hostile_or_greedy_declarations(tmp_path: Path, declaration: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidProject):
        docker.detect(make_project(tmp_path, declaration), BuildOptions())


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    declaration = {"image": "a b", "volumes": ["/data:/data"], "environment": ["TOKEN"]}
    loaded = SimpleNamespace(
        environment=SimpleNamespace(kind="docker", docker=declaration), file=tmp_path / "MLProject", folder=tmp_path
    )
    with pytest.raises(errors.InvalidProject) as caught:
        docker.detect(loaded, BuildOptions())
    assert len(caught.value.findings) == 3
    assert "docker_variables" in caught.value.findings[2].fix


def test_what_the_settings_allow(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    declaration = {
        "image": "ghcr.io/lab/thing@sha256:" + "0" * 64,
        "volumes": [f"{data}/deep:/data:ro"],
        "environment": [["OMP_NUM_THREADS", 4], "LICENCE"],
    }
    options = BuildOptions(docker_volumes=(str(data),), docker_variables=("LICENCE",))
    spec = docker.detect(make_project(tmp_path / "p", declaration), options)
    assert spec is not None
    assert spec.details["environment"] == {"OMP_NUM_THREADS": "4"}
    assert spec.details["host_variables"] == ["LICENCE"]
    declaration["volumes"] = [f"{data}/../else:/data"]
    with pytest.raises(errors.InvalidProject):
        docker.detect(make_project(tmp_path / "p", declaration), options)
    declaration["volumes"] = [f"{data}:/usr"]
    with pytest.raises(errors.InvalidProject, match="cover"):
        docker.detect(make_project(tmp_path / "p", declaration), options)


def test_docker_is_only_for_projects_that_name_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "MLProject").write_text("name: x\nentry_points: {main: {command: python main.py}}\n")
    assert docker.detect(project.load(folder), BuildOptions()) is None
    with pytest.raises(errors.InvalidParameters):
        docker.detect(project.load(folder), BuildOptions(kind="docker"))


# --- the line that MLflow makes


def shell_words(folder: Path, command: str) -> list[list[str]]:
    """What programs bash would start for a line, as argument lists: `docker` and `evil` write down theirs."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    for name in ("docker", "evil"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        code = f"import json, sys; open({str(log)!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')"
        program.write_text(f"#!{sys.executable} -IS\n{code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    subprocess.run(["bash", "-c", command], env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}, check=True)
    return [json.loads(line) for line in log.read_text().splitlines()]


def mlflow_line(arguments: dict[str, Any], folder: Path, values: dict[str, str], artifacts: Path) -> str:
    """The line as MLflow's own code makes it (3.x: private functions; an upgrade that moves them fails here)."""
    import mlflow
    from mlflow.projects import _project_spec
    from mlflow.projects.backend.local import _get_docker_command

    mlflow.set_tracking_uri("http://127.0.0.1:5000")
    info = SimpleNamespace(run_id="r" * 32, experiment_id="1", artifact_uri=artifacts.as_uri())
    built = SimpleNamespace(tags=["segserve/job-x:latest"])
    loaded = _project_spec.load_project(str(folder))
    command = loaded.get_entry_point("main").compute_command(values, str(folder))
    words = _get_docker_command(built, SimpleNamespace(info=info), docker_args=arguments)
    return " ".join([*words, command])


def test_the_line_is_one_docker_run_with_what_we_said(tmp_path: Path) -> None:
    job = Job(tmp_path)
    weights = tmp_path / "weights & more"
    weights.mkdir()
    built = environment(environment={"OMP": "4"}, host_variables=["LICENCE"])
    arguments = job.arguments(
        built,
        user="1000:1000",
        gpus=("GPU-1", "GPU-2"),
        resources=Resources(cpus=0.5, memory_gb=1.5),
        path_mounts=(weights,),
        variables={"CACHE_FOLDER": str(job.cache)},
        secrets=("MLFLOW_TRACKING_PASSWORD",),
    )
    json.dumps(arguments)
    loaded = make_project(job.checkout, {"image": "a"})
    folder = docker.write_project(tmp_path / "launch", built, loaded.entry_points["main"], label=LABEL)
    line = mlflow_line(arguments, folder, {"images": str(job.inputs)}, job.artifacts)
    (words,) = shell_words(tmp_path, line)
    assert words[:3] == ["docker", "run", "--rm"]
    assert words[-4:] == ["segserve/job-x:latest", "python", "main.py", str(job.inputs)]
    options = words[3:-4]
    pairs = [(options[i], options[i + 1]) for i in range(len(options) - 1)]
    for pair in [
        ("--network", "host"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--pids-limit", "4096"),
        ("--memory", "1536m"),
        ("--memory-swap", "1536m"),
        ("--cpus", "0.5"),
        ("--user", "1000:1000"),
        ("--gpus", '"device=GPU-1,GPU-2"'),
        ("--label", f"segserve.attempt={LABEL}"),
        ("--env", "OMP=4"),
        ("--env", "LICENCE"),
        ("--env", "MLFLOW_TRACKING_PASSWORD"),
        ("--env", f"CACHE_FOLDER={job.cache}"),
        ("--env", "HOME=/tmp"),
        ("-v", f"{job.artifacts}:{job.artifacts}"),
    ]:
        assert pair in pairs
    mounts = [value for name, value in pairs if name == "--mount"]
    assert len(mounts) == 5
    assert sum(mount.endswith(",readonly") for mount in mounts) == 2  # inputs, weights
    assert f"type=bind,source={weights},target={weights},readonly" in mounts
    assert "--privileged" not in options
    assert job.artifacts.is_dir()  # else the engine makes it, as root


def test_without_gpus_none_is_seen_and_root_keeps_its_home(tmp_path: Path) -> None:
    arguments = Job(tmp_path).arguments(environment(), user="0:0", inputs=None, artifacts=None)
    assert "gpus" not in arguments
    assert "NVIDIA_VISIBLE_DEVICES=void" in arguments["env"]
    assert "HOME=" not in arguments["env"]


@pytest.mark.parametrize(
    ("command", "inside"),
    [
        ("python main.py {images}", ["python", "main.py", "V"]),
        ("cd sub && evil {images}", ["sh", "-c", 'cd sub && evil "${1}"', "sh", "V"]),
        ("python main.py {images}\nevil\n", ["sh", "-c", 'python main.py "${1}"\nevil', "sh", "V"]),
        (
            "python main.py; evil $(evil) `evil` > /tmp/x",
            ["sh", "-c", "python main.py; evil $(evil) `evil` > /tmp/x", "sh"],
        ),
        ("X='a b' python -c 'print({{}})' {images}", ["sh", "-c", "X='a b' python -c 'print({})' \"${1}\"", "sh", "V"]),
        ("a {images} {text} {images} | b", ["sh", "-c", 'a "${1}" "${2}" "${3}" | b', "sh", "V", "plain", "V"]),
    ],
)
def test_a_command_never_leaves_the_container(tmp_path: Path, command: str, inside: list[str]) -> None:
    (tmp_path / "V").mkdir()
    loaded = make_project(tmp_path / "p", {"image": "a"}, command)
    folder = docker.write_project(tmp_path / "launch", environment(), loaded.entry_points["main"], label=LABEL)
    job = Job(tmp_path)
    line = mlflow_line(job.arguments(environment(), user=""), folder, {"images": str(tmp_path / "V")}, job.artifacts)
    (words,) = shell_words(tmp_path, line)
    assert words[words.index("segserve/job-x:latest") + 1 :] == [str(tmp_path / "V") if w == "V" else w for w in inside]


@pytest.mark.parametrize("value", ["$(evil)", "`evil`", "a; evil", 'it\'s "quoted"', "{images}", "*", "-x", "a\nevil"])
def test_values_stay_values_through_both_shells(tmp_path: Path, value: str) -> None:
    loaded = make_project(tmp_path / "p", {"image": "a"}, "printf %s {text} && true")
    job = Job(tmp_path)
    folder = docker.write_project(tmp_path / "launch", environment(), loaded.entry_points["main"], label=LABEL)
    values = {"images": str(job.inputs), "text": value}
    (words,) = shell_words(tmp_path, mlflow_line(job.arguments(environment(), user=""), folder, values, job.artifacts))
    inner = words[words.index("segserve/job-x:latest") + 1 :]
    assert subprocess.run(inner, capture_output=True, text=True, check=True).stdout == value


def test_what_mlflow_cannot_quote_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with pytest.raises(errors.BackendError, match="artifact folder"):
        job.arguments(environment(), user="", artifacts=tmp_path / "a b")
    with pytest.raises(errors.BackendError, match="tracking address"):
        job.arguments(environment(), user="", tracking_uri="http://127.0.0.1/?a&evil")
    with pytest.raises(errors.BackendError, match="own files"):
        job.arguments(environment(), user="", path_mounts=(Path("/etc"),))
    with pytest.raises(errors.BackendError, match="does not exist"):
        job.arguments(environment(), user="", path_mounts=(tmp_path / "nothing",))


def test_the_name_of_the_attempts_image_is_one(tmp_path: Path) -> None:
    assert docker.attempt_image("20250101-ABC_x.1.12") == "segserve/job-20250101-abc-x-1-12"
    assert dockerline.is_plain(docker.attempt_image("a b;c"))


# --- the engine


def test_without_docker_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    with pytest.raises(errors.BackendError, match="no docker on this machine"):
        docker.engine()
    spec = docker.detect(make_project(tmp_path / "p", {"image": "a"}), BuildOptions())  # `info` needs no engine
    assert spec is not None
    assert spec.details["image_id"] == ""


def test_an_engine_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(errors.BackendError, match="another machine"):
        docker.engine()


@pytest.mark.docker
def test_an_engine_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(errors.BackendError, match="does not answer") as caught:
        docker.engine()
    assert "nothing.sock" in caught.value.quote


MAIN = """
import json, os, sys
import mlflow
folder, text = sys.argv[1:3]
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
try:
    open(os.path.join(folder, "more.png"), "w")
    writable = True
except OSError:
    writable = False
open(os.path.join(os.environ["CACHE_FOLDER"], "weights"), "w").write("1")
json.dump({
    "images": sorted(os.listdir(folder)), "text": text, "writable": writable, "cwd": os.getcwd(), "uid": os.getuid(),
    "caps": status["CapEff"].strip(), "no_new_privileges": status["NoNewPrivs"].strip(),
    "secret": os.environ["MY_SECRET"], "git": any(os.path.exists(up + ".git") for up in ("", "../", "../../")),
}, open("output.json", "w"))
with mlflow.start_run():
    mlflow.log_artifact("output.json")
"""

LAUNCH = """
import json, sys
import mlflow
plan = json.load(open(sys.argv[1]))
mlflow.set_tracking_uri(plan["tracking_uri"])
mlflow.projects.run(plan["project"], entry_point="main", parameters=plan["parameters"], run_id=plan["run_id"],
    experiment_id=plan["experiment_id"], docker_args=plan["docker_args"], env_manager="local", build_image=True)
"""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert image.engine_answers(), 'start an engine: eval "$(.ci/start-docker)"'
    return image.base_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tracking")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
    words = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", store, "--default-artifact-root", artifacts]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.25)
    yield uri
    os.killpg(process.pid, 15)
    process.wait()


class Launch:
    """One attempt through mlflow.projects in a process of its own, as the supervisor does it."""

    def __init__(
        self, tmp_path: Path, base: str, server: str, command: str, *, label: str = LABEL, subdir: str = ""
    ) -> None:
        from mlflow import MlflowClient

        self.job, self.label = Job(tmp_path / label), label
        folder = self.job.checkout / subdir
        loaded = make_project(folder, {"image": base, "environment": [["OMP", 1]]}, command)
        (folder / "main.py").write_text(MAIN)
        (self.job.checkout / ".git").mkdir()
        spec = docker.detect(loaded, BuildOptions())
        assert spec is not None
        self.environment = docker.build(spec, loaded, tmp_path / "prefix", lambda _: None)
        self.client = MlflowClient(server)
        existing = self.client.get_experiment_by_name("docker")
        experiment = existing.experiment_id if existing else self.client.create_experiment("docker")
        run = self.client.create_run(experiment)
        self.run_id = run.info.run_id
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
        arguments = self.job.arguments(
            self.environment,
            project=folder,
            artifacts=artifacts,
            label=label,
            tracking_uri=server,
            variables={"CACHE_FOLDER": str(self.job.cache)},
            secrets=("MY_SECRET",),
            resources=Resources(memory_gb=1, cpus=1),
        )
        plan = {
            "tracking_uri": server,
            "project": str(
                docker.write_project(
                    tmp_path / label / "launch", self.environment, loaded.entry_points["main"], label=label
                )
            ),
            "parameters": {"images": str(self.job.inputs), "text": "a 'b' $(c)"},
            "run_id": self.run_id,
            "experiment_id": experiment,
            "docker_args": arguments,
        }
        (tmp_path / label / "plan.json").write_text(json.dumps(plan))
        words = [sys.executable, "-c", LAUNCH, str(tmp_path / label / "plan.json")]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {**os.environ, **docker.client_variables(), "PATH": path, "MY_SECRET": "hunter2"}
        self.log = tmp_path / label / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, env=variables, stdout=log, stderr=log, start_new_session=True)


def containers(label: str) -> list[str]:
    words = ["docker", "ps", "-aq", "--filter", f"label=segserve.attempt={label}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.docker
@pytest.mark.parametrize("subdir", ["", "deep/er"])
def test_a_run_through_mlflow(tmp_path: Path, base: str, server: str, subdir: str) -> None:
    launch = Launch(tmp_path, base, server, "python main.py {images} {text}; test -f output.json", subdir=subdir)
    assert launch.process.wait(120) == 0, launch.log.read_text()
    job = launch.job
    said = json.loads((job.checkout / subdir / "output.json").read_text())  # also left in the checkout of the host
    assert said["images"] == ["000.png"]
    assert said["text"] == "a 'b' $(c)"
    assert said["writable"] is False
    assert said["cwd"] == ("/mlflow/projects/code" if not subdir else str(job.checkout / subdir))
    assert said["git"] is True
    assert said["uid"] == os.getuid()
    assert int(said["caps"], 16) == 0
    assert said["no_new_privileges"] == "1"
    assert said["secret"] == "hunter2"
    assert (job.cache / "weights").stat().st_uid == os.getuid()
    assert [file.path for file in launch.client.list_artifacts(launch.run_id)] == ["output.json"]
    assert "hunter2" not in launch.log.read_text()
    assert docker.kill(launch.label) == 0
    assert not containers(launch.label)
    names = subprocess.run(
        ["docker", "images", docker.attempt_image(LABEL)], capture_output=True, text=True, check=True
    )
    assert "job-" not in names.stdout


@pytest.mark.docker
def test_two_at_once_do_not_share_an_image(tmp_path: Path, base: str, server: str) -> None:
    launches = [
        Launch(tmp_path, base, server, f"python -c 'print({number}) # {{images}}'", label=f"pair-{number}.1.1")
        for number in (1, 2)
    ]
    for number, launch in enumerate(launches, start=1):
        assert launch.process.wait(120) == 0, launch.log.read_text()
        assert f"\n{number}\n" in launch.log.read_text()
        docker.kill(launch.label)


@pytest.mark.docker
def test_kill_ends_the_container(tmp_path: Path, base: str, server: str) -> None:
    launch = Launch(tmp_path, base, server, "sleep 600", label="kill-me.1.1")
    deadline = time.monotonic() + 60
    while not containers(launch.label) and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    assert docker.kill(launch.label) == 1
    assert time.monotonic() - began < 60
    assert not containers(launch.label)
    assert launch.process.wait(30) != 0


@pytest.mark.docker
def test_an_environment_is_held_and_missed(tmp_path: Path, base: str) -> None:
    loaded = make_project(tmp_path / "p", {"image": base})
    spec = docker.detect(loaded, BuildOptions())
    assert spec is not None
    assert spec.details["image_id"].startswith("sha256:")
    built = docker.build(spec, loaded, tmp_path / "prefix", lambda _: None)
    assert built.packages[0] == f"{base}@{spec.details['image_id']}"
    assert docker.health(built) is None
    assert built.location not in docker.collect_garbage([built.location])
    assert built.location in docker.collect_garbage([])
    assert "no longer in the engine" in str(docker.health(built))
    docker.build(spec, loaded, tmp_path / "prefix", lambda _: None)
    assert docker.health(built) is None


@pytest.mark.docker
def test_a_locked_image_is_taken_whatever_its_name_means_today(
    tmp_path: Path, base: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "segserve-test-locked:1"
    make_project(tmp_path / "p", {"image": name}, "python -c 'print(1) # {images}'")
    make_repository(tmp_path / "p", {"README.md": "x"})
    engine = functools.partial(subprocess.run, check=True, capture_output=True)
    try:
        engine(["docker", "tag", base, name])
        assert main(["lock", str(tmp_path / "p")]) == 0
        engine(["docker", "build", "-q", "-t", name, "-"], input=f"FROM {base}\nENV TODAY=another".encode())
        loaded = project.load(tmp_path / "p")
        locked, today = (docker.detect(loaded, BuildOptions(use_lock=use)) for use in (True, False))
        assert locked is not None
        assert today is not None
        assert locked.key != today.key
        first, second = (
            docker.build(spec, loaded, tmp_path / spec.key, lambda _: None).packages[0] for spec in (locked, today)
        )
        assert first == f"{name}@{dockerengine.image_id(base)}"
        assert second == f"{name}@{dockerengine.image_id(name)}" != first
        capsys.readouterr()
        assert main(["env", "build", str(tmp_path / "p"), "--json"]) == 0
        assert first in json.loads(capsys.readouterr().out)["packages"]
    finally:
        docker.collect_garbage([])
        engine(["docker", "rmi", name])
    gone = replace(locked, details={**locked.details, "image_id": "sha256:" + "0" * 64})
    with pytest.raises(errors.EnvironmentBuildFailed, match="of the lock is not in this engine"):
        docker.build(gone, loaded, tmp_path / "gone", lambda _: None)


@pytest.mark.docker
def test_an_image_that_cannot_be_had(tmp_path: Path) -> None:
    loaded = make_project(tmp_path / "p", {"image": "127.0.0.1:9/lab/nothing:1"})
    spec = docker.detect(loaded, BuildOptions())
    assert spec is not None
    lines: list[str] = []
    with pytest.raises(errors.RepositoryUnreachable) as caught:
        docker.build(spec, loaded, tmp_path / "prefix", lines.append)
    assert "127.0.0.1:9" in caught.value.quote
    assert lines[0] == "Pulling 127.0.0.1:9/lab/nothing:1"


def test_words_are_quoted_once(tmp_path: Path) -> None:
    """The dict that MLflow takes, read back as a shell would."""
    arguments = Job(tmp_path).arguments(environment(), user="")
    words = shlex.split(" ".join(f"--{name} {value}" for name, value in arguments.items() if isinstance(value, str)))
    mounts = [words[i + 1] for i, word in enumerate(words) if word == "--mount"]
    assert [mount.count("type=bind") for mount in mounts] == [1] * len(mounts)
