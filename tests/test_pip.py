"""Requirements: what they lead to, what is refused, where packages come from, what an installation leaves."""

from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segserve import process
from segserve.environments import base, pip
from segserve.environments.closure import remote_revision
from segserve.environments.indexes import Indexes, pip_settings
from segserve.errors import DiskFull, EnvironmentBuildFailed, InvalidProject, RepositoryUnreachable, UsageError
from tests.channel import make_wheel
from tests.packages import PYPROJECT, local_package
from tests.repositories import git, make_repository

pytest_plugins = ["tests.packages"]


def read(root: Path, *lines: str, files: Mapping[str, str] | None = None, **options: Any) -> pip.Requirements:
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return pip.read(lines, root / options.pop("folder", "."), root, source="conda.yaml", **options)


# ---------------------------------------------------------------------------------------------------------- closure


def test_files_are_followed(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "mlflow==1.30.1",
        "-r requirements/base.txt  # the rest",
        "--constraint=limits.txt",
        files={
            "requirements/base.txt": (
                "\ufeffnumpy>=1.20 ; python_version < '3.12'\n-r more.txt\n# no\nscipy \\\n  >=1.7\n"
            ),
            "requirements/more.txt": "-r base.txt\ntifffile\n",
            "limits.txt": "numpy<2\n",
        },
    )
    assert found.lines == ("mlflow==1.30.1", "numpy>=1.20 ; python_version < '3.12'", "tifffile", "scipy   >=1.7")
    assert found.constraints == ("numpy<2",)


def test_options_are_translated(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    found = read(
        tmp_path,
        "--extra-index-url https://download.example.org/whl/cu113",
        "-i https://mirror.example.org/simple",
        "-f https://download.example.org/torch_stable.html",
        "--find-links ./wheels",
        "--pre --no-cache-dir",
        "--no-binary=:all: --only-binary numpy",
        "--trusted-host mirror.example.org --trusted-host elsewhere.example.org",
        "torch==1.10+cu113 --hash=sha256:00ff --hash sha256:11ee",
    )
    assert found.indexes.index == "https://mirror.example.org/simple"
    assert found.indexes.extra == ("https://download.example.org/whl/cu113",)
    assert found.indexes.find_links == ("https://download.example.org/torch_stable.html", str(tmp_path / "wheels"))
    assert found.indexes.trusted_hosts == ("mirror.example.org",)
    assert found.arguments == ("--prerelease=allow", "--no-binary=:all:", "--only-binary=numpy")
    assert found.lines == ("torch==1.10+cu113 --hash=sha256:00ff --hash=sha256:11ee",)
    assert any("elsewhere.example.org" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("line", "path", "extras", "marker"),
    [
        ("./sdk", "sdk", "", ""),
        ("sdk/", "sdk", "", ""),
        ("-e ./sdk[gpu]", "sdk", "[gpu]", ""),
        ("-e sdk/.", "sdk", "", ""),
        ("sdk @ ./sdk", "sdk", "", ""),
        ("sdk[gpu] @ file:./sdk", "sdk", "[gpu]", ""),
        ("./sdk ; python_version < '3.9'", "sdk", "", "python_version < '3.9'"),
        ("./sdk/x.whl", "sdk/x.whl", "", ""),
        ("--editable=.", ".", "", ""),
    ],
)
def test_local_paths(tmp_path: Path, line: str, path: str, extras: str, marker: str) -> None:
    (found,) = read(tmp_path, line, files={"sdk/x.whl": "", "sdk/setup.py": ""}).local
    assert found.path == (tmp_path / path).resolve()
    assert (found.extras, found.marker) == (extras, marker)


def test_a_package_beside_the_project_is_fine(tmp_path: Path) -> None:
    files = {"sdk/setup.py": "", "executors/cells/requirements.txt": "-e ../../sdk\n"}
    found = read(tmp_path, "-r requirements.txt", files=files, folder="executors/cells")
    assert [local.path for local in found.local] == [tmp_path.resolve() / "sdk"]


def test_absolute_file_urls_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "my sdk").mkdir()
    found = read(tmp_path, f"sdk @ {(tmp_path / 'my sdk').as_uri()}")
    assert found.local[0].path == (tmp_path / "my sdk").resolve()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-r ../outside.txt", "leaves the repository"),
        ("-r link.txt", "leaves the repository"),
        ("-c /etc/hostname", "leaves the repository"),
        ("-e ../x", "leaves the repository"),
        ("file:///etc", "leaves the repository"),
        ("x @ file:///etc", "leaves the repository"),
        ("--find-links /etc", "leaves the repository"),
        ("--extra-index-url file:///etc", "leaves the repository"),
        ("--index-url ftp://example.org", "https, http or a folder"),
        ("git+file:///etc", "leaves the repository"),
        ("git+ext::sh -c true", "git requirement"),
        ("git+https://example.org/x@--upload-pack=x", "git r"),
        ("hg+https://example.org/x", "only git, https and local paths"),
        ("-r nothing.txt", "'nothing.txt' does not exist"),
        ("-r https://example.org/r.txt", "another server"),
        ("./nothing", "does not exist"),
        ("./text.txt", "neither a project folder nor a wheel"),
        ("--config-settings=x=y", "'--config-settings' is not supported"),
        ("numpy --global-option=build_ext", "'--global-option=build_ext' of a requirement"),
        ("numpy --install-option=--prefix=/", "of a requirement"),
        ("https://user:${TOKEN}@example.org/x.whl", "variable of this machine"),
        ("--extra-index-url https://${HOME}.example.org", "variable of this machine"),
        ("numpy\0", "control characters"),
        ("-r 'open", "quotation mark"),
        ("-r", "lacks its value"),
        ("file://server/share/x", "another machine"),
        ("--no-binary --evil", "no package name"),
    ],
)
def test_hostile_lines_are_refused(tmp_path: Path, line: str, says: str) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    (tmp_path / "outside.txt").write_text("numpy\n")
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    (root / "text.txt").write_text("")
    with pytest.raises(InvalidProject) as caught:
        read(root, line)
    assert says in str(caught.value)


