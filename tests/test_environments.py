"""Built once per content, under a lock, found again, removed; and what is left when a build fails or is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from segserve import environments, project, store
from segserve.environments import BuildOptions, base, conda, docker, local, pip, uv
from segserve.errors import DiskFull, EnvironmentBuildFailed, InvalidParameters, NoSlot, NotFound, UsageError
from segserve.layout import Home
from segserve.model import Environment
from tests.channel import make_wheel
from tests.packages import local_package
from tests.repositories import make_repository
from tests.test_uv import detect, make_project, python_env

pytest_plugins = ["tests.packages"]


def prepare(home: Home, found: project.Project, phases: list[str] | None = None) -> Environment:
    return environments.prepare(home, found, detect(found), phase=(phases if phases is not None else []).append)


def prefixes(home: Home) -> list[Path]:
    """Everything below envs/ that a build has made."""
    return sorted(home.environments.glob("*/*/"))


# ----------------------------------------------------------------------------------------------------------- building


def test_built_once_then_found(tmp_path: Path, home: Home, no_index: Path) -> None:
    found = python_env(tmp_path / "p", "colours")
    spec, phases = detect(found), list[str]()
    assert not environments.is_built(home, spec)
    first = prepare(home, found, phases)
    assert phases == ["Building the environment (uv: python_env.yaml)"]
    began = time.process_time()
    second = environments.prepare(home, found, spec, phase=phases.append)
    assert time.process_time() - began < 0.05  # nothing is hashed or asked again
    assert (second, len(phases)) == (first, 1)
    assert environments.is_built(home, spec)
    (entry,) = environments.built(home)
    assert (entry.key, entry.environment) == (spec.key, first)
    assert entry.python == ".".join(str(part) for part in sys.version_info[:3])
    assert entry.size_bytes > 100_000
    assert "colours==2.0" in entry.environment.packages


def test_the_same_content_in_another_repository_is_the_same(tmp_path: Path, home: Home, no_index: Path) -> None:
    one = prepare(home, python_env(tmp_path / "one", "colours"))
    text = 'dependencies:\n- colours  # of another author\npython: "' + detect_python() + '"\nnonsense: 1\n'
    other = make_project(tmp_path / "two", "python_env: env.yaml", env__yaml=text)
    phases: list[str] = []
    two = prepare(home, other, phases)
    assert (two.location, phases) == (one.location, [])
    assert two.spec.source == "env.yaml"
    assert any("nonsense" in warning for warning in two.spec.warnings)
    assert not any("nonsense" in warning for warning in one.spec.warnings)


def detect_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def test_conflicting_packages_are_a_warning_also_later(tmp_path: Path, home: Home, no_index: Path) -> None:
    found = python_env(tmp_path / "p", "--no-deps", "shapes")
    for _ in range(2):
        warnings = prepare(home, found).spec.warnings
        assert any("shapes" in warning and "do not fit" in warning for warning in warnings)


def test_a_failure_leaves_its_log_and_nothing_else(tmp_path: Path, home: Home, no_index: Path) -> None:
    found = python_env(tmp_path / "p", "colours==9")
    lines: list[str] = []
    with pytest.raises(EnvironmentBuildFailed) as caught:
        environments.prepare(home, found, detect(found), report=lines.append)
    assert "colours==9" in caught.value.quote
    assert caught.value.log is not None
    assert "colours==9" in caught.value.log.read_text()
    assert prefixes(home) == []
    assert environments.built(home) == []
    assert any("colours==9" in line for line in lines)
    make_wheel(no_index, "colours", "9", "")
    assert "colours==9" in prepare(home, found).packages


def test_a_full_disk_says_so(tmp_path: Path, home: Home, no_index: Path) -> None:
    found = python_env(tmp_path / "p", "colours")
    home.environment_log(detect(found).key).symlink_to("/dev/full")
    with pytest.raises(DiskFull) as caught:
        prepare(home, found)
    assert "env gc" in caught.value.hint
    assert prefixes(home) == []


def test_a_broken_environment_is_built_again(tmp_path: Path, home: Home, no_index: Path) -> None:
    found, phases = python_env(tmp_path / "p", "colours"), list[str]()
    first = prepare(home, found)
    (Path(first.location) / "bin" / "python").unlink()
    second = prepare(home, found, phases)
    assert "is broken" in phases[0]
    assert not Path(first.location).exists()
    assert uv.health(second) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_marker_counts_as_none(tmp_path: Path, home: Home, no_index: Path, content: str) -> None:
    found = python_env(tmp_path / "p", "colours")
    folder = home.environment(detect(found).key)
    folder.path.mkdir()
    folder.marker.write_text(content)
    assert environments.built(home) == []
    prepare(home, found)
    assert json.loads(folder.marker.read_text())["python"]


# -------------------------------------------------------------------------------------------------- several processes

WORKER = """
import sys
from pathlib import Path
from segserve import environments, project
from segserve.environments import BuildOptions
from segserve.layout import Home

