"""bubblewrap's arguments for one attempt, and whether it works on this machine."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from segserve import process
from segserve.errors import BackendError
from segserve.model import Sandbox

DOORWAY = Path(__file__).with_name("doorway.py")
OUTSIDE_PORT = 3128  # of the proxy to the outside, in the sandbox's own network
_INSIDE = Path("/run/segserve")  # where door and doorway are, inside
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Of /etc what programs need to start, find names, certificates and the time; no passwords, no configuration of others.
_ETC = (
    *("alternatives", "ca-certificates", "crypto-policies", "fonts", "group", "host.conf", "hosts", "ld.so.cache"),
    *("ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "nsswitch.conf", "OpenCL", "passwd", "pki", "protocols"),
    *("services", "ssl", "timezone"),
)
_APART = ("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
# What of the service's environment is of no use inside, or none of the executor's business.
_SERVICE = ("XDG_", "TORCH_HOME", "HF_HOME", "DOCKER_", "AWS_", "AZURE_", "GOOGLE_", "MLFLOW_S3_")
HTTP_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_PROXIES = (*HTTP_PROXIES, "ftp_proxy", "all_proxy", "FTP_PROXY", "ALL_PROXY")
_CONFINED = (*_APART, "--cap-drop", "ALL", "--die-with-parent")


def require() -> None:
    """Refuse to begin what could not be shut in.

    Raises:
        BackendError: bubblewrap is missing, or the kernel does not let us make namespaces.
    """
    problem = _problem(os.environ.get("PATH", os.defpath))
    if problem:
        raise BackendError(
            f"Executors are to be shut in by bubblewrap, but {problem}.",
            hint="Whoever runs this machine installs bubblewrap (`apt-get install bubblewrap`) and allows unprivileged "
            'user namespaces. Or, knowing that executors then run as you and see your files: `kind = "none"` under '
            "[sandbox] in config.toml. docs/isolation.md says more.",
        )


@functools.cache
def _problem(path: str) -> str:
    program = shutil.which("bwrap", path=path)
    if program is None:
        return "there is no `bwrap` on PATH"
    argv = [program, *_CONFINED, *_system(), "--proc", "/proc", "--dev", "/dev", "true"]
    done = process.run(argv, check=False, timeout=20)
    return "" if done.code == 0 else f"it does not work here: {done.stderr.strip() or f'exit code {done.code}'}"


@functools.cache
def _sizes(program: str) -> bool:
    """Whether it can bound a folder that is memory (0.7 and later). Without, half of the machine's is the bound."""
    return "--size" in process.run([program, "--help"], check=False, timeout=20).stdout


def command(
    sandbox: Sandbox,
    *,
    project: Path,
    door: Path,
    ports: Sequence[int],
    processes: int,
    memory: int,
    variables: Mapping[str, str],
) -> list[str]:
    """The command in front of what is to run in the sandbox. `door` is the unix socket on which the gate waits.

    `variables` are set inside only: bubblewrap itself must not heed an executor's LD_PRELOAD or PATH.
    `processes` (threads count) and `memory` (bytes, of each folder that is memory) are limits; 0: none.
    """
    python, program = Path(sys.executable).resolve(), shutil.which("bwrap") or "bwrap"
    argv = [program, *_CONFINED, *_system(), "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp", "/var/tmp"):  # noqa: S108 - its own
        argv += [*(("--size", str(memory)) if memory and _sizes(program) else ()), "--tmpfs", folder]
    for device in sandbox.devices:
        argv += ["--dev-bind", device, device]
    for path, writable in _outer_first(sandbox, Path(sys.base_prefix).resolve()):
        argv += ["--bind" if writable else "--ro-bind", path, path]
    argv += ["--ro-bind", str(DOORWAY), f"{_INSIDE}/doorway.py", "--ro-bind", str(door), f"{_INSIDE}/door"]
    for name, value in variables.items():
        argv += ["--setenv", name, value]
    argv += ["--remount-ro", "/", "--chdir", str(project), "--"]
    numbers = ",".join(str(port) for port in ports)
    return [*argv, str(python), "-I", "-S", f"{_INSIDE}/doorway.py", f"{_INSIDE}/door", str(processes), numbers]


def proxies(sandbox: Sandbox) -> dict[str, str]:
    """The variables by which an executor finds the way outside, if there is one."""
    return dict.fromkeys(HTTP_PROXIES, f"http://127.0.0.1:{OUTSIDE_PORT}") if sandbox.network else {}


def enter(sandbox: Sandbox) -> None:
    """Make this process's environment that of an executor that is shut in."""
    for name in [name for name in os.environ if name.startswith(_SERVICE) or name in _PROXIES]:
        del os.environ[name]
    scratch = "/tmp"  # noqa: S108 - its own
    os.environ |= {"HOME": sandbox.home, "TMPDIR": scratch, "MPLCONFIGDIR": scratch, "NUMBA_CACHE_DIR": scratch}
    os.environ |= proxies(sandbox)


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _MERGED:
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    yield from ("--ro-bind-try", "/sys/devices/system", "/sys/devices/system")  # how many cores there are


def _outer_first(sandbox: Sandbox, python: Path) -> Iterator[tuple[str, bool]]:
    """All paths with whether they may be written; what lies in another comes after it. Links stay at their places."""
    shown: dict[Path, bool] = {}
    if not python.is_relative_to("/usr"):
        shown[python] = False
    shown |= {Path(path): False for path in sandbox.read_only}
    shown |= {Path(path): True for path in sandbox.writable}
    for path, writable in sorted(shown.items(), key=lambda item: item[0].parts):
        yield str(path), writable
