"""From a reference to a commit to a checkout, with real repositories; and that the user's repository is only read."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from segserve import errors, git, store
from segserve.errors import InvalidProject, NotFound, RepositoryUnreachable, RevisionNotFound, TooLarge
from segserve.layout import Home
from segserve.refs import Credentials, ExecutorRef, Pin, RepoKind, parse
from segserve.store import Resolution, Store, age, locked
from tests.repositories import PrivateServer, make_repository
from tests.repositories import git as plain

MISSING = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def shop(home: Home) -> Store:
    return Store(home)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with two commits, branches `main` and `feature/x`, tags `v1` (annotated) and `v2`."""
    folder = tmp_path / "executor"
    make_repository(folder, {"MLProject": "name: one", "sub/a.txt": "a"})
    plain(folder, "tag", "-a", "-m", "one", "v1")
    plain(folder, "branch", "feature/x")
    make_repository(folder, {"MLProject": "name: two"}, message="second")
    plain(folder, "tag", "v2")
    return folder


@pytest.fixture
def git_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The git commands that were started, in order."""
    calls: list[str] = []
    run = git.command.process.run

    def counted(argv: Any, **options: Any) -> Any:
        calls.append(str(argv[1]))
        return run(argv, **options)

    monkeypatch.setattr(git.command.process, "run", counted)
    return calls


def url(folder: Path) -> str:
    return folder.as_uri()


def sha(folder: Path, rev: str = "HEAD") -> str:
    return plain(folder, "rev-parse", f"{rev}^{{commit}}")


def resolve(shop: Store, text: str, rev: str | None = None, **options: Any) -> Resolution:
    return shop.resolve(parse(text, rev=rev), **options)


def refused(shop: Store, text: str, rev: str | None = None, **options: Any) -> RevisionNotFound:
    with pytest.raises(RevisionNotFound) as caught:
        resolve(shop, text, rev, **options)
    return caught.value


# --- revisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rev", "commit", "branch"),
    [
        (None, "main", "main"),
        ("HEAD", "main", "main"),
        ("main", "main", "main"),
        ("heads/main", "main", "main"),
        ("refs/heads/main", "main", "main"),
        ("feature/x", "feature/x", "feature/x"),
        ("v1", "v1", ""),
        ("tags/v1", "v1", ""),
        ("refs/tags/v2", "v2", ""),
    ],
)
def test_names(shop: Store, repo: Path, rev: str | None, commit: str, branch: str) -> None:
    found = resolve(shop, url(repo), rev)
    assert found.pin == Pin(url(repo), sha(repo, commit))
    assert (found.branch, found.dirty, found.notes, found.local) == (branch, False, (), "")
    assert found.known_since is not None
    assert 0 <= time.time() - found.known_since < 60


@pytest.mark.parametrize("length", [4, 7, 39, 40])
def test_ids(shop: Store, repo: Path, length: int) -> None:
    first = sha(repo, "v1")
    assert resolve(shop, f"{url(repo)}@{first[:length]}#sub:x").pin == Pin(url(repo), first, "sub")
    assert resolve(shop, f"{url(repo)}@{first[:length]}").pin.sha == first  # now from the mirror


def test_id_of_an_annotated_tag_means_its_commit(shop: Store, repo: Path) -> None:
    tag = plain(repo, "rev-parse", "v1")
    assert tag != sha(repo, "v1")
    assert resolve(shop, f"{url(repo)}@{tag}").pin.sha == sha(repo, "v1")
    assert resolve(shop, f"{url(repo)}@{tag[:10]}").pin.sha == sha(repo, "v1")


def test_a_branch_asks_every_time_and_a_full_id_nobody(shop: Store, repo: Path, git_calls: list[str]) -> None:
    first = resolve(shop, f"{url(repo)}@main").pin.sha
    second = make_repository(repo, {"b": "b"})
    git_calls.clear()
    assert resolve(shop, f"{url(repo)}@main").pin.sha == second
    assert git_calls == ["fetch", "cat-file", "update-ref"]
    git_calls.clear()
    assert resolve(shop, f"{url(repo)}@main").pin.sha == second
    assert git_calls == ["fetch", "cat-file"]
    shutil.rmtree(repo)
    git_calls.clear()
    assert resolve(shop, f"{url(repo)}@{first}").pin.sha == first
    assert git_calls == []
    parent = second  # any commit of the mirror, also one that was never resolved
    assert resolve(shop, f"{url(repo)}@{parent.upper()}").pin.sha == parent
    with pytest.raises(RepositoryUnreachable):
        resolve(shop, f"{url(repo)}@main")


def test_a_full_id_that_was_never_resolved_asks_nobody_either(shop: Store, repo: Path, git_calls: list[str]) -> None:
    first = sha(repo, "v1^{commit}")
    resolve(shop, url(repo))
    git_calls.clear()
    resolve(shop, f"{url(repo)}@{first}")
    assert "fetch" not in git_calls
    git_calls.clear()
    resolve(shop, f"{url(repo)}@{first[:8]}")
    assert "fetch" not in git_calls


def test_moved_and_removed_branches(shop: Store, repo: Path) -> None:
    before = make_repository(repo, {"b": "b"})
    make_repository(repo, {"c": "c"})
    old = resolve(shop, f"{url(repo)}@main").pin.sha
    plain(repo, "reset", "-q", "--hard", "v2")
    plain(repo, "commit", "-q", "--amend", "-m", "rewritten")
    plain(repo, "branch", "-D", "feature/x")
    plain(repo, "branch", "feature")  # where there was a folder feature/
    assert resolve(shop, f"{url(repo)}@main").pin.sha == sha(repo) != old
    assert resolve(shop, f"{url(repo)}@feature").pin.sha == sha(repo)
    assert "feature" in refused(shop, url(repo), "feature/x").hint
    # It was on a branch when it was pinned, so a replay is no impostor.
    assert resolve(shop, f"{url(repo)}@{old}").pin.sha == old
    assert resolve(shop, f"{url(repo)}@{old[:10]}").pin.sha == old
    assert resolve(shop, f"{url(repo)}@{before}").pin.sha == before  # nor is what it was made from


def test_unknown_names_show_the_nearest(shop: Store, repo: Path) -> None:
    assert "Did you mean 'main'?" in refused(shop, f"{url(repo)}@mian").hint
    assert "Did you mean 'main'?" in refused(shop, url(repo), "origin/main").hint
    assert "feature/x" in refused(shop, url(repo), "feature/y").hint
    assert refused(shop, f"{url(repo)}@abcd").message.endswith("'abcd'.")
    error = refused(shop, f"{url(repo)}@{MISSING}")
    assert MISSING in error.message
    assert "pushed" in error.hint


def test_a_tag_and_a_branch_of_one_name(shop: Store, repo: Path) -> None:
    plain(repo, "tag", "both", "v1^{commit}")
    plain(repo, "branch", "both", "v1^{commit}")
    assert resolve(shop, f"{url(repo)}@both").branch == "both"  # one commit, so nothing is ambiguous
    plain(repo, "branch", "-f", "both", "main")
    error = refused(shop, f"{url(repo)}@both")
    assert "more than one" in error.message
    for name in ("refs/heads/both", "refs/tags/both"):
        assert name in error.hint
        assert resolve(shop, url(repo), name).pin.sha == sha(repo, name)


def test_a_name_that_is_a_short_id_of_another_commit(shop: Store, repo: Path) -> None:
    first, second = sha(repo, "v1"), sha(repo, "main")
    name = first[:8]
    plain(repo, "update-ref", f"refs/heads/{name}", second)
    error = refused(shop, f"{url(repo)}@{name}")
    assert f"refs/heads/{name}" in error.hint
    assert first in error.hint
    plain(repo, "update-ref", f"refs/heads/{name}", first)
    assert resolve(shop, f"{url(repo)}@{name}").branch == name


def test_a_short_id_with_several_commits(shop: Store, repo: Path) -> None:
    stem = plain(repo, "rev-parse", "HEAD^{tree}")
    seen: dict[str, str] = {}
    for number in range(3000):
        body = f"tree {stem}\nauthor a <a@b> {number} +0000\ncommitter a <a@b> {number} +0000\n\nx\n"
        made = hashlib.sha1(f"commit {len(body)}\0{body}".encode()).hexdigest()
        if made[:4] in seen:
            break
        seen[made[:4]] = body
    twins = []
    for number, text in enumerate((seen[made[:4]], body)):
        done = subprocess.run(
            ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
            cwd=repo,
            input=text,
            capture_output=True,
            text=True,
        )
        twins.append(done.stdout.strip())
        plain(repo, "branch", f"twin{number}", twins[-1])
    error = refused(shop, f"{url(repo)}@{made[:4]}")
    assert all(twin in error.hint for twin in twins)


def test_commits_of_strangers_are_refused(shop: Store, repo: Path) -> None:
    plain(repo, "checkout", "-q", "-b", "fork")
    stranger = make_repository(repo, {"evil": "evil"})
    plain(repo, "checkout", "-q", "main")
    plain(repo, "update-ref", "refs/pull/1/head", stranger)
    plain(repo, "branch", "-D", "fork")
    for text in (f"{url(repo)}@{stranger}",) * 2:
        error = refused(shop, text)
        assert "on no branch or tag" in error.message
        assert "--allow-unreachable" in error.hint
    assert not shop.mirror(url(repo)).holds(stranger)  # nothing of it was taken in
    allowed = resolve(shop, f"{url(repo)}@{stranger}", allow_unreachable=True)
    assert allowed.pin.sha == stranger
    assert "fork" in allowed.notes[0]
    assert shop.checkout(allowed, repo.parent / "out").joinpath("evil").exists()
    for rev in (stranger, stranger[:9]):  # allowed once is not allowed for ever
        assert "on no branch or tag" in refused(shop, f"{url(repo)}@{rev}").message
    plain(repo, "branch", "merged", stranger)
    assert resolve(shop, f"{url(repo)}@{stranger}").notes == ()


def test_only_branches_and_tags_are_mirrored(shop: Store, repo: Path) -> None:
    plain(repo, "update-ref", "refs/pull/1/head", "HEAD")
    resolve(shop, url(repo))
    names = git.names(shop.mirror_path(url(repo)))
    assert {name.split("/")[1] for name in names} == {"heads", "tags", "segserve"}


@pytest.mark.parametrize(
    ("rest", "commit", "subdir"),
    [
        ("main", "main", ""),
        ("feature/x", "feature/x", ""),
        ("feature/x/sub", "feature/x", "sub"),
        ("main/sub/deep", "main", "sub/deep"),
        ("v1/sub", "v1", "sub"),
        ("{sha}/sub", "v1", "sub"),
        ("{short}", "v1", ""),
    ],
)
def test_pasted_addresses(shop: Store, repo: Path, rest: str, commit: str, subdir: str) -> None:
    rest = rest.format(sha=sha(repo, "v1"), short=sha(repo, "v1")[:8])
    found = shop.resolve(ExecutorRef(url(repo), RepoKind.FILE, rev=rest, tree=True))
    assert found.pin == Pin(url(repo), sha(repo, commit), subdir)
    found = shop.resolve(ExecutorRef(url(repo), RepoKind.FILE, rev=rest, tree=True, subdir="more"))
    assert found.pin.subdir == f"{subdir}/more".lstrip("/")


def test_pasted_address_without_a_branch(shop: Store, repo: Path) -> None:
    with pytest.raises(RevisionNotFound, match="'nothing/here'"):
        shop.resolve(ExecutorRef(url(repo), RepoKind.FILE, rev="nothing/here", tree=True))


def test_offline(shop: Store, repo: Path) -> None:
    with pytest.raises(RepositoryUnreachable, match="never fetched") as caught:
        resolve(shop, url(repo), offline=True)
    assert "--offline" in caught.value.hint
    first = resolve(shop, url(repo)).pin.sha
    make_repository(repo, {"b": "b"})
    shop.mirror(url(repo))._record(shop.mirror_path(url(repo)), time.time() - 3 * 3600)
    found = resolve(shop, url(repo), offline=True)
    assert (found.pin.sha, found.offline) == (first, True)
    assert found.known_since == pytest.approx(time.time() - 3 * 3600, abs=60)
    assert "3 hours ago" in found.notes[0]
    assert resolve(shop, f"{url(repo)}@{first}", offline=True).notes == ()
    assert "--offline" in refused(shop, f"{url(repo)}@{MISSING}", offline=True).hint
    assert "last fetched" in refused(shop, f"{url(repo)}@new", offline=True).message


def test_empty_and_headless_repositories(shop: Store, tmp_path: Path, repo: Path) -> None:
    plain(tmp_path, "init", "-q", "--bare", "empty.git")
    assert "empty" in refused(shop, url(tmp_path / "empty.git")).message
    assert "empty" in refused(shop, f"{url(tmp_path)}/empty.git@main").message
    plain(tmp_path, "init", "-q", "--bare", "-b", "nothing", "headless.git")
    plain(repo, "push", "-q", str(tmp_path / "headless.git"), "main", "feature/x")
    error = refused(shop, url(tmp_path / "headless.git"))
    assert "feature/x, main" in error.hint
    assert resolve(shop, f"{url(tmp_path)}/headless.git@main").pin.sha == sha(repo)


def test_no_repository_and_no_name(shop: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RepositoryUnreachable) as caught:
        resolve(shop, "file:///no/such/repository")
    assert caught.value.quote
    assert not shop.mirrors()
    (tmp_path / "unet").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound) as missing:
        resolve(shop, "unet")
    assert "./unet" in missing.value.hint


def test_detached_remote(shop: Store, repo: Path) -> None:
    plain(repo, "checkout", "-q", "--detach")
    made = make_repository(repo, {"c": "c"})
    found = resolve(shop, url(repo))
    assert (found.pin.sha, found.branch) == (made, "")


# --- mirrors ---------------------------------------------------------------------------------------------------------


def test_mirrors(shop: Store, repo: Path, home: Home) -> None:
    resolve(shop, url(repo))
    resolve(shop, str(repo))
    (mirror,) = shop.mirrors()
    assert (mirror.repo, mirror.path) == (url(repo), shop.mirror_path(url(repo)))
    assert mirror.size > 1000
    assert mirror.fetched is not None
    assert shop.mirror_path("https://H.org/a/b.git/") == shop.mirror_path("https://h.org/a/b")
    shop.remove_mirror(url(repo))
    assert shop.mirrors() == []
    assert not list(home.temporary.iterdir())
    with pytest.raises(NotFound):
        shop.remove_mirror(url(repo))


def _in_processes(count: int, home: Home, text: str, trace: Path) -> list[str]:
    code = (
        "import sys; from segserve.store import Store; from segserve.layout import home\n"
        "from segserve.refs import parse\n"
        "print(Store(home()).resolve(parse(sys.argv[1]), on_note=lambda n: print(n, file=sys.stderr)).pin.sha)"
    )
    env = {**os.environ, "SEGSERVE_HOME": str(home.path), "PATH": f"{trace.parent}{os.pathsep}{os.environ['PATH']}"}
    started = [
        subprocess.Popen([sys.executable, "-c", code, text], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(count)
    ]
    done = [process.communicate() for process in started]
    assert all(process.returncode == 0 for process in started), done
    return [out.decode().strip() for out, _ in done]


def _traced_git(folder: Path) -> Path:
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\necho "$1" >> "{folder}/log"\nexec "{shutil.which("git")}" "$@"\n')
    (folder / "git").chmod(0o755)
    return folder / "log"


def test_twenty_at_once_clone_once(repo: Path, home: Home, tmp_path: Path) -> None:
    log = _traced_git(tmp_path / "bin")
    assert set(_in_processes(20, home, url(repo), log)) == {sha(repo)}
    words = log.read_text().split()
    assert words.count("init") == 1
    assert words.count("fetch") <= 20
    assert len(list(home.repositories.glob("*.git"))) == 1
    assert not list(home.temporary.iterdir())


def test_waiting_for_somebody_else_s_fetch_counts_as_asking(shop: Store, repo: Path, git_calls: list[str]) -> None:
    resolve(shop, url(repo))
    mirror, notes = shop.mirror(url(repo)), []
    git_calls.clear()
    with ThreadPoolExecutor(8) as pool:
        with mirror.writing(lambda _: None):
            waiting = [pool.submit(mirror.update, notes.append) for _ in range(8)]
            while len(notes) < 8:
                time.sleep(0.01)
        for one in waiting:
            one.result()
    assert git_calls.count("fetch") == 1
    assert "Another command" in notes[0]


def test_a_killed_clone_leaves_nothing_that_looks_like_a_mirror(repo: Path, home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(
        f'#!/bin/sh\ncase "$1" in fetch) touch "{tmp_path}/begun"; sleep 60;; esac\nexec "{shutil.which("git")}" "$@"\n'
    )
    (folder / "git").chmod(0o755)
    code = "import sys; from segserve.store import Store; from segserve.layout import home\n"
    code += "from segserve.refs import parse; Store(home()).resolve(parse(sys.argv[1]))"
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, "-c", code, url(repo)], env=env)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait()
    for child in children:
        os.killpg(int(child), signal.SIGKILL)
    assert list(home.temporary.iterdir())
    assert not list(home.repositories.glob("*.git"))
    assert resolve(Store(home), url(repo)).pin.sha == sha(repo)
    assert not list(home.temporary.iterdir())


def test_lock_files_and_packs_of_a_killed_fetch(shop: Store, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(shop, url(repo))
    path = shop.mirror_path(url(repo))
    (path / "refs" / "heads" / "main.lock").touch()
    (path / "objects" / "pack" / "tmp_pack_x").touch()
    monkeypatch.setattr(store.mirror, "_STALE_LOCK_S", 0.2)
    made = make_repository(repo, {"b": "b"})
    assert resolve(shop, url(repo)).pin.sha == made
    assert not list(path.rglob("*.lock"))
    assert not list(path.rglob("tmp_*"))


def _damage(path: Path, size: int) -> None:
    for pack in path.rglob("*.pack"):
        pack.chmod(0o644)
        os.truncate(pack, size)
    for loose in path.glob("objects/??/*"):
        loose.chmod(0o644)
        os.truncate(loose, size)


@pytest.mark.parametrize("size", [0, 40])
def test_a_damaged_mirror_is_cloned_again(shop: Store, repo: Path, tmp_path: Path, size: int) -> None:
    found = resolve(shop, url(repo))
    _damage(shop.mirror_path(url(repo)), size)
    notes: list[str] = []
    assert (shop.checkout(found, tmp_path / "out", on_note=notes.append) / "sub" / "a.txt").read_text() == "a"
    assert "damaged" in notes[0]
    _damage(shop.mirror_path(url(repo)), size)
    made = make_repository(repo, {"b": "b"})
    assert resolve(shop, url(repo)).pin.sha == made


def test_a_damaged_mirror_stays_while_the_remote_is_away(shop: Store, repo: Path, tmp_path: Path) -> None:
    found = resolve(shop, url(repo))
    _damage(shop.mirror_path(url(repo)), 0)
    repo.rename(tmp_path / "away")
    with pytest.raises(RepositoryUnreachable):
        shop.checkout(found, tmp_path / "out")
    assert shop.mirror_path(url(repo)).exists()
    assert not (tmp_path / "out").exists()


# --- checkouts -------------------------------------------------------------------------------------------------------


def test_checkout(shop: Store, repo: Path, tmp_path: Path) -> None:
    out = shop.checkout(resolve(shop, f"{url(repo)}@v1"), tmp_path / "job" / "checkout")
    assert (out / "MLProject").read_text() == "name: one"
    assert plain(out, "rev-parse", "--short", "HEAD") == sha(repo, "v1")[:7]
    assert plain(out, "config", "--get", "remote.origin.url") == url(repo)
    assert plain(out, "status", "--porcelain") == ""
    assert plain(out, "describe", "--tags") == "v1"
    assert plain(out, "tag").split() == ["v1", "v2"]
    assert "segserve" not in (out / ".git" / "config").read_text()


def test_checkout_shares_nothing(shop: Store, repo: Path, tmp_path: Path) -> None:
    found = resolve(shop, url(repo))
    out = shop.checkout(found, tmp_path / "out")
    assert not (out / ".git" / "objects" / "info" / "alternates").exists()
    assert all(file.stat().st_nlink == 1 for file in out.rglob("*") if file.is_file())
    assert not (out / ".git" / "hooks").exists()
    shop.remove_mirror(url(repo))
    assert plain(out, "fsck") == ""
    with pytest.raises(RevisionNotFound, match="not on this machine"):
        shop.checkout(found, tmp_path / "again")


def test_nothing_of_the_repository_or_the_user_runs(
    shop: Store, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil, user = tmp_path / "evil", tmp_path / "user"
    hook = user / "hooks" / "post-checkout"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\ntouch {evil}\n")
    hook.chmod(0o755)
    (user / ".gitconfig").write_text(
        f'[core]\n hooksPath = {hook.parent}\n[filter "x"]\n smudge = touch {evil}; cat\n clean = touch {evil}; cat\n'
    )
    make_repository(repo, {".gitattributes": "* filter=x", "f": "text"})
    for name in ("post-checkout", "post-index-change", "reference-transaction"):
        target = repo / ".git" / "hooks" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(hook, target)
    for key, value in (("filter.x.clean", f"touch {evil}; cat"), ("core.fsmonitor", str(hook))):
        plain(repo, "config", key, value)
    plain(repo, "config", "filter.x.required", "true")
    os.utime(repo / "f", (time.time() + 1000,) * 2)  # younger than any index, so git looks at its content
    plain(repo, "add", "f")
    (repo / "staged").write_text("s")
    plain(repo, "add", "staged")
    evil.unlink()  # plain git starts them
    monkeypatch.setenv("HOME", str(user))
    (repo / "MLProject").write_text("changed")
    out = shop.checkout(resolve(shop, str(repo)), tmp_path / "out")
    assert (out / "MLProject").read_text() == "changed"
    shop.checkout(resolve(shop, url(repo)), tmp_path / "out2")
    assert not evil.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "sub/../../x", "sub/up/../../.."])
def test_links_out_of_the_repository_are_refused(shop: Store, repo: Path, tmp_path: Path, target: str) -> None:
    (repo / "sub" / "up").symlink_to("..")
    (repo / "data").symlink_to(target)
    make_repository(repo, {})
    with pytest.raises(InvalidProject, match="data") as caught:
        shop.checkout(resolve(shop, url(repo)), tmp_path / "out")
    assert ".gitignore" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_links_inside_are_fine(shop: Store, repo: Path, tmp_path: Path) -> None:
    for name, target in (("a", "sub/a.txt"), ("sub/b", "../MLProject"), ("dangling", "nowhere"), ("loop", "loop")):
        (repo / name).symlink_to(target)
    make_repository(repo, {})
    out = shop.checkout(resolve(shop, url(repo)), tmp_path / "out")
    assert (out / "sub" / "b").read_text() == "name: two"


def _with_submodule(repo: Path, tmp_path: Path, address: str) -> str:
    inner = make_repository(tmp_path / "inner", {"in.txt": "in"})
    plain(repo, "update-index", "--add", "--cacheinfo", f"160000,{inner},lib")
    (repo / ".gitmodules").write_text(f'[submodule "lib"]\n\tpath = lib\n\turl = {address}\n')
    plain(repo, "add", ".gitmodules")
    plain(repo, "commit", "-q", "-m", "submodule")
    return inner


def test_submodules_come_on_request(shop: Store, repo: Path, tmp_path: Path) -> None:
    inner = _with_submodule(repo, tmp_path, "../inner")  # relative to the origin, not to our mirror
    found, notes = resolve(shop, url(repo)), []
    out = shop.checkout(found, tmp_path / "out", on_note=notes.append)
    assert list((out / "lib").iterdir()) == []
    assert "--submodules" in notes[0]
    out = shop.checkout(found, tmp_path / "with", submodules=True, on_note=notes.append)
    assert (out / "lib" / "in.txt").read_text() == "in"
    assert plain(out / "lib", "rev-parse", "HEAD") == inner
    assert len(notes) == 1


@pytest.mark.parametrize("address", ["ext::sh -c 'touch evil'", "-u./evil", "http://127.0.0.1/x", "git://127.0.0.1/x"])
def test_hostile_submodules(shop: Store, repo: Path, tmp_path: Path, address: str) -> None:
    _with_submodule(repo, tmp_path, address)
    with pytest.raises(InvalidProject, match="submodule") as caught:
        shop.checkout(resolve(shop, url(repo)), tmp_path / "out", submodules=True)
    assert caught.value.quote
    assert not list(tmp_path.rglob("evil"))


def test_a_stranger_s_submodule_does_not_read_this_machine(shop: Store, repo: Path, tmp_path: Path) -> None:
    _with_submodule(repo, tmp_path, url(tmp_path / "inner"))
    found = resolve(shop, url(repo))
    mirror = shop.mirror(url(repo))
    stranger = store.Mirror(shop.home, "https://git.invalid/r", mirror.source, shop.access)
    stranger.update(lambda _: None)
    with pytest.raises(InvalidProject, match="not allowed"):
        shop.checkout(Pin("https://git.invalid/r", found.pin.sha), tmp_path / "out", submodules=True)


# --- local folders ---------------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file and folder below."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.lstat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


def test_clean_work_tree(shop: Store, repo: Path, tmp_path: Path) -> None:
    found = resolve(shop, str(repo))
    assert found.pin == Pin(url(repo), sha(repo))
    assert (found.branch, found.dirty, found.known_since, found.notes) == ("main", False, None, ())
    assert (found.local, found.requested) == (str(repo), f"{repo}#main")
    assert (shop.checkout(found, tmp_path / "out") / "MLProject").read_text() == "name: two"


def _change(repo: Path) -> None:
    """Every kind of change: edited, deleted, untracked, staged, staged and edited, staged though ignored, renamed."""
    make_repository(repo, {".gitignore": "*.log\nsegserve-results/\n", "gone": "g", "old": "o" * 99, "run.sh": "x"})
    (repo / "MLProject").write_text("name: edited")
    (repo / "gone").unlink()
    (repo / "new dir").mkdir()
    (repo / "new dir" / "ünt\tracked").write_text("u")
    (repo / "x.log").write_text("ignored")
    (repo / "forced.log").write_text("forced")
    (repo / "staged").write_text("staged")
    (repo / "twice").write_text("first")
    for name in ("staged", "forced.log"):
        os.utime(repo / name, (1e9, 1e9))  # older than the index, so that git trusts its entry for them
    plain(repo, "add", "-f", "staged", "twice", "forced.log")
    plain(repo, "mv", "old", "renamed")
    (repo / "twice").write_text("second")
    (repo / "run.sh").chmod(0o755)


def test_uncommitted_changes_become_a_snapshot(shop: Store, repo: Path, tmp_path: Path) -> None:
    _change(repo)
    before = fingerprint(repo)
    found = resolve(shop, str(repo))
    again = resolve(shop, str(repo))
    assert fingerprint(repo) == before
    assert found.dirty
    assert again.pin == found.pin
    assert "snapshot" in found.notes[0]
    shutil.move(repo, tmp_path / "moved")  # the snapshot needs nothing of it
    out = shop.checkout(found.pin, tmp_path / "out")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and ".git/" not in str(path)}
    assert files == {
        *(".gitignore", "MLProject", "new dir/ünt\tracked", "staged", "twice", "renamed", "sub/a.txt"),
        *("forced.log", "run.sh"),
    }
    assert (out / "MLProject").read_text() == "name: edited"
    assert (out / "twice").read_text() == "second"
    assert os.access(out / "run.sh", os.X_OK)
    assert plain(out, "rev-parse", "HEAD^") == sha(tmp_path / "moved")
    assert plain(out, "log", "-1", "--format=%ct") == plain(out, "log", "-1", "--format=%ct", "HEAD^")


def test_snapshots_differ_when_content_does(shop: Store, repo: Path) -> None:
    shas = set()
    for text in ("a", "b", "c"):
        (repo / "MLProject").write_text(text)
        shas.add(resolve(shop, str(repo)).pin.sha)
    assert len(shas) == 3


def test_committed_runs_head(shop: Store, repo: Path) -> None:
    (repo / "new").write_text("n")
    found = resolve(shop, str(repo), committed=True)
    assert (found.pin.sha, found.dirty) == (sha(repo), False)
    assert "left out" in found.notes[0]


def test_touched_files_are_no_change(shop: Store, repo: Path) -> None:
    os.utime(repo / "MLProject", (1, 1))
    before = fingerprint(repo)
    assert not resolve(shop, str(repo)).dirty
    assert fingerprint(repo) == before


def test_origin_is_where_a_clone_comes_from(shop: Store, repo: Path, tmp_path: Path) -> None:
    plain(repo, "remote", "add", "origin", "https://me:S3CRET@host.org/g/r.git")
    found = resolve(shop, str(repo))
    assert found.pin.repo == "https://host.org/g/r.git"
    assert "on no branch of https://host.org/g/r.git" in found.notes[0]
    plain(repo, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert resolve(shop, str(repo)).notes == ()
    (repo / "new").write_text("n")
    dirty = resolve(shop, str(repo))
    for number, pinned in enumerate((found, found.pin, dirty, dirty.pin)):
        out = shop.checkout(pinned, tmp_path / f"out{number}")
        assert plain(out, "config", "--get", "remote.origin.url") == "https://host.org/g/r.git"
        assert "S3CRET" not in (out / ".git" / "config").read_text()
    assert "S3CRET" not in repr(found)


def test_subfolder_of_a_repository(shop: Store, repo: Path, tmp_path: Path) -> None:
    make_repository(repo, {"sub/deep/MLProject": "name: deep"})
    (repo / "sub" / "b").write_text("b")
    found = resolve(shop, f"{repo}/sub#deep:")
    assert (found.pin.subdir, found.local, found.dirty) == ("sub/deep", str(repo), True)
    assert found.requested == f"{repo}/sub#deep:main"
    assert (shop.checkout(found, tmp_path / "out") / found.pin.subdir / "MLProject").exists()
    assert resolve(shop, f"{repo}/sub@v2").pin == Pin(url(repo), sha(repo, "v2"), "sub")


def test_folder_that_an_outer_repository_ignores(shop: Store, repo: Path) -> None:
    make_repository(repo, {".gitignore": "scratch/"})
    (repo / "scratch").mkdir()
    (repo / "scratch" / "MLProject").write_text("name: s")
    found = resolve(shop, f"{repo}/scratch")
    assert (found.local, found.pin.subdir, found.dirty) == (f"{repo}/scratch", "", True)


def test_folder_without_git(shop: Store, tmp_path: Path) -> None:
    folder = tmp_path / "plain folder"
    (folder / "a").mkdir(parents=True)
    for name, text in (("MLProject", "name: p"), ("a/b", "b"), ("x.log", "l"), (".gitignore", "*.log")):
        (folder / name).write_text(text)
    found = resolve(shop, str(folder))
    assert (found.dirty, found.branch, found.pin.repo) == (True, "", folder.as_uri())
    assert resolve(shop, str(folder)).pin == found.pin
    assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "MLProject", "a", "x.log"]
    out = shop.checkout(found.pin, tmp_path / "out")
    assert (out / "a" / "b").read_text() == "b"
    assert not (out / "x.log").exists()
    assert plain(out, "rev-list", "--count", "HEAD") == "1"
    assert "no git repository" in refused(shop, str(folder), committed=True).message
    # The same folder made into a repository later has the same mirror.
    made = make_repository(folder, {"c": "c"})
    assert resolve(shop, str(folder)).pin.sha == made
    (tmp_path / "nothing").mkdir()
    assert "nothing in" in refused(shop, str(tmp_path / "nothing")).message


def test_before_the_first_commit(shop: Store, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    plain(folder, "init", "-q", "-b", "main")
    assert "no commit yet" in refused(shop, str(folder)).message
    (folder / "MLProject").write_text("name: n")
    plain(folder, "add", "-A")
    before = fingerprint(folder)
    found = resolve(shop, str(folder))
    assert (found.dirty, found.branch) == (True, "main")
    assert fingerprint(folder) == before
    assert (shop.checkout(found, tmp_path / "out") / "MLProject").exists()
    assert "no commit yet" in refused(shop, str(folder), committed=True).message


@pytest.mark.parametrize("depth", [1, None])
def test_shallow_and_detached_checkouts_of_ci(shop: Store, repo: Path, tmp_path: Path, depth: int | None) -> None:
    ci = tmp_path / "ci"
    plain(tmp_path, "clone", "-q", *(["--depth=1"] if depth else []), url(repo), "ci")
    plain(ci, "checkout", "-q", "--detach")
    found = resolve(shop, str(ci))
    assert (found.pin.sha, found.branch, found.dirty) == (sha(repo), "", False)
    out = shop.checkout(found, tmp_path / "out")
    assert plain(out, "rev-list", "--count", "HEAD") == ("1" if depth else "2")
    (ci / "new").write_text("n")
    dirty = resolve(shop, str(ci))
    out = shop.checkout(dirty, tmp_path / "dirty")
    assert plain(out, "rev-parse", "HEAD^") == found.pin.sha
    if depth:
        plain(ci, "fetch", "-q", "--unshallow")
        made = make_repository(ci, {"more": "m"})
        out = shop.checkout(resolve(shop, str(ci)), tmp_path / "deep")
        assert plain(out, "rev-parse", "HEAD") == made
        assert plain(out, "rev-list", "--count", "HEAD") == "3"


def test_linked_work_tree(shop: Store, repo: Path, tmp_path: Path) -> None:
    plain(repo, "worktree", "add", "-q", str(tmp_path / "linked"), "feature/x")
    (tmp_path / "linked" / "new").write_text("n")
    before = fingerprint(repo)
    found = resolve(shop, str(tmp_path / "linked"))
    assert (found.branch, found.dirty) == ("feature/x", True)
    assert resolve(shop, str(tmp_path / "linked"), committed=True).pin.sha == sha(repo, "feature/x")
    assert fingerprint(repo) == before


def test_revisions_of_a_local_folder(shop: Store, repo: Path, tmp_path: Path) -> None:
    (repo / "new").write_text("uncommitted")
    assert resolve(shop, f"{repo}@v1").pin == Pin(url(repo), sha(repo, "v1"))
    assert resolve(shop, str(repo), "feature/x").branch == "feature/x"
    plain(repo, "stash", "-u", "-q")
    stash = sha(repo, "stash")
    found = resolve(shop, f"{repo}@{stash}")  # one's own commits are nobody else's, on a branch or not
    assert (found.pin.sha, found.local) == (stash, str(repo))
    shop.checkout(found, tmp_path / "out")
    assert "v1, v2" in refused(shop, f"{repo}@v3").hint


def test_bare_repository_as_a_folder(shop: Store, repo: Path, tmp_path: Path) -> None:
    plain(tmp_path, "clone", "-q", "--bare", "executor", "bare.git")
    found = resolve(shop, f"{tmp_path}/bare.git@v1")
    assert found.pin == Pin(url(tmp_path / "bare.git"), sha(repo, "v1"))
    assert resolve(shop, f"{tmp_path}/bare.git").branch == "main"


def test_nested_repositories(shop: Store, repo: Path, tmp_path: Path) -> None:
    make_repository(repo / "nested", {"n": "n"})
    found = resolve(shop, str(repo))
    assert any("nested/" in note and "left out" in note for note in found.notes)
    shop.checkout(found, tmp_path / "out")
    plain(repo, "init", "-q", "unborn")
    (repo / "unborn" / "file").write_text("x")
    with pytest.raises(InvalidProject, match="recorded") as caught:
        resolve(shop, str(repo))
    assert ".gitignore" in caught.value.hint


def test_split_index_and_cache_are_not_written(shop: Store, repo: Path) -> None:
    plain(repo, "config", "core.untrackedCache", "true")
    plain(repo, "update-index", "--split-index", "--untracked-cache")
    _change(repo)
    before = fingerprint(repo)
    assert resolve(shop, str(repo)).dirty
    after = fingerprint(repo)
    for name in [name for name in before if "sharedindex" in name]:  # its time is renewed by whoever reads it
        assert before.pop(name)[0] == after.pop(name)[0]
    assert after == before


def test_snapshots_have_a_limit(shop: Store, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.store, "MAX_SNAPSHOT_BYTES", 1000)
    (repo / "weights.bin").write_bytes(bytes(2000))
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(bytes(2000))
    for place in (repo, folder):
        with pytest.raises(TooLarge, match=r"weights\.bin") as caught:
            resolve(shop, str(place))
        assert ".gitignore" in caught.value.hint
    (repo / ".gitignore").write_text("*.bin")
    assert resolve(shop, str(repo)).dirty


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_repository_of_another_user(home: Home, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (repo, *repo.rglob("*")):
        os.chown(path, 12345, 12345)
    for text in (str(repo), url(repo)):
        with pytest.raises(RepositoryUnreachable, match="another user") as caught:
            resolve(Store(home), text)
        assert f"safe.directory {repo}" in caught.value.hint
    user = tmp_path / "user"
    user.mkdir()
    (user / ".gitconfig").write_text(f"[safe]\n directory = {repo}\n")
    monkeypatch.setenv("HOME", str(user))
    for text in (str(repo), url(repo)):  # the hint can be followed
        assert resolve(Store(home), text).pin.repo == url(repo)
    (repo / "MLProject").write_text("changed")
    assert resolve(Store(home), str(repo)).dirty


def test_a_server_does_not_read_its_own_disk(home: Home, repo: Path) -> None:
    for text in (url(repo), str(repo), str(repo / "sub"), str(home.path)):
        with pytest.raises(errors.AccessDenied):
            resolve(Store(home, git.Access()), text)


# --- secrets, locks --------------------------------------------------------------------------------------------------


def test_a_secret_in_the_url_is_nowhere(home: Home, repo: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    plain(tmp_path, "clone", "-q", "--bare", "executor", "served/r.git")
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(process.read_bytes())
                except OSError:
                    continue

    with PrivateServer(served, user="me", password="S3CRETcanary") as server:
        thread = threading.Thread(target=watch)
        thread.start()
        ref = ExecutorRef(f"{server.url}/r.git", RepoKind.HTTPS, credentials=Credentials("me", "S3CRETcanary"))
        shop = Store(home, git.Access(protocols=("http",)))
        found = shop.resolve(ref)
        shop.checkout(found, home.job("1").attempt(1).checkout)
        stop.set()
        thread.join()
        wrong = ExecutorRef(ref.repo, RepoKind.HTTPS, credentials=Credentials("me", "S3CRETwrong"))
        with pytest.raises(errors.RepositoryUnreachable) as caught:
            shop.resolve(wrong)
    error = caught.value
    assert found.pin == Pin(f"{server.url}/r.git", sha(repo))
    assert "S3CRET" not in f"{found!r} {ref!r} {error!r} {error} {error.hint} {error.quote} {error.__cause__}"
    assert any(b"fetch" in argv for argv in seen)
    assert not any(b"S3CRET" in argv for argv in seen)
    for file in [file for file in home.path.rglob("*") if file.is_file()]:
        assert b"S3CRET" not in file.read_bytes(), file


def test_locks(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.lock"
    waited: list[str] = []
    with locked(path), pytest.raises(errors.NoSlot), locked(path, blocking=False):
        pass
    with locked(path, shared=True), locked(path, shared=True):
        with pytest.raises(errors.NoSlot), locked(path, blocking=False):
            pass
        waiter = threading.Thread(target=_hold, args=(path, lambda: waited.append("waits")))
        waiter.start()
        while not waited:
            time.sleep(0.01)
    waiter.join(5)
    assert waited == ["waits"]
    assert 0 <= age(path) < 60


def _hold(path: Path, on_wait: Callable[[], None]) -> None:
    with locked(path, on_wait=on_wait):
        pass
