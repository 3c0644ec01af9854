"""Attacks on a real service, one by one, by a user who has a token and may run what lies in one folder.

Whatever would run on the host leaves a file `pwned-…` behind; none may be there at the end. Elsewhere stand: addresses
of all spellings (test_fetching), an executor that wants at another run (test_gate), hosts and origins (test_access).
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from segserve.layout import Home
from segserve.tokens import Tokens
from tests.executors import SHELL_PROJECT, SHELL_SCRIPT, make_shell_executor
from tests.repositories import git, make_repository
from tests.services import Service
from tests.uploads import files, png

SECRET = "canary-of-the-host-5b1"


@dataclass
class Field:
    """Where the battle is: a service, who attacks, the folder that this user may use."""

    service: Service
    http: httpx.Client
    folder: Path
    jobs: dict[str, str] = field(default_factory=dict)

    def pwn(self, name: str) -> str:
        """A command that must never run."""
        return f"touch {self.folder.parent}/pwned-{name}"

    @property
    def pwned(self) -> list[str]:
        """What ran all the same."""
        return sorted(path.name for path in self.folder.parent.glob("pwned-*"))

    def submit(self, executor: object, **words: str) -> httpx.Response:
        """A job with one image."""
        form = {"executor": str(executor), "env": "local", "gpus": "0", **words}
        return self.http.post("/jobs", data=form, files=files("a.png"))

    def run(self, executor: object, **words: str) -> dict[str, Any]:
        """How such a job ends."""
        accepted = self.submit(executor, **words)
        assert accepted.status_code == 202, accepted.text
        return self.service.wait(accepted.json()["job"], self.http)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    top = tmp_path_factory.mktemp("attacks")
    folder = top / "of-mallory"
    folder.mkdir()
    (top / "secret.txt").write_text(SECRET)
    make_shell_executor(folder / "good")
    token = Tokens(Home(top / "home").ensure().tokens).add("mallory")[1]
    settings = f'max_body_mb = 4\nmax_images = 10\n[repositories]\nallow = ["file://{folder}/"]\n'
    settings += f'[data_roots]\n"{folder}" = ["mallory"]\n'
    with Service(top / "home", top, server=settings) as service, service.as_(token) as http:
        yield Field(service, http, folder)


# ------------------------------------------------------------------------------------------------ what is to be run


REFERENCES: tuple[str, ...] = (
    *("--upload-pack={pwn}", "-u{pwn}", "ext::sh -c {pwn}", "ext::sh% -c% {pwn}", "fd::17/foo", "--", "-"),
    *("ssh://-oProxyCommand={pwn}/x", "-oProxyCommand={pwn}@host:x", "git@-oProxyCommand={pwn}:x", "host:-oX"),
    *("git://127.0.0.1/x", "http://127.0.0.1/x", "ftp://127.0.0.1/x", "file://evil.example/etc", "https:///x"),
    *("{folder}/good@--upload-pack={pwn}", "{folder}/good@-x", "{folder}/good@a..b", "{folder}/good@x^{{commit}}"),
    *("{folder}/good#../../..:main", "{folder}/good#.git:main", "{folder}/good#/etc:main", "{folder}/good\n"),
)


@pytest.mark.parametrize("reference", REFERENCES)
def test_option_injection_and_other_transports(there: Field, reference: str) -> None:
    text = reference.format(pwn=there.pwn("reference"), folder=there.folder)
    answer = there.submit(text)
    assert answer.status_code in (400, 403), answer.text
    assert there.http.get("/executor", params={"ref": text}).status_code in (400, 403)
    params = {"repo": text}
    upstream = there.http.post("/image-prediction/", params=params, files={"file": ("a.png", png())})
    assert upstream.status_code in (400, 422), upstream.text
    assert there.pwned == []


def test_revisions_and_entry_points_that_are_options(there: Field) -> None:
    for words in (
        *({"version": version} for version in (f"--upload-pack={there.pwn('version')}", "-x", "a:b", "HEAD~1", "@{0}")),
        {"exports": "../x"},
        {"submodules": "true"},
        {"allow_unreachable": "true"},
        {"output": "/tmp/x"},
        {"gpus": "$(id)"},
    ):
        answer = there.submit(there.folder / "good", **words)
        assert answer.status_code in (400, 422), (words, answer.text)
    done = there.run(there.folder / "good", entry=f"main; {there.pwn('entry')}")
    assert (done["state"], "has no entry point" in done["error"]) == ("failed", True)
    assert there.pwned == []


def test_a_commit_that_only_a_fork_has(there: Field) -> None:
    repo = there.folder / "forked"
    make_shell_executor(repo)
    git(repo, "checkout", "-q", "-b", "theirs")
    script = SHELL_SCRIPT.replace("set -e", there.pwn("fork"))
    theirs = make_repository(repo, {"segment.sh": script})
    git(repo, "checkout", "-q", "main")
    git(repo, "update-ref", "refs/pull/1/head", theirs)
    git(repo, "branch", "-q", "-D", "theirs")
    done = there.run(f"file://{repo}", version=theirs)
    assert done["state"] == "failed"
    assert "branch or tag" in done["error"], done["error"]
    assert there.pwned == []


# ------------------------------------------------------------------------------------- what a repository brings along


def _links(there: Field, repo: Path) -> None:
    (repo / "model").symlink_to(there.folder.parent / "secret.txt")


def _link_to_a_folder(there: Field, repo: Path) -> None:
    (repo / "data").symlink_to("../../home")


def _project_is_a_link(there: Field, repo: Path) -> None:
    (repo / "MLproject").unlink()
    (repo / "MLproject").symlink_to(there.folder.parent / "secret.txt")


def _quoted_placeholder(there: Field, repo: Path) -> None:
    quoted = SHELL_PROJECT.replace('"sh segment.sh', "'sh segment.sh").replace('{mark}"', '"{mark}"\'')
    (repo / "MLproject").write_text(quoted)


def _conda_env_outside(there: Field, repo: Path) -> None:
    (repo / "MLproject").write_text(SHELL_PROJECT + "conda_env: ../../secret.txt\n")


def _docker_volume(there: Field, repo: Path) -> None:
    docker = f'docker_env:\n  image: x\n  volumes: ["/d:/d;{there.pwn("volume")};#"]\n'
    docker += f'  environment: [["X", "$({there.pwn("env")})"]]\n'
    (repo / "MLproject").write_text(SHELL_PROJECT + docker)


def _docker_image(there: Field, repo: Path) -> None:
    (repo / "MLproject").write_text(SHELL_PROJECT + f'docker_env:\n  image: "x; {there.pwn("image")} #"\n')


def _alias_bomb(there: Field, repo: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (repo / "MLproject").write_text("\n".join(lines) + "\n" + SHELL_PROJECT)


def _tagged_yaml(there: Field, repo: Path) -> None:
    call = f'!!python/object/apply:os.system ["{there.pwn("yaml")}"]\n'
    (repo / "MLproject").write_text(SHELL_PROJECT.replace("name: shell", f"name: {call}"))


HOSTILE: dict[str, tuple[Callable[[Field, Path], None], dict[str, str], str]] = {
    "a link out": (_links, {}, "lead out of it"),
    "a folder that is a link": (_link_to_a_folder, {}, "lead out of it"),
    "MLproject is a link": (_project_is_a_link, {}, "lead out of it|link"),
    "a value in double quotes": (_quoted_placeholder, {}, "quote|double"),
    "conda_env outside": (_conda_env_outside, {"env": "conda"}, "outside|folder|conda"),
    "docker volumes": (_docker_volume, {"env": "docker"}, "docker"),
    "a docker image": (_docker_image, {"env": "docker"}, "docker|image"),
    "aliases of aliases": (_alias_bomb, {}, "alias|large|MLproject"),
    "yaml that calls": (_tagged_yaml, {}, "tag|MLproject"),
}


def test_hostile_repositories(there: Field) -> None:
    """All at once: they wait for the same two slots."""
    jobs = {}
    for name, (spoil, words, _) in HOSTILE.items():
        repo = there.folder / re.sub(r"\W", "-", name)
        make_shell_executor(repo)
        spoil(there, repo)
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", "spoiled")
        accepted = there.submit(f"file://{repo}", **words)
        assert accepted.status_code == 202, accepted.text
        jobs[name] = accepted.json()["job"]
    for name, (_, _, says) in HOSTILE.items():
        done = there.service.wait(jobs[name], there.http)
        assert done["state"] == "failed", name
        told = " ".join((done["error"], done["hint"], done["quote"]))
        assert re.search(says, told), (name, told)
        assert SECRET not in str(done), name
    assert there.pwned == []


def test_hooks_fsmonitor_filters_and_submodules_do_nothing(there: Field) -> None:
    """They are the repository's own: of a clone git takes none over, but a folder of this machine is read as it is."""
    repo = there.folder / "configured"
    make_shell_executor(repo)
    modules = '[submodule "x"]\n\tpath = x\n\turl = ext::sh -c {}\n'.format(there.pwn("submodule").replace(" ", "% "))
    modules += '[submodule "../../.git/hooks"]\n\tpath = y\n\turl = ./good\n'
    make_repository(repo, {".gitattributes": "*.sh filter=evil diff=evil\n", ".gitmodules": modules})
    for name, value in (
        ("core.fsmonitor", there.pwn("fsmonitor")),
        *((f"filter.evil.{what}", f"{there.pwn(what)}; cat") for what in ("clean", "smudge", "process")),
        ("diff.evil.command", there.pwn("diff")),
        ("core.sshCommand", there.pwn("ssh")),
        ("core.pager", there.pwn("pager")),
        ("uploadpack.packObjectsHook", there.pwn("pack")),
        ("alias.status", f"!{there.pwn('alias')}"),
    ):
        git(repo, "config", name, value)
    for hook in ("post-checkout", "pre-commit", "post-index-change", "reference-transaction", "fsmonitor-watchman"):
        path = repo / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{there.pwn('hook')}\n")
        path.chmod(0o755)
    (repo / "segment.sh").write_text(SHELL_SCRIPT + "# changed, so that git looks at it\n")
    jobs = [there.submit(executor).json()["job"] for executor in (repo, f"file://{repo}")]
    assert [there.service.wait(job, there.http)["state"] for job in jobs] == ["succeeded"] * 2
    assert there.pwned == []