def test_all_problems_come_at_once_with_their_places(tmp_path: Path) -> None:
    with pytest.raises(InvalidProject) as caught:
        read(tmp_path, "-r a.txt", "-e ../x", files={"a.txt": "numpy\n\n./nothing\n--bad\n"})
    places = [str(finding.place) for finding in caught.value.findings]
    assert places == ["a.txt:3", "a.txt:4", "conda.yaml"]


def test_requirements_without_end_are_refused(tmp_path: Path) -> None:
    files = {f"r{n}.txt": f"-r r{n + 1}.txt\n" for n in range(150)}
    with pytest.raises(InvalidProject, match="more than 100"):
        read(tmp_path, "-r r0.txt", files=files)


# -------------------------------------------------------------------------------------------------------------- git


def test_git_requirements_are_pinned(tmp_path: Path) -> None:
    library = tmp_path / "library"
    first = make_repository(library, {"setup.py": ""})
    git(library, "tag", "-a", "v1", "-m", "one")
    second = make_repository(library, {"setup.py": "#"}, message="second")
    url = library.as_uri()
    lines = (f"git+{url}@v1#egg=lib&subdirectory=x", f"lib2 @ git+{url}", f"git+{url}@{first}")
    found = read(tmp_path, *lines)
    assert found.lines == (
        f"lib @ git+{url}@{first}#subdirectory=x",
        f"lib2 @ git+{url}@{second}",
        f"git+{url}@{first}",
    )
    assert found.revisions == {f"{url}@v1": first, f"{url}@HEAD": second}
    make_repository(library, {"setup.py": "##"}, message="third")
    assert read(tmp_path, *lines, revisions=found.revisions).lines == found.lines
    assert read(tmp_path, *lines).identity() != found.identity()


def test_a_git_requirement_that_does_not_answer_is_keyed_by_its_text(tmp_path: Path) -> None:
    make_repository(tmp_path / "library", {"setup.py": ""})
    url = (tmp_path / "library").as_uri()
    found = read(tmp_path, f"git+{url}@nothing")
    assert found.lines == (f"git+{url}@nothing",)
    assert "could not be resolved" in found.warnings[0]
    assert read(tmp_path, f"git+{url}", offline=True).revisions == {}
    assert remote_revision(url, "main") == git(tmp_path / "library", "rev-parse", "HEAD")


