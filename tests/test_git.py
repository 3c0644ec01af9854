"""How git is started: what reaches it, what does not, and where a secret goes. Real git, a real remote over HTTP."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from segserve import git
from segserve.errors import BackendError, DiskFull, RepositoryUnreachable, UsageError
from segserve.git import Access, GitFailed
from segserve.refs import Credentials
from tests.repositories import PrivateServer, make_repository
from tests.repositories import git as plain

ALL = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+HEAD:refs/segserve/HEAD")
SECRET = "c4nary/S3CRET+x"
PRIVATE = Access(protocols=("http",))


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the user's git configuration."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every argv of git and of all that git starts, written by a `git` in front of the real one."""
    log, folder = tmp_path / "trace.log", tmp_path / "bin"
    folder.mkdir()
    wrapper = folder / "git"
    wrapper.write_text(f'#!/bin/sh\necho "argv: $*" >> "{log}"\nGIT_TRACE="{log}" exec "{shutil.which("git")}" "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder with one bare repository, r.git."""
    make_repository(tmp_path / "work", {"a.txt": "a"})
    (tmp_path / "served").mkdir()
    plain(tmp_path, "clone", "-q", "--bare", "work", "served/r.git")
    return tmp_path / "served"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    git.create_mirror(tmp_path / "m.git")
    return tmp_path / "m.git"


def sees(name: str, access: Access = git.HERE) -> str:
    """What a git that we start has in its environment under `name`."""
    alias = ("alias.tell", f'!printf %s "${{{name}-unset}}"')
    return git.run("tell", access=access, settings=(alias,), folder=Path("/"))


def configured(key: str, access: Access = git.HERE, folder: Path = Path("/")) -> str:
    return git.run("config", "--get", "--default", "unset", key, access=access, folder=folder).strip()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GIT_ALLOW_PROTOCOL", "https:ssh"),
        ("GIT_PROTOCOL_FROM_USER", "0"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", os.devnull),
        ("GIT_LFS_SKIP_SMUDGE", "1"),
        ("GIT_ASKPASS", "unset"),
        ("SSH_ASKPASS", "unset"),
        ("GIT_TRACE_CURL", "unset"),
        ("SOME_TOKEN", "unset"),
        ("HOME", "unset"),
        ("https_proxy", "http://proxy:3128"),
        ("NO_PROXY", "localhost"),
        ("GIT_SSL_CAINFO", "/site.pem"),
        ("LC_ALL", "C"),
    ],
)
def test_environment(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GIT_ASKPASS", "SSH_ASKPASS", "GIT_TRACE_CURL", "SOME_TOKEN"):
        monkeypatch.setenv(variable, "evil")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("GIT_SSL_CAINFO", "/site.pem")
    assert sees(name, Access()) == value


def test_the_user_s_helpers_see_the_user_s_variables(monkeypatch: pytest.MonkeyPatch, user_home: Path) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    monkeypatch.setenv("CI_TOKEN", "t")
    monkeypatch.setenv("GIT_WORK_TREE", "/evil")
    access = git.local_access()
    assert sees("SSH_AUTH_SOCK", access) == "/agent"
    assert sees("CI_TOKEN", access) == "t"
    assert sees("HOME", access) == str(user_home)
    assert sees("GIT_WORK_TREE", access) == "unset"
    assert sees("GIT_ALLOW_PROTOCOL", access) == "https:ssh:file"
    assert "BatchMode=yes" in sees("GIT_SSH_COMMAND", access)
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")
    assert sees("GIT_SSH_COMMAND", access) == "ssh -i key"


def test_certificates_of_the_site_reach_git(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CURL_CA_BUNDLE", "/curl.pem")
    assert configured("http.sslCAInfo") == "/curl.pem"
    monkeypatch.setenv("SSL_CERT_FILE", "/ssl.pem")
    assert configured("http.sslCAInfo") == "/ssl.pem"
    assert configured("http.sslCAInfo", Access(settings=(("http.sslcainfo", "/mine.pem"),))) == "/mine.pem"


def test_of_the_user_s_configuration_only_connections_are_handed_on(
    user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user_home / ".gitconfig").write_text(
        "[user]\n name = U\n[core]\n hooksPath = /evil\n fsmonitor = /evil\n pager = evil\n sshCommand = ssh -i k\n"
        '[http]\n sslVerify\n extraHeader = "X: one"\n[http "https://h/"]\n extraHeader = "A: two\\nlines"\n'
        '[credential]\n helper = cache\n helper = store\n[url "https://mirror/"]\n insteadOf = https://h/\n'
        ' pushInsteadOf = https://push/\n[protocol "ext"]\n allow = always\n[alias]\n x = !evil\n'
        '[filter "lfs"]\n clean = evil\n[include]\n path = more\n'
    )
    (user_home / "more").write_text("[http]\n proxy = http://p\n")
    make_repository(tmp_path / "r", {"a": "a"})
    plain(tmp_path / "r", "config", "http.proxy", "http://evil")
    monkeypatch.chdir(tmp_path / "r")  # a repository that happens to be here has no say
    assert sorted(git.local_access().settings) == [
        ("core.sshcommand", "ssh -i k"),
        ("credential.helper", "cache"),
        ("credential.helper", "store"),
        ("http.extraheader", "X: one"),
        ("http.https://h/.extraheader", "A: two\nlines"),
        ("http.proxy", "http://p"),
        ("http.sslverify", "true"),
        ("url.https://mirror/.insteadof", "https://h/"),
    ]
    access = git.local_access()
    assert configured("core.hooksPath", access) == os.devnull
    assert configured("core.fsmonitor", access) == "false"
    assert configured("user.name", access) == "unset"
    assert sees("GIT_SSH_COMMAND", access) == "unset"  # it would win over core.sshCommand


def test_configuration_that_cannot_be_read_is_said(user_home: Path) -> None:
    (user_home / ".gitconfig").write_text("[broken\n")
    with pytest.raises(UsageError) as caught:
        git.local_access()
    assert "bad config line 1" in caught.value.quote


def test_instead_of_is_honoured_but_not_into_another_protocol(served: Path, mirror: Path, user_home: Path) -> None:
    config = user_home / ".gitconfig"
    config.write_text(f'[url "file://{served}/"]\n insteadOf = https://git.invalid/\n')
    git.fetch(git.local_access(), mirror, "https://git.invalid/r.git", ALL)
    assert git.names(mirror, "refs/heads") == ["refs/heads/main"]
    config.write_text('[url "ext::sh -c touch% evil "]\n insteadOf = https://git.invalid/\n')
    with pytest.raises(GitFailed) as caught:
        git.fetch(git.local_access(), mirror, "https://git.invalid/r.git", ALL)
    error = git.explain(caught.value, "https://git.invalid/r.git")
    assert isinstance(error, RepositoryUnreachable)
    assert "not allowed" in error.message


@pytest.mark.parametrize("url", ["ext::sh -c 'touch evil'", "--upload-pack=touch evil", "http://127.0.0.1:1/r", "-o"])
def test_hostile_sources_execute_nothing(url: str, mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(GitFailed):
        git.fetch(Access(), mirror, url, ALL)
    assert not list(tmp_path.rglob("evil"))


def test_file_protocol_is_for_local_users(served: Path, mirror: Path) -> None:
    with pytest.raises(GitFailed, match="not allowed"):
        git.fetch(Access(), mirror, f"file://{served}/r.git", ALL)
    git.fetch(git.HERE, mirror, f"file://{served}/r.git", ALL)


def test_credentials_reach_the_remote_and_nothing_else(
    served: Path, mirror: Path, tmp_path: Path, trace: Path, user_home: Path
) -> None:
    stolen = user_home / "stolen"
    helper = user_home / "helper"
    helper.write_text(f"#!/bin/sh\ncat >> {stolen}\n")
    helper.chmod(stat.S_IRWXU)
    (user_home / ".gitconfig").write_text(f"[credential]\n helper = {helper}\n")
    with PrivateServer(served, user="me", password=SECRET) as server:
        url = f"{server.url}/r.git"
        access = git.local_access(("http",)).to(url, Credentials("me", SECRET))
        git.fetch(access, mirror, url, ALL)
    assert git.names(mirror, "refs/heads") == ["refs/heads/main"]
    argv = trace.read_text()
    assert "argv: fetch" in argv
    assert "remote-http" in argv
    assert "SEGSERVE_GIT_SECRET" in argv  # the helper was started, with names of variables only
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        assert b"S3CRET" not in file.read_bytes(), file
    assert not stolen.exists()  # a helper of the user's is not asked to store what is not theirs
    assert SECRET not in repr(access)


def test_a_token_alone_is_the_user(served: Path, mirror: Path) -> None:
    with PrivateServer(served, user=SECRET, password="") as server:
        git.fetch(PRIVATE.to(server.url, Credentials(SECRET, "")), mirror, f"{server.url}/r.git", ALL)
    assert git.names(mirror, "refs/heads") == ["refs/heads/main"]


def test_refused_credentials_are_explained_without_them(served: Path, mirror: Path) -> None:
    with PrivateServer(served, user="me", password="other") as server:
        url = f"{server.url}/r.git"
        for credentials in (None, Credentials("me", SECRET), Credentials(SECRET, "")):
            with pytest.raises(GitFailed) as caught:
                git.fetch(PRIVATE.to(url, credentials), mirror, url, ALL)
            error = git.explain(caught.value, url)
            assert isinstance(error, RepositoryUnreachable)
            assert "refuses us" in error.message
            assert "credential helper" in error.hint
            assert error.quote
            assert "S3CRET" not in f"{caught.value} {caught.value.stderr} {error} {error.quote} {error.hint}"


def test_credentials_go_to_their_host_only(served: Path, mirror: Path) -> None:
    with PrivateServer(served, user="me", password=SECRET) as server:
        elsewhere = PRIVATE.to("http://127.0.0.2:9/r.git", Credentials("me", SECRET))
        with pytest.raises(GitFailed, match="could not read Username"):
            git.fetch(elsewhere, mirror, f"{server.url}/r.git", ALL)


def test_a_header_of_the_user_s_is_not_in_the_process_list(
    served: Path, mirror: Path, trace: Path, user_home: Path
) -> None:
    (user_home / ".gitconfig").write_text('[http]\n extraHeader = "Authorization: Basic bWU6dDBrM24="\n')  # me:t0k3n
    with PrivateServer(served, user="me", password="t0k3n") as server:
        git.fetch(git.local_access(("http",)), mirror, f"{server.url}/r.git", ALL)
    assert git.names(mirror, "refs/heads") == ["refs/heads/main"]
    assert "bWU6" not in trace.read_text()


def test_a_stopped_command_says_why(tmp_path: Path) -> None:
    with pytest.raises(GitFailed) as caught:
        git.run("rev-parse", "HEAD", folder=tmp_path)
    assert "not a git repository" in caught.value.deciding


@pytest.mark.parametrize(
    ("stderr", "message", "hint"),
    [
        ("fatal: unable to access 'https://h/': Could not resolve host: h", "unknown here", "https_proxy"),
        ("server certificate verification failed. CAfile: none", "not trusted", "SSL_CERT_FILE"),
        ("Host key verification failed.\nfatal: Could not read from remote", "host key", "ssh user@host"),
        ("git@h: Permission denied (publickey).", "ssh key", "ssh-add"),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", "refuses us", "helper"),
        ("remote: Repository not found.", "is private", "Check the address"),
        ("fatal: '/x' does not appear to be a git repository", "is private", "Check the address"),
        ("fatal: mismatched algorithms: client sha1; server sha256", "SHA-256", "SHA-1"),
        ("fatal: the remote end hung up", "cannot be fetched", "ls-remote"),
        ("fatal: detected dubious ownership in repository at '/a b/.git'", "another user", "safe.directory '/a b'"),
    ],
)
def test_explanations(stderr: str, message: str, hint: str) -> None:
    error = git.explain(GitFailed("fetch", f"hint: noise\n{stderr}\n"), "https://h/r")
    assert isinstance(error, RepositoryUnreachable)
    assert message in error.message
    assert hint in error.hint
    assert error.quote in stderr


def test_a_full_disk_is_no_remote_s_fault() -> None:
    assert isinstance(git.explain(GitFailed("fetch", "fatal: write error: No space left on device"), "r"), DiskFull)


@pytest.mark.parametrize(("version", "word"), [(None, "no git"), ("git version 2.25.1", "too old")])
def test_unusable_git(version: str | None, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if version:
        (tmp_path / "git").write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nowhere" if not version else f"{tmp_path}:/bin:/usr/bin")
    git.require_git.cache_clear()
    with pytest.raises(BackendError, match=word):
        git.require_git()
    git.require_git.cache_clear()