# ---------------------------------------------------------------------------------------------------- parameters


def test_commands_in_parameters_stay_texts(there: Field) -> None:
    command = there.pwn("parameter")
    everything = (
        f"$({command}) `{command}` ; {command} x' ; {command} ; ' \" ; {command} ; \" |{command} ${{IFS}}&&{command}"
    )
    values = {everything: "succeeded", f"--x;{command}": "succeeded", f"x\n{command}": "failed"}  # a line of its own
    jobs = [
        there.submit(there.folder / "good", parameters=json.dumps({"mark": value})).json()["job"] for value in values
    ]
    assert [there.service.wait(job, there.http)["state"] for job in jobs] == list(values.values())
    assert there.pwned == []


def test_parameters_that_are_too_deep_or_no_values(there: Field) -> None:
    deep = '{"mark": ' * 50_000 + "1" + "}" * 50_000
    for text in (deep, "[" * 100_000, '{"nap": 1e400}', '{"nap": ' + "9" * 5000 + "}", '{"mark": "\\ud800"}'):
        answer = there.submit(there.folder / "good", parameters=text)
        assert answer.status_code in (400, 422), text[:50]
    for body in (deep, '{"executor": "x", "timeout": 1e999}', '{"executor": "\\u0000"}', "null", "[]", '"x"'):
        answer = there.http.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), body[:50]
    deep_query = there.http.post(
        "/image-prediction/", params={"repo": "x", "parameters": "[" * 20_000}, files={"file": ("a.png", png())}
    )
    assert deep_query.status_code in (400, 422)