found = project.load(Path(sys.argv[2]))
spec = environments.detect(found, BuildOptions())
say = lambda text: print(text, flush=True)
environment = environments.prepare(Home(Path(sys.argv[1])), found, spec, phase=say, report=say)
print("LOCATION", environment.location, flush=True)
"""

Worker = subprocess.Popen
Value = TypeVar("Value")


@pytest.fixture
def worker(home: Home) -> Iterator[Callable[[Path], Worker[str]]]:
    """Start `prepare` for a project in a process of its own."""
    started: list[Worker[str]] = []

    def start(folder: Path) -> Worker[str]:
        argv = [sys.executable, "-c", WORKER, str(home.path), str(folder)]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_many_need_it_one_builds_it(
    tmp_path: Path, home: Home, no_index: Path, worker: Callable[[Path], Worker[str]]
) -> None:
    found = python_env(tmp_path / "p", "./sdk")
    slow_package(tmp_path / "p", tmp_path / "slow", seconds=1.5)
    texts = [process.communicate(timeout=60)[0] for process in [worker(found.folder) for _ in range(4)]]
    assert sum("Building the environment" in text for text in texts) == 1
    assert sum("Another job builds this environment" in text for text in texts) == 3
    assert len({text.splitlines()[-1] for text in texts}) == 1
    assert len(prefixes(home)) == 1


def test_a_killed_build_leaves_no_process_and_nothing_that_looks_built(
    tmp_path: Path, home: Home, no_index: Path, worker: Callable[[Path], Worker[str]]
) -> None:
    found = python_env(tmp_path / "p", "./sdk")
    slow_package(tmp_path / "p", tmp_path / "slow", seconds=300)
    process = worker(found.folder)
    builder = await_(lambda: building(tmp_path))
    process.send_signal(signal.SIGKILL)
    await_(lambda: not builder.is_running() or builder.status() == psutil.STATUS_ZOMBIE)
    assert environments.built(home) == []
    (dead,) = prefixes(home)
    (tmp_path / "slow").unlink()
    environment = prepare(home, found)
    assert uv.health(environment) is None
    assert prefixes(home) == [Path(environment.location).parent] != [dead]


def test_the_next_build_clears_what_a_dead_one_left(tmp_path: Path, home: Home, no_index: Path) -> None:
    found = python_env(tmp_path / "p", "colours")
    left = home.environment(detect(found).key).path / "0123abcd" / "prefix"
    left.mkdir(parents=True)
    environment = prepare(home, found)
    assert not left.exists()
    assert prefixes(home) == [Path(environment.location).parent]


def slow_package(folder: Path, flag: Path, *, seconds: float) -> None:
    """`sdk`, whose build takes a while as long as `flag` (which is not part of its content) exists."""
    flag.touch()
    backend = local_package(folder / "sdk", "sdkpackage") / "backend.py"
    slow = f"import os, time; time.sleep({seconds} if os.path.exists({str(flag)!r}) else 0)"
    backend.write_text(f"{slow}\n{backend.read_text()}")


def building(folder: Path) -> psutil.Process | None:
    """The process of a package's build below `folder`."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "build_wheel" in " ".join(process.info["cmdline"] or []) and str(folder) in str(process.info["cwd"]):
            return process
    return None


def await_(question: Callable[[], Value], seconds: float = 20) -> Value:
    """What `question` answers as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = question()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


# ----------------------------------------------------------------------------------------------------------- the key


def test_the_key_follows_content(tmp_path: Path, no_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a build reads changes the key, nothing else does."""
    folder = tmp_path / "p"
    found = python_env(
        folder, "-r requirements.txt", "./sdk", requirements__txt="colours\n-c limits.txt\n", limits__txt=""
    )
    local_package(folder / "sdk", "sdkpackage")
    keys = [detect(found).key]

    def key() -> str:
        return detect(project.load(folder)).key

    def edit(name: str, text: str) -> Callable[[], object]:
        return lambda: (folder / name).write_text(text)

    neutral = [
        edit("main.py", "print(1)\n"),
        edit("requirements.txt", "# a comment\ncolours   # another\n\n-c limits.txt\n"),
        lambda: make_repository(folder, {}, message="another commit"),
        lambda: shutil.copytree(folder / "sdk", folder / "other"),
        lambda: monkeypatch.setenv("PIP_QUIET", "1"),
        lambda: monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128"),
    ]
    deciding = [
        edit("requirements.txt", "colours>=1\n-c limits.txt\n"),
        edit("limits.txt", "colours<2\n"),
        edit("sdk/sdkpackage.py", "VALUE = 2\n"),
        lambda: (folder / "sdk" / "sdkpackage.py").chmod(0o755),
        edit("sdk/data.txt", ""),
        edit("python_env.yaml", (folder / "python_env.yaml").read_text() + "build_dependencies: [setuptools]\n"),
        lambda: make_wheel(no_index, "more", "1.0", ""),
        lambda: monkeypatch.setenv("UV_INDEX_URL", "https://mirror.example.org/simple"),
        lambda: monkeypatch.setenv("UV_EXCLUDE_NEWER", "2024-01-01"),
    ]
    for change in neutral:
        change()
        assert key() == keys[-1]
    for change in deciding:
        change()
        assert key() not in keys
        keys.append(key())
    other = [version for version, _ in environments.uv.interpreters.this_machine().local if version not in keys]
    minors = {version.rpartition(".")[0] for version in other} - {detect_python()}
    for minor in sorted(minors)[:1]:
        assert detect(found, python=minor).key not in keys


