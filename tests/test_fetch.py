"""Parameters that name something remote: fetched from a real TLS server, from runs and from models, and hashed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve import fetch
from segserve.errors import InvalidParameters, TooLarge
from tests.commands import Command, run_of
from tests.executors import make_executor
from tests.repositories import make_repository
from tests.tls import Answer, FileServer, make_certificate

pytest_plugins = ["tests.command_fixtures"]

WEIGHTS = b"weights" * 1000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
LOGIN = f"Basic {base64.b64encode(b'me:p@ss').decode()}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def elsewhere(certificate: Path) -> Iterator[tuple[str, list[str]]]:
    """Another host (another port counts as one), and the logins that it was sent."""
    logins: list[str] = []

    def answer(path: str, login: str) -> Answer:
        logins.append(login)
        return 200, {}, WEIGHTS

    with FileServer(answer, certificate) as server:
        yield server.url, logins


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    with FileServer(lambda *_: (200, {}, WEIGHTS)) as server:
        yield server.url


@pytest.fixture(scope="module")
def address(certificate: Path, elsewhere: tuple[str, list[str]], plain: str) -> Iterator[str]:
    def answer(path: str, login: str) -> Answer:
        answers = {
            "/model.pt": (200, {}, WEIGHTS),
            "/short.pt": (200, {"Content-Length": str(len(WEIGHTS) + 7)}, WEIGHTS),
            "/elsewhere.pt": (302, {"Location": f"{elsewhere[0]}/model.pt"}, b""),
            "/downgrade.pt": (302, {"Location": f"{plain}/model.pt"}, b""),
            "/private.pt": (200, {}, WEIGHTS) if login == LOGIN else (401, {}, b""),
        }
        return answers.get(path.partition("?")[0], (200 if path.startswith("/odd") else 404, {}, WEIGHTS))

    with FileServer(answer, certificate) as server:
        yield server.url


@pytest.fixture(autouse=True)
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))


# ------------------------------------------------------------------------------------------------------ the download


def test_a_file_comes_with_its_hash(tmp_path: Path, address: str) -> None:
    fetched = fetch.https(f"{address}/model.pt?download=1", tmp_path / "model")
    assert fetched.path == tmp_path / "model" / "model.pt"
    assert fetched.path.read_bytes() == WEIGHTS
    assert fetched.sha256 == SHA256 == fetch.digest_of(fetched.path)


def test_credentials_are_sent_and_not_handed_on(tmp_path: Path, address: str, elsewhere: tuple[str, list[str]]) -> None:
    signed_in = address.replace("://", "://me:p%40ss@")
    assert fetch.https(f"{signed_in}/private.pt", tmp_path).sha256 == SHA256
    elsewhere[1].clear()
    assert fetch.https(f"{signed_in}/elsewhere.pt", tmp_path).sha256 == SHA256
    assert elsewhere[1] == [""]


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("/none.pt", "404", "pass the file"),
        ("/private.pt", "401", "USER:TOKEN"),
        ("/short.pt", "ended after 7000 of 7007 bytes", "local file"),
        ("/downgrade.pt", "not https", "local file"),
    ],
)
def test_what_cannot_be_had(tmp_path: Path, address: str, path: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidParameters, match=message) as caught:
        fetch.https(address + path, tmp_path)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:9/model.pt",
        "https://127.0.0.1:port/model.pt",
        "https:///model.pt",
        "https://user:canary@127.0.0.1:9x/model.pt",
        "https://user:canary@[::1/model.pt",
    ],
)
def test_an_address_that_leads_nowhere(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidParameters, match="cannot be fetched") as caught:
        fetch.https(url, tmp_path)
    assert "canary" not in str(caught.value)


def test_a_certificate_that_nobody_trusts(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(InvalidParameters) as caught:
        fetch.https(f"{address}/model.pt", tmp_path)
    assert "SSL_CERT_FILE" in caught.value.hint


def test_too_large(tmp_path: Path, address: str) -> None:
    with pytest.raises(TooLarge, match="larger"):
        fetch.https(f"{address}/model.pt", tmp_path, max_bytes=100)


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("/odd/%2e%2e%2fetc%2fpasswd", "passwd"),
        ("/odd/...", "download"),
        ("/odd/", "odd"),
        ("/odd/a%00b%0Ac.pt", "a_b_c.pt"),
        ("/odd/" + "x" * 300 + ".pt", "x" * 97 + ".pt"),
    ],
)
def test_the_name_is_ours(tmp_path: Path, address: str, end: str, name: str) -> None:
    fetched = fetch.https(address + end, tmp_path)
    assert fetched.path == tmp_path / name


def test_a_folder_has_one_hash(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "a").write_text("a")
        (tmp_path / name / "b").write_text("b")
    assert fetch.digest_of(tmp_path / "one") == fetch.digest_of(tmp_path / "two")
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert fetch.digest_of(tmp_path / "one") != fetch.digest_of(tmp_path / "two")


# ------------------------------------------------------------------------------------------------------- in a run

MLPROJECT = """\
name: weighted
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      model: path
      source: {type: uri, default: "doi:10.5281/zenodo.1"}
    command: "python weigh.py {model} {source}"
