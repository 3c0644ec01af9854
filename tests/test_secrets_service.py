"""Canaries in a whole run of the service: what a caller and its server know as secrets is found nowhere afterwards.

The executor tells everything that it sees. `tests/test_secrets.py` does the same for the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from segserve.layout import Home
from segserve.tokens import Scope, Tokens
from tests.executors import SHELL_PROJECT, SHELL_SCRIPT
from tests.repositories import PrivateServer, git, make_repository
from tests.services import Service
from tests.test_secrets import places_with, watched_processes
from tests.tls import make_certificate, secure
from tests.uploads import png

URL, PARAMETER, HEADER = "canary-url-3b8e1f", "canary-parameter-9d20c", "canary-header-51ac7"
SHELL = {
    "AWS_SECRET_ACCESS_KEY": "canary-service-aws-77d",
    "DATABASE_PASSWORD": "canary-service-db-c31",
    "GITHUB_TOKEN": "canary-service-github-0ea",
}
PROJECT = SHELL_PROJECT.replace("{mark}", "{mark} {api_key}").replace(
    "    command", '      api_key: {type: string, default: ""}\n    command'
)
TELLTALE = "env; echo \"$@\"; cat .git/config; cat /proc/$PPID/environ | tr '\\0' '\\n'; git remote -v\n"


@dataclass
class Setting:
    service: Service
    private: str
    text: str  # of the user's token
    admin: str


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("canaries")
    environment = 'python: "3.11"\ndependencies: []\n'
    script = SHELL_SCRIPT.replace("set -e\n", f"set -e\n{TELLTALE}")
    make_repository(
        folder / "executor",
        {
            "MLproject": f"{PROJECT}python_env: python_env.yaml\n",
            "segment.sh": script,
            "python_env.yaml": environment,
        },
    )
    (folder / "served").mkdir()
    git(folder, "clone", "-q", "--bare", "executor", "served/executor.git")
    tokens = Tokens(Home(folder / "home").ensure().tokens)
    text, admin = tokens.add("anna")[1], tokens.add("chef", scopes=[Scope.ADMIN])[1]
    certificate = make_certificate(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_SSL_CAINFO", str(certificate))
        for name, value in SHELL.items():
            patch.setenv(name, value)
        with PrivateServer(folder / "served", user="someone", password=URL) as server:
            private = secure(server._server, certificate) + "/executor.git"
            allowed = f'sync_wait_s = 280\n[repositories]\nallow = ["{private}"]'
            with Service(folder / "home", folder, server=allowed) as service:
                yield Setting(service, private, text, admin)


def everything_said(setting: Setting, http: httpx.Client, job: str) -> str:
    """All that the service says of a job and of itself."""
    paths = ["", "/events", "/result", "/files", "/images", "/exports"]
    answers = [http.get(f"/jobs/{job}{path}") for path in paths]
    files = answers[3].json() if answers[3].status_code == 200 else []
    answers += [http.get(f"/jobs/{job}/files/{file['name']}") for file in files]
    with setting.service.as_(setting.admin) as admin:
        answers += [admin.get(path) for path in ("/jobs", "/metrics", "/status", "/info", "/executors", "/me")]
    return "\n".join(f"{answer.headers}{answer.text}" for answer in answers)


@pytest.mark.parametrize("ending", ["succeeds", "fails", "is refused"])
def test_secrets_of_callers_and_server_are_found_nowhere(setting: Setting, ending: str) -> None:
    repo = setting.private.replace("://", f"://someone:{URL}@")
    parameters = {"api_key": PARAMETER, "mark": "crash" if ending == "fails" else "x"}
    if ending == "is refused":
        parameters["sise"] = "3"
    form = {"executor": repo, "parameters": json.dumps(parameters), "gpus": "0"}
    headers = {
        "X-Api-Key": HEADER,
        "Cookie": f"session={HEADER}",
        "User-Agent": HEADER,
        "Referer": f"https://{HEADER}/",
    }
    with watched_processes() as command_lines, setting.service.as_(setting.text) as http:
        sent = {"images": ("a.png", png())}
        accepted = http.post("/jobs", data=form, files=sent, headers={**headers, "Idempotency-Key": ending})
        assert accepted.status_code == 202, accepted.text
        job = accepted.json()["job"]
        done = setting.service.wait(job, http)
        assert done["state"] == ("succeeded" if ending == "succeeds" else "failed"), done
        query = {"repo": repo, "parameters": json.dumps(parameters)}
        upstream = http.post("/image-prediction/", params=query, files={"file": ("b.png", png(1))}, headers=headers)
        assert upstream.status_code == (200 if ending == "succeeds" else 502), upstream.text
        wrong = http.get("/jobs", headers={"Authorization": f"Bearer {setting.text}x"})
        said = everything_said(setting, http, job) + accepted.text + upstream.text + wrong.text
    said += "".join(setting.service.said)
    secrets = (URL, PARAMETER, HEADER, setting.text, setting.text.rpartition("_")[2], *SHELL.values())
    assert places_with(secrets, setting.service.home) == []
    for secret in secrets:
        assert secret not in said
        if secret != PARAMETER:  # MLflow hands parameters over on the executor's command line
            assert not [line for line in command_lines if secret.encode() in line]
    if ending == "succeeds":  # it did look at all of that
        log = next((setting.service.home / "jobs" / job).glob("*/log")).read_text()
        assert "CACHE_FOLDER" in log
        assert 'remote "origin"' in log
        assert "***" in log
        assert any(b"segment.sh" in line for line in command_lines)


def test_a_wrong_password_is_not_repeated(setting: Setting) -> None:
    with setting.service.as_(setting.text) as http:
        repo = setting.private.replace("://", "://someone:canary-wrong-9f1@")
        answer = http.post("/image-prediction/", params={"repo": repo}, files={"file": ("a.png", png(2))})
        asked = http.get("/executor", params={"ref": repo})
    assert answer.status_code == 503 or "refuses us" in answer.text, answer.text
    assert asked.status_code >= 400
    assert "canary-wrong" not in answer.text + asked.text + "".join(setting.service.said)
    assert places_with(["canary-wrong"], Path(setting.service.home)) == []
