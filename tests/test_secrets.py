"""Canaries: secrets that a user hands over are used, and found nowhere afterwards, whether the run goes well or not."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from segserve.environments.indexes import host_settings
from tests.commands import Command, Done, run_of
from tests.executors import make_executor
from tests.repositories import PrivateServer, git, make_repository
from tests.servers import call
from tests.tls import Answer, FileServer, make_certificate, secure

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.network

URL, INDEX, MODEL = "canary-url-81c5e2", "canary-index-4f9a07", "canary-model-c3d1b8"
SHELL = {
    "AWS_SECRET_ACCESS_KEY": "canary-shell-aws-55e",
    "GITHUB_TOKEN": "canary-shell-github-19b",
    "HF_TOKEN": "canary-shell-hf-77c",
    "MY_PASSWORD": "canary-shell-mine-2ad",
    "MLFLOW_TRACKING_PASSWORD": "canary-shell-mlflow-9f0",
}
PARAMETER, TOKEN = "canary-parameter-e07d1", "ghp_" + "canaryCanaryCanaryCanaryCanary0123"

MLPROJECT = """\
name: careful
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
      size: {type: float, default: 10}
      label: {type: string, default: Cell}
      api_key: {type: string, default: ""}
      note: {type: string, default: ""}
      model: {type: path, default: main.py}
    command: "python main.py {input_images} --size {size} --label {label} --key {api_key} --note {note} --model {model}"
"""
# Tells everything that it knows: environment, arguments, git configuration.
TELLTALE = """\
parser.add_argument("--key"); parser.add_argument("--note"); parser.add_argument("--model")
print(json.dumps(dict(os.environ)), sys.argv, open(".git/config").read(), flush=True)
with open("environ.json", "w") as stream:
    json.dump(dict(os.environ), stream)
mlflow.log_artifact("environ.json")
arguments = parser.parse_args()
assert arguments.key.startswith("canary-parameter") and open(arguments.model).read() == "weights"
assert arguments.label != "crash", sys.argv
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def repository(here: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a private repository behind TLS, without credentials."""
    make_executor(here / "work")
    text = (here / "work" / "main.py").read_text()
    make_repository(
        here / "work",
        {"MLProject": MLPROJECT, "main.py": text.replace("arguments = parser.parse_args()\n", TELLTALE)},
    )
    (here / "served").mkdir()
    git(here, "clone", "-q", "--bare", "work", "served/executor.git")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    with PrivateServer(here / "served", user="someone", password=URL) as server:
        yield secure(server._server, certificate) + "/executor.git"


@pytest.fixture(scope="module")
def index_server() -> Iterator[tuple[str, list[str]]]:
    """An index with a password, which holds nothing, and who signed in."""
    logins: list[str] = []

    def answer(path: str, login: str) -> Answer:
        logins.append(login)
        return (404 if login == _basic(INDEX) else 401), {}, b""

    with FileServer(answer) as server:
        yield server.url.replace("://", f"://someone:{INDEX}@") + "/simple", logins


@pytest.fixture
def index(index_server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """It is one of those that pip is configured to use."""
    extra = host_settings().indexes.extra
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", " ".join((*extra, index_server[0])))
    return index_server[1]


@pytest.fixture
def model(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a file that wants a login."""

    def answer(path: str, login: str) -> Answer:
        return (200, {}, b"weights") if login == _basic(MODEL) else (401, {}, b"")

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with FileServer(answer, certificate) as server:
        yield server.url.replace("://", f"://someone:{MODEL}@") + "/model.pt"


def _basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'someone:{password}'.encode()).decode()}"


@contextmanager
def watched_processes() -> Iterator[set[bytes]]:
    """The command lines of everything that runs on this machine meanwhile."""
    seen: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(file.read_bytes())
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    over.set()
    thread.join()


def places_with(secrets: Sequence[str], *folders: Path) -> list[str]:
    """Files, databases and .git included, in whose name or content one of them stands, plain or as a basic login."""
    logins = [base64.b64encode(f"someone:{secret}".encode()) for secret in secrets]
    pattern = re.compile(b"|".join([*(secret.encode() for secret in secrets), *logins]))
    files = [file for folder in folders for file in folder.rglob("*") if not file.is_symlink()]
    return [
        str(file)
        for file in files
        if pattern.search(file.name.encode()) or (file.is_file() and pattern.search(file.read_bytes()))
    ]


@pytest.mark.parametrize("ending", ["succeeds", "fails", "is refused"])
def test_secrets_are_found_nowhere(
    segserve: Command,
    here: Path,
    shared_home: Path,
    images: Path,
    repository: str,
    index: list[str],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    words = ["-P", f"api_key={PARAMETER}", "-P", f"note={TOKEN}", "-P", f"model={model}", "--keep", "-v", "--json"]
    words += {"succeeds": [], "fails": ["-P", "label=crash"], "is refused": ["-P", "sise=3"]}[ending]
    with watched_processes() as command_lines:
        done = segserve("run", repository.replace("://", f"://someone:{URL}@"), images, "-o", "out", *words)
    assert done.code == {"succeeds": 0, "fails": 4, "is refused": 2}[ending], done.err
    mlflow = _everything_in_mlflow(segserve, done) if ending != "is refused" else ""
    everywhere = [shared_home, *([here / "out"] if (here / "out").exists() else [])]
    secrets = (URL, INDEX, MODEL, PARAMETER, TOKEN, *SHELL.values())
    assert places_with(secrets, *everywhere) == []
    for secret in secrets:
        assert secret not in done.out + done.err + mlflow
        if secret not in (PARAMETER, TOKEN):  # MLflow hands parameters over on the executor's command line
            assert not [line for line in command_lines if secret.encode() in line]
    if ending != "is refused":
        assert _basic(INDEX) in index
        assert any(b"main.py" in line for line in command_lines)
        environment = json.loads(next(shared_home.glob("mlartifacts/**/environ.json")).read_text())
        assert SHELL.keys() & environment.keys() == {"MLFLOW_TRACKING_PASSWORD"}  # that of the attempt's gate
        assert environment["MLFLOW_TRACKING_PASSWORD"] != SHELL["MLFLOW_TRACKING_PASSWORD"]
        assert not [name for name in environment if "SEGSERVE_GIT" in name or "INDEX" in name]


def _everything_in_mlflow(segserve: Command, done: Done) -> str:
    if done.code == 0:
        url = done.document["mlflow"]
    else:
        job = segserve("ps", "-a", "-n", 1, "--json").document[0]["job"]
        url = segserve("show", job, "--json").document["mlflow"]
    run = run_of(url)
    server, run_id = url.partition("/#/")[0], run["info"]["run_id"]
    assert {tag["key"] for tag in run["data"]["tags"]} >= {"segserve.repository", "segserve.commit"}
    return json.dumps([run, call(server, "GET", f"artifacts/list?run_id={run_id}")])


def test_a_wrong_password_is_not_repeated(segserve: Command, here: Path, shared_home: Path, repository: str) -> None:
    done = segserve("run", repository.replace("://", "://someone:canary-wrong-51b@"), "images", "--json")
    assert done.error["code"] == "RepositoryUnreachable"
    assert "refuses us" in done.error["message"]
    assert "canary-wrong" not in done.out + done.err
    assert places_with(["canary-wrong"], shared_home / "repos", shared_home / "jobs", shared_home / "logs") == []
