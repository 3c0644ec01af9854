"""py-rattler: solve, install, activate; its errors as ours. https://conda.github.io/rattler/py-rattler/"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from segserve import layout, process
from segserve.environments import channels as sources
from segserve.environments.base import Report
from segserve.environments.indexes import host_settings
from segserve.environments.walls import OPEN, Walls, own_files
from segserve.errors import BackendError, DiskFull, EnvironmentBuildFailed, InvalidProject, RepositoryUnreachable

if TYPE_CHECKING:
    from rattler import ChannelPriority, RepoDataRecord
    from rattler.install import InstallerReporter

AUTHOR = "The author of the executor has to correct its conda file; `--channel` takes packages from elsewhere."
LIMIT = timedelta(minutes=10)
_T = TypeVar("_T")


def check(specs: Sequence[str], source: str) -> None:
    """Whether conda can read these requirements of the file `source`.

    Raises:
        InvalidProject: one of them is malformed.
    """
    from rattler import MatchSpec
    from rattler.exceptions import InvalidMatchSpecError, InvalidPackageNameError

    for text in specs:
        try:
            MatchSpec(text, strict=False)
        except (InvalidMatchSpecError, InvalidPackageNameError) as error:
            raise InvalidProject(f"{source}: '{text}' is no conda requirement: {error}.", hint=AUTHOR) from None


def virtual_packages() -> list[str]:
    """What of this machine packages depend on (`__glibc=2.36=0`, `__cuda=12.4=0`), without the kernel's version.

    `CONDA_OVERRIDE_CUDA` and its like are respected.
    """
    return [text.partition("=")[0] if text.startswith("__linux=") else text for text in map(str, _detected())]


def solve(specs: Sequence[str], channels: Sequence[str], report: Report, *, pip: bool) -> list[RepoDataRecord]:
    """What to install for these requirements from these channels (as recorded: `channels.real` has the URLs).

    Strict channel priority first, as conda recommends; then every channel for every package, because conda's default
    (flexible) finds such solutions too. `pip`: Python brings pip with it, as conda has it.

    Raises:
        EnvironmentBuildFailed: there is no solution; `quote` has the solver's words.
        RepositoryUnreachable: a channel does not answer.
    """
    from rattler import ChannelPriority
    from rattler.exceptions import SolverError

    priorities = [ChannelPriority.Strict] + ([ChannelPriority.Disabled] if len(channels) > 1 else [])
    failure = ""
    for priority in priorities:
        try:
            with _channel_errors(channels):
                records = _run(_solve(specs, channels, priority, pip=pip))
        except SolverError as error:
            failure = sources.without_tokens(str(error)).strip()
            continue
        report(f"{len(records)} packages, {sum(record.size or 0 for record in records) / 1e6:.0f} MB")
        return sorted(records, key=lambda record: record.name.normalized)
    for line in failure.splitlines():
        report(line)
    raise EnvironmentBuildFailed(
        "The conda packages of this executor cannot be installed together.",
        hint=_solver_hint(failure),
        quote="\n".join(failure.splitlines()[:15]),
    )


async def _solve(
    specs: Sequence[str], channels: Sequence[str], priority: ChannelPriority, *, pip: bool
) -> list[RepoDataRecord]:
    from rattler import Client, Gateway, MatchSpec
    from rattler import solve as rattler_solve

    chosen = [sources.real(url) for url in channels]
    return await rattler_solve(
        chosen,
        [MatchSpec(sources.aimed(text, chosen), strict=False) for text in specs],
        gateway=Gateway(cache_dir=_cache() / "repodata", client=Client.default_client()),
        virtual_packages=_detected(),
        channel_priority=priority,
        add_pip_as_python_dependency=pip,
        timeout=LIMIT,
    )


def _solver_hint(text: str) -> str:
    if "__cuda" in text:
        return "It wants an NVIDIA driver that this machine lacks. To build anyway: CONDA_OVERRIDE_CUDA=12.4 segserve …"
    if "__glibc" in text or "__archspec" in text:
        return "It wants a newer system than this machine's."
    return AUTHOR


def _detected() -> list[Any]:
    from rattler import VirtualPackage, VirtualPackageOverrides

    found = VirtualPackage.detect(VirtualPackageOverrides.from_env(), cache_dir=_cache() / "detection")
    return [package.into_generic() for package in found]


def _progress(report: Report) -> InstallerReporter:
    """One line per package that is fetched, and per script that runs. rattler calls from several threads."""
    from rattler.install import InstallerReporter

    lock = threading.Lock()

    def say(line: str) -> int:
        with lock:
            report(line)
        return 0

    class Lines(InstallerReporter):
        def on_populate_cache_start(self, operation: int, package_name: str) -> int:
            return say(f"Fetching {package_name}")

        def on_post_link_start(self, package_name: str, script_path: str) -> int:
            return say(f"Running {script_path} of {package_name}")

    return Lines()  # type: ignore[abstract] # the methods of this Protocol do nothing by default, and say so


def install(records: list[RepoDataRecord], prefix: Path, report: Report, walls: Walls = OPEN) -> None:
    """Unpack and link; then the packages' own scripts, in `walls`.

    Raises:
        EnvironmentBuildFailed, RepositoryUnreachable, DiskFull.
    """
    from rattler.exceptions import ExtractError, InstallerError, IoError, LinkError, TransactionError

    prefix.mkdir(parents=True, exist_ok=True)
    report(f"Installing into {prefix}")
    try:
        with _channel_errors([]):
            _run(_install(records, prefix, report, scripts=not walls.shut_in))
    except (InstallerError, ExtractError, LinkError, TransactionError, IoError) as error:
        text = str(error)
        for line in text.splitlines():
            report(sources.without_tokens(line))
        if "No space left" in text or "os error 28" in text:
            raise DiskFull("There is no room for the environment.", hint="Make room, or move SEGSERVE_HOME.") from None
        if re.search(r"error sending request|dns error|timed out|connection", text, re.I):
            raise _unreachable(text) from None
        raise EnvironmentBuildFailed(
            "A conda package cannot be installed.",
            hint="If the text speaks of a hash, a broken download lies in the cache: try again.",
            quote=sources.without_tokens(text),
        ) from None
    if walls.shut_in:
        own_files(prefix)
        _link_scripts(records, prefix, report, walls)


def _link_scripts(records: Sequence[RepoDataRecord], prefix: Path, report: Report, walls: Walls) -> None:
    """As rattler runs them, in its order; one that fails is a line of the log."""
    for record in type(records[0]).sort_topologically(list(records)) if records else ():
        name = record.name.normalized
        script = prefix / "bin" / f".{name}-post-link.sh"
        if not script.is_file():
            continue
        about = {"PKG_NAME": name, "PKG_VERSION": str(record.version), "PKG_BUILDNUM": str(record.build_number)}
        path = os.pathsep.join([str(prefix / "bin"), "/usr/bin", "/bin"])
        environment = {"PATH": path, "PREFIX": str(prefix), "CONDA_PREFIX": str(prefix), **about}
        report(f"Running {script.name} of {name}")
        done = walls.run(["bash", script], folder=prefix, environment=environment, on_line=report, check=False)
        if done.code != 0:
            report(f"{script.name} has failed with exit code {done.code}")


async def _install(records: list[RepoDataRecord], prefix: Path, report: Report, *, scripts: bool) -> None:
    from rattler import Client
    from rattler import install as rattler_install

    await rattler_install(
        records,
        prefix,
        cache_dir=_cache() / "pkgs",
        execute_link_scripts=scripts,  # as conda does; they come from where the packages' code comes from
        show_progress=False,
        client=Client.default_client(),  # made here, since it reads proxies and certificates at once: see _connection
        reporter=_progress(report),
    )


def compile_bytecode(python: Path, report: Report, walls: Walls = OPEN) -> None:
    """Bytecode for everything: rattler leaves it to the first import, which in a read-only prefix never lasts."""
    code = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/")}
    try:
        asked = walls.run([python, "-I", "-c", code], folder=python.parent, environment=environment, timeout=120)
        library = asked.stdout.strip()
    except (process.CommandFailed, OSError) as error:
        raise EnvironmentBuildFailed("The Python from the conda channel does not run here.", quote=str(error)) from None
    report("Compiling bytecode")
    # Files that do not compile (templates, other versions' syntax) are usual: the exit code says nothing.
    argv = [str(python), "-I", "-m", "compileall", "-qq", "-j", "0", library]
    walls.run(argv, folder=python.parent, environment=environment, check=False)


def activation(prefix: Path, report: Report, walls: Walls = OPEN) -> tuple[tuple[str, ...], dict[str, str]]:
    """PATH entries and variables that `conda activate` would set, found by running its scripts once in a bare shell."""
    from rattler.shell import ActivationVariables, Shell, activate

    plain = {"CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": str(prefix)}
    if not (prefix / "etc" / "conda").is_dir() and not (prefix / "conda-meta" / "state").is_file():
        return (str(prefix / "bin"),), plain
    path = ["/usr/bin", "/bin"]
    base = {"PATH": os.pathsep.join(path), "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    script = activate(prefix, ActivationVariables(None, path), Shell.bash).script
    bash, env = shutil.which("bash"), shutil.which("env")
    if not bash or not env:
        report("There is no bash here: what the packages' activation scripts would set is not set.")
        return (str(prefix / "bin"),), plain
    argv = [bash, "-c", f"{{ {script}\n}} >&2\nexec {env} -0"]
    done = walls.run(argv, folder=prefix, environment=base, check=False, timeout=120)
    after = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
    if done.code != 0 or "PATH" not in after:
        report(f"The activation scripts of the packages failed: {done.stderr.strip()}")
        return (str(prefix / "bin"),), plain
    added = [entry for entry in dict.fromkeys(after["PATH"].split(os.pathsep)) if entry and entry not in path]
    ignored = {*base, "PWD", "OLDPWD", "SHLVL", "_", "CONDA_SHLVL", "PS1"}
    variables = {name: value for name, value in after.items() if name not in ignored and "%%" not in name}
    return tuple(added), {**plain, **variables}


def _cache() -> Path:
    """Packages, repodata: shared by all environments of this home; rattler locks every entry of it."""
    configured = os.environ.get("RATTLER_CACHE_DIR")
    return Path(configured) if configured else layout.home().cache / "conda"


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run rattler's coroutine to its end, also from a thread whose event loop runs (a notebook's)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _finished(work)
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(_finished(work))
        except BaseException as error:  # handed to the caller's thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=body, name="rattler")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _finished(work: Coroutine[Any, Any, _T]) -> _T:
    with _connection():
        try:
            return asyncio.run(work)
        finally:
            # The worker that hands the result over still holds Python for a moment. An interpreter that ends just
            # then (a failed solve is the last thing a command does) crashes: 7 of 100 runs under load, none with this.
            # https://github.com/PyO3/pyo3-async-runtimes/issues/40
            time.sleep(0.1)


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Proxies and certificates that only pip's configuration names: rattler reads them from the environment."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE")
    given = {name: value for name, value in host_settings().variables.items() if name in names}
    added = {name: value for name, value in given.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _channel_errors(channels: Sequence[str]) -> Iterator[None]:
    from rattler.exceptions import FetchRepoDataError, GatewayError, InvalidChannelError, InvalidUrlError

    try:
        yield
    except (InvalidChannelError, InvalidUrlError) as error:
        raise InvalidProject(f"A conda channel is malformed: {error}.", hint=AUTHOR) from None
    except (GatewayError, FetchRepoDataError) as error:
        text = str(error)
        if "could not find subdir" in text:
            raise EnvironmentBuildFailed(
                f"There is no such conda channel: {', '.join(channels)}.",
                hint=AUTHOR,
                quote=sources.without_tokens(text),
            ) from None
        raise _unreachable(text) from None


def _unreachable(text: str) -> BackendError:
    if re.search(r"client error \(40[137]", text):
        return RepositoryUnreachable(
            "A conda channel wants credentials, or other ones.",
            hint="Name the channel with them (https://user:password@…), or in the file that RATTLER_AUTH_FILE names.",
            quote=sources.without_tokens(text),
        )
    return RepositoryUnreachable(
        "A conda channel cannot be reached.",
        hint="Behind a proxy: set HTTPS_PROXY. With a mirror: mirrors or channels under [environments] in config.toml.",
        quote=sources.without_tokens(text),
    )