# ------------------------------------------------------------------------------------------------------- its output


LEFT: dict[str, tuple[str, str]] = {
    "a link to a secret": ("ln -sf {secret} output.json", "is a link"),
    "a link to the journal": ("ln -sf {home}/tokens.json output.json", "is a link"),
    "a pipe": ("rm -f output.json; mkfifo output.json", "no plain file"),
    "a folder": ("rm -f output.json; mkdir output.json", "is a folder"),
    "nine gigabytes": ("truncate -s 9G output.json", "are not read"),
    "too deep": ("python3 -c 'print(\"[\" * 1000000)' > output.json", "levels|deep"),
}


def test_tricks_with_the_output(there: Field) -> None:
    jobs = {}
    for name, (command, _) in LEFT.items():
        repo = there.folder / f"left-{re.sub(' ', '-', name)}"
        make_shell_executor(repo)
        told = command.format(secret=there.folder.parent / "secret.txt", home=there.service.home)
        make_repository(repo, {"segment.sh": f"{SHELL_SCRIPT}\n{told}\n"})
        accepted = there.submit(f"file://{repo}")
        assert accepted.status_code == 202, accepted.text
        jobs[name] = accepted.json()["job"]
    for name, (_, says) in LEFT.items():
        done = there.service.wait(jobs[name], there.http)
        assert (done["state"], bool(re.search(says, done["error"] + done["quote"]))) == ("failed", True), (name, done)
        assert there.http.get(f"/jobs/{jobs[name]}/result").status_code == 502
        assert SECRET not in str(done)