def test_keys_tell_kinds_apart() -> None:
    assert base.key_of("uv", {"a": 1}) != base.key_of("conda", {"a": 1})
    assert len(base.key_of("uv", {})) == 20


def test_builders_keep_their_promise() -> None:
    builders: list[base.Builder] = [uv, conda, docker, local]
    assert [builder.kind for builder in builders] == ["uv", "conda", "docker", "local"]
    assert set(environments.BUILDERS) == {builder.kind for builder in builders}


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameters, match="'poetry'"):
        environments.detect(make_project(tmp_path), BuildOptions(kind="poetry"))


# ---------------------------------------------------------------------------------------------------------- clearing


def test_remove(tmp_path: Path, home: Home, no_index: Path) -> None:
    one = prepare(home, python_env(tmp_path / "one", "colours==1.0"))
    two = prepare(home, python_env(tmp_path / "two", "colours==2.0"))
    with pytest.raises(NotFound):
        environments.remove(home, "zzz")
    with pytest.raises(NotFound):
        environments.remove(home, "")
    with pytest.raises(NotFound):
        environments.remove(home, "../repos")
    with pytest.raises(UsageError, match="open job"):
        environments.remove(home, one.spec.key, keep={one.spec.key})
    with store.locked(home.environment(one.spec.key).lock), pytest.raises(NoSlot):
        environments.remove(home, one.spec.key)
    assert environments.remove(home, one.spec.key[:12]) == one.spec.key
    assert [entry.key for entry in environments.built(home)] == [two.spec.key]
    assert not Path(one.location).exists()


def test_collect_garbage(tmp_path: Path, home: Home, no_index: Path) -> None:
    wanted = {"old": "colours==1.0", "kept": "colours==2.0", "fresh": "colours"}
    old, kept, fresh = (prepare(home, python_env(tmp_path / name, line)) for name, line in wanted.items())
    month_ago = time.time() - 31 * 86400
    for environment in (old, kept):
        os.utime(home.environment(environment.spec.key).marker, (month_ago, month_ago))
    orphan = Path(fresh.location).parent.with_name("dead0000")
    orphan.mkdir()
    assert environments.collect_garbage(home, {kept.spec.key}, older_than_days=30) == [old.spec.key]
    assert {entry.key for entry in environments.built(home)} == {kept.spec.key, fresh.spec.key}
    assert not orphan.exists()
    assert uv.health(kept) is uv.health(fresh) is None


def test_what_dead_builds_left_is_garbage(home: Home) -> None:
    (home.environment("0" * 20).path / "0123abcd" / "prefix").mkdir(parents=True)
    with store.locked(home.environment("0" * 20).lock):
        assert environments.collect_garbage(home, set()) == []
    assert environments.collect_garbage(home, set()) == ["0" * 20]
    assert list(home.environments.glob("*/")) == []


def test_use_makes_young_again(tmp_path: Path, home: Home, no_index: Path) -> None:
    found = python_env(tmp_path / "p", "colours")
    marker = home.environment(prepare(home, found).spec.key).marker
    os.utime(marker, (0, 0))
    prepare(home, found)
    assert store.age(marker) < 60


def test_deciding_lines() -> None:
    log = [
        "Downloading numpy (16.5MiB)",
        "warning: something",
        "  × No solution found when resolving dependencies:",
        "  ╰─▶ Because there is no version of x==9 and you require x==9, we can conclude that your",
        "      requirements are unsatisfiable.",
        "Resolved 3 packages",
    ]
    quote = base.deciding_lines(log)
    assert quote.splitlines() == log[2:5]
    assert base.deciding_lines(["something", "strange"]) == "something\nstrange"
    assert len(base.deciding_lines(f"error: {n}" for n in range(100)).splitlines()) <= base.QUOTE_LINES + 1
    assert pip.uv().endswith("uv")