# ---------------------------------------------------------------------------------------------------------- secrets


def test_secrets_are_in_nothing_that_is_recorded(tmp_path: Path) -> None:
    def found(password: str) -> pip.Requirements:
        return read(
            tmp_path,
            f"--extra-index-url https://me:{password}@packages.example.org/simple",
            f"x @ https://me:{password}@packages.example.org/x-1.0-py3-none-any.whl",
        )

    one, other = found("hunter2"), found("correcthorse")
    assert "hunter2" not in f"{one.shown()} {one.identity()} {one.indexes.identity()}"
    assert one.identity() == other.identity()
    assert one.indexes.identity() == other.indexes.identity()
    assert "hunter2" in one.lines[0]


# ----------------------------------------------------------------------------------------------------- this machine


def test_pips_configuration_reaches_uv(no_index: Path) -> None:
    variables = pip.host_settings().environment()
    assert variables["UV_FIND_LINKS"] == str(no_index)
    assert pip.host_settings().words() == ("--no-index",)


def test_precedence_is_pips(tmp_path: Path, no_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = tmp_path / "config" / "pip"
    user.mkdir(parents=True)
    (user / "pip.conf").write_text(
        "[global]\nextra_index_url = https://user.example.org\nno-index = true\nproxy = p:1\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "pip.conf").write_text("[global]\nno-index = true\n[install]\nno-index = false\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable.example.org/simple")
    settings = pip_settings()
    assert settings["extra-index-url"] == "https://user.example.org"
    assert settings["index-url"] == "https://variable.example.org/simple"
    assert settings["no-index"] == "false"
    variables = pip.host_settings().environment()
    assert variables["UV_DEFAULT_INDEX"] == "https://variable.example.org/simple"
    assert variables["UV_EXTRA_INDEX_URL"] == "https://user.example.org"
    assert variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert variables["HTTPS_PROXY"] == "p:1"
    assert pip.host_settings().words() == ()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert "extra-index-url" not in pip_settings()


def test_uvs_own_configuration_wins(no_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example.org/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example.org/simple")
    monkeypatch.setenv("UV_PYTHON", "2.7")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    variables = pip.host_settings().environment()
    assert variables["UV_DEFAULT_INDEX"] == "https://uv.example.org/simple"
    assert not {"UV_PYTHON", "VIRTUAL_ENV"} & variables.keys()


def test_options_of_files_come_over_the_hosts() -> None:
    host = Indexes("https://mirror/simple", ("https://extra/simple",), ("/wheels",))
    merged = Indexes("https://theirs/simple", ("https://more/simple",)).over(host)
    assert merged.index == "https://theirs/simple"
    assert merged.extra == ("https://extra/simple", "https://more/simple")
    assert Indexes(no_index=True).over(host) == Indexes(None, (), ("/wheels",), no_index=True)


def test_secrets_of_the_shell_do_not_reach_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("UV_INDEX_OURS_PASSWORD", "y")
    variables = pip.host_settings().environment()
    assert "AWS_SECRET_ACCESS_KEY" not in variables
    assert variables["UV_INDEX_OURS_PASSWORD"] == "y"


def test_a_malformed_pip_conf_is_named(no_index: Path, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("index-url = nowhere\n")
    with pytest.raises(UsageError, match=r"pip\.conf is malformed"):
        pip.host_settings()


def test_sources_are_part_of_the_key(no_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pip.host_settings().identity()
    assert pip.host_settings().identity() == before
    make_wheel(no_index, "colours", "3.0", "")
    more = pip.host_settings().identity()
    assert more != before
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://me:secret@extra.example.org/simple")
    other = pip.host_settings().identity()
    assert other != more
    assert "secret" not in str(other)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://me:changed@extra.example.org/simple")
    assert pip.host_settings().identity() == other


# ----------------------------------------------------------------------------------------------------- installation


def test_the_hosts_wheel_folder_is_used(python: Path, no_index: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    pip.install(python, read(tmp_path, "shapes"), tmp_path / "scratch", lines.append)
    assert pip.freeze(python) == ("colours==1.0", "shapes==1.0")
    assert list((tmp_path / "venv").glob("lib/*/site-packages/__pycache__/colours*.pyc"))
    assert any("colours" in line for line in lines)
    assert not (tmp_path / "scratch").exists()


def test_without_an_index_nobody_is_asked(python: Path, no_index: Path, tmp_path: Path) -> None:
    """An admin who forbids the index means it, also where a project names one, and for what a build needs."""
    asked: list[str] = []

    class Counting(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None: ...

    package = local_package(tmp_path / "p" / "sdk", "sdkpackage")
    (package / "pyproject.toml").write_text(PYPROJECT.replace("[]", '["absent"]', 1))
    with _serving(tmp_path, Counting) as port:
        os.environ["UV_DEFAULT_INDEX"] = f"http://127.0.0.1:{port}"
        for line in ("colours==9", "./sdk"):
            with pytest.raises(EnvironmentBuildFailed):
                pip.install(python, read(tmp_path / "p", line), tmp_path / "scratch", print)
    assert asked == []


def test_an_index_that_does_not_answer_is_the_networks_fault(
    python: Path, no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/simple\n")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(RepositoryUnreachable) as caught:
        pip.install(python, read(tmp_path, "colours==9"), tmp_path / "scratch", print)
    assert "127.0.0.1:9" in caught.value.quote
    assert caught.value.exit_code == 6


def test_local_packages_become_wheels(python: Path, no_index: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    package = local_package(checkout / "sdk", "sdkpackage", "VALUE = 1\n")
    make_repository(checkout, {})
    before = base.hash_tree(package)
    status = git(checkout, "status", "--porcelain", "--ignored")
    pip.install(python, read(checkout, "-e ./sdk", "colours"), tmp_path / "scratch", print)
    assert git(checkout, "status", "--porcelain", "--ignored") == status
    assert base.hash_tree(package) == before
    shutil.rmtree(checkout)
    done = process.run([python, "-c", "import sdkpackage; print(sdkpackage.VALUE, sdkpackage.__file__)"])
    assert done.stdout.startswith(f"1 {tmp_path / 'venv'}")
    assert pip.freeze(python) == ("colours==2.0", "sdkpackage==1.0")


def test_a_build_can_ask_git(python: Path, no_index: Path, tmp_path: Path) -> None:
    """As setuptools-scm does, for the version and for the files of a package below the root."""
    package = local_package(tmp_path / "checkout" / "lib" / "sdk", "sdkpackage")
    asks = "import subprocess; open('sdkpackage.py', 'w').write('FILES = %r' % subprocess.getoutput('git ls-files'))\n"
    (package / "backend.py").write_text(asks + (package / "backend.py").read_text())
    make_repository(tmp_path / "checkout", {"lib/other.py": ""})
    pip.install(python, read(tmp_path / "checkout", "./lib/sdk"), tmp_path / "scratch", print)
    done = process.run([python, "-c", "import sdkpackage; print(sdkpackage.FILES)"])
    assert done.stdout.split() == ["backend.py", "pyproject.toml", "sdkpackage.py"]
    assert git(tmp_path / "checkout", "status", "--porcelain") == ""


def test_a_wheel_in_the_repository_is_installed(python: Path, no_index: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "checkout" / "vendor", "ours", "1.5", "")
    requirements = read(tmp_path / "checkout", "./vendor/ours-1.5-py3-none-any.whl ; python_version > '3'")
    pip.install(python, requirements, tmp_path / "scratch", print)
    assert pip.freeze(python) == ("ours==1.5",)


def test_constraints_hold(python: Path, no_index: Path, tmp_path: Path) -> None:
    pip.install(python, read(tmp_path, "colours", "-c c.txt", files={"c.txt": "colours<2\n"}), tmp_path / "s", print)
    assert pip.freeze(python) == ("colours==1.0",)


def test_a_failure_shows_the_deciding_lines(python: Path, no_index: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildFailed) as caught:
        pip.install(python, read(tmp_path, "colours==9"), tmp_path / "scratch", print)
    assert "colours==9" in caught.value.quote
    assert "no version" in caught.value.quote
    assert caught.value.hint


def test_a_failing_build_shows_the_backends_error(python: Path, no_index: Path, tmp_path: Path) -> None:
    package = local_package(tmp_path / "checkout" / "sdk", "sdkpackage")
    (package / "backend.py").write_text("def build_wheel(*_, **__):\n    raise RuntimeError('no compiler was found')\n")
    with pytest.raises(EnvironmentBuildFailed) as caught:
        pip.install(python, read(tmp_path / "checkout", "./sdk"), tmp_path / "scratch", print)
    assert "RuntimeError: no compiler was found" in caught.value.quote


def test_missing_requirements_are_noticed(python: Path, no_index: Path, tmp_path: Path) -> None:
    pip.install(python, read(tmp_path, "shapes", "--no-deps"), tmp_path / "scratch", print)
    assert "shapes" in pip.check(python)[0]


def test_a_password_is_sent_and_not_shown(python: Path, no_index: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    class Guarded(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = "Basic " + base64.b64encode(b"me:hunter2").decode()
            seen.extend(path.read_text() for path in _command_lines())
            if self.headers.get("Authorization") != wanted:
                self.send_error(401)
                return
            super().do_GET()

        def log_message(self, *_: Any) -> None: ...

    make_wheel(tmp_path / "index" / "guarded", "guarded", "1.0", "")
    with _serving(tmp_path / "index", Guarded) as port:
        lines: list[str] = []
        url = f"http://me:hunter2@127.0.0.1:{port}"
        (tmp_path / "pip.conf").write_text("[global]\n")
        requirements = read(tmp_path, f"--index-url {url}", f"{url}/guarded/guarded-1.0-py3-none-any.whl")
        pip.install(python, requirements, tmp_path / "scratch", lines.append)
    assert pip.freeze(python) == (f"guarded @ http://127.0.0.1:{port}/guarded/guarded-1.0-py3-none-any.whl",)
    assert seen
    assert "hunter2" not in "".join([*seen, *lines])


def test_a_full_disk_is_told_apart() -> None:
    error = base.build_failed(
        "It failed.", ["error: failed to write", "  Caused by: No space left on device (os error 28)"]
    )
    assert isinstance(error, DiskFull)


# ---------------------------------------------------------------------------------------------------------- content


def test_trees_are_hashed_by_what_a_build_reads(tmp_path: Path) -> None:
    package = local_package(tmp_path / "a", "x")
    digest = base.hash_tree(package)
    for ignored in (".git/HEAD", "__pycache__/x.pyc", "x.egg-info/PKG-INFO", "build/lib/x.py", "dist/x.whl"):
        (package / ignored).parent.mkdir(parents=True, exist_ok=True)
        (package / ignored).write_text("x")
    assert base.hash_tree(package) == digest
    shutil.copytree(package, tmp_path / "b")
    assert base.hash_tree(tmp_path / "b") == digest
    for name in ("x.py", "build/tool.py"):
        (tmp_path / "b" / name).write_text("changed")
        changed = base.hash_tree(tmp_path / "b")
        assert changed != digest
        digest = changed
    (tmp_path / "b" / "x.py").chmod(0o755)
    assert base.hash_tree(tmp_path / "b") != digest


def test_a_symlink_must_not_leave_its_tree(tmp_path: Path) -> None:
    package = local_package(tmp_path / "a", "x")
    (package / "data").symlink_to("/etc/hostname")
    with pytest.raises(InvalidProject, match="symlink that leaves"):
        base.hash_tree(package)


def _command_lines() -> Iterator[Path]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            path.read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        yield path


class _serving:  # noqa: N801 - reads as a verb
    def __init__(self, folder: Path, handler: Any) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *words: handler(*words, directory=str(folder)))

    def __enter__(self) -> int:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.server.server_address[1]

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