def test_names_of_files_stay_in_their_folder(there: Field) -> None:
    names = [
        "../../../evil.png",
        "/etc/evil.png",
        "..\\..\\evil.png",
        "a\0b.png",
        ".png",
        "x" * 3000 + ".png",
        "con.png",
    ]
    form = {"executor": str(there.folder / "good"), "env": "local", "gpus": "0"}
    sent = [("images", (name, png(number), "image/png")) for number, name in enumerate(names)]
    accepted = there.http.post("/jobs", data=form, files=sent)
    assert accepted.status_code == 202, accepted.text
    job = accepted.json()["job"]
    assert there.service.wait(job, there.http)["state"] == "succeeded"
    assert there.http.get(f"/jobs/{job}").json()["images"] == len(names)
    of_the_job = there.service.home / "jobs" / job
    found = [path for path in there.folder.parent.rglob("evil*.png") if not path.is_relative_to(of_the_job)]
    assert not found
    for name in (
        "../job.json",
        "..%2f..%2f..%2ftokens.json",
        "%2e%2e/job.json",
        "/etc/passwd",
        "....//job.json",
        "%00",
    ):
        answer = there.http.get(f"/jobs/{job}/files/{name}")
        assert answer.status_code == 404, (name, answer.text)
        assert "sgs_" not in answer.text
    for name in ("../x", "..%2f", f"{job}/..", "*"):
        assert there.http.get(f"/jobs/{name}/files/output.json").status_code == 404


# ------------------------------------------------------------------------------------------------------------ bombs