"""
WEIGH = """\
import json, pathlib, sys
import mlflow
path = pathlib.Path(sys.argv[1])
files = sorted(path.rglob("*")) if path.is_dir() else [path]
seen = {"path": str(path), "bytes": sum(f.stat().st_size for f in files if f.is_file()), "source": sys.argv[2]}
pathlib.Path("seen.json").write_text(json.dumps(seen))
mlflow.log_artifact("seen.json")
"""


@pytest.fixture
def executor(here: Path) -> str:
    make_executor(here / "executor")
    make_repository(here / "executor", {"MLProject": MLPROJECT, "weigh.py": WEIGH})
    return str(here / "executor")


def _run(segserve: Command, executor: str, *words: str) -> tuple[dict[str, object], dict[str, str], dict[str, object]]:
    """What the executor saw, what MLflow has as parameters, the document."""
    import json

    done = segserve("run", executor, "--json", *words)
    assert done.code == 0, done.err
    seen = json.loads((Path(done.document["result"]) / "artifacts" / "seen.json").read_text())
    params = {entry["key"]: entry["value"] for entry in run_of(done.document["mlflow"])["data"]["params"]}
    return seen, params, done.document


@pytest.mark.network
def test_https_runs_and_models(segserve: Command, executor: str, address: str, here: Path, shared_home: Path) -> None:
    url = f"{address}/model.pt"
    seen, params, document = _run(segserve, executor, "-P", f"model={url}")
    assert seen["bytes"] == len(WEIGHTS)
    assert seen["source"] == "doi:10.5281/zenodo.1"
    assert params["model"] == url
    assert params["model.sha256"] == SHA256

    # the same file out of the run that it was logged to, and out of the model registry
    server, run_id = str(document["mlflow"]).split("/#/")[0], str(document["mlflow"]).rsplit("/", 1)[1]
    (here / "weights").mkdir()
    (here / "weights" / "model.pt").write_bytes(WEIGHTS)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    client.log_artifact(run_id, str(here / "weights" / "model.pt"), "weights")
    seen, params, _ = _run(segserve, executor, "-P", f"model=runs:/{run_id}/weights/model.pt")
    assert seen["bytes"] == len(WEIGHTS)
    assert params["model.sha256"] == SHA256

    client.create_registered_model("cells")
    client.create_model_version("cells", source=f"runs:/{run_id}/weights", run_id=run_id)
    seen, params, _ = _run(segserve, executor, "-P", "model=models:/cells/1")
    assert params["model"] == "models:/cells/1"
    assert seen["bytes"] == len(WEIGHTS)
    assert len(params["model.sha256"]) == 64

    for wrong in (f"runs:/{run_id}/weights/none.pt", "models:/cells/9", f"{address}/none.pt"):
        done = segserve("run", executor, "-P", f"model={wrong}", "--json")
        assert done.code == 2
        assert wrong.rpartition("/")[2] in done.error["message"]
        assert segserve("ps", "-a", "-n", 1, "--json").document[0]["state"] == "failed"


@pytest.mark.network
def test_local_paths_and_uris_pass_as_they_are(segserve: Command, executor: str, here: Path) -> None:
    (here / "model.pt").write_bytes(WEIGHTS)
    seen, params, _ = _run(segserve, executor, "-P", "model=model.pt", "-P", "source=doi:10.1/other")
    assert seen["path"] == str(here / "model.pt")
    assert seen["source"] == "doi:10.1/other"
    assert params["model"] == str(here / "model.pt")
    assert "model.sha256" not in params
    done = segserve("run", executor, "-P", "model=nothing.pt", "--json")
    assert done.code == 2
    assert "There is no 'nothing.pt'" in done.error["message"]