def png_of(width: int, height: int) -> bytes:
    """A PNG that declares these sizes and holds nothing of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def npy_of(shape: str) -> bytes:
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(64)


def zip_of_zeros() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(200 << 20))
    return stream.getvalue()


def test_bombs(there: Field) -> None:
    bombs = {
        "wide.png": (png_of(60_000, 60_000), "declares 60000 × 60000"),
        "huge.png": (png_of(2**31 - 1, 2**31 - 1), "declares 2147483647"),
        "over.png": (png_of(21_000, 20_000), "400000000 is the limit"),
        "huge.npy": (npy_of("(1000000, 1000000)"), "huge.npy"),
        "deep.npy": (npy_of("(" + "1000, " * 20 + ")"), "deep.npy"),
        "zeros.zip": (zip_of_zeros(), "zeros.zip"),
        "zeros.png": (zip_of_zeros(), "zeros.png"),
    }
    form = {"executor": str(there.folder / "good"), "env": "local", "gpus": "0"}
    jobs = {}
    for name, (data, _) in bombs.items():
        accepted = there.http.post("/jobs", data=form, files=[("images", (name, data, "image/png"))])
        assert accepted.status_code == 202, accepted.text
        jobs[name] = accepted.json()["job"]
    for name, (_, says) in bombs.items():
        done = there.service.wait(jobs[name], there.http)
        assert (done["state"], says in done["error"]) == ("failed", True), (name, done["error"])


# ------------------------------------------------------------------------------------------- bodies, over a socket


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("impatient")
    with Service(folder / "home", folder, server="patience_s = 3") as service:
        yield service


def connected(service: Service) -> socket.socket:
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def head(kind: str, *more: str) -> bytes:
    lines = ("POST /jobs HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", *more, "", "")
    return "\r\n".join(lines).encode()


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'


BODIES = [(FORM, PART), ("application/json", b'{"executor": "')]


def drained(connection: socket.socket) -> bytes:
    """What the server says until it closes; a reset is an end, too."""
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize(("kind", "start"), BODIES, ids=["form", "json"])
def test_a_huge_body_that_does_not_say_how_long_it_is(there: Field, kind: str, start: bytes) -> None:
    before = set((there.service.home / "jobs").iterdir())
    with connected(there.service) as connection:
        authorization = f"Authorization: {there.http.headers['Authorization']}"
        connection.sendall(head(kind, authorization, "Transfer-Encoding: chunked"))
        sent, block = 0, b"10000\r\n" + b"x" * 65536 + b"\r\n"
        connection.sendall(f"{len(start):x}\r\n".encode() + start + b"\r\n")
        connection.setblocking(False)
        answer = b""
        until = time.monotonic() + 60
        while b"\r\n\r\n" not in answer and time.monotonic() < until:
            try:
                answer += connection.recv(65536)
            except BlockingIOError:
                connection.setblocking(True)
                connection.sendall(block)
                connection.setblocking(False)
                sent += 65536
        assert answer.startswith(b"HTTP/1.1 413"), answer
        assert sent < 64 << 20
    assert set((there.service.home / "jobs").iterdir()) == before


@pytest.mark.parametrize(("kind", "start"), BODIES, ids=["form", "json"])
def test_a_body_that_stops_coming(impatient: Service, kind: str, start: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(head(kind, "Content-Length: 100000") + start)
        answer = drained(connection)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"too slowly" in answer
    assert not list((impatient.home / "jobs").iterdir())


def test_a_body_that_trickles(impatient: Service) -> None:
    with connected(impatient) as connection:
        connection.sendall(head(FORM, "Content-Length: 100000") + PART)
        connection.settimeout(0.5)
        answer, until = b"", time.monotonic() + 60
        while not answer and time.monotonic() < until:
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                connection.sendall(b"x")
    assert answer.startswith(b"HTTP/1.1 408"), answer


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("start", [b"", LIVEZ[:-5], LIVEZ + b"\r\n" + LIVEZ[:8]], ids=["silence", "head", "second"])
def test_a_head_that_never_ends(impatient: Service, start: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(start)
        began = time.monotonic()
        answer = drained(connection)
    assert time.monotonic() - began < 30
    assert answer.count(b"HTTP/1.1 200") == start.count(b"\r\n\r\n")


def test_a_head_that_is_too_long(impatient: Service) -> None:
    with connected(impatient) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 20))
        assert drained(connection)[:12] in (b"HTTP/1.1 400", b"")  # or the connection was reset while we wrote


def test_too_many_parts_and_heads_of_parts_that_are_too_large(there: Field) -> None:
    form = {"Content-Type": FORM}
    empty = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 1000 + b"--b--\r\n"
    long = b"--b\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n\r\n--b--\r\n"
    many = b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\n\r\n--b--\r\n"
    for body in (empty, long, many):
        answer = there.http.post("/jobs", content=body, headers=form)
        assert answer.status_code in (400, 413), answer.text
        assert re.search("too (large|many)|Maximum header", answer.json()["detail"])
    assert there.http.get("/livez").status_code == 200


def test_nothing_is_left_behind(there: Field) -> None:
    """The last one: the service is well, and nothing of what was tried ran."""
    assert there.pwned == []
    assert there.http.get("/status").json()["working"]
    assert "Traceback" not in "".join(there.service.said)
    assert not os.path.exists("/tmp/x")  # noqa: PTH110 - as an attack named it
